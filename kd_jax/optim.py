"""Optimizers, schedules and parameter freezing."""

import math
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax
from flax.traverse_util import flatten_dict, unflatten_dict

from kd_jax import keys, registry
from kd_jax.errors import InputError, check_callable, choose
from kd_jax.types import Array, Hyper

Schedule = Callable[[Array | int], Array]
Path = tuple[str, ...]

PARTS = ("task", "distillation")  # of a gradient: of the terms that need no teacher, and of those that do


def dot(options: Mapping[str, Any], decay: optax.GradientTransformation) -> optax.GradientTransformation:
    """SGD with a momentum for each part of the gradient, {"task": tree, "distillation": tree}, whose sum is the step.

    That of the task is lower by `delta` and has the weight decay, that of distillation is as much higher. Zhao et al.,
    "DOT: A Distillation-Oriented Trainer", ICCV 2023. What a term trains beside the student has the one
    momentum, as in the official code, which has that for a parameter of the student too that only one part reads.
    """
    momentum, delta = options["momentum"], options["delta"]
    if not 0 <= momentum - delta <= momentum + delta < 1:
        raise InputError(
            f"optimizer.momentum is {momentum} and optimizer.delta {delta}; expected both momenta,"
            f" {momentum - delta:g} and {momentum + delta:g}, to be at least 0 and below 1"
        )
    of_part = {
        "task": optax.chain(decay, optax.trace(momentum - delta)),
        "distillation": optax.trace(momentum + delta),
    }

    def init(params: Any) -> dict[str, Any]:
        return {part: transformation.init(params) for part, transformation in of_part.items()}

    def update(gradients: Any, state: Any, params: Any = None) -> tuple[Any, dict[str, Any]]:
        moved = {part: tx.update(gradients[part], state[part], params) for part, tx in of_part.items()}
        direction = jax.tree.map(jnp.add, *(moved[part][0] for part in PARTS))
        return direction, {part: moved[part][1] for part in PARTS}

    return optax.GradientTransformation(init, update)


def project(gradients: Mapping[str, Any]) -> Any:
    """The sum of both parts of a gradient, where that of distillation opposes the task's without its share along that.

    Yang et al., "Dual-Head Knowledge Distillation", 2024; the projection of Yu et al., "Gradient Surgery
    for Multi-Task Learning", NeurIPS 2020.
    """
    task, distillation = (gradients[part] for part in PARTS)
    inner, square = optax.tree.vdot(task, distillation), optax.tree.vdot(task, task)
    share = jnp.where(square > 0, jnp.minimum(inner, 0) / jnp.where(square > 0, square, 1), 0)
    return jax.tree.map(lambda t, d: t + d - share.astype(d.dtype) * t, task, distillation)


def total(gradients: Mapping[str, Any]) -> Any:
    """The sum of both parts of a gradient."""
    return jax.tree.map(jnp.add, *(gradients[part] for part in PARTS))


def _clip_parts(most: float) -> optax.GradientTransformation:
    """Both parts of a gradient times what bounds the global norm of their sum."""

    def clip(gradients: Any, params: Any = None) -> Any:
        norm = optax.tree.norm(total(gradients))
        return jax.tree.map(lambda x: jnp.where(norm < most, x, x / norm.astype(x.dtype) * most), gradients)

    return optax.stateless(clip)


# How both parts of a gradient become one.
GRADIENTS: dict[str, Callable[[Mapping[str, Any]], Any]] = {"sum": total, "project": project}
# Of each: (its options, the transformation that adds weight decay) -> from gradients to a step of unit learning rate.
OPTIMIZERS: dict[str, Callable[[Mapping[str, Any], optax.GradientTransformation], optax.GradientTransformation]] = {
    "sgd": lambda options, decay: optax.chain(decay, optax.trace(options["momentum"], nesterov=options["nesterov"])),
    "adam": lambda options, decay: optax.chain(decay, optax.scale_by_adam(options["b1"], options["b2"])),
    "adamw": lambda options, decay: optax.chain(optax.scale_by_adam(options["b1"], options["b2"]), decay),
    "dot": dot,
}
SCHEDULES = ("constant", "cosine", "step", "exponential")
FREEZES = ("none", "backbone", "backbone_and_norms")
# By their last name: biases, the factors of norms and of blocks, the tokens and positions of transformers.
NO_KERNELS = ("bias", "scale", "gamma", "cls_token", "dist_token", "pos_embed")


