"""FitNet: the student regresses one of its teacher's feature maps, beside the labels.

Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015; in one phase, with the weight and the stage of Tian et
al., ICLR 2020.

    python -m kd_jax.main --config=configs/fitnet.py[:small|:smoke]
"""

from kd_jax.config import recipes


def get_config(arg=""):
    config = recipes.distilled(arg, {"fitnet": {"weight": 100.0, "stage": 2}})
    config.name = "fitnet"
    return config
