"""Schedules: factors of the peak learning rate by the step."""

import functools
import inspect
import math
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from kd_jax import keys, registry
from kd_jax.errors import InputError, check_callable, choose, one_line
from kd_jax.types import Array

Schedule = Callable[[Array | int], Array]


class Span(NamedTuple):
    """How long a run is, in steps."""

    steps: int
    steps_per_epoch: int
    warmup: int  # which a linear rise takes in the schedule's place


def constant(span: Span) -> Schedule:
    """Stays at one."""
    return lambda step: jnp.float32(1)


def cosine(span: Span) -> Schedule:
    """Half a cosine from the end of the warmup, to zero at that of the run."""

    def factor(step: Array | int) -> Array:
        progress = jnp.asarray(step - span.warmup, jnp.float32) / max(span.steps - span.warmup, 1)
        return 0.5 * (1 + jnp.cos(jnp.pi * jnp.clip(progress, 0, 1)))

    return factor


def at_milestones(span: Span, milestones: tuple[float, ...], gamma: float) -> Schedule:
    """Times `gamma` at each of the epochs `milestones`."""

    def factor(step: Array | int) -> Array:
        passed = [step >= math.ceil(_steps(m, span.steps_per_epoch)) for m in milestones]
        return gamma ** sum((jnp.asarray(x, jnp.float32) for x in passed), jnp.float32(0))

    return factor


def exponential(span: Span, gamma: float) -> Schedule:
    """Times `gamma` at the end of every epoch."""
    # In integers: a quotient in float32 can come one step late.
    return lambda step: gamma ** jnp.asarray(step // span.steps_per_epoch, jnp.float32)


SCHEDULES: dict[str, Callable[..., Schedule]] = {
    "constant": constant,
    "cosine": cosine,
    "step": at_milestones,
    "exponential": exponential,
}
OF_SECTION = ("milestones", "gamma")  # options that are keys of the section `optimizer`
OF_RUN = ("transition_steps", "decay_steps")  # what optax calls the length of a schedule
BEGIN = ("value", "init_value", "peak_value")  # and where it begins, or its height


def register(name: str, build: Callable[..., Schedule]) -> None:
    """Adds a schedule of your own, which `optimizer.schedule` then knows by `name`, or replaces it.

    Args:
      name: of the schedule.
      build: from `Span`, and its options by name, to a factor of the learning rate by the step. Options called
        `milestones` and `gamma` are those keys of the config; others stand in `optimizer.schedule_options`.
    """
    check_callable(f"the schedule {name!r}", build)
    registry.add(SCHEDULES, name, build)


def of_optax() -> dict[str, Callable[..., Schedule]]:
    """The schedules of optax by name."""
    return {
        name: x
        for name, x in vars(optax).items()
        if name.endswith(("_schedule", "exponential_decay")) and name[:5] != "scale" and inspect.isfunction(x)
    }


def create(section: Mapping[str, Any], *, steps: int, steps_per_epoch: int, what: str = "optimizer") -> Schedule:
    """A multiplier of the peak learning rate as a function of the step (from 0), which begins with a linear warmup.

    Args:
      section: `optimizer` of a config, of which `schedule`, `schedule_options`, `warmup_epochs` (may be a fraction,
        and is cut to half of the run), `milestones` and `gamma` are read. A schedule of optax counts steps from the
        end of the warmup. Its length is the rest of the run, and its first or highest value 1, where no option says
        otherwise.
      steps: of the whole run. steps_per_epoch: of one epoch.
      what: the name of the section, for errors.
    Raises:
      InputError: for a name that is not known, and options that it does not take.
    """
    name, options = section["schedule"], section["schedule_options"]
    build = choose(f"{what}.schedule", name, of_optax() | SCHEDULES)
    warmup = min(round(_steps(section["warmup_epochs"], steps_per_epoch)), steps // 2)
    parameters = dict(inspect.signature(build).parameters)
    if name in SCHEDULES:
        del parameters[next(iter(parameters))]
        given = {key: section[key] for key in OF_SECTION if key in parameters} | options
        build, begin = functools.partial(build, Span(steps, steps_per_epoch, warmup)), 0
    else:
        parameters = {key: p.replace(annotation=p.empty) for key, p in parameters.items()}  # see `optim`
        needed = {key for key, parameter in parameters.items() if parameter.default is parameter.empty}
        given = dict.fromkeys(needed & {*OF_RUN}, steps - warmup) | dict.fromkeys(needed & {*BEGIN}, 1.0) | options
        begin = warmup
    keys.check_options(f"{what}.schedule_options", f"an option of {name}", parameters, given)

    def factor(step: Array | int) -> Array:
        step = jnp.asarray(step, jnp.int32)
        value = jnp.asarray(after(step - begin), jnp.float32)
        return jnp.where(step < warmup, (step + 1) / jnp.float32(warmup + 1), value)

    try:
        after = build(**{option: _with_steps(value) for option, value in given.items()})
        shape = jax.eval_shape(factor, jax.ShapeDtypeStruct((), jnp.int32)).shape
    except Exception as error:  # of optax, or of whoever registered it
        raise InputError(f"{what}.schedule is {name!r}, which fails: {one_line(error)}") from error
    if shape:
        raise InputError(f"{what}.schedule is {name!r}, whose factor is {list(shape)}; expected one number for a step")
    return factor


def _with_steps(value: Any) -> Any:
    """Boundaries by their steps, which flags and config.json can give as strings alone."""
    if not isinstance(value, Mapping):
        return value
    return {int(key) if isinstance(key, str) and key.isdecimal() else key: x for key, x in value.items()}


def _steps(epochs: float, steps_per_epoch: int) -> Fraction:
    """Epochs in steps, exactly: of 1.1 epochs of 50 steps the product of floats is more than 55."""
    return Fraction(str(epochs)) * steps_per_epoch
