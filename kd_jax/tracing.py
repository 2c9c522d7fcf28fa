"""What tracing shows of an experiment, before a teacher is trained or a file is made."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding

from kd_jax import sharding
from kd_jax.data import resident, stream
from kd_jax.errors import InputError
from kd_jax.types import Hyper, Split, Teacher, TrainState


def trace(
    train_steps: Callable[..., Any],
    state: TrainState,
    teacher: Teacher | None,
    train: Split,
    rows: tuple[int, int],
    hyper: Hyper,
    mesh: Mesh,
    taught: Any = None,
) -> None:
    """Traces steps.

    Args:
      train_steps: compiled. Called with what has these shapes, it is not traced again.
      state: its shapes.
      teacher: or none.
      train: the images.
      rows: shape of a call's rows, (steps, images of each).
      hyper: traced scalars.
      mesh: the devices.
      taught: shapes of what the teacher says at those steps, where it is not asked in them: see
        `teacher_cache.asking.fetch_taught`.
    """
    jax.eval_shape(train_steps, *call(state, teacher, train, rows, hyper, mesh, taught))


def call(
    state: TrainState,
    teacher: Teacher | None,
    train: Split,
    rows: tuple[int, int],
    hyper: Hyper,
    mesh: Mesh,
    taught: Any = None,
) -> tuple[Any, ...]:
    """The shapes of what `steps.train_steps` is called with; for the arguments see `trace`."""
    everywhere = sharding.replicated(mesh)
    constants, given, labels = _of_feed(train, rows, mesh)
    given = given if taught is None else (given, taught)
    return state, _variables(teacher, everywhere), constants, given, _shapes(hyper, everywhere), labels


def taught_shapes(teach: Callable[..., Any], teacher: Teacher, train: Split, rows: tuple[int, int], mesh: Mesh) -> Any:
    """The shapes of what a teacher says, by `teacher_cache.asking.teach_steps`; for the other arguments see `trace`."""
    everywhere = sharding.replicated(mesh)
    constants, given, _ = _of_feed(train, rows, mesh)
    return jax.eval_shape(teach, np.uint32(0), np.int32(0), _variables(teacher, everywhere), constants, given)


def _of_feed(train: Split, rows: tuple[int, int], mesh: Mesh) -> tuple[Any, Any, Any]:
    """The shapes of a feed's constants, of the rows of a call, and of all labels."""
    everywhere, divided = sharding.replicated(mesh), NamedSharding(mesh, PartitionSpec(None, sharding.AXIS))
    if stream.is_streamed(train):
        return None, _shapes(stream.row_shapes(train, rows), divided), _shapes(train.labels, everywhere)
    split = _shapes(resident.shapes(train), everywhere)
    return split, jax.ShapeDtypeStruct(rows, jnp.int32, sharding=divided), split.labels


def state_shapes(
    init_state: Callable[..., TrainState], teacher: Teacher | None, train: Split, mesh: Mesh
) -> TrainState:
    """The shapes of the state before the first step, on every device."""
    everywhere = sharding.replicated(mesh)
    example, labels = _shapes(resident.example(train)), _shapes(train.labels, everywhere)
    state = jax.eval_shape(init_state, np.uint32(0), _variables(teacher, everywhere), example, labels)
    return _shapes(state, everywhere)


def _variables(teacher: Teacher | None, sharding: Sharding) -> Any:
    return _shapes(teacher.shapes, sharding) if teacher else {}


def _shapes(tree: Any, sharding: Sharding | None = None) -> Any:
    def shape(x: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding, weak_type=getattr(x, "weak_type", False))

    return jax.tree.map(shape, tree)


def terms_that_never_count(terms: Mapping[str, Any], *, steps: int, steps_per_epoch: int) -> list[str]:
    """The terms whose epochs begin after the end of the run."""
    first = {term: (options.get("epochs") or (0,))[0] for term, options in terms.items()}
    return [term for term, epoch in first.items() if epoch * steps_per_epoch >= steps]


def check_optimizers(terms: Mapping[str, Any], params: Mapping[str, Any]) -> None:
    """Raises InputError for the optimizer of a term that trains nothing; `params` are those of every group."""
    for term, chosen in terms.items():
        if chosen.get("optimizer") and not jax.tree.leaves(params[term]):
            raise InputError(
                f"method.{term}.optimizer is {chosen['optimizer']}; expected none, as the term trains no parameters"
            )
