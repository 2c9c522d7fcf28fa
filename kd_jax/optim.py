"""Who is updated and how: optimisers as optax chains, schedules of the global step, frozen parameters."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax.traverse_util import flatten_dict, unflatten_dict

from kd_jax.errors import InputError, choose
from kd_jax.types import Hyper

OPTIMIZERS = ("sgd", "adam", "adamw")
SCHEDULES = ("constant", "cosine", "step", "exponential")
FREEZES = ("none", "convolutions", "encoder")
HEAD = ("fc", "mlp")  # the modules behind the pooled features

Schedule = Callable[[jax.Array], jax.Array]


class Optimizer(NamedTuple):
    """Updates both groups of parameters, "student" and "method". The learning rate follows the global step."""

    split: Callable[[Any], tuple[Any, Any]]  # the student's params -> (those that train, those that are frozen)
    init: Callable[[dict[str, Any]], dict[str, Any]]  # params -> state
    update: Callable[..., tuple[dict[str, Any], dict[str, Any]]]  # see `create`
    learning_rate: Callable[[jax.Array, Hyper], jax.Array]  # of the student at a step


def schedule(
    name: str,
    *,
    steps: int,
    steps_per_epoch: int,
    warmup_epochs: float = 0.0,
    milestones: tuple[float, ...] = (),
    gamma: float = 0.1,
    key: str = "optimizer.schedule",
) -> Schedule:
    """A factor in [0, 1] on the highest learning rate, as a function of the step (from 0).

    Args:
      name: "constant"; "cosine", to zero at `steps`; "step", times `gamma` at each of the epochs `milestones`;
        "exponential", times `gamma` at the end of every epoch. Each begins with a linear warmup.
      steps: of the whole run. steps_per_epoch: of one epoch.
      warmup_epochs: may be a fraction, and is cut to half of the run.
      key: of the config, for the error about an unknown name.
    """
    choose(key, name, SCHEDULES)
    warmup = min(round(warmup_epochs * steps_per_epoch), steps // 2)

    def factor(step):
        step = jnp.asarray(step, jnp.float32)
        epoch = jnp.floor(step / steps_per_epoch)
        if name == "cosine":
            progress = (step - warmup) / max(steps - warmup, 1)
            value = 0.5 * (1 + jnp.cos(jnp.pi * jnp.clip(progress, 0, 1)))
        elif name == "step":
            value = gamma ** sum((epoch >= m).astype(jnp.float32) for m in milestones)
        else:
            value = gamma**epoch if name == "exponential" else jnp.ones_like(step)
        return jnp.where(step < warmup, (step + 1) / (warmup + 1), value)

    return factor


def _direction(options: Mapping[str, Any], weight_decay, decayed, clip: float) -> optax.GradientTransformation:
    """The optax chain from gradients to a step of unit learning rate; `decayed` is the mask of what decays."""
    name = options["name"]
    decay = optax.add_decayed_weights(weight_decay, mask=decayed)
    adam = optax.scale_by_adam(options["b1"], options["b2"])
    momentum = optax.trace(options["momentum"], nesterov=options["nesterov"])
    chain = {"sgd": (decay, momentum), "adam": (decay, adam), "adamw": (adam, decay)}[name]
    return optax.chain(optax.clip_by_global_norm(clip) if clip else optax.identity(), *chain)


def is_kernel(path: tuple[str, ...]) -> bool:
    """Whether the parameter at this path is neither a bias nor a batch norm's scale."""
    return path[-1] not in ("bias", "scale")


def trains(path: tuple[str, ...], freeze: str, norms: frozenset) -> bool:
    """Whether the student's parameter at this path trains. `norms`: the paths of the batch norms."""
    in_head = path[0] in HEAD
    return freeze == "none" or in_head or (freeze == "convolutions" and path[:-1] in norms)


def split_frozen(params: Any, freeze: str) -> tuple[dict, dict]:
    """Splits nested params into two flat dicts {path: array}: those that train, and those that are frozen.

    Only the first is differentiated, so the gradients of frozen kernels are never computed.
    """
    flat = flatten_dict(params)
    norms = frozenset(path[:-1] for path in flat if path[-1] == "scale")
    trained = {path: leaf for path, leaf in flat.items() if trains(path, freeze, norms)}
    return trained, {path: leaf for path, leaf in flat.items() if path not in trained}


def merge(trained: Mapping, frozen: Mapping) -> dict:
    """The nested params that `split_frozen` took apart."""
    return unflatten_dict({**trained, **frozen})


def create(
    student: Mapping[str, Any],
    method: Mapping[str, Any],
    *,
    steps: int,
    steps_per_epoch: int,
    freeze: str = "none",
    clip: float = 0.0,
) -> Optimizer:
    """Builds the optimiser of both groups.

    Args:
      student: the `optimizer` section of a config. method: its `method` part, for adapters and discriminators.
      steps, steps_per_epoch: of the run, for the schedules.
      freeze: "none", "convolutions" (batch norms and head train) or "encoder" (the head trains).
      clip: largest global norm of the student's gradient; 0 for none.
    Returns:
      Optimizer, whose update(gradients, state, params, *, step, hyper, turns) returns (params, state). `gradients` and
      `params` are {"student": what split returned first, "method": tree}. A group whose turn it is not keeps its
      parameters and its optimiser's state as they are.
    """
    choose("model.freeze", freeze, FREEZES)
    for name, options in (("optimizer", student), ("optimizer.method", method)):
        choose(f"{name}.name", options["name"], OPTIMIZERS)
        if not 0 < options["learning_rate"] < math.inf:
            raise InputError(f"{name}.learning_rate is {options['learning_rate']}; expected a number above 0")
    shared = {
        "steps": steps,
        "steps_per_epoch": steps_per_epoch,
        "milestones": tuple(student["milestones"]),
        "gamma": student["gamma"],
    }
    student_schedule = schedule(student["schedule"], warmup_epochs=student["warmup_epochs"], **shared)
    method_schedule = schedule(method["schedule"], key="optimizer.method.schedule", **shared)

    def chains(hyper: Hyper | None):
        # States do not depend on the traced rates, so `init` needs none.
        decay = hyper.weight_decay if hyper else 0.0

        def decayed(params):
            everything = student["decay_norms_and_biases"]
            return {path: everything or is_kernel(path) for path in params}

        return {
            "student": _direction(student, decay, decayed, clip),
            "method": _direction(method, method["weight_decay"], None, 0.0),
        }

    def split(params):
        return split_frozen(params, freeze)

    def init(params):
        chain = chains(None)
        return {
            "student": chain["student"].init(split(params["student"])[0]),
            "method": chain["method"].init(params["method"]),
        }

    def student_rate(step, hyper):
        return hyper.learning_rate * student_schedule(step)

    def update(gradients, state, params, *, step, hyper, turns):
        rates = {"student": student_rate(step, hyper), "method": hyper.method_learning_rate * method_schedule(step)}
        new_params, new_state = {}, {}
        for group, chain in chains(hyper).items():
            direction, moved_state = chain.update(gradients[group], state[group], params[group])
            moved = jax.tree.map(lambda p, d, rate=rates[group]: p - rate.astype(p.dtype) * d, params[group], direction)
            new_params[group] = when(turns[group], moved, params[group])
            new_state[group] = when(turns[group], moved_state, state[group])
        return new_params, new_state

    return Optimizer(split, init, update, student_rate)


def when(moves, new, old):
    """`new` where `moves` (a bool or a traced one), else `old`, leaf by leaf."""
    return new if moves is True else jax.tree.map(lambda a, b: jnp.where(moves, a, b), new, old)
