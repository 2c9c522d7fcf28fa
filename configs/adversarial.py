"""The logits discriminator: the student learns to be taken for its teacher, beside the labels.

After Xu et al., "Training Shallow and Thin Networks for Acceleration via Knowledge Distillation with Conditional
Adversarial Networks", 2018. The discriminator reads log-probabilities beside the teacher's embedding of the image.

    python -m kd_jax.main --config=configs/adversarial.py[:small|:smoke]
    python -m kd_jax.main --config=configs/adversarial.py --term 'adversarial:turns=[30,170]'
"""

from kd_jax.config import recipes


def get_config(arg=""):
    return recipes.published("adversarial", arg)
