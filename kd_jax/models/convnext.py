"""ConvNeXt: residual blocks of a depthwise 7x7 convolution and a perceptron, with layer normalization.

Liu et al., "A ConvNet for the 2020s", CVPR 2022, by timm's key names; "atto" is timm's own, whose perceptrons are 1x1
convolutions. No map has a ReLU or a batch norm before it, so there are no preactivations. The head normalizes what was
pooled: it is not linear in the averages of the last map.
"""

from collections.abc import Callable
from typing import Annotated

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike

from kd_jax.errors import InputError
from kd_jax.keys import FRACTION, WIDTH
from kd_jax.models import layers, torch_names
from kd_jax.models.layers import Conv, LayerNorm, Linear, Mlp, Patches
from kd_jax.models.linen import from_linen
from kd_jax.models.taps import Taps
from kd_jax.types import Array, Network, Outputs, Preprocessing, at_least_float32

EPSILON = 1e-6
GAMMA = 1e-6  # the factor on what a block adds, at the start
LEAST = 32  # pixels of a side, of which one is left in the last map

# Blocks and channels of each stage, and whether the perceptrons are 1x1 convolutions.
FAMILY = {
    "convnext_atto": ((2, 2, 6, 2), (40, 80, 160, 320), True),
    "convnext_tiny": ((3, 3, 9, 3), (96, 192, 384, 768), False),
}


class Block(nn.Module):
    """Depthwise 7x7 convolution, layer norm, perceptron, a factor for each channel; a sum with the input."""

    linear: Callable[..., nn.Module]  # of the perceptron
    drop_path: float
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """x [B, h, w, c] -> [B, h, w, c]."""
        channels = x.shape[-1]
        init = layers.transformer_init
        y = Conv(channels, 7, 1, channels, use_bias=True, kernel_init=init, dtype=self.dtype, name="conv_dw")(x)
        y = Mlp(self.linear, name="mlp")(LayerNorm(EPSILON, name="norm")(y))
        gamma = self.param("gamma", nn.initializers.constant(GAMMA), (channels,), layers.wide(self.dtype))
        return x + layers.drop_path(y * gamma.astype(y.dtype), self.drop_path, train=train)


class ConvNeXt(nn.Module):
    """Patches of 4x4 pixels, four stages (the last three halve the map first), average pooling, layer norm, a head.

    Initialized as in timm: kernels normal of deviation 0.02, biases zero.
    """

    num_classes: int
    depths: tuple[int, ...]
    widths: tuple[int, ...]
    convolutions: bool  # in the perceptrons
    drop_path: float = 0.0
    frozen_backbone: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: Array, *, train: bool, perturbations: tuple[Array | None, ...] | None = None) -> Outputs:
        """images [B, H, W, C], normalized -> Outputs."""
        height, width = images.shape[1:3]
        if min(height, width) < LEAST:
            raise InputError(
                f"the images have {height}x{width} pixels; expected {LEAST}x{LEAST} at least of a ConvNeXt"
            )
        taps = Taps(perturbations)
        train = train and not self.frozen_backbone
        linear = layers.pointwise(self.dtype) if self.convolutions else layers.dense(self.dtype)
        rates = iter(layers.linear_rates(self.drop_path, sum(self.depths)))
        x = self._patches(4, self.widths[0], "stem_0")(images)
        x = taps(LayerNorm(EPSILON, name="stem_1")(x))
        for stage, (depth, features) in enumerate(zip(self.depths, self.widths, strict=True)):
            if stage:
                x = LayerNorm(EPSILON, name=f"stages_{stage}_downsample_0")(x)
                x = self._patches(2, features, f"stages_{stage}_downsample_1")(x)
            for i in range(depth):
                x = Block(linear, next(rates), self.dtype, name=f"stages_{stage}_blocks_{i}")(x, train=train)
            x = taps(x)
        pooled = at_least_float32(x).mean((1, 2))
        embedding = LayerNorm(EPSILON, name="head_norm")(pooled)
        fc = Linear(self.num_classes, layers.transformer_init, nn.initializers.zeros, name="head_fc")
        return taps.outputs(fc(embedding), pooled=pooled, embedding=embedding, head=fc.head)

    def _patches(self, size: int, features: int, name: str) -> Patches:
        return Patches(features, size, layers.transformer_init, nn.initializers.zeros, self.dtype, name=name)


def create(
    name: str,
    num_classes: int,
    *,
    width: Annotated[float, WIDTH] = 1.0,
    drop_path: Annotated[float, FRACTION] = 0.0,
    frozen_backbone: bool = False,
    dtype: DTypeLike = jnp.float32,
) -> Network:
    """Builds the network of that name, a key of `FAMILY`.

    Args:
      width: factor on every number of channels.
      drop_path: stochastic depth: how often the last block adds nothing to an image in training. It rises from 0 in
        the first block; 0.1 in the paper for "tiny".
      frozen_backbone: all but the head stays in inference mode in training.
      dtype: of the computation.
    """
    depths, widths, convolutions = FAMILY[name]
    module = ConvNeXt(
        num_classes, depths, layers.scaled(widths, width), convolutions, drop_path, frozen_backbone, dtype
    )
    published = Preprocessing(interpolation="bicubic")
    return from_linen(module, head=("head_fc",), torch_key=torch_key, published=published)


def torch_key(path: tuple[str, ...]) -> str:
    """timm's key of the variable at a path."""
    return torch_names.dotted(path).replace("head_", "head.")
