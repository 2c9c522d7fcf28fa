"""ResNet-18/34/50/101/152 with torchvision's exact architecture, for ImageNet-sized and CIFAR-sized images.

He et al., "Deep Residual Learning for Image Recognition", CVPR 2016; the bottleneck is v1.5 (its stride on the 3x3
convolution). Parameters carry torchvision's names; `layer1.0` is written `layer1_0`, `downsample.0` `downsample_0`.
"""

import functools
import warnings
from collections.abc import Callable
from typing import Annotated, Any

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike

from kd_jax.errors import choose
from kd_jax.keys import WIDTH
from kd_jax.models import layers, torch_names
from kd_jax.models.layers import BatchNorm, Conv, Linear, MlpHead
from kd_jax.models.linen import from_linen
from kd_jax.models.taps import Taps
from kd_jax.types import Array, Network, Norm, Outputs, at_least_float32

STEMS = ("imagenet", "cifar")
HEADS = ("linear", "mlp")
SHORTCUTS = ("conv", "pad")
# PyTorch's names. The original project's head is a sequence of linear, dropout, batch norm, ReLU, linear.
MLP = {"mlp.fc": "fc.0", "mlp.bn": "fc.2"}
LAST_OF_MLP = "fc.4"


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut. Returns the map before its last ReLU."""

    features: int
    stride: int
    conv: Callable[..., nn.Module]
    shortcut: str = "conv"
    expansion = 1

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> tuple[Array, Norm]:
        y = self.conv(self.features, 3, self.stride, name="conv1")(x)
        y = nn.relu(BatchNorm(name="bn1")(y, train=train))
        y = self.conv(self.features, 3, 1, name="conv2")(y)
        norm = BatchNorm(name="bn2")
        y = norm(y, train=train)
        return y + _shortcut(self, x, self.features, train), norm.affine


class Bottleneck(nn.Module):
    """1x1, 3x3 (with the stride), 1x1 with four times the features. Returns the map before its last ReLU."""

    features: int
    stride: int
    conv: Callable[..., nn.Module]
    shortcut: str = "conv"
    expansion = 4

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> tuple[Array, Norm]:
        y = nn.relu(BatchNorm(name="bn1")(self.conv(self.features, 1, 1, name="conv1")(x), train=train))
        y = nn.relu(BatchNorm(name="bn2")(self.conv(self.features, 3, self.stride, name="conv2")(y), train=train))
        y = self.conv(4 * self.features, 1, 1, name="conv3")(y)
        norm = BatchNorm(name="bn3")
        y = norm(y, train=train)
        return y + _shortcut(self, x, 4 * self.features, train), norm.affine


def _shortcut(block: Any, x: Array, features: int, train: bool) -> Array:
    if block.stride == 1 and x.shape[-1] == features:
        return x
    if block.shortcut == "pad":  # He et al.'s option A: no parameters
        extra = features - x.shape[-1]
        return jnp.pad(x[:, :: block.stride, :: block.stride], ((0, 0),) * 3 + ((extra // 2, extra - extra // 2),))
    x = block.conv(features, 1, block.stride, name="downsample_0")(x)
    return BatchNorm(name="downsample_1")(x, train=train)


class ResNet(nn.Module):
    """A residual network: a stem, stages of blocks (all but the first halve the map), average pooling, a linear head.

    `stem` is "imagenet" (7x7 of stride 2 and a 3x3 max pooling) or "cifar" (3x3, no pooling). With `frozen_backbone`
    everything but the head stays in inference mode when the network trains.
    """

    num_classes: int
    block: type[nn.Module]
    stage_sizes: tuple[int, ...]
    stem_width: int
    stage_widths: tuple[int, ...]
    stem: str
    head: str = "linear"
    shortcut: str = "conv"
    frozen_backbone: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: Array, *, train: bool, perturbations: tuple[Array | None, ...] | None = None) -> Outputs:
        """images [B, H, W, C], normalized -> Outputs."""
        if self.is_initializing():
            _warn_of_stem(self.stem, images.shape[1])
        conv = functools.partial(Conv, dtype=self.dtype)
        taps = Taps(perturbations)
        backbone_train = train and not self.frozen_backbone

        size, stride = (7, 2) if self.stem == "imagenet" else (3, 1)
        bn1 = BatchNorm(name="bn1")
        x = preactivation = bn1(conv(self.stem_width, size, stride, name="conv1")(images), train=backbone_train)
        x = nn.relu(x)
        if self.stem == "imagenet":
            x = nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))
        x = taps(x, preactivation=preactivation, norm=bn1.affine)

        for stage, (blocks, width) in enumerate(zip(self.stage_sizes, self.stage_widths, strict=True), start=1):
            for i in range(blocks):
                block = self.block(
                    width,
                    2 if stage > 1 and i == 0 else 1,
                    conv,
                    self.shortcut,
                    name=f"layer{stage}_{i}",
                )
                preactivation, affine = block(x, train=backbone_train)
                x = nn.relu(preactivation)
            x = taps(x, preactivation=preactivation, norm=affine)

        pooled = at_least_float32(x).mean((1, 2))
        embedding = MlpHead(name="mlp")(pooled, train=train) if self.head == "mlp" else pooled
        fc = Linear(self.num_classes, name="fc")
        logits = fc(embedding)
        last = x if self.head == "linear" else None
        return taps.outputs(logits, pooled=pooled, embedding=embedding, head=fc.head, last=last)


FAMILY = {
    "resnet18": (BasicBlock, (2, 2, 2, 2)),
    "resnet34": (BasicBlock, (3, 4, 6, 3)),
    "resnet50": (Bottleneck, (3, 4, 6, 3)),
    "resnet101": (Bottleneck, (3, 4, 23, 3)),
    "resnet152": (Bottleneck, (3, 8, 36, 3)),
}


def create(
    name: str,
    num_classes: int,
    *,
    stem: str = "imagenet",
    width: Annotated[float, WIDTH] = 1.0,
    head: str = "linear",
    shortcut: str = "conv",
    frozen_backbone: bool = False,
    dtype: DTypeLike = jnp.float32,
) -> Network:
    """Builds the network of that name.

    Args:
      name: a key of `FAMILY`.
      num_classes: K.
      stem: "imagenet" (for images of about 64 pixels and more) or "cifar" (for smaller ones).
      width: factor on every number of channels.
      head: "linear", or "mlp" (Linear 1000, dropout 0.5, batch norm, ReLU before the last layer).
      shortcut: "conv", or "pad" for shortcuts without parameters.
      frozen_backbone: all but the head stays in inference mode in training.
      dtype: of the computation.
    Raises:
      InputError: for an option that is none of these.
    """
    block, stage_sizes = FAMILY[name]
    widths = layers.scaled((64, 128, 256, 512), width)
    module = ResNet(
        num_classes,
        block=block,
        stage_sizes=stage_sizes,
        stem_width=widths[0],
        stage_widths=widths,
        stem=stem,
        head=head,
        shortcut=shortcut,
        frozen_backbone=frozen_backbone,
        dtype=dtype,
    )
    return network(module, last="fc")


def network(module: ResNet, *, last: str) -> Network:
    """The network of a residual module; `last` is PyTorch's name of its final layer when the head is linear.

    Raises:
      InputError: for an unknown stem, head or shortcut.
    """
    choose("model.stem", module.stem, STEMS)
    choose("model.head", module.head, HEADS)
    choose("model.shortcut", module.shortcut, SHORTCUTS)
    if module.head == "mlp":
        return from_linen(module, head=("mlp", "fc"), torch_key=functools.partial(torch_key, last=LAST_OF_MLP))
    return from_linen(module, head=("fc",), torch_key=functools.partial(torch_key, last=last))


def torch_key(path: tuple[str, ...], *, last: str) -> str:
    """PyTorch's key of the variable at a path; `last` is its name of the final layer."""
    module, leaf = torch_names.dotted(path).rsplit(".", 1)
    renamed = {**MLP, "fc": last}
    return f"{renamed.get(module, module)}.{leaf}"


def _warn_of_stem(stem: str, size: int) -> None:
    if stem == "imagenet" and size < 64:
        advice = f'the "imagenet" stem divides a {size}-pixel image by four before the first stage; use stem="cifar"'
    elif stem == "cifar" and size > 96:
        advice = f'the "cifar" stem keeps {size}-pixel images at full size, which costs 16 times; use stem="imagenet"'
    else:
        return
    warnings.warn(advice, stacklevel=2)
