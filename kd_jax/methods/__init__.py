"""Distillation methods by name. `create({"kd": {"weight": 0.9, "temperature": 4.0}})` makes one method of its terms."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp

from kd_jax import keys, losses, registry
from kd_jax.errors import InputError, check_callable, choose, shown
from kd_jax.keys import TERM
from kd_jax.methods import original
from kd_jax.methods.activations import AB, FT, OFD, VID
from kd_jax.methods.adversarial import adversarial
from kd_jax.methods.base import (
    SIDES,
    Constructor,
    combine,
    from_loss,
    from_module,
    labeled_mean,
    seeing,
    standardizing,
    tap,
)
from kd_jax.methods.classifiers import CATKD, SRRL
from kd_jax.methods.contrastive import CRD, RRD
from kd_jax.methods.embeddings import CC, ND, PEFD, SRD, VKD, Embedding
from kd_jax.methods.features import FitNet, SimKD
from kd_jax.methods.heads import CTKD, DHKD, SDD, DeiT
from kd_jax.methods.logits import CRLD, WKDLogits
from kd_jax.methods.maps import FSP, ICKD, MGD, FeatureMSE, WKDFeatures
from kd_jax.methods.peers import BeYourOwnTeacher, mutual
from kd_jax.methods.review import ReviewKD
from kd_jax.methods.saliency import gradcam_alignment
from kd_jax.types import Array, Method, View

__all__ = ["METHODS", "combine", "create", "from_loss", "from_module", "labeled_mean", "register", "tap"]

METHODS: dict[str, Constructor] = {
    "cross_entropy": from_loss(losses.cross_entropy),
    "kd": from_loss(losses.kd),
    "mse": from_loss(losses.hint),
    "dkd": from_loss(losses.dkd),
    "mlkd": from_loss(losses.mlkd),
    "nkd": from_loss(losses.nkd),
    "wsld": from_loss(losses.wsld),
    "rld": from_loss(losses.rld),
    "swap": from_loss(losses.swapped_kd),
    "wkd_logits": standardizing(from_module(WKDLogits)),
    "teacher_free": from_loss(losses.teacher_free),
    "crld": standardizing(from_module(CRLD)),
    "ttm": from_loss(losses.ttm),
    "wttm": from_loss(losses.wttm),
    "normkd": from_loss(losses.normkd),
    "luminet": from_loss(losses.luminet),
    "abkd": from_loss(losses.abkd),
    "js": from_loss(losses.jensen_shannon),
    "bce": from_loss(losses.bce),
    "binary_kd": from_loss(losses.binary_kd),
    "ctkd": standardizing(from_module(CTKD)),
    "sdd": from_module(SDD),
    "deit": from_module(DeiT),
    "dhkd": from_module(DHKD),
    "rkd_distance": from_loss(losses.rkd_distance, on="embedding"),
    "rkd_angle": from_loss(losses.rkd_angle, on="embedding"),
    "sp": from_loss(losses.sp, on="feature:-1"),
    "pkt": from_loss(losses.pkt, on="embedding"),
    "dist": from_loss(losses.dist),
    "skd": from_loss(losses.skd),
    "embedding": from_module(Embedding),
    "pefd": from_module(PEFD),
    "cc": from_module(CC),
    "srd": from_module(SRD),
    "vkd": from_module(VKD),
    "nd": from_module(ND),
    "rrd": from_module(RRD),
    "fitnet": from_module(FitNet),
    "vid": from_module(VID),
    "ofd": from_module(OFD),
    "ab": from_module(AB),
    "ft": from_module(FT),
    "simkd": from_module(SimKD),
    "feature_mse": from_module(FeatureMSE),
    "at": from_loss(losses.at, on="stages"),
    "nst": from_loss(losses.nst, on="stages"),
    "fsp": from_module(FSP),
    "ickd": from_module(ICKD),
    "wkd_features": from_module(WKDFeatures),
    "mgd": from_module(MGD),
    "reviewkd": from_module(ReviewKD),
    "srrl": from_module(SRRL),
    "catkd": from_module(CATKD),
    "crd": from_module(CRD),
    "adversarial": adversarial,
    "gradcam_alignment": gradcam_alignment,
    "mutual": mutual,
    "byot": from_module(BeYourOwnTeacher),
    "original_cross_entropy": from_loss(original.cross_entropy),
    "original_kd": from_loss(original.kd),
    "original_rkd_distance": from_loss(original.rkd_distance),
    "original_rkd_angle": from_loss(original.rkd_angle),
    "original_adversarial": original.adversarial,
}


def register(name: str, constructor: Constructor) -> None:
    """Adds a method of your own, which configs then know by `name`, or replaces it.

    Args:
      name: of the method.
      constructor: (name of the term, **options) -> Method; `from_loss(function)` and `from_module(module)` make one.
    Raises:
      InputError: for anything else.

    >>> import jax.numpy as jnp
    >>> def squared_error(student, teacher, *, scale=1.0):
    ...     return scale * jnp.square(student - teacher).mean(-1)
    >>> register("squared_error", from_loss(squared_error, on="logits"))
    >>> method = create({"squared_error": {"weight": 0.5, "scale": 2.0}})
    >>> method.needs_teacher, method.weights
    (True, {'squared_error': 0.5})
    """
    first = next(iter(check_callable(f"the constructor of method {name!r}", constructor)), "")
    if not first or first.startswith(SIDES) or isinstance(constructor, type):
        raise InputError(
            f"the constructor of method {name!r} makes no method of a term's name; expected from_loss(function),"
            " from_module(module), or a function (name, **options) -> Method"
        )
    registry.add(METHODS, name, constructor)


def create(terms: Mapping[str, Mapping[str, Any]], *, steps_per_epoch: int = 1) -> Method:
    """Makes one method of the terms of a config.

    Args:
      terms: {term: options}. Of every term: "method", a key of `METHODS`, by default the term's name; "weight", 1.0;
        "teacher", which of several; "warmup_epochs", over which the weight rises; "decay_epochs", [first, last] between
        which it falls to zero; "epochs", [first, last) in which the term counts and its parameters move, the last None
        for the end; "optimizer", what its group does otherwise than the student's. The others are the method's own.
      steps_per_epoch: for those that count epochs.
    Raises:
      InputError: for an unknown method or option, an option of another type, no term at all, or a weight that is not a
        finite number.
    """
    if not isinstance(terms, Mapping):
        raise InputError(f"method is {shown(terms)}; expected its terms, as in {{'kd': {{'weight': 0.9}}}}")
    if not terms:
        raise InputError(f"method has no term; expected at least one of: {', '.join(sorted(METHODS))}")
    if "student" in terms:
        raise InputError("method.student is the name of a term; expected another, as the student's parameters have it")
    for term in terms:
        if not term.strip() or "/" in term:
            raise InputError(f"the name of a term is {term!r}; expected one without '/', which names its parts")
    return combine({term: _create_term(term, options, steps_per_epoch) for term, options in terms.items()})


def _create_term(term: str, given: Mapping[str, Any], steps_per_epoch: int) -> Method:
    if not isinstance(given, Mapping):
        raise InputError(f"method.{term} is {shown(given)}; expected its options, as in {{'weight': 1.0}}, or {{}}")
    options = dict(given)
    if "loss" in options:
        raise InputError(f"method.{term}.loss is now method.{term}.method; expected the new name")
    own = {key: options.pop(key) for key in TERM if key in options}
    for key, value in own.items():
        TERM[key].kind.check(f"method.{term}.{key}", value)
    constructor = choose(f"method.{term}.method", own.get("method", term), METHODS)
    _, *parameters = inspect.signature(constructor).parameters.values()  # the first is the name of the term
    known = {parameter.name: parameter for parameter in parameters}
    keys.check_options(f"method.{term}", f"an option of method.{term}", known, options, TERM)
    method = constructor(term, **options)
    if not isinstance(method, Method):
        raise InputError(f"method.{term} is made of type {type(method).__name__}; expected a Method")
    method = method._replace(
        weights={term: 1.0, **method.weights, **({term: own["weight"]} if "weight" in own else {})},
        optimizers={term: {**method.optimizers.get(term, {}), **own.get("optimizer", {})}},
    )
    if own.get("teacher"):
        if not method.needs_teacher:
            raise InputError(f"method.{term}.teacher is {own['teacher']!r}; expected '', as the term reads no teacher")
        method = _taught_by(method, own["teacher"])
    if any(own.get(key) for key in ("warmup_epochs", "epochs", "decay_epochs")):
        warmup, epochs, decay = own.get("warmup_epochs", 0), own.get("epochs") or (0, None), own.get("decay_epochs")
        method = _scheduled(method, term, *_schedule(warmup, epochs, decay, steps_per_epoch))
        method = method._replace(phases=method.phases or bool(own.get("epochs")))
    return method


def _taught_by(method: Method, member: str) -> Method:
    """A method that sees one member of an ensemble as the teacher."""

    def change(view: View) -> View:
        members = view.teacher_outputs.members
        if members is None:
            raise InputError(f"its teacher is {member!r}, and the run has one; expected teacher.kind 'ensemble'")
        return view._replace(teacher=choose("the term's teacher", member, members))

    return seeing(method, change)


def _scheduled(
    method: Method, term: str, factor: Callable[[Array | int], Any], is_open: Callable[[Array | int], Any]
) -> Method:
    """A method whose term has one more factor on its weight, and where it does not count holds nobody back."""
    own_factor = method.schedules.get(term, lambda step: 1.0)

    def trains(step: Array | int) -> Mapping[str, Any]:
        moves = dict(method.trains(step))
        if "student" in moves:
            moves["student"] = jnp.logical_or(moves["student"], jnp.logical_not(is_open(step)))
        return {**moves, term: jnp.logical_and(moves.get(term, True), is_open(step))}

    schedules = {**method.schedules, term: lambda step: own_factor(step) * factor(step)}
    return method._replace(schedules=schedules, trains=trains)


def _schedule(
    warmup: float, epochs: Sequence[Any], decay: Sequence[int] | None, steps_per_epoch: int
) -> tuple[Callable[[Array | int], Any], Callable[[Array | int], Any]]:
    """(step -> factor on the weight, step -> whether the term counts). The first epoch of a warmup has 1 / warmup."""
    first, last = epochs

    def is_open(step: Array | int) -> Any:
        epoch = step // steps_per_epoch
        return (epoch >= first) & (epoch < last if last is not None else epoch >= 0)

    def factor(step: Array | int) -> Any:
        epoch = step // steps_per_epoch - first + 1
        # Compared before it is divided: a quotient may be a hair below 1.
        rising = jnp.where(epoch >= warmup, 1.0, epoch / warmup) if warmup else 1.0
        if decay:
            start, end = (float(epoch * steps_per_epoch) for epoch in decay)  # may be more than 32 bits hold
            rising *= 0.5 * (1 + jnp.cos(jnp.pi * jnp.clip((jnp.float32(step) - start) / (end - start), 0, 1)))
        return jnp.where(is_open(step), rising, 0.0)

    return factor, is_open
