"""What is compiled to evaluate: a batch, many batches in one call, what the teacher says of them. All pure."""

from typing import Any

import jax
import jax.numpy as jnp

from kd_jax import metrics, steps
from kd_jax.data import resident
from kd_jax.steps import Components, StepOptions
from kd_jax.types import (
    Array,
    Batch,
    Context,
    MethodVariables,
    Networks,
    Outputs,
    RawBatch,
    Split,
    Variables,
    View,
    at_least_float32,
)


def eval_step(
    variables: Variables,
    method: MethodVariables,
    split: Split,
    ids: Array,
    mask: Array,
    taught: Array | None = None,
    *,
    components: Components,
    options: StepOptions,
) -> metrics.Sums:
    """Metric sums over the images at `ids` [B] that `mask` [B] keeps, with the student in inference mode.

    `taught` [B, K] are the teacher's logits, see `teach_evaluation`.
    """
    raw = resident.gather(split, ids, options=options)
    images = components.prepare(raw.images)
    outputs = components.student.apply(variables, images, train=False)[0]
    batch = batch_of(images, raw, outputs.logits.shape[-1])
    view = View(batch, outputs, None if taught is None else Outputs(taught))
    own = Networks((components.student, variables), None)
    compares = taught is not None or not components.method.needs_teacher
    others = components.method.others(method, Context((view,), networks=own)) if compares else {}
    logits = components.method.predict(method, outputs)
    return metrics.sums(logits, raw.labels, mask, taught, others)


def eval_steps(
    variables: Variables,
    method: MethodVariables,
    split: Split,
    ids: Array,
    mask: Array,
    taught: Array | None = None,
    *,
    components: Components,
    options: StepOptions,
) -> metrics.Sums:
    """The total of `eval_step` over n batches, one after another; all but the variables and `split` are [n, ...]."""

    def one(row: tuple[Array, Array, Array | None]) -> metrics.Sums:
        return eval_step(variables, method, split, *row, components=components, options=options)

    rows = (ids, mask, taught)
    first = jax.tree.map(lambda x: x[0], rows)
    if len(ids) == 1:  # on a CPU, convolutions inside a loop are many times slower
        return one(first)

    def add(total: metrics.Sums, row: Any) -> tuple[metrics.Sums, None]:
        return jax.tree.map(jnp.add, total, one(row)), None

    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(one, first))
    return jax.lax.scan(add, zeros, rows)[0]


def teach_evaluation(
    teacher_variables: Variables,
    split: Split,
    ids: Array,
    *,
    num_classes: int,
    components: Components,
    options: StepOptions,
) -> Array:
    """The teacher's logits [n, B, K] of the images at `ids` [n, B] in inference mode."""

    def one(ids: Array) -> Array:
        raw = resident.gather(split, ids, options=options)
        rng = jax.random.key(0)  # a teacher that draws must not do so in an evaluation
        return steps.ask(components, teacher_variables, batch_of(raw.images, raw, num_classes), rng, False).logits

    if len(ids) == 1:
        return one(ids[0])[None]
    return jax.lax.map(one, ids)


def batch_of(images: Array, raw: RawBatch, num_classes: int) -> Batch:
    """The batch of an evaluation, of pixels or of what a network reads: nothing is cropped, no loss has a target."""
    targets = jnp.zeros((len(images), num_classes), at_least_float32(images).dtype)
    return Batch(images, raw.labels, targets, raw.ids, jnp.zeros_like(raw.ids))
