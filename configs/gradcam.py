"""Explanation-enhanced KD: beside KD, the student's Grad-CAM maps are pulled towards its teacher's.

Parchami-Araghi et al., "Good Teachers Explain: Explanation-Enhanced Knowledge Distillation", ECCV 2024. The weight 1 is
that of the official script, which has it beside KD at temperature 1 and no labels, on the maps of B-cos networks. A
step has one more forward and backward pass of the student.

    python -m kd_jax.main --config=configs/gradcam.py[:small|:smoke]
    python -m kd_jax.main --config=configs/gradcam.py --term gradcam_alignment:stage=-2,variant=gradcam++
"""

from kd_jax.config import recipes


def get_config(arg=""):
    config = recipes.published("gradcam_alignment", arg)
    config.name = "gradcam"
    return config
