"""Decoupled KD: the label's probability and the distribution over the other classes, each with a weight of its own.

Zhao et al., "Decoupled Knowledge Distillation", CVPR 2022; weights and warm-up of its CIFAR-100 configs (beta is 8 for
a ResNet-32x4 and its students, 6 for VGG and wide ResNets, 2 for thin ResNets).

    python -m kd_jax.main --config=configs/dkd.py[:small|:smoke]
    python -m kd_jax.main --config=configs/dkd.py:small --term dkd:beta=2
"""

from kd_jax.config import recipes


def get_config(arg=""):
    return recipes.published("dkd", arg)
