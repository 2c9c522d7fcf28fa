"""What is compiled to ask a teacher alone for what it would say in the steps of a run. All pure."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from kd_jax import steps
from kd_jax.steps import Components, StepOptions
from kd_jax.types import Array, Outputs, RawBatch, Variables

Said = Mapping[str, Array]  # what is kept of a teacher's outputs for a batch


def teach(
    rng: Array,
    step: Array,
    teacher_variables: Variables,
    raw: RawBatch,
    *,
    keep: Callable[[Outputs], Said],
    components: Components,
    options: StepOptions,
) -> tuple[Said, ...]:
    """What is kept of what the teacher would tell `train_step` at a step, of each view {name: [B, ...]}.

    Args:
      rng: `steps.key_of_steps` of the run's seed.
      step: [] int32.
      teacher_variables: of `components.teacher`.
      raw: the batch.
      keep: what is kept of the teacher's outputs.
      components, options: what the step is made of.
    """
    count = options.micro_batches

    def one(micro_batch: Array | int, raw: RawBatch) -> tuple[Said, ...]:
        own = jax.random.fold_in(jax.random.fold_in(rng, step), micro_batch)
        with jax.named_scope("augmentation"):
            batches = components.augment(steps.stream(own, "augment"), raw)
        views = ((batch, steps.of_view(own, i)) for i, batch in enumerate(batches))
        return tuple(keep(steps.ask(components, teacher_variables, batch, rng, True)) for batch, rng in views)

    if count == 1:
        return one(0, raw)
    inputs = jnp.arange(count), steps.split_batch(raw, count)
    taught = jax.lax.scan(lambda _, x: (None, one(*x)), None, inputs, unroll=options.unroll)[1]
    return jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(-1, *x.shape[2:]), taught)


def teach_steps(
    seed: Array,
    first: Array,
    teacher_variables: Variables,
    constants: Any,
    rows: Any,
    *,
    keep: Callable[[Outputs], Said],
    fetch: Callable[[Any, Any], RawBatch],
    components: Components,
    options: StepOptions,
) -> tuple[Said, ...]:
    """What is kept of what the teacher says at each of n steps, from `first` on: of each view {name: [n, B, ...]}.

    Args:
      seed: of the run.
      first: [] int32, the first step.
      constants, rows, fetch: of a `Feed`; every array of `rows` is [n, ...].
      teacher_variables, keep, components, options: see `teach`.
    """

    def one(step: Array, row: Any) -> tuple[Array, tuple[Said, ...]]:
        raw = fetch(constants, row)
        rng = steps.key_of_steps(seed)
        taught = teach(rng, step, teacher_variables, raw, keep=keep, components=components, options=options)
        return step + 1, taught

    if len(jax.tree.leaves(rows)[0]) == 1:  # as in `train_steps`
        return jax.tree.map(lambda x: x[None], one(first, jax.tree.map(lambda x: x[0], rows))[1])
    return jax.lax.scan(one, first, rows)[1]


def fetch_taught(
    constants: Any,
    row: tuple[Any, tuple[Said, ...]],
    *,
    fetch: Callable[[Any, Any], RawBatch],
    restore: Callable[[Said], Outputs],
) -> RawBatch:
    """The batch of a feed's row, with what the teacher says of each view beside it, of which `keep` had kept a part."""
    ids, said = row
    return fetch(constants, ids)._replace(taught=tuple(map(restore, said)))
