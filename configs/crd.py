"""Contrastive representation distillation: an image's two embeddings agree, and differ from those of other classes.

Tian et al., "Contrastive Representation Distillation", ICLR 2020, with its weight. The memory of 50,000 images takes 51
MB; the 16,384 negatives of each image and side a gigabyte at a batch of 64, so smaller scales draw fewer.

    python -m kd_jax.main --config=configs/crd.py[:small|:smoke]
"""

from kd_jax.config import recipes


def get_config(arg=""):
    return recipes.published("crd", arg)
