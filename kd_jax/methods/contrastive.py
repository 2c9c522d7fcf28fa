"""Contrastive methods, whose memory holds embeddings of the training images."""

from typing import Annotated

import flax.linen as nn
import jax
import jax.numpy as jnp

from kd_jax import losses
from kd_jax.errors import InputError
from kd_jax.keys import FRACTION, SIZE, TRACED, Temperature, whole
from kd_jax.losses.arrays import unit
from kd_jax.methods.base import reported
from kd_jax.methods.embeddings import embeddings
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
    momentum: Annotated[float, FRACTION, TRACED] = 0.5

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
        anchors = {side: unit(Linear(self.features, name=f"{side}_embed")(x)) for side, x in sides.items()}
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
                bank.value = bank.value.at[ids].set(unit(new))
        return total

    def _bank(self, side: str, size: int, dtype: jnp.dtype) -> nn.Variable:
        bound = 1 / (self.features / 3) ** 0.5

        def start() -> Array:
            return jax.random.uniform(self.make_rng("params"), (size, self.features), dtype, -bound, bound)

        return self.variable("memory", f"{side}_bank", start)


class RRD(nn.Module):
    """Relational representation distillation: `losses.rrd` with a queue of the teacher's latest embeddings.

    Giakoumoglou and Stathaki, "Relational Representation Distillation", 2024, with its FIFO queue (weight 1): CRD
    without a memory of all images, without negatives and labels. The batch enters the queue before it is compared, as
    in the official code. There the teacher's embedding goes through a layer that never trains, here it is used itself,
    and a linear layer brings the student's to its width where that differs. The paper's student is the sharper one;
    the official script has the two temperatures the other way round. With equal ones, 0.07 by default there, this is
    LightlyTrain's distillation. The queue takes 4 `queue` D bytes.

    Fields:
      queue: how many embeddings it holds; until it is full, those that it has. teacher_temperature,
      student_temperature: of the cosines.
    """

    queue: Annotated[int, whole(1, 2**20)] = 16384
    teacher_temperature: Temperature = 0.1
    student_temperature: Temperature = 0.02

    @nn.compact
    def __call__(self, context: Context) -> Array:
        student, teacher = embeddings(context)
        if student.shape != teacher.shape:
            student = Linear(teacher.shape[-1], name="projector")(student)
        memory = self.variable("memory", "queue", jnp.zeros, (self.queue, teacher.shape[-1]), teacher.dtype)
        # Where the next embedding goes, and how many there are.
        pointer = self.variable("memory", "pointer", jnp.zeros, (), jnp.int32)
        filled = self.variable("memory", "filled", jnp.zeros, (), jnp.int32)
        new = unit(teacher)[-self.queue :]
        places = (pointer.value + jnp.arange(len(new), dtype=jnp.int32)) % self.queue
        rows, count = memory.value.at[places].set(new), jnp.minimum(filled.value + len(new), self.queue)
        if not self.is_initializing():
            memory.value, filled.value = rows, count
            pointer.value = (pointer.value + len(new)) % self.queue
        return losses.rrd(
            student,
            teacher,
            rows,
            teacher_temperature=self.teacher_temperature,
            student_temperature=self.student_temperature,
            queued=jnp.arange(self.queue) < count,
        ).mean()


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
