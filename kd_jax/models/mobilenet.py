"""The MobileNets of distillation benchmarks: `mobilenetv1` for ImageNet, `mobilenetv2_half` for images of 32 pixels.

Howard et al., "MobileNets", 2017, with the layout of Zhao et al., "Decoupled Knowledge Distillation", CVPR 2022
(ResNet-50 teaches it on ImageNet). Sandler et al., "MobileNetV2", CVPR 2018, at half its channels, as Tian et al.,
"Contrastive Representation Distillation", ICLR 2020, have it: ReLU in the place of ReLU6, a 1x1 convolution in the
first block too, 1280 channels last, and less striding. MobileNetV2 as it is deployed is in `efficientnet`.
"""

import functools
from collections.abc import Callable
from typing import Annotated

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike

from kd_jax.keys import WIDTH
from kd_jax.models import layers, torch_names
from kd_jax.models.layers import BatchNorm, Conv, Linear
from kd_jax.models.linen import from_linen
from kd_jax.models.taps import Taps
from kd_jax.types import Array, Network, Norm, Outputs, at_least_float32

# (channels, stride) of each block; the maps are those of the blocks before a stride, and the last.
V1 = (
    *((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2)),
    *((512, 1), (512, 1), (512, 1), (512, 1), (512, 1), (1024, 2), (1024, 1)),
)
V1_MAPS = (3, 5, 11, 13)  # numbers of blocks, from 1
# (expansion, channels, blocks, stride of the first) of each group of blocks.
V2 = ((1, 8, 1, 1), (6, 12, 2, 1), (6, 16, 3, 2), (6, 32, 4, 2), (6, 48, 3, 1), (6, 80, 3, 2), (6, 160, 1, 1))
V2_MAPS = (1, 2, 4, 6)  # numbers of groups, from 0


class MobileNetV1(nn.Module):
    """A 3x3 stem of stride 2, thirteen blocks of a depthwise and a 1x1 convolution, average pooling, `fc`."""

    num_classes: int
    width: float = 1.0
    frozen_backbone: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: Array, *, train: bool, perturbations: tuple[Array | None, ...] | None = None) -> Outputs:
        """images [B, H, W, C], normalized -> Outputs."""
        conv = functools.partial(Conv, dtype=self.dtype)
        taps = Taps(perturbations)
        train = train and not self.frozen_backbone
        stem, *widths = layers.scaled((32, *(width for width, _ in V1)), self.width)
        norm = BatchNorm(name="model_0_1")
        preactivation = norm(conv(stem, 3, 2, name="model_0_0")(images), train=train)
        x = taps(nn.relu(preactivation), preactivation=preactivation, norm=norm.affine)
        for i, (width, (_, stride)) in enumerate(zip(widths, V1, strict=True), start=1):
            channels = x.shape[-1]
            x = conv(channels, 3, stride, channels, name=f"model_{i}_0")(x)
            x = nn.relu(BatchNorm(name=f"model_{i}_1")(x, train=train))
            norm = BatchNorm(name=f"model_{i}_4")
            preactivation = norm(conv(width, name=f"model_{i}_3")(x), train=train)
            x = nn.relu(preactivation)
            if i in V1_MAPS:
                x = taps(x, preactivation=preactivation, norm=norm.affine)
        pooled = at_least_float32(x).mean((1, 2))
        fc = Linear(self.num_classes, name="fc")
        return taps.outputs(fc(pooled), pooled=pooled, embedding=pooled, head=fc.head, last=x)


class InvertedResidual(nn.Module):
    """A 1x1 convolution to more channels, a depthwise one, a 1x1 one to fewer; a sum with the input of its shape."""

    features: int
    stride: int
    expansion: int
    conv: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> tuple[Array, Norm]:
        wide = self.expansion * x.shape[-1]
        y = nn.relu(BatchNorm(name="conv_1")(self.conv(wide, name="conv_0")(x), train=train))
        y = self.conv(wide, 3, self.stride, wide, name="conv_3")(y)
        y = nn.relu(BatchNorm(name="conv_4")(y, train=train))
        norm = BatchNorm(name="conv_7")
        y = norm(self.conv(self.features, name="conv_6")(y), train=train)
        return x + y if x.shape == y.shape else y, norm.affine


class MobileNetV2Half(nn.Module):
    """A 3x3 stem of stride 2, groups of inverted residuals, a 1x1 convolution, average pooling, `classifier_0`.

    The maps have no ReLU behind them: they are their own preactivations.
    """

    num_classes: int
    width: float = 1.0
    frozen_backbone: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: Array, *, train: bool, perturbations: tuple[Array | None, ...] | None = None) -> Outputs:
        """images [B, H, W, C], normalized -> Outputs."""
        conv = functools.partial(Conv, dtype=self.dtype)
        taps = Taps(perturbations)
        train = train and not self.frozen_backbone
        stem, *widths, last = layers.scaled((16, *(channels for _, channels, _, _ in V2), 1280), self.width)
        norm = BatchNorm(name="conv1_1")
        preactivation = norm(conv(stem, 3, 2, name="conv1_0")(images), train=train)
        x = taps(nn.relu(preactivation), preactivation=preactivation, norm=norm.affine)
        for group, (width, (expansion, _, blocks, stride)) in enumerate(zip(widths, V2, strict=True)):
            for i in range(blocks):
                block = InvertedResidual(width, stride if i == 0 else 1, expansion, conv, name=f"blocks_{group}_{i}")
                x, affine = block(x, train=train)
            if group in V2_MAPS:
                x = taps(x, preactivation=x, norm=affine)
        x = nn.relu(BatchNorm(name="conv2_1")(conv(last, name="conv2_0")(x), train=train))
        pooled = at_least_float32(x).mean((1, 2))
        fc = Linear(self.num_classes, layers.small_init, nn.initializers.zeros, name="classifier_0")
        return taps.outputs(fc(pooled), pooled=pooled, embedding=pooled, head=fc.head, last=x)


# The network, and its final layer.
FAMILY = {"mobilenetv1": (MobileNetV1, "fc"), "mobilenetv2_half": (MobileNetV2Half, "classifier_0")}


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
    module, last = FAMILY[name]
    built = module(num_classes, width, frozen_backbone, dtype)
    return from_linen(built, head=(last,), torch_key=torch_names.dotted)
