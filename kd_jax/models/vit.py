"""Vision transformers: ViT and DeiT, without and with a distillation token.

Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021; Steiner et al., "How to train your ViT?", TMLR 2022 (the
published weights of the small ones); Touvron et al., "Training data-efficient image transformers & distillation through
attention", ICML 2021. By timm's key names. ViT and DeiT of a size are one network, and differ in how the images of
their weights were prepared.

The maps are the patches' tokens, as each of four parts of the blocks leaves them for the next block to read. The last
is what the last block reads: the class token, which alone the head reads, reads the patches there and not after it.
There are no preactivations.
"""

from collections.abc import Callable
from typing import Annotated

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from kd_jax.errors import InputError
from kd_jax.keys import FRACTION, WIDTH, optional, whole
from kd_jax.models import layers, torch_names
from kd_jax.models.layers import LayerNorm, Linear, Mlp, Patches
from kd_jax.models.linen import from_linen
from kd_jax.models.taps import Taps
from kd_jax.types import Array, Network, Outputs, Preprocessing, at_least_float32

EPSILON = 1e-6
DEPTH = 12
PARTS = 4
OF_A_HEAD = 64  # channels
WIDTHS = {"tiny": 192, "small": 384, "base": 768}
VIT = Preprocessing(mean=(0.5,) * 3, std=(0.5,) * 3, crop=0.9, interpolation="bicubic")
DEIT = Preprocessing(crop=0.9, interpolation="bicubic")
# Channels, whether there is a distillation token, and how images were prepared.
FAMILY = {
    **{f"vit_{size}_patch16_224": (width, False, VIT) for size, width in WIDTHS.items()},
    **{f"deit_{size}_patch16_224": (width, False, DEIT) for size, width in WIDTHS.items()},
    **{f"deit_{size}_distilled_patch16_224": (width, True, DEIT) for size, width in WIDTHS.items()},
}


class Attention(nn.Module):
    """Self-attention, whose softmax is at least float32."""

    heads: int
    linear: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: Array, count: int | None) -> Array:
        """x [B, n, D] -> what the first `count` tokens, or all, read of all: [B, count, D]."""
        *shape, channels = x.shape
        qkv = self.linear(3 * channels, name="qkv")(x)
        q, k, v = (part.reshape(*shape, self.heads, -1) for part in jnp.split(qkv, 3, -1))
        scale = (channels // self.heads) ** -0.5
        agreement = jnp.einsum("bqhd,bkhd->bhqk", q[:, :count] * scale, k, preferred_element_type=layers.wide(x.dtype))
        read = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(agreement).astype(x.dtype), v)
        return self.linear(channels, name="proj")(read.reshape(*read.shape[:2], channels))


class Block(nn.Module):
    """Attention and a perceptron, each behind a layer norm and beside a shortcut."""

    heads: int
    linear: Callable[..., nn.Module]
    drop_path: float

    @nn.compact
    def __call__(self, x: Array, *, train: bool, count: int | None = None) -> Array:
        """x [B, n, D] -> the first `count` tokens, or all: [B, count, D]."""
        y = Attention(self.heads, self.linear, name="attn")(LayerNorm(EPSILON, name="norm1")(x), count)
        x = x[:, :count] + layers.drop_path(y, self.drop_path, train=train)
        y = Mlp(self.linear, name="mlp")(LayerNorm(EPSILON, name="norm2")(x))
        return x + layers.drop_path(y, self.drop_path, train=train)


