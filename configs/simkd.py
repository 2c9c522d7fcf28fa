"""SimKD: the student's features become its teacher's, whose own classifier then predicts. No label is used.

Chen et al., "Knowledge Distillation with the Reused Teacher Classifier", CVPR 2022. The projector is part of what
predicts, and adds parameters to the student.

    python -m kd_jax.main --config=configs/simkd.py[:small|:smoke]
"""

from kd_jax.config import recipes


def get_config(arg=""):
    return recipes.published("simkd", arg)
