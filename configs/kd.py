"""Knowledge distillation: the student matches its teacher's softened probabilities, beside the labels.

Hinton et al., "Distilling the Knowledge in a Neural Network", 2015; weights and temperature of Tian et al., ICLR 2020.

    python -m kd_jax.main --config=configs/kd.py[:small|:smoke]
    python -m kd_jax.main --config=configs/kd.py --term kd:temperature=2,standardize=true
"""

from kd_jax.config import recipes


def get_config(arg=""):
    return recipes.published("kd", arg)