class VisionTransformer(nn.Module):
    """Patches with their positions behind a class token, blocks, layer norm, `head` on the class token.

    With `distilled` there is a distillation token behind the class token, and `head_dist` on it: the logits are the
    mean of both in inference, and those of the class token in training. `members` has what each says. Initialized as
    timm's: linear kernels normal of deviation 0.02, biases zero, the patches as a convolution of PyTorch's.
    """

    num_classes: int
    width: int
    heads: int
    patch: int
    depth: int
    distilled: bool
    drop_path: float = 0.0
    frozen_backbone: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: Array, *, train: bool, perturbations: tuple[Array | None, ...] | None = None) -> Outputs:
        """images [B, H, W, C], normalized -> Outputs."""
        batch, height, width = images.shape[:3]
        if height % self.patch or width % self.patch:
            raise InputError(
                f"the images have {height}x{width} pixels; expected multiples of model.patch, which is {self.patch}"
            )
        taps = Taps(perturbations)
        drops = train and not self.frozen_backbone
        patches = Patches(self.width, self.patch, dtype=self.dtype, name="patch_embed_proj")(images)
        shape = patches.shape
        prefix = [self._parameter("cls_token", nn.initializers.normal(1e-6), 1)]
        if self.distilled:
            prefix.append(self._parameter("dist_token", layers.transformer_init, 1))
        first = len(prefix)  # of the patches
        before = [jnp.broadcast_to(token, (batch, 1, self.width)) for token in prefix]
        x = jnp.concatenate([*before, patches.reshape(batch, -1, self.width)], 1)
        x = x + self._parameter("pos_embed", layers.transformer_init, x.shape[1])

        linear = layers.dense(self.dtype)
        ends = [-(-part * (self.depth - 1) // PARTS) for part in range(PARTS + 1)]
        for i, rate in enumerate(layers.linear_rates(self.drop_path, self.depth)):
            if i in ends:
                own = x[:, first:].reshape(shape)
                read = taps(own)
                if read is not own:
                    x = jnp.concatenate([x[:, :first], read.reshape(batch, -1, self.width)], 1)
            count = first if i == self.depth - 1 else None  # nothing reads the patches any more
            x = Block(self.heads, linear, rate, name=f"blocks_{i}")(x, train=drops, count=count)
        x = LayerNorm(EPSILON, name="norm")(at_least_float32(x))
        pooled = at_least_float32(read).mean((1, 2))
        said = {}
        for i, (token, name) in enumerate((("class", "head"), ("dist", "head_dist"))[:first]):
            fc = Linear(self.num_classes, layers.transformer_init, nn.initializers.zeros, name=name)
            said[token] = Outputs(fc(x[:, i]), embedding=x[:, i], head=fc.head)
        logits, embedding, head = said["class"].logits, said["class"].embedding, said["class"].head
        if self.distilled and not train:
            logits, head = 0.5 * (logits + said["dist"].logits), None
        outputs = taps.outputs(logits, pooled=pooled, embedding=embedding, head=head)
        return outputs._replace(members=said) if self.distilled else outputs

    def _parameter(self, name: str, init: layers.Initializer, count: int) -> Array:
        """One row for each of so many tokens: [1, count, D] of `dtype`."""
        return self.param(name, init, (1, count, self.width), layers.wide(self.dtype)).astype(self.dtype)


def create(
    name: str,
    num_classes: int,
    *,
    patch: Annotated[int, whole(1, 1024)] = 16,
    width: Annotated[float, WIDTH] = 1.0,
    depth: Annotated[int | None, optional(whole(PARTS + 1, 1000))] = None,
    drop_path: Annotated[float, FRACTION] = 0.0,
    frozen_backbone: bool = False,
    dtype: DTypeLike = jnp.float32,
) -> Network:
    """Builds the network of that name, a key of `FAMILY`.

    The images that it is initialized for decide the number of positions.

    Args:
      patch: pixels of a side; 4 suits images of 32 pixels.
      width: factor on the channels of a token. There is a head of attention for every 64 of them, one at least.
      depth: blocks, 12 by default.
      drop_path: stochastic depth: how often the last block adds nothing to an image in training. It rises from 0 in
        the first block; 0.1 for DeiT.
      frozen_backbone: all but the head stays in inference mode in training.
      dtype: of the computation.
    Raises:
      InputError: for a width that the heads do not divide.
    """
    published, distilled, preprocessing = FAMILY[name]
    (channels,) = layers.scaled((published,), width)
    heads = max(1, channels // OF_A_HEAD)
    if channels % heads:
        raise InputError(
            f"model.width is {width}, for {channels} channels; expected a number that {heads} heads divide"
        )
    module = VisionTransformer(
        num_classes, channels, heads, patch, depth or DEPTH, distilled, drop_path, frozen_backbone, dtype
    )
    head = ("head_dist", "head") if distilled else ("head",)
    return from_linen(module, head=head, torch_key=torch_key, published=preprocessing)


def torch_key(path: tuple[str, ...]) -> str:
    """timm's key of the variable at a path."""
    return torch_names.dotted(path).replace("patch_embed_", "patch_embed.")
