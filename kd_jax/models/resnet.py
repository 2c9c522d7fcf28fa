"""ResNet-18/34/50/101/152 with torchvision's exact architecture, for ImageNet-sized and CIFAR-sized images.

He et al., "Deep Residual Learning for Image Recognition", CVPR 2016; the bottleneck is v1.5 (its stride on the 3x3
convolution). Parameters carry torchvision's names; `layer1.0` is written `layer1_0`, `downsample.0` `downsample_0`.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from kd_jax.models.layers import BatchNorm, Linear, MlpHead, at_least_float32, conv_init
from kd_jax.types import Norm, Outputs


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut. Returns the map before its last ReLU."""

    features: int
    stride: int
    conv: nn.Module
    norm: nn.Module
    shortcut: str = "conv"
    expansion = 1

    @nn.compact
    def __call__(self, x, *, train: bool):
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
    conv: nn.Module
    norm: nn.Module
    shortcut: str = "conv"
    expansion = 4

    @nn.compact
    def __call__(self, x, *, train: bool):
        y = nn.relu(self.norm(name="bn1")(self.conv(self.features, 1, 1, name="conv1")(x), train=train))
        y = nn.relu(self.norm(name="bn2")(self.conv(self.features, 3, self.stride, name="conv2")(y), train=train))
        y = self.conv(4 * self.features, 1, 1, name="conv3")(y)
        norm = self.norm(name="bn3")
        y = norm(y, train=train)
        return y + _shortcut(self, x, 4 * self.features, train), norm.affine


def _shortcut(block, x, features: int, train: bool):
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
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
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

    `stem` is "imagenet" (7x7 of stride 2 and a 3x3 max pooling) or "cifar" (3x3, no pooling). With `frozen_trunk`
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
    frozen_trunk: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, images, *, train: bool, perturbations=None) -> Outputs:
        """images [B, H, W, C], normalised -> Outputs."""
        param_dtype = jnp.promote_types(self.dtype, jnp.float32)
        conv = functools.partial(Conv, dtype=self.dtype, param_dtype=param_dtype)
        norm = functools.partial(BatchNorm, param_dtype=param_dtype)
        perturbations = perturbations or (None,) * (1 + len(self.stage_sizes))
        trunk_train = train and not self.frozen_trunk
        features: list[jax.Array] = []
        preactivations: list[jax.Array] = []
        norms: list[Norm] = []

        def report(x, preactivation, affine):
            perturbation = perturbations[len(features)]
            x = x if perturbation is None else x + perturbation
            features.append(x)
            preactivations.append(preactivation)
            norms.append(affine)
            return x

        size, stride = (7, 2) if self.stem == "imagenet" else (3, 1)
        bn1 = norm(name="bn1")
        x = preactivation = bn1(conv(self.stem_width, size, stride, name="conv1")(images), train=trunk_train)
        x = nn.relu(x)
        if self.stem == "imagenet":
            x = nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))
        x = report(x, preactivation, bn1.affine)

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
                preactivation, affine = block(x, train=trunk_train)
                x = nn.relu(preactivation)
            x = report(x, preactivation, affine)

        pooled = at_least_float32(x).mean((1, 2))
        embedding = MlpHead(param_dtype, name="mlp")(pooled, train=train) if self.head == "mlp" else pooled
        fc = Linear(self.num_classes, param_dtype, name="fc")
        logits = fc(embedding)
        return Outputs(logits, tuple(features), tuple(preactivations), pooled, embedding, fc.weights, tuple(norms))


FAMILY = {
    "resnet18": (BasicBlock, (2, 2, 2, 2)),
    "resnet34": (BasicBlock, (3, 4, 6, 3)),
    "resnet50": (Bottleneck, (3, 4, 6, 3)),
    "resnet101": (Bottleneck, (3, 4, 23, 3)),
    "resnet152": (Bottleneck, (3, 8, 36, 3)),
}


def resnet(name: str, num_classes: int, *, stem: str = "imagenet", width: float = 1.0, **options) -> ResNet:
    """The network of that name with every width multiplied by `width`."""
    block, stage_sizes = FAMILY[name]
    widths = tuple(max(1, round(width * w)) for w in (64, 128, 256, 512))
    return ResNet(
        num_classes,
        block=block,
        stage_sizes=stage_sizes,
        stem_width=widths[0],
        stage_widths=widths,
        stem=stem,
        **options,
    )
