"""MobileNetV2, MobileNetV3, EfficientNet and EfficientNet-Lite: inverted residuals, by timm's names.

Sandler et al., "MobileNetV2", CVPR 2018; Howard et al., "Searching for MobileNetV3", ICCV 2019; Tan and Le,
"EfficientNet", ICML 2019, whose Lite versions have ReLU6 and no squeeze and excitation. `tf_` networks pad and
normalize as TensorFlow's, of which their weights are. Initialization: TensorFlow's for these, as in timm.

A map is that of the last block before a stride; blocks have no activation behind their sum, so that it is its own
preactivation (but for the stem, and MobileNetV3's last 1x1 convolution).
"""

import functools
import math
import re
from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike

from kd_jax.keys import FRACTION, WIDTH
from kd_jax.models import layers, torch_names
from kd_jax.models.layers import BatchNorm, Conv, Linear, SqueezeExcite
from kd_jax.models.linen import from_linen
from kd_jax.models.taps import Taps
from kd_jax.types import Array, Network, Norm, Outputs, Preprocessing, at_least_float32

Activation = Callable[[Array], Array]


class Stage(NamedTuple):
    """A group of blocks, the first of which has the stride."""

    kernel: int
    stride: int
    channels: int
    expansions: tuple[float, ...]  # of each block; 1: depthwise and 1x1 alone; none at all: one 1x1 convolution
    squeezes: bool = False
    relu: bool = False  # whatever the network's activation is


class Design(NamedTuple):
    """A network but for its number of classes."""

    stages: tuple[Stage, ...]
    stem: int  # channels
    last: int  # of the 1x1 convolution before the last layer
    activation: Activation
    v3: bool = False  # that convolution is behind the average, and squeezing is otherwise
    tensorflow: bool = False  # its padding and epsilon
    published: Preprocessing = Preprocessing(interpolation="bicubic")


