"""What tracing shows of an experiment, before a teacher is trained or a file is made."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kd_jax import steps
from kd_jax.data import resident
from kd_jax.errors import InputError
from kd_jax.steps import Components, StepOptions
from kd_jax.types import Hyper, Split, TrainState


def trace(components: Components, options: StepOptions, hyper: Hyper, train: Split, batch_size: int) -> None:
    """Traces initialization and a step, so that an error in them is seen before a teacher is trained or a file made."""
    state, split = state_shapes(components, options, train), resident.shapes(train)
    teacher_variables = components.teacher.shapes if components.teacher else {}
    fetch = functools.partial(steps.gather, options=options)
    rows = jax.ShapeDtypeStruct((1, batch_size), jnp.int32)
    train_steps = functools.partial(steps.train_steps, fetch=fetch, components=components, options=options)
    jax.eval_shape(train_steps, state, teacher_variables, split, rows, hyper, split.labels)


def _shapes(tree: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


def state_shapes(components: Components, options: StepOptions, train: Split) -> TrainState:
    """The shapes of the state before the first step."""
    teacher_variables = components.teacher.shapes if components.teacher else {}
    init = functools.partial(steps.init_state, components=components, options=options)
    example = _shapes(resident.example(train))
    return jax.eval_shape(init, np.uint32(0), teacher_variables, example, _shapes(train.labels))


def terms_that_never_count(terms: Mapping[str, Any], *, steps: int, steps_per_epoch: int) -> list[str]:
    """The terms whose epochs begin after the end of the run."""
    first = {term: (options.get("epochs") or (0,))[0] for term, options in terms.items()}
    return [term for term, epoch in first.items() if epoch * steps_per_epoch >= steps]


def check_optimizers(terms: Mapping[str, Any], components: Components, options: StepOptions, train: Split) -> None:
    """Raises InputError for the optimizer of a term that trains nothing."""
    if any("optimizer" in chosen for chosen in terms.values()):
        params = state_shapes(components, options, train).params
        for term, chosen in terms.items():
            if chosen.get("optimizer") and not jax.tree.leaves(params[term]):
                raise InputError(
                    f"method.{term}.optimizer is {chosen['optimizer']}; expected none, as the term trains no parameters"
                )
