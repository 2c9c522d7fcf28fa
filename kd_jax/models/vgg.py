"""VGG networks with batch normalization for images of about 32 pixels, without fully connected hidden layers.

Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", ICLR 2015, as the
benchmarks of Tian et al., "Contrastive Representation Distillation", ICLR 2020, have them: five blocks of convolutions
of one width, a maximum over 2x2 pixels after the first three (and after the fourth for images of 64 pixels and more),
average pooling, one linear layer. vgg8 is the benchmarks' own. A block's map is the one before it is pooled.
"""

from typing import Annotated

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike

from kd_jax.keys import WIDTH
from kd_jax.models import layers, torch_names
from kd_jax.models.layers import BatchNorm, Conv, Linear
from kd_jax.models.linen import from_linen
from kd_jax.models.taps import Taps
from kd_jax.types import Array, Network, Outputs, at_least_float32

WIDTHS = (64, 128, 256, 512, 512)
FAMILY = {  # convolutions of each block
    "vgg8": (1, 1, 1, 1, 1),
    "vgg11": (1, 1, 2, 2, 2),
    "vgg13": (2, 2, 2, 2, 2),
    "vgg16": (2, 2, 3, 3, 3),
    "vgg19": (2, 2, 4, 4, 4),
}


class VGG(nn.Module):
    """Blocks of 3x3 convolutions with bias, each with batch norm and ReLU; `classifier` on the average."""

    num_classes: int
    depths: tuple[int, ...]
    widths: tuple[int, ...]
    frozen_backbone: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: Array, *, train: bool, perturbations: tuple[Array | None, ...] | None = None) -> Outputs:
        """images [B, H, W, C], normalized -> Outputs."""
        taps = Taps(perturbations)
        train = train and not self.frozen_backbone
        pools = 4 if images.shape[1] >= 64 else 3
        x = images
        for stage, (depth, width) in enumerate(zip(self.depths, self.widths, strict=True)):
            if 0 < stage <= pools:
                x = nn.max_pool(x, (2, 2), (2, 2))
            for i in range(depth):  # of a Sequential of convolution, norm, ReLU
                conv = Conv(width, 3, use_bias=True, dtype=self.dtype, name=f"block{stage}_{3 * i}")
                norm = BatchNorm(name=f"block{stage}_{3 * i + 1}")
                preactivation = norm(conv(x), train=train)
                x = nn.relu(preactivation)
            x = taps(x, preactivation=preactivation, norm=norm.affine)
        pooled = at_least_float32(x).mean((1, 2))
        fc = Linear(self.num_classes, layers.small_init, nn.initializers.zeros, name="classifier")
        return taps.outputs(fc(pooled), pooled=pooled, embedding=pooled, head=fc.head, last=x)


def create(
    name: str,
    num_classes: int,
    *,
    width: Annotated[float, WIDTH] = 1.0,
    frozen_backbone: bool = False,
    dtype: DTypeLike = jnp.float32,
) -> Network:
    """Builds the network of that name, a key of `FAMILY`.

    Args:
      width: factor on every number of channels.
      frozen_backbone: all but the head stays in inference mode in training.
      dtype: of the computation.
    """
    module = VGG(num_classes, FAMILY[name], layers.scaled(WIDTHS, width), frozen_backbone, dtype)
    return from_linen(module, head=("classifier",), torch_key=torch_names.dotted)
