"""Wide residual networks for images of about 32 pixels: wrn_DEPTH_K has depth 6n + 4 and K times the channels.

Zagoruyko and Komodakis, "Wide Residual Networks", BMVC 2016, as the benchmarks of Tian et al., "Contrastive
Representation Distillation", ICLR 2020, have them: blocks of batch norm, ReLU and convolution (pre-activation), and
shortcuts of one convolution that read what the first ReLU gives. A stage's map is the sum that its blocks add up,
without norm and ReLU, as there; its preactivation is that after the batch norm with which the next stage begins.
"""

import functools
from collections.abc import Callable
from typing import Annotated

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike

from kd_jax.keys import FRACTION, WIDTH
from kd_jax.models import layers, torch_names
from kd_jax.models.layers import BatchNorm, Conv, Linear
from kd_jax.models.linen import from_linen
from kd_jax.models.taps import Taps
from kd_jax.types import Array, Network, Norm, Outputs, at_least_float32

FAMILY = {
    "wrn_16_1": (16, 1),
    "wrn_16_2": (16, 2),
    "wrn_16_8": (16, 8),
    "wrn_28_10": (28, 10),
    "wrn_40_1": (40, 1),
    "wrn_40_2": (40, 2),
    "wrn_40_4": (40, 4),
}


class Block(nn.Module):
    """Twice batch norm, ReLU and a 3x3 convolution, beside a shortcut."""

    features: int
    stride: int
    dropout: float
    conv: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> tuple[Array, Array, Norm]:
        """x [B, h, w, c] -> (the sum [B, h / stride, w / stride, features], x after the first norm, that norm)."""
        norm = BatchNorm(name="bn1")
        preactivation = norm(x, train=train)
        y = nn.relu(preactivation)
        if x.shape[-1] != self.features:
            x = self.conv(self.features, 1, self.stride, name="convShortcut")(y)
        y = nn.relu(BatchNorm(name="bn2")(self.conv(self.features, 3, self.stride, name="conv1")(y), train=train))
        y = nn.Dropout(self.dropout, deterministic=not train)(y)
        return x + self.conv(self.features, 3, name="conv2")(y), preactivation, norm.affine


class WideResNet(nn.Module):
    """A 3x3 stem, three stages of blocks (the last two halve the map), batch norm, ReLU, average pooling, `fc`."""

    num_classes: int
    depth: int
    widths: tuple[int, ...]  # of the stem and of each stage
    dropout: float = 0.0
    frozen_backbone: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: Array, *, train: bool, perturbations: tuple[Array | None, ...] | None = None) -> Outputs:
        """images [B, H, W, C], normalized -> Outputs."""
        conv = functools.partial(Conv, dtype=self.dtype)
        taps = Taps(perturbations)
        train = train and not self.frozen_backbone
        x = taps(conv(self.widths[0], 3, name="conv1")(images))
        for stage, width in enumerate(self.widths[1:], start=1):
            for i in range((self.depth - 4) // 6):
                stride = 2 if stage > 1 and i == 0 else 1
                block = Block(width, stride, self.dropout, conv, name=f"block{stage}_layer_{i}")
                x, preactivation, norm = block(x, train=train)
                if i == 0:
                    taps.before_relu(preactivation, norm)  # of the stage before
            x = taps(x)
        bn1 = BatchNorm(name="bn1")
        x = bn1(x, train=train)
        taps.before_relu(x, bn1.affine)
        x = nn.relu(x)
        pooled = at_least_float32(x).mean((1, 2))
        fc = Linear(self.num_classes, bias_init=nn.initializers.zeros, name="fc")
        return taps.outputs(fc(pooled), pooled=pooled, embedding=pooled, head=fc.head, last=x)


def create(
    name: str,
    num_classes: int,
    *,
    width: Annotated[float, WIDTH] = 1.0,
    dropout: Annotated[float, FRACTION] = 0.0,
    frozen_backbone: bool = False,
    dtype: DTypeLike = jnp.float32,
) -> Network:
    """Builds the network of that name, a key of `FAMILY`.

    Args:
      width: factor on every number of channels.
      dropout: between the convolutions of each block; 0.3 in the paper.
      frozen_backbone: all but the head stays in inference mode in training.
      dtype: of the computation.
    """
    depth, k = FAMILY[name]
    widths = layers.scaled((16, 16 * k, 32 * k, 64 * k), width)
    module = WideResNet(num_classes, depth, widths, dropout, frozen_backbone, dtype)
    return from_linen(module, head=("fc",), torch_key=torch_key)


def torch_key(path: tuple[str, ...]) -> str:
    """The key that the benchmarks' implementation has for the variable at a path."""
    return torch_names.dotted(path).replace("_layer.", ".layer.")
