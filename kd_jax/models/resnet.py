"""ResNet-18/34/50/101/152 with torchvision's exact architecture, for ImageNet-sized and CIFAR-sized images.

He et al., "Deep Residual Learning for Image Recognition", CVPR 2016; the bottleneck is v1.5 (its stride on the 3x3
convolution). Parameters carry torchvision's names; `layer1.0` is written `layer1_0`, `downsample.0` `downsample_0`.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from kd_jax.errors import InputError, choose
from kd_jax.models.layers import BatchNorm, Linear, MlpHead, at_least_float32, conv_init
from kd_jax.models.linen import from_linen
from kd_jax.models.taps import Taps
from kd_jax.types import Array, Network, Norm, Outputs

STEMS = ("imagenet", "cifar")
HEADS = ("linear", "mlp")
SHORTCUTS = ("conv", "pad")
LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut. Returns the map before its last ReLU."""

    features: int
    stride: int
    conv: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]
    shortcut: str = "conv"
    expansion = 1

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> tuple[Array, Norm]:
        y = self.conv(self.features, 3, self.stride, name="conv1")(x)
        y = nn.relu(self.norm(name="bn1")(y, train=train))
        y = self.conv(self.features, 3, 1, name="conv2")(y)
        norm = self.norm(name="bn2")
        y = norm(y, train=train)
        return y + _shortcut(self, x, self.features, train), norm.affine


class Bottleneck(nn.Module):
    """1x1, 3x3 (with the stride), 1x1 with four times the features. Returns the map before its last ReLU."""

    features: int
    stride: int
    conv: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]
    shortcut: str = "conv"
    expansion = 4

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> tuple[Array, Norm]:
        y = nn.relu(self.norm(name="bn1")(self.conv(self.features, 1, 1, name="conv1")(x), train=train))
        y = nn.relu(self.norm(name="bn2")(self.conv(self.features, 3, self.stride, name="conv2")(y), train=train))
        y = self.conv(4 * self.features, 1, 1, name="conv3")(y)
        norm = self.norm(name="bn3")
        y = norm(y, train=train)
        return y + _shortcut(self, x, 4 * self.features, train), norm.affine


def _shortcut(block: Any, x: Array, features: int, train: bool) -> Array:
    if block.stride == 1 and x.shape[-1] == features:
        return x
    if block.shortcut == "pad":  # He et al.'s option A: no parameters
        extra = features - x.shape[-1]
        return jnp.pad(x[:, :: block.stride, :: block.stride], ((0, 0),) * 3 + ((extra // 2, extra - extra // 2),))
    x = block.conv(features, 1, block.stride, name="downsample_0")(x)
    return block.norm(name="downsample_1")(x, train=train)


class Conv(nn.Module):
    """A square convolution without bias, padded as PyTorch pads it: by half the kernel on every side."""

    features: int
    size: int
    stride: int = 1
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """x [B, H, W, C] -> [B, ceil(H / stride), ceil(W / stride), features]."""
        shape = (self.size, self.size, x.shape[-1], self.features)
        kernel = self.param("kernel", conv_init, shape, self.param_dtype).astype(self.dtype)
        padding = ((self.size // 2,) * 2,) * 2
        return jax.lax.conv_general_dilated(
            x.astype(self.dtype),
            kernel,
            (self.stride, self.stride),
            padding,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )


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
        """images [B, H, W, C], normalised -> Outputs."""
        param_dtype = jnp.promote_types(self.dtype, jnp.float32)
        conv = functools.partial(Conv, dtype=self.dtype, param_dtype=param_dtype)
        norm = functools.partial(BatchNorm, param_dtype=param_dtype)
        taps = Taps(perturbations)
        backbone_train = train and not self.frozen_backbone

        size, stride = (7, 2) if self.stem == "imagenet" else (3, 1)
        bn1 = norm(name="bn1")
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
                    norm,
                    self.shortcut,
                    name=f"layer{stage}_{i}",
                )
                preactivation, affine = block(x, train=backbone_train)
                x = nn.relu(preactivation)
            x = taps(x, preactivation=preactivation, norm=affine)

        pooled = at_least_float32(x).mean((1, 2))
        embedding = MlpHead(param_dtype, name="mlp")(pooled, train=train) if self.head == "mlp" else pooled
        fc = Linear(self.num_classes, param_dtype, name="fc")
        logits = fc(embedding)
        return taps.outputs(logits, pooled=pooled, embedding=embedding, head=fc.head)


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
    width: float = 1.0,
    head: str = "linear",
    shortcut: str = "conv",
    frozen_backbone: bool = False,
    dtype: DTypeLike = jnp.float32,
) -> Network:
    """Builds the network of that name.

    Args:
      name: of `FAMILY`.
      num_classes: K.
      stem: "imagenet" (for images of about 64 pixels and more) or "cifar" (for smaller ones).
      width: factor on every number of channels.
      head: "linear", or "mlp" (Linear 1000, dropout 0.5, batch norm, ReLU before the last layer).
      shortcut: "conv", or "pad" for shortcuts without parameters (basic blocks only).
      frozen_backbone: all but the head stays in inference mode in training.
      dtype: of the computation.
    """
    block, stage_sizes = FAMILY[name]
    widths = scaled((64, 128, 256, 512), width)
    return network(
        ResNet(
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
        ),
        functools.partial(torch_key, linear="fc", mlp=head == "mlp"),
    )


def network(module: ResNet, torch_key: Callable[[tuple[str, ...]], str]) -> Network:
    """The network of a residual module; raises InputError for an unknown option."""
    choose("model.stem", module.stem, STEMS)
    choose("model.head", module.head, HEADS)
    choose("model.shortcut", module.shortcut, SHORTCUTS)
    return from_linen(module, head=("mlp", "fc") if module.head == "mlp" else ("fc",), torch_key=torch_key)


def scaled(widths: tuple[int, ...], factor: float) -> tuple[int, ...]:
    """Numbers of channels times a factor; raises InputError where that is out of range."""
    if not 0 < factor <= 64:
        raise InputError(f"model.width is {factor}; expected a factor above 0 and at most 64")
    return tuple(max(1, round(factor * width)) for width in widths)


# The original project's head is a sequence of linear, dropout, batch norm, ReLU, linear.
MLP_KEYS = {("mlp", "fc"): "fc.0", ("mlp", "bn"): "fc.2", ("fc",): "fc.4"}


def torch_key(path: tuple[str, ...], *, linear: str, mlp: bool) -> str:
    """PyTorch's key of the variable at a path; `linear` is what it calls the last layer."""
    modules, leaf = path[1:-1], LEAVES[path[-1]]
    if mlp and modules in MLP_KEYS:
        return f"{MLP_KEYS[modules]}.{leaf}"
    if modules == ("fc",):
        return f"{linear}.{leaf}"
    return ".".join((*(part.replace("_", ".") for part in modules), leaf))
