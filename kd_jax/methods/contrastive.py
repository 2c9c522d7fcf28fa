"""Contrastive methods, whose memory holds an embedding of every training image."""

from typing import Annotated

import flax.linen as nn
import jax
import jax.numpy as jnp

from kd_jax import losses
from kd_jax.errors import InputError
from kd_jax.keys import FRACTION, SIZE, Temperature, whole
from kd_jax.methods.base import reported
from kd_jax.models.layers import Linear
from kd_jax.types import Array, Context


class CRD(nn.Module):
    """Contrastive representation distillation: `losses.nce` in both directions, with a memory of both embeddings.

    Tian et al., "Contrastive Representation Distillation", ICLR 2020, equations 17 to 19 (weight 0.8). Student and
    teacher embeddings go through a linear layer each, both trained, to a sphere. Negatives are drawn from the images of
    other classes, as in the official code, but with replacement; an image without a label has all others as its
    negatives. The memory takes 8 N `features` bytes.

    Fields:
      features: width of the sphere's space. negatives: drawn for each image and side. temperature: of the similarity.
      momentum: of the memory.
    """

    features: Annotated[int, SIZE] = 128
    negatives: Annotated[int, whole(1, 2**20)] = 16384
    temperature: Temperature = 0.07
    momentum: Annotated[float, FRACTION] = 0.5

    @nn.compact
    def __call__(self, context: Context) -> Array:
        labels = context.train_labels
        if labels is None:
            raise InputError("it needs the labels of all training images; expected a set that lies in memory")
        ids, size = context.batch.ids, context.num_examples
        order = self.variable("classes", "order", lambda: jnp.argsort(labels).astype(jnp.int32)).value
        drawn = draw_negatives(context.key, labels, order, ids, self.negatives)
        sides = {
            "student": reported(context.student, "embedding", "the student"),
            "teacher": jax.lax.stop_gradient(reported(context.teacher, "embedding", "the teacher")),
        }
        anchors = {side: _unit(Linear(self.features, x.dtype, name=f"{side}_embed")(x)) for side, x in sides.items()}
        banks = {side: self._bank(side, size, x.dtype) for side, x in anchors.items()}
        total = jnp.zeros((), anchors["student"].dtype)
        for side, other in (("student", "teacher"), ("teacher", "student")):
            memory = banks[other].value
            positive = jnp.exp((memory[ids] * anchors[side]).sum(-1) / self.temperature)
            negative = jnp.exp(jnp.einsum("bmd,bd->bm", memory[drawn], anchors[side]) / self.temperature)
            # The normalizer is set by the first batch, and stays.
            scale = self.variable("memory", f"{side}_scale", lambda: jnp.full((), -1.0, total.dtype))
            everything = jax.lax.stop_gradient(jnp.concatenate([positive[:, None], negative], -1))
            scale.value = jnp.where(scale.value < 0, everything.mean() * size, scale.value)
            total += losses.nce(positive / scale.value, negative / scale.value, num_examples=size).mean()
        if not self.is_initializing():
            for side, bank in banks.items():
                new = self.momentum * bank.value[ids] + (1 - self.momentum) * jax.lax.stop_gradient(anchors[side])
                bank.value = bank.value.at[ids].set(_unit(new))
        return total

    def _bank(self, side: str, size: int, dtype: jnp.dtype) -> nn.Variable:
        bound = 1 / (self.features / 3) ** 0.5

        def start() -> Array:
            return jax.random.uniform(self.make_rng("params"), (size, self.features), dtype, -bound, bound)

        return self.variable("memory", f"{side}_bank", start)


def draw_negatives(rng: Array, labels: Array, order: Array, ids: Array, count: int) -> Array:
    """Images [B, count] of other classes than each image's own, uniformly and with replacement.

    Args:
      rng: a key.
      labels: [N] of all images, -1 for none. order: [N], the images sorted by class.
      ids: [B]. count: of each.
    """
    first, own = _range_of_own(labels, order, ids)
    others = jnp.maximum(len(labels) - own, 1)[:, None]
    draws = jax.random.uniform(rng, (len(ids), count), jnp.float32)
    place = jnp.minimum((draws * others).astype(jnp.int32), others - 1)
    return order[jnp.where(place < first[:, None], place, (place + own[:, None]) % len(labels))]


def _range_of_own(labels: Array, order: Array, ids: Array) -> tuple[Array, Array]:
    """Where in `order`, the images sorted by class, an image's own class begins, and how many it has.

    An image without a label is alone in its range.
    """
    ranked, own = labels[order], labels[ids]
    first = jnp.searchsorted(ranked, own).astype(jnp.int32)
    count = jnp.searchsorted(ranked, own, side="right").astype(jnp.int32) - first
    place = jnp.zeros_like(order).at[order].set(jnp.arange(len(order), dtype=jnp.int32))[ids]
    return jnp.where(own < 0, place, first), jnp.where(own < 0, 1, count)


def _unit(x: Array) -> Array:
    """Rows of norm one, with a finite gradient at zero."""
    squares = jnp.square(x).sum(-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(squares, 1e-24))
