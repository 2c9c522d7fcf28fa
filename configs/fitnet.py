"""FitNet: the student regresses one of its teacher's feature maps, beside the labels.

Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015; in one phase, with the weight and the stage of Tian et
al., ICLR 2020.

    python -m kd_jax.main --config=configs/fitnet.py[:small|:smoke]

The paper's two phases:

    python -m kd_jax.main --config=configs/fitnet.py --term 'fitnet:epochs=[0,30]' \
        --term 'cross_entropy:epochs=[30,null]'
"""

from kd_jax.config import recipes


def get_config(arg=""):
    return recipes.published("fitnet", arg)