def register(
    name: str, build: Callable[[Mapping[str, Any], optax.GradientTransformation], optax.GradientTransformation]
) -> None:
    """Adds an optimizer of your own, which `optimizer.name` then knows by `name`, or replaces it.

    Args:
      name: of the optimizer.
      build: from the section `optimizer` and the transformation that adds weight decay to one that makes, of gradients,
        a step of unit learning rate.
    """
    check_callable(f"the optimizer {name!r}", build)
    registry.add(OPTIMIZERS, name, build)


class Update(Protocol):
    def __call__(
        self,
        gradients: Mapping[str, Any],
        state: Mapping[str, Any],
        params: Mapping[str, Any],
        *,
        step: Array,
        hyper: Hyper,
        trains: Mapping[str, Any],
        still: Mapping[str, Mapping[Path, Array]] | None = None,
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """(parameters, state) of every group after a step.

        A group that `trains` says is waiting keeps both as they are. The student's parameters are those that
        `Optimizer.split` returned first. Where `Optimizer.per_part`, `gradients` are {part: {group: tree}}. A parameter
        that `still` names, {group: {path: []}}, does not move, and weight decay does not see it.
        """


class Optimizer(NamedTuple):
    """Updates every group of parameters: "student", and one for each term. Rates follow the global step."""

    split: Callable[[Any], tuple[dict[Path, Any], dict[Path, Any]]]  # the student's params -> (trained, frozen)
    init: Callable[[Mapping[str, Any]], dict[str, Any]]  # params of all groups -> state
    update: Update
    learning_rate: Callable[[Array, Hyper], Array]  # of the student at a step
    learning_rates: Mapping[str, float]  # of each group, the schedule's peak
    weight_decays: Mapping[str, float]  # of each group
    per_part: bool = False  # whether it takes a gradient for each of `PARTS`, which costs one more backward pass


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
    """A multiplier of the peak learning rate, in [0, 1], as a function of the step (from 0).

    Args:
      name: "constant"; "cosine", to zero at `steps`; "step", times `gamma` at each of the epochs `milestones`;
        "exponential", times `gamma` at the end of every epoch. Each begins with a linear warmup.
      steps: of the whole run. steps_per_epoch: of one epoch.
      warmup_epochs: may be a fraction, and is cut to half of the run.
      key: of the config, for the error about an unknown name.
    """
    choose(key, name, SCHEDULES)
    warmup = min(round(_steps(warmup_epochs, steps_per_epoch)), steps // 2)

    def factor(step: Array | int) -> Array:
        step = jnp.asarray(step, jnp.int32)
        if name == "cosine":
            progress = (step - warmup).astype(jnp.float32) / max(steps - warmup, 1)
            value = 0.5 * (1 + jnp.cos(jnp.pi * jnp.clip(progress, 0, 1)))
        elif name == "step":
            passed = [step >= math.ceil(_steps(m, steps_per_epoch)) for m in milestones]
            value = gamma ** sum((x.astype(jnp.float32) for x in passed), jnp.float32(0))
        else:
            # In integers: a quotient in float32 can come one step late.
            value = gamma ** (step // steps_per_epoch).astype(jnp.float32) if name == "exponential" else jnp.float32(1)
        return jnp.where(step < warmup, (step + 1) / jnp.float32(warmup + 1), value)

    return factor


def _steps(epochs: float, steps_per_epoch: int) -> Fraction:
    """Epochs in steps, exactly: of 1.1 epochs of 50 steps the product of floats is more than 55."""
    return Fraction(str(epochs)) * steps_per_epoch


def is_kernel(path: Path) -> bool:
    """Whether the parameter at this path is a kernel: no bias, factor, token or position."""
    return path[-1] not in NO_KERNELS


def split_frozen(params: Any, freeze: str, head: tuple[str, ...]) -> tuple[dict[Path, Any], dict[Path, Any]]:
    """Splits nested params into two flat dicts {path: array}: those that train, and those that are frozen.

    Only the first is differentiated, so the gradients of frozen kernels are never computed.

    Args:
      params: of the student.
      freeze: "none"; "backbone", so that batch norms and head train; "backbone_and_norms", so that the head trains.
      head: the top-level modules that are the head.
    """
    flat = flatten_dict(params)
    norms = {path[:-1] for path in flat if path[-1] == "scale"}

    def trains(path: Path) -> bool:
        return freeze == "none" or path[0] in head or (freeze == "backbone" and path[:-1] in norms)

    trained = {path: leaf for path, leaf in flat.items() if trains(path)}
    return trained, {path: leaf for path, leaf in flat.items() if path not in trained}


def merge(trained: Mapping[Path, Any], frozen: Mapping[Path, Any]) -> dict[str, Any]:
    """The nested params that `split_frozen` took apart."""
    return unflatten_dict({**trained, **frozen})


def create(
    options: Mapping[str, Any],
    terms: Mapping[str, Mapping[str, Any]] | None = None,
    *,
    steps: int,
    steps_per_epoch: int,
    freeze: str = "none",
    head: tuple[str, ...] = (),
    clip: float = 0.0,
) -> Optimizer:
    """Builds the optimizer of all groups.

    Args:
      options: the section `optimizer` of a config, which is the student's.
      terms: {term: what its group does otherwise}, see `Method.optimizers`.
      steps, steps_per_epoch: of the run, for the schedules.
      freeze, head: see `split_frozen`.
      clip: largest global norm of the student's gradient; 0 for none.
    Raises:
      InputError: for an unknown name, key or `freeze`, a value that cannot be, and a network whose head is not known.
    """
    choose("model.freeze", freeze, FREEZES)
    if freeze != "none" and not head:
        raise InputError(f"model.freeze is {freeze!r}, and the network does not say what its head is; expected 'none'")
    groups = {"student": dict(options)}
    for term, own in (terms or {}).items():
        for key in own:
            choose(f"a key of method.{term}.optimizer", key, options)
        groups[term] = {**options, **own}
    named = {group: "optimizer" if group == "student" else f"method.{group}.optimizer" for group in groups}
    for group, chosen in groups.items():
        choose(f"{named[group]}.name", chosen["name"], OPTIMIZERS)
        keys.check_section("optimizer", chosen, named[group])
        choose(f"{named[group]}.gradients", chosen["gradients"], GRADIENTS)
    per_part = any(chosen["name"] == "dot" or chosen["gradients"] != "sum" for chosen in groups.values())
    schedules = {
        group: schedule(
            chosen["schedule"],
            steps=steps,
            steps_per_epoch=steps_per_epoch,
            warmup_epochs=chosen["warmup_epochs"],
            milestones=tuple(chosen["milestones"]),
            gamma=chosen["gamma"],
            key=f"{named[group]}.schedule",
        )
        for group, chosen in groups.items()
    }

    def chain(group: str, weight_decay: Array | float) -> optax.GradientTransformation:
        chosen = groups[group]
        mask = None if chosen["decay_norms_and_biases"] else _kernels
        decay = optax.add_decayed_weights(weight_decay, mask=mask)
        bounded = optax.identity()
        if clip and group == "student":
            bounded = _clip_parts(clip) if chosen["name"] == "dot" else optax.clip_by_global_norm(clip)
        name = "sgd" if chosen["name"] == "dot" and group != "student" else chosen["name"]
        return optax.chain(bounded, OPTIMIZERS[name](chosen, decay))

    def own_gradient(group: str, gradients: Mapping[str, Any]) -> Any:
        """A group's gradient; both parts of it where its optimizer takes them."""
        if not per_part:
            return gradients[group]
        of_parts = {part: gradients[part][group] for part in PARTS}
        if groups[group]["name"] == "dot" and group == "student":
            return of_parts
        return GRADIENTS[groups[group]["gradients"]](of_parts)

    def split(params: Any) -> tuple[dict[Path, Any], dict[Path, Any]]:
        return split_frozen(params, freeze, head)

    def init(params: Mapping[str, Any]) -> dict[str, Any]:
        trained = {**params, "student": split(params["student"])[0]}
        # States do not depend on the traced rates.
        return {group: chain(group, 0.0).init(own) for group, own in trained.items()}

    def update(
        gradients: Mapping[str, Any],
        state: Mapping[str, Any],
        params: Mapping[str, Any],
        *,
        step: Array,
        hyper: Hyper,
        trains: Mapping[str, Any],
        still: Mapping[str, Mapping[Path, Array]] | None = None,
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        new_params, new_state = {}, {}
        for group, own in params.items():
            rate = hyper.learning_rate[group] * schedules[group](step)
            gradient = own_gradient(group, gradients)
            decays = _zeroed(own, still[group]) if still else own
            direction, moved_state = chain(group, hyper.weight_decay[group]).update(gradient, state[group], decays)
            moved = jax.tree.map(lambda p, d, rate=rate: p - rate.astype(p.dtype) * d, own, direction)
            if still:
                moved = _held(moved, own, still[group])
            moves = trains.get(group, True)
            new_params[group] = moved if moves is True else optax.tree.where(moves, moved, own)
            new_state[group] = moved_state if moves is True else optax.tree.where(moves, moved_state, state[group])
        return new_params, new_state

    return Optimizer(
        split,
        init,
        update,
        learning_rate=lambda step, hyper: hyper.learning_rate["student"] * schedules["student"](step),
        learning_rates={group: chosen["learning_rate"] for group, chosen in groups.items()},
        weight_decays={group: chosen["weight_decay"] for group, chosen in groups.items()},
        per_part=per_part,
    )


def still(gradients: Mapping[str, Any]) -> dict[str, dict[Path, Array]]:
    """{group: {path: [] whether the gradient of that parameter is exactly zero}}: no term reads it."""
    return {group: {path: ~jnp.any(x != 0) for path, x in _flat(tree).items()} for group, tree in gradients.items()}


def _flat(tree: Any) -> dict[Path, Any]:
    """{path: array} of dictionaries, flat already or nested; of anything else nothing."""
    if not isinstance(tree, Mapping):
        return {}
    return dict(tree) if all(isinstance(path, tuple) for path in tree) else flatten_dict(dict(tree))


def _held(new: Any, old: Any, still: Mapping[Path, Array]) -> Any:
    """The new tree, with the old arrays where a path is still."""
    if not still:
        return new
    olds = _flat(old)
    flat = {path: jnp.where(still[path], olds[path], x) for path, x in _flat(new).items()}
    return flat if flat.keys() == new.keys() else unflatten_dict(flat)


def _zeroed(params: Any, still: Mapping[Path, Array]) -> Any:
    """The parameters with zeros where a path is still."""
    return _held(params, jax.tree.map(jnp.zeros_like, params), still)


def _kernels(params: Any) -> Any:
    """The mask of the parameters that decay: flat {path: array} or nested."""
    if all(isinstance(path, tuple) for path in params):
        return {path: is_kernel(path) for path in params}
    return unflatten_dict({path: is_kernel(path) for path in flatten_dict(params)})
