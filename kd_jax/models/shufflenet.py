"""ShuffleNetV1 and V2 for images of about 32 pixels, as distillation benchmarks have them.

Zhang et al., "ShuffleNet", CVPR 2018 (three groups), and Ma et al., "ShuffleNet V2", ECCV 2018 (of one width), as in
Tian et al., "Contrastive Representation Distillation", ICLR 2020: a 1x1 stem without striding and pooling.
"""

import functools
from collections.abc import Callable
from typing import Annotated, Any

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike

from kd_jax.keys import WIDTH
from kd_jax.models import layers, torch_names
from kd_jax.models.layers import BatchNorm, Conv, Linear
from kd_jax.models.linen import from_linen
from kd_jax.models.taps import Taps
from kd_jax.types import Array, Network, Norm, Outputs, at_least_float32

STEM = 24
BLOCKS = (4, 8, 4)  # of each stage; the first of a stage halves the map
V1_WIDTHS = (240, 480, 960)
V1_GROUPS = 3
V2_WIDTHS = (116, 232, 464, 1024)  # the last is that of the convolution before pooling


def shuffle(x: Array, groups: int) -> Array:
    """Channels [..., c] in another order: the first of each group, then the second of each, and so on."""
    return x.reshape(*x.shape[:-1], groups, -1).swapaxes(-1, -2).reshape(x.shape)


class BlockV1(nn.Module):
    """1x1 in groups, depthwise 3x3, 1x1 in groups. A stride keeps the input, averaged, as channels beside."""

    features: int
    stride: int
    groups: int  # of the first convolution
    conv: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> tuple[Array, Norm]:
        """x [B, h, w, c] -> (the map [B, h / stride, w / stride, features] before its ReLU, its last norm)."""
        added = self.features - x.shape[-1] if self.stride == 2 else self.features
        middle = added // 4
        y = nn.relu(BatchNorm(name="bn1")(self.conv(middle, groups=self.groups, name="conv1")(x), train=train))
        y = self.conv(middle, 3, self.stride, middle, name="conv2")(shuffle(y, self.groups))
        y = nn.relu(BatchNorm(name="bn2")(y, train=train))
        norm = BatchNorm(name="bn3")
        y = norm(self.conv(added, groups=V1_GROUPS, name="conv3")(y), train=train)
        if self.stride == 1:
            return x + y, norm.affine
        x = nn.avg_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
        return jnp.concatenate([y, x], -1), norm.affine


class BlockV2(nn.Module):
    """Half of the channels pass, the other half is convolved; with a stride both halves are made of all of them."""

    features: int
    stride: int
    conv: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """x [B, h, w, c] -> the map [B, h / stride, w / stride, features] before the last ReLU.

        Where its half passed it is after its own, which changes nothing any more.
        """
        half = self.features // 2

        def norm(i: int, x: Array) -> Array:
            return BatchNorm(name=f"bn{i}")(x, train=train)

        if self.stride == 1:
            passed, y = jnp.split(x, 2, -1)
            y = nn.relu(norm(1, self.conv(half, name="conv1")(y)))
            y = norm(2, self.conv(half, 3, 1, half, name="conv2")(y))
            return shuffle(jnp.concatenate([passed, norm(3, self.conv(half, name="conv3")(y))], -1), 2)
        channels = x.shape[-1]
        passed = norm(1, self.conv(channels, 3, 2, channels, name="conv1")(x))
        passed = norm(2, self.conv(half, name="conv2")(passed))
        y = nn.relu(norm(3, self.conv(half, name="conv3")(x)))
        y = norm(4, self.conv(half, 3, 2, half, name="conv4")(y))
        return shuffle(jnp.concatenate([passed, norm(5, self.conv(half, name="conv5")(y))], -1), 2)


class ShuffleNet(nn.Module):
    """A 1x1 stem, three stages, for V2 a 1x1 convolution, average pooling, `linear`."""

    num_classes: int
    version: int  # 1 or 2
    stem: int
    widths: tuple[int, ...]
    frozen_backbone: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: Array, *, train: bool, perturbations: tuple[Array | None, ...] | None = None) -> Outputs:
        """images [B, H, W, C], normalized -> Outputs; those of V2 without norms, which half of a map does not pass."""
        conv = functools.partial(Conv, kernel_init=layers.default_conv_init, dtype=self.dtype)
        taps = Taps(perturbations)
        train = train and not self.frozen_backbone
        bn1 = BatchNorm(name="bn1")
        preactivation = bn1(conv(self.stem, name="conv1")(images), train=train)
        x = taps(nn.relu(preactivation), preactivation=preactivation, norm=bn1.affine if self.version == 1 else None)
        for stage, (blocks, width) in enumerate(zip(BLOCKS, self.widths, strict=False), start=1):
            for i in range(blocks):
                common: dict[str, Any] = {"stride": 2 if i == 0 else 1, "conv": conv, "name": f"layer{stage}_{i}"}
                norm = None
                if self.version == 1:
                    groups = 1 if stage == 1 and i == 0 else V1_GROUPS
                    preactivation, norm = BlockV1(width, groups=groups, **common)(x, train=train)
                else:
                    preactivation = BlockV2(width, **common)(x, train=train)
                x = nn.relu(preactivation)
            x = taps(x, preactivation=preactivation, norm=norm)
        if self.version == 2:
            x = nn.relu(BatchNorm(name="bn2")(conv(self.widths[-1], name="conv2")(x), train=train))
        pooled = at_least_float32(x).mean((1, 2))
        fc = Linear(self.num_classes, name="linear")
        return taps.outputs(fc(pooled), pooled=pooled, embedding=pooled, head=fc.head, last=x)


FAMILY = {"shufflenetv1": (1, V1_WIDTHS, 4 * V1_GROUPS), "shufflenetv2": (2, V2_WIDTHS, 2)}


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
      width: factor on every number of channels, which are then rounded to what the groups divide.
      frozen_backbone: all but the head stays in inference mode in training.
      dtype: of the computation.
    """
    version, published, multiple = FAMILY[name]
    stem, *widths = (max(1, round(x / multiple)) * multiple for x in layers.scaled((STEM, *published), width))
    module = ShuffleNet(num_classes, version, stem, tuple(widths), frozen_backbone, dtype)
    return from_linen(module, head=("linear",), torch_key=torch_names.dotted)
