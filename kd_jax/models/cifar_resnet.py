"""The CIFAR ResNets that distillation papers compare: depth 6n + 2 in three stages of n basic blocks.

He et al., CVPR 2016, section 4.2. Widths and the 8x4 and 32x4 pair (four times as wide from the first stage on, after
a stem of 32) follow Tian et al., "Contrastive Representation Distillation", ICLR 2020. Shortcuts that change the shape
are 1x1 convolutions (`shortcut="conv"`), or have no parameters (`shortcut="pad"`, option A of He et al.).
PyTorch's names are those of the usual implementations, whose last layer is `linear`.
"""

from typing import Annotated

import jax.numpy as jnp
from jax.typing import DTypeLike

from kd_jax.keys import WIDTH
from kd_jax.models import layers, resnet
from kd_jax.types import Network

NARROW = (16, 16, 32, 64)
WIDE = (32, 64, 128, 256)

FAMILY = {
    "resnet8": (8, NARROW),
    "resnet14": (14, NARROW),
    "resnet20": (20, NARROW),
    "resnet32": (32, NARROW),
    "resnet44": (44, NARROW),
    "resnet56": (56, NARROW),
    "resnet110": (110, NARROW),
    "resnet8x4": (8, WIDE),
    "resnet32x4": (32, WIDE),
}


def create(
    name: str,
    num_classes: int,
    *,
    stem: str = "cifar",
    width: Annotated[float, WIDTH] = 1.0,
    head: str = "linear",
    shortcut: str = "conv",
    frozen_backbone: bool = False,
    dtype: DTypeLike = jnp.float32,
) -> Network:
    """Builds the network of that name, a key of `FAMILY`; see `resnet.create` for the options."""
    depth, published = FAMILY[name]
    widths = layers.scaled(published, width)
    module = resnet.ResNet(
        num_classes,
        block=resnet.BasicBlock,
        stage_sizes=((depth - 2) // 6,) * 3,
        stem_width=widths[0],
        stage_widths=widths[1:],
        stem=stem,
        head=head,
        shortcut=shortcut,
        frozen_backbone=frozen_backbone,
        dtype=dtype,
    )
    return resnet.network(module, last="linear")