def rounded(width: float) -> int:
    """The multiple of 8 nearest to a number of channels, or the next where that takes more than a tenth of them."""
    nearest = max(8, int(width + 4) // 8 * 8)
    return nearest if nearest >= 0.9 * width else nearest + 8


V2 = (
    *(Stage(3, 1, 16, (1,)), Stage(3, 2, 24, (6,) * 2), Stage(3, 2, 32, (6,) * 3), Stage(3, 2, 64, (6,) * 4)),
    *(Stage(3, 1, 96, (6,) * 3), Stage(3, 2, 160, (6,) * 3), Stage(3, 1, 320, (6,))),
)
V3_SMALL = (
    *(Stage(3, 2, 16, (1,), True, True), Stage(3, 2, 24, (4.5, 3.67), False, True), Stage(5, 2, 40, (4, 6, 6), True)),
    *(Stage(5, 1, 48, (3, 3), True), Stage(5, 2, 96, (6, 6, 6), True), Stage(1, 1, 576, ())),
)
V3_LARGE = (
    *(Stage(3, 1, 16, (1,), False, True), Stage(3, 2, 24, (4, 3), False, True), Stage(5, 2, 40, (3, 3, 3), True, True)),
    *(Stage(3, 2, 80, (6, 2.5, 2.3, 2.3)), Stage(3, 1, 112, (6, 6), True), Stage(5, 2, 160, (6, 6, 6), True)),
    Stage(1, 1, 960, ()),
)
B0 = (
    *(Stage(3, 1, 16, (1,), True), Stage(3, 2, 24, (6,) * 2, True), Stage(5, 2, 40, (6,) * 2, True)),
    *(Stage(3, 2, 80, (6,) * 3, True), Stage(5, 1, 112, (6,) * 3, True), Stage(5, 2, 192, (6,) * 4, True)),
    Stage(3, 1, 320, (6,), True),
)


def lite(width: float, depth: float, size: int, crop: float, *, tensorflow: bool = False) -> Design:
    """EfficientNet-Lite of these factors: on all channels but the first and last, on all stages but these."""
    stages = [stage._replace(channels=rounded(width * stage.channels), squeezes=False) for stage in B0]
    for i in range(1, len(stages) - 1):
        stages[i] = stages[i]._replace(expansions=(6,) * math.ceil(depth * len(stages[i].expansions)))
    half = (0.5,) * 3
    published = Preprocessing(size, crop=crop, interpolation="bicubic")
    if tensorflow:
        published = published._replace(mean=half, std=half)
    return Design(tuple(stages), 32, 1280, nn.relu6, tensorflow=tensorflow, published=published)


LITE = ((1.0, 1.0, 224, 0.875), (1.0, 1.1, 240, 0.882), (1.1, 1.2, 260, 0.89))
FAMILY = {
    "mobilenetv2_100": Design(V2, 32, 1280, nn.relu6),
    "mobilenetv3_small_100": Design(V3_SMALL, 16, 1024, nn.hard_swish, v3=True),
    "mobilenetv3_large_100": Design(V3_LARGE, 16, 1280, nn.hard_swish, v3=True),
    "efficientnet_b0": Design(B0, 32, 1280, nn.silu),
    **{f"efficientnet_lite{i}": lite(*factors) for i, factors in enumerate(LITE)},
    **{f"tf_efficientnet_lite{i}": lite(*factors, tensorflow=True) for i, factors in enumerate(LITE)},
}


class Block(nn.Module):
    """1x1 to more channels, depthwise, squeeze and excitation, 1x1 to fewer; a sum with the input of its shape."""

    features: int
    kernel: int
    stride: int
    expansion: float
    squeezes: bool
    activation: Activation
    v3: bool
    drop_path: float
    conv: Callable[..., Any]
    norm: Callable[..., Any]

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> tuple[Array, Norm]:
        """x [B, h, w, c] -> (the sum [B, ceil(h / stride), ceil(w / stride), features], its last norm)."""
        y, expands = x, self.expansion != 1
        wide = rounded(self.expansion * x.shape[-1]) if expands else x.shape[-1]
        if expands:
            y = self.activation(self.norm(name="bn1")(self.conv(wide, name="conv_pw")(y), train=train))
        depthwise = self.conv(wide, self.kernel, self.stride, wide, kernel_init=layers.depthwise_init, name="conv_dw")
        y = self.activation(self.norm(name="bn2" if expands else "bn1")(depthwise(y), train=train))
        if self.squeezes:
            names, dtype = ("conv_reduce", "conv_expand"), y.dtype
            if self.v3:
                squeeze = SqueezeExcite(rounded(wide / 4), names, nn.relu, nn.hard_sigmoid, dtype, name="se")
            else:
                width = max(1, round(wide / self.expansion / 4))
                squeeze = SqueezeExcite(width, names, self.activation, nn.sigmoid, dtype, name="se")
            y = squeeze(y)
        y = self.conv(self.features, name="conv_pwl" if expands else "conv_pw")(y)
        norm = self.norm(name="bn3" if expands else "bn2")
        y = norm(y, train=train)
        if x.shape == y.shape and self.stride == 1:
            y = x + layers.drop_path(y, self.drop_path, train=train)
        return y, norm.affine


class Pointwise(nn.Module):
    """A 1x1 convolution with its norm: MobileNetV3's last stage. Returns the map before its activation."""

    features: int
    conv: Callable[..., Any]
    norm: Callable[..., Any]

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> tuple[Array, Norm]:
        norm = self.norm(name="bn1")
        return norm(self.conv(self.features, name="conv")(x), train=train), norm.affine


class EfficientNet(nn.Module):
    """A 3x3 stem of stride 2, stages of blocks, a 1x1 convolution and average pooling, `classifier`."""

    num_classes: int
    design: Design
    width: float = 1.0
    dropout: float = 0.0
    drop_path: float = 0.0
    frozen_backbone: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: Array, *, train: bool, perturbations: tuple[Array | None, ...] | None = None) -> Outputs:
        """images [B, H, W, C], normalized -> Outputs."""
        design, taps = self.design, Taps(perturbations)
        padding, epsilon = ("same", 1e-3) if design.tensorflow else ("half", layers.EPSILON)
        conv = functools.partial(Conv, padding=padding, dtype=self.dtype)
        norm = functools.partial(BatchNorm, epsilon=epsilon)
        of_backbone = train and not self.frozen_backbone

        def width(channels: int) -> int:
            return channels if self.width == 1 else rounded(self.width * channels)

        bn1 = norm(name="bn1")
        preactivation = bn1(conv(width(design.stem), 3, 2, name="conv_stem")(images), train=of_backbone)
        x = taps(design.activation(preactivation), preactivation=preactivation, norm=bn1.affine)
        rates = (self.drop_path * i / _blocks(design.stages) for i in range(_blocks(design.stages)))
        for i, stage in enumerate(design.stages):
            for j, expansion in enumerate(stage.expansions):
                block = Block(
                    width(stage.channels),
                    stage.kernel,
                    stage.stride if j == 0 else 1,
                    expansion,
                    stage.squeezes,
                    nn.relu if stage.relu else design.activation,
                    design.v3,
                    next(rates),
                    conv,
                    norm,
                    name=f"blocks_{i}_{j}",
                )
                x, affine = block(x, train=of_backbone)
            preactivation = x
            if not stage.expansions:
                last = Pointwise(width(stage.channels), conv, norm, name=f"blocks_{i}_0")
                preactivation, affine = last(x, train=of_backbone)
                x = design.activation(preactivation)
            if _is_map(design.stages, i):
                x = taps(x, preactivation=preactivation, norm=affine)
        last_width, conv = width(design.last), functools.partial(conv, name="conv_head")
        if design.v3:
            pooled = at_least_float32(x).mean((1, 2))
            convolved = conv(last_width, use_bias=True, dtype=pooled.dtype)(pooled[:, None, None])[:, 0, 0]
            embedding = design.activation(convolved)
        else:
            x = design.activation(norm(name="bn2")(conv(last_width)(x), train=of_backbone))
            embedding = pooled = at_least_float32(x).mean((1, 2))
        embedding = nn.Dropout(self.dropout, deterministic=not train)(embedding)
        # TensorFlow and timm begin with 1/sqrt(K), not 1/sqrt(D): with few classes too much for fine-tuning to unlearn.
        fc = Linear(self.num_classes, bias_init=nn.initializers.zeros, name="classifier")
        ends_with = None if design.v3 else x
        return taps.outputs(fc(embedding), pooled=pooled, embedding=embedding, head=fc.head, last=ends_with)


