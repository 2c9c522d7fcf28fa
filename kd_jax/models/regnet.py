"""RegNetY: bottlenecks of one width, convolved in groups, with squeeze and excitation, by timm's names.

Radosavovic et al., "Designing Network Design Spaces", CVPR 2020. regnety_160 taught the distilled DeiT. Initialization:
that of the paper's code, as in timm: normal by fan_out, the last norm of a block starts at zero.
"""

import functools
from collections.abc import Callable
from typing import Annotated

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike

from kd_jax.keys import FRACTION, WIDTH
from kd_jax.models import layers, torch_names
from kd_jax.models.layers import BatchNorm, Conv, Initializer, Linear, SqueezeExcite
from kd_jax.models.linen import from_linen
from kd_jax.models.taps import Taps
from kd_jax.types import Array, Network, Norm, Outputs, Preprocessing, at_least_float32

STEM = 32
FAMILY = {  # channels of a group, blocks and channels of each stage, and the crop of published weights
    "regnety_002": (8, (1, 1, 4, 7), (24, 56, 152, 368), 0.875),
    "regnety_004": (8, (1, 3, 6, 6), (48, 104, 208, 440), 0.965),
    "regnety_008": (16, (1, 3, 8, 2), (64, 128, 320, 768), 0.875),
    "regnety_016": (24, (2, 6, 17, 2), (48, 120, 336, 888), 0.965),
    "regnety_032": (24, (2, 5, 13, 1), (72, 216, 576, 1512), 0.95),
    "regnety_160": (112, (2, 4, 11, 1), (224, 448, 1232, 3024), 0.95),
}


class ConvNorm(nn.Module):
    """A convolution and its norm."""

    features: int
    size: int = 1
    stride: int = 1
    groups: int = 1
    scale_init: Initializer = nn.initializers.ones
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> tuple[Array, Norm]:
        """x [B, h, w, c] -> (the map [B, ceil(h / stride), ceil(w / stride), features], its norm)."""
        grouped = nn.initializers.variance_scaling(2.0 * self.groups, "fan_out", "normal")  # by fan_out of one group
        init = grouped if self.groups > 1 else layers.conv_init
        conv = Conv(self.features, self.size, self.stride, self.groups, kernel_init=init, dtype=self.dtype, name="conv")
        norm = BatchNorm(scale_init=self.scale_init, name="bn")
        return norm(conv(x), train=train), norm.affine


class Block(nn.Module):
    """1x1, 3x3 in groups, squeeze and excitation, 1x1, and a shortcut. Returns the map before its last ReLU."""

    features: int
    stride: int
    groups: int
    drop_path: float
    conv: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> tuple[Array, Norm]:
        y = nn.relu(self.conv(self.features, name="conv1")(x, train=train)[0])
        y = nn.relu(self.conv(self.features, 3, self.stride, self.groups, name="conv2")(y, train=train)[0])
        y = SqueezeExcite(max(1, round(x.shape[-1] / 4)), dtype=y.dtype, name="se")(y)
        y, norm = self.conv(self.features, scale_init=nn.initializers.zeros, name="conv3")(y, train=train)
        y = layers.drop_path(y, self.drop_path, train=train)
        if self.stride > 1 or x.shape[-1] != self.features:
            x, _ = self.conv(self.features, 1, self.stride, name="downsample")(x, train=train)
        return x + y, norm


class RegNet(nn.Module):
    """A 3x3 stem and four stages, each of which halves the map, average pooling, `head.fc`."""

    num_classes: int
    group: int  # channels
    depths: tuple[int, ...]
    widths: tuple[int, ...]  # of the stem and of each stage
    dropout: float = 0.0
    drop_path: float = 0.0
    frozen_backbone: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: Array, *, train: bool, perturbations: tuple[Array | None, ...] | None = None) -> Outputs:
        """images [B, H, W, C], normalized -> Outputs."""
        conv = functools.partial(ConvNorm, dtype=self.dtype)
        taps = Taps(perturbations)
        of_backbone = train and not self.frozen_backbone
        preactivation, norm = conv(self.widths[0], 3, 2, name="stem")(images, train=of_backbone)
        x = taps(nn.relu(preactivation), preactivation=preactivation, norm=norm)
        rates = iter(layers.linear_rates(self.drop_path, sum(self.depths)))
        for stage, (depth, width) in enumerate(zip(self.depths, self.widths[1:], strict=True), start=1):
            for i in range(1, depth + 1):
                block = Block(width, 2 if i == 1 else 1, width // self.group, next(rates), conv, name=f"s{stage}_b{i}")
                preactivation, norm = block(x, train=of_backbone)
                x = nn.relu(preactivation)
            x = taps(x, preactivation=preactivation, norm=norm)
        pooled = at_least_float32(x).mean((1, 2))
        embedding = nn.Dropout(self.dropout, deterministic=not train)(pooled)
        fc = Linear(self.num_classes, layers.small_init, nn.initializers.zeros, name="fc")
        return taps.outputs(fc(embedding), pooled=pooled, embedding=embedding, head=fc.head, last=x)


def create(
    name: str,
    num_classes: int,
    *,
    width: Annotated[float, WIDTH] = 1.0,
    dropout: Annotated[float, FRACTION] = 0.0,
    drop_path: Annotated[float, FRACTION] = 0.0,
    frozen_backbone: bool = False,
    dtype: DTypeLike = jnp.float32,
) -> Network:
    """Builds the network of that name, a key of `FAMILY`.

    Args:
      width: factor on every number of channels, which are then rounded to whole groups.
      dropout: before the last layer.
      drop_path: stochastic depth: how often the last block adds nothing to an image in training. It rises from 0 in
        the first block.
      frozen_backbone: all but the head stays in inference mode in training.
      dtype: of the computation.
    """
    group, depths, widths, crop = FAMILY[name]
    stem, *stages = layers.scaled((STEM, *widths), width)
    whole = (max(1, round(channels / group)) * group for channels in stages)
    module = RegNet(num_classes, group, depths, (stem, *whole), dropout, drop_path, frozen_backbone, dtype)
    published = Preprocessing(interpolation="bicubic", crop=crop)
    return from_linen(module, head=("fc",), torch_key=torch_key, published=published)


def torch_key(path: tuple[str, ...]) -> str:
    """timm's key of the variable at a path."""
    key = torch_names.dotted(path)
    return f"head.{key}" if key.startswith("fc.") else key
