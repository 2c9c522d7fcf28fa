"""Relational distillation: distances and angles between the images of a batch, as the teacher's embedding has them.

Park et al., "Relational Knowledge Distillation", CVPR 2019; weights 25 and 50 of Tian et al., ICLR 2020.

    python -m kd_jax.main --config=configs/rkd.py[:small|:smoke]
"""

from kd_jax.config import recipes


def get_config(arg=""):
    return recipes.published("rkd", arg)
