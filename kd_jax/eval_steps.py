"""What is compiled to evaluate: a batch, many batches in one call, what the teacher says of them. All pure."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from kd_jax import metrics, steps
from kd_jax.data import resident
from kd_jax.steps import Components, StepOptions
from kd_jax.types import (
    NO_LOGITS,
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

Said = Mapping[str, Array]  # what a teacher says of the images of an evaluation


def eval_step(
    variables: Variables,
    method: MethodVariables,
    split: Split | RawBatch,
    ids: Array,
    mask: Array,
    taught: Said | None = None,
    *,
    components: Components,
    options: StepOptions,
) -> metrics.Sums:
    """Metric sums over the images at `ids` [B] that `mask` [B] keeps, with the student in inference mode.

    `taught` is what the teacher says of them, see `teach_evaluation`.
    """
    raw = _gather(split, ids, options)
    images = components.prepare(raw.images)
    outputs = components.student.apply(variables, images, train=False)[0]
    batch = batch_of(images, raw, outputs.num_classes)
    view = View(batch, outputs, None if taught is None else Outputs(**{"logits": NO_LOGITS, **taught}))
    context = Context((view,), networks=Networks((components.student, variables), None))
    distances = components.method.measures(method, context) if taught and "embedding" in taught else {}
    if not outputs.num_classes:
        return metrics.sums_of(distances, mask)
    compares = taught is not None or not components.method.needs_teacher
    others = components.method.others(method, context) if compares else {}
    logits = components.method.predict(method, outputs)
    teacher_logits = taught.get("logits") if taught else None
    return metrics.sums(logits, raw.labels, mask, teacher_logits, others) | metrics.sums_of(distances, mask)


def eval_steps(
    variables: Variables,
    method: MethodVariables,
    split: Split | RawBatch,
    ids: Array,
    mask: Array,
    taught: Said | None = None,
    *,
    components: Components,
    options: StepOptions,
) -> metrics.Sums:
    """The total of `eval_step` over n batches, one after another; all but the variables and `split` are [n, ...]."""

    def one(row: tuple[Array, Array, Said | None]) -> metrics.Sums:
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
    split: Split | RawBatch,
    ids: Array,
    *,
    num_classes: int,
    components: Components,
    options: StepOptions,
) -> Said:
    """What the teacher says of the images at `ids` [n, B] in inference mode, {"logits": [n, B, K]}.

    Where it or the student, whose data has `num_classes`, has none, {"embedding": [n, B, D]}.
    """

    def one(ids: Array) -> Said:
        raw = _gather(split, ids, options)
        rng = jax.random.key(0)  # a teacher that draws must not do so in an evaluation
        said = steps.ask(components, teacher_variables, batch_of(raw.images, raw, num_classes), rng, False)
        if num_classes and said.num_classes:
            return {"logits": said.logits}
        return {"embedding": said.embedding} if said.embedding is not None else {}

    if len(ids) == 1:
        return jax.tree.map(lambda x: x[None], one(ids[0]))
    return jax.lax.map(one, ids)


def _gather(split: Split | RawBatch, ids: Array, options: StepOptions) -> RawBatch:
    """The images at `ids` of a split on the devices; a batch that was read holds just these."""
    return split if isinstance(split, RawBatch) else resident.gather(split, ids, options=options)


def batch_of(images: Array, raw: RawBatch, num_classes: int) -> Batch:
    """The batch of an evaluation, of pixels or of what a network reads: nothing is cropped, no loss has a target."""
    targets = jnp.zeros((len(images), num_classes), at_least_float32(images).dtype)
    return Batch(images, raw.labels, targets, raw.ids, jnp.zeros_like(raw.ids))
