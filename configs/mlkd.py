"""Multi-level logit distillation: instances, classes and batches at five temperatures, on two views of every image.

Jin et al., "Multi-Level Logit Distillation", CVPR 2023, with its weights; the second view is strong: RandAugment
(2, 10) after crop and flip. Both networks run on both views, so a step costs about twice that of KD; compare it with KD
of twice the epochs.

    python -m kd_jax.main --config=configs/mlkd.py[:small|:smoke]
"""

from kd_jax.config import recipes


def get_config(arg=""):
    return recipes.published("mlkd", arg)