def _blocks(stages: tuple[Stage, ...]) -> int:
    return sum(max(1, len(stage.expansions)) for stage in stages)


def _is_map(stages: tuple[Stage, ...], i: int) -> bool:
    """Whether a stage is the last of its size, and of another size than the stem."""
    last = i == len(stages) - 1 or stages[i + 1].stride == 2
    return last and any(stage.stride == 2 for stage in stages[: i + 1])


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
      width: factor on every number of channels, which are then rounded to multiples of 8.
      dropout: before the last layer; 0.2 in the papers of most.
      drop_path: stochastic depth: how often the last block adds nothing to an image in training. It rises from 0 in
        the first block.
      frozen_backbone: all but the head stays in inference mode in training.
      dtype: of the computation.
    """
    WIDTH.check("model.width", width)
    design = FAMILY[name]
    module = EfficientNet(num_classes, design, width, dropout, drop_path, frozen_backbone, dtype)
    depths = tuple(len(stage.expansions) for stage in design.stages)
    return from_linen(
        module,
        head=("classifier",),
        torch_key=torch_names.dotted,
        published=design.published,
        other_key=functools.partial(tensorflow_key, depths=depths) if design.tensorflow else None,
    )


# Modules of the ports of TensorFlow's weights to PyTorch, by timm's names: of the network, of a block that expands, and
# of the first, which does not.
TENSORFLOW = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
EXPANDING = {"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2"} | {
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
FIRST = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}


def tensorflow_key(key: str, *, depths: tuple[int, ...]) -> str:
    """timm's key for one of the layout in which the blocks of all stages are counted on; any other key as it is.

    >>> tensorflow_key("_blocks.2._bn0.weight", depths=(1, 2))
    'blocks.1.1.bn1.weight'
    """
    places = dict(enumerate((i, j) for i, depth in enumerate(depths) for j in range(depth)))
    found = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", key)
    if not found:
        module, dot, leaf = key.partition(".")
        return TENSORFLOW.get(module, module) + dot + leaf
    number, module, leaf = int(found[1]), found[2], found[3]
    names = EXPANDING if number else FIRST
    if number not in places or module not in names:
        return key
    stage, block = places[number]
    return f"blocks.{stage}.{block}.{names[module]}.{leaf}"
