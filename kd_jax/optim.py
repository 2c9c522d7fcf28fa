"""Optimizers and parameter freezing."""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax
from flax.traverse_util import flatten_dict, unflatten_dict

from kd_jax import keys, registry, schedules
from kd_jax.errors import InputError, check_callable, choose, one_line
from kd_jax.types import Array, Hyper

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
FREEZES = ("none", "backbone", "backbone_and_norms")
# How functions of optax begin that take a learning rate and are no optimizers, or, where training is schedule-free, are
# to be evaluated at other parameters than those that train.
NOT_OPTIMIZERS = ("scale_by_", "schedule_free_", "_")
OF_SECTION = ("weight_decay", "mask", "weight_decay_mask")  # their parameters that keys of the section are
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


@functools.cache
def of_optax() -> dict[str, Callable[..., optax.GradientTransformation]]:
    """The optimizers of optax by name; those of `optax.contrib` are "contrib.NAME"."""
    return {
        prefix + name: value
        for prefix, module in (("", optax), ("contrib.", optax.contrib))
        for name, value in vars(module).items()
        if inspect.isfunction(value) and not name.startswith(NOT_OPTIMIZERS)
        if next(iter(inspect.signature(value).parameters), "") == "learning_rate"
    }


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
    factors: Mapping[str, schedules.Schedule]  # of each group's learning rate, by the step
    learning_rates: Mapping[str, float]  # of each group, the schedule's peak
    weight_decays: Mapping[str, float]  # of each group
    per_part: bool = False  # whether it takes a gradient for each of `PARTS`, which costs one more backward pass

    def learning_rate(self, step: Array, hyper: Hyper) -> Array:
        """Of the student at a step."""
        return hyper.learning_rate["student"] * self.factors["student"](step)


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
        # Options belong to the optimizer, and to the schedule, that they were given with.
        same = {"options": "name", "schedule_options": "schedule"}
        others: dict[str, Any] = {key: {} for key, of in same.items() if own.get(of, options[of]) != options[of]}
        groups[term] = {**options, **others, **own}
    named = {group: "optimizer" if group == "student" else f"method.{group}.optimizer" for group in groups}
    for group, chosen in groups.items():
        choose(f"{named[group]}.name", chosen["name"], of_optax() | OPTIMIZERS)
        keys.check_section("optimizer", chosen, named[group])
        choose(f"{named[group]}.gradients", chosen["gradients"], GRADIENTS)
    per_part = any(chosen["name"] == "dot" or chosen["gradients"] != "sum" for chosen in groups.values())
    factors = {
        group: schedules.create(chosen, steps=steps, steps_per_epoch=steps_per_epoch, what=named[group])
        for group, chosen in groups.items()
    }

    def chain(group: str, rate: Array | float, weight_decay: Array | float) -> optax.GradientTransformation:
        """From a group's gradient to what is added to its parameters."""
        chosen = groups[group]
        bounded = optax.identity()
        if clip and group == "student":
            bounded = _clip_parts(clip) if chosen["name"] == "dot" else optax.clip_by_global_norm(clip)
        name = "sgd" if chosen["name"] == "dot" and group != "student" else chosen["name"]
        if name not in OPTIMIZERS:
            return optax.chain(bounded, _build_of_optax(chosen, rate, weight_decay))
        decay = optax.add_decayed_weights(weight_decay, mask=None if chosen["decay_norms_and_biases"] else _kernels)
        return _scaled(optax.chain(bounded, OPTIMIZERS[name](chosen, decay)), rate)

    for group, chosen in groups.items():
        _check_optimizer(named[group], chosen, functools.partial(chain, group))

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
        rates = {group: (chosen["learning_rate"], chosen["weight_decay"]) for group, chosen in groups.items()}
        return {group: chain(group, *rates[group]).init(own) for group, own in trained.items()}

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
            rate = hyper.learning_rate[group] * factors[group](step)
            gradient = own_gradient(group, gradients)
            decays = _zeroed(own, still[group]) if still else own
            transformation = chain(group, rate, hyper.weight_decay[group])
            difference, moved_state = transformation.update(gradient, state[group], decays)
            moved = optax.apply_updates(own, difference)
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
        factors,
        learning_rates={group: chosen["learning_rate"] for group, chosen in groups.items()},
        weight_decays={group: chosen["weight_decay"] for group, chosen in groups.items()},
        per_part=per_part,
    )


def _build_of_optax(
    section: Mapping[str, Any], rate: Array | float, weight_decay: Array | float
) -> optax.GradientTransformation:
    """An optimizer of optax, with the weight decay where it has one; one without has it added to the gradient."""
    build = of_optax()[section["name"]]
    parameters = inspect.signature(build).parameters
    mask = None if section["decay_norms_and_biases"] else _kernels
    if "weight_decay" not in parameters:
        decay = optax.add_decayed_weights(weight_decay, mask=mask)
        return optax.chain(decay, build(rate, **section["options"]))
    masks = {key: mask for key in OF_SECTION[1:] if key in parameters}
    return build(rate, weight_decay=weight_decay, **masks, **section["options"])


def _scaled(direction: optax.GradientTransformation, rate: Array | float) -> optax.GradientTransformation:
    """Moves by `rate` against a direction. The state is that of the direction alone, as checkpoints have it."""

    def update(gradients: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        steps, state = direction.update(gradients, state, params)
        return jax.tree.map(lambda d: -jnp.asarray(rate, d.dtype) * d, steps), state

    return optax.GradientTransformation(direction.init, update)


def _check_optimizer(what: str, section: Mapping[str, Any], chain: Callable[..., optax.GradientTransformation]) -> None:
    """Raises InputError for options that an optimizer does not take, and one that needs more than gradients."""
    name, options = section["name"], section["options"]
    if name in ("sgd", "adam", "adamw", "dot") and options:
        raise InputError(f"{what}.options is {options}; expected none: those of {name!r} are keys of {what} themselves")
    if name in OPTIMIZERS:
        return
    parameters = dict(list(inspect.signature(of_optax()[name]).parameters.items())[1:])
    for key in {*OF_SECTION} & {*options}:
        raise InputError(f"{what}.options has {key!r}; expected {what}.weight_decay and {what}.decay_norms_and_biases")
    # By their defaults: what optax says of their types, any array is of.
    own = {key: p.replace(annotation=p.empty) for key, p in parameters.items() if key not in OF_SECTION}
    keys.check_options(f"{what}.options", f"an option of {name}", own, options)
    if "weight_decay" in parameters and not {*parameters} & {*OF_SECTION[1:]} and not section["decay_norms_and_biases"]:
        raise InputError(f"{what}.decay_norms_and_biases is False, and {name} decays all; expected True")

    def try_it(rate: Array, params: Any) -> Any:
        transformation = chain(rate, rate)
        return transformation.update(params, transformation.init(params), params)[0]

    shapes = {("layer", "kernel"): jax.ShapeDtypeStruct((2, 2), jnp.float32)}
    try:
        jax.eval_shape(try_it, jax.ShapeDtypeStruct((), jnp.float32), shapes)
    except Exception as error:  # of whatever kind optax raises
        raise InputError(
            f"{what}.name is {name!r}{f' with options {options}' if options else ''}, which cannot train here:"
            f" {one_line(error, 200)}; expected one that needs no more than gradients"
        ) from error


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
