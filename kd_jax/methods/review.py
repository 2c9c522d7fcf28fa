"""Knowledge review: every stage of the teacher teaches the stages of the student up to its own depth."""

from typing import Annotated

import flax.linen as nn
import jax.numpy as jnp

from kd_jax import losses
from kd_jax.keys import SIZE
from kd_jax.methods.base import reported, stage_pairs
from kd_jax.models.layers import BatchNorm
from kd_jax.types import Array, Context, Outputs, at_least_float32


class ReviewKD(nn.Module):
    """A chain of fusions from the student's embedding to its first stage, each compared by `losses.hcl`.

    Chen et al., "Distilling Knowledge via Knowledge Review", CVPR 2021. As in the official code the teacher is seen
    before the last ReLU of each stage, the embedding is a map of one pixel, and the stem's map is left out. Maps of any
    size are brought to the next one's by the nearest pixel. Weight 5 for ResNet-32x4 to 8x4 on CIFAR-100, 0.6 for
    ResNet-56 to 20, with `"warmup_epochs": 20`.

    Fields:
      preactivation: see the student before the last ReLU of each stage too, as in the setting for ImageNet.
      width: of the maps that go along the chain, at most; it is the embedding's where that is narrower.
    """

    preactivation: bool = False
    width: Annotated[int, SIZE] = 512

    @nn.compact
    def __call__(self, context: Context) -> Array:
        own = "preactivations" if self.preactivation else "features"
        pairs = stage_pairs(context, own, "preactivations")
        end = tuple(_as_map(x, who) for x, who in ((context.student, "the student"), (context.teacher, "the teacher")))
        width = min(self.width, end[0].shape[-1])
        total, deeper = jnp.zeros((), end[0].dtype), None
        for stage, (student, teacher) in reversed(list(enumerate([*pairs, end], start=1))):
            result, deeper = ABF(width, teacher.shape[1:], name=f"abf{stage}")(student, deeper)
            total += losses.hcl(result, teacher).mean()
        return total


class ABF(nn.Module):
    """Attention-based fusion of a stage's map with what comes from the deeper ones.

    A 1x1 convolution with batch norm brings the map to the chain's width. Two attention maps, made of both, weigh the
    sum of both; it goes on along the chain, and through a 3x3 convolution with batch norm to be compared.
    """

    width: int
    shape: tuple[int, ...]  # (i, j, d) of the teacher's map

    @nn.compact
    def __call__(self, x: Array, deeper: Array | None) -> tuple[Array, Array]:
        """x [B, h, w, c] and the deeper one [B, k, l, width] -> ([B, i, j, d], [B, i, j, width])."""
        *size, features = self.shape
        dtype = x.dtype
        x = nn.Conv(self.width, (1, 1), use_bias=False, param_dtype=dtype, name="conv1")(x)
        x = BatchNorm(name="bn1")(x, train=True)
        if deeper is not None:
            deeper = nearest(deeper, x.shape[1:3])
            both = jnp.concatenate([x, deeper], -1)
            attention = nn.sigmoid(nn.Conv(2, (1, 1), param_dtype=dtype, name="attention")(both))
            x = x * attention[..., :1] + deeper * attention[..., 1:]
        x = nearest(x, size)
        y = nn.Conv(features, (3, 3), padding=1, use_bias=False, param_dtype=dtype, name="conv2")(x)
        return BatchNorm(name="bn2")(y, train=True), x


def nearest(x: Array, size: tuple[int, ...] | list[int]) -> Array:
    """Maps [B, h, w, c] at [B, *size, c]: pixel i of n is that at floor(i h / n), as PyTorch's "nearest" takes it."""
    for axis, length in enumerate(size, start=1):
        whole = x.shape[axis]
        if length % whole:
            x = x.take(jnp.arange(length) * whole // length, axis, mode="clip")
        elif length != whole:
            x = jnp.repeat(x, length // whole, axis)
    return x


def _as_map(outputs: Outputs, who: str) -> Array:
    """The embedding as a map [B, 1, 1, D]."""
    return at_least_float32(reported(outputs, "embedding", who))[:, None, None]
