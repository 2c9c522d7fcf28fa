"""The teacher of the other experiments, trained alone: cross entropy on the labels.

He et al., "Deep Residual Learning for Image Recognition", CVPR 2016.

    python -m kd_jax.main --config=configs/teacher.py[:small|:smoke]

The experiments train their teacher themselves when it is missing; this file is for a teacher of another seed.
"""

from kd_jax.config import base, recipes


def get_config(arg=""):
    config = base.alone(recipes.teacher(arg))
    config.name = "teacher"
    return config
