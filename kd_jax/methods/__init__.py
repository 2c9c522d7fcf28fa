"""Distillation methods by name. `create({"kd": {"weight": 0.9, "temperature": 4.0}})` joins terms into one method."""

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

from kd_jax.errors import InputError, choose
from kd_jax.losses import logits, relations
from kd_jax.methods import original
from kd_jax.methods.adversarial import adversarial
from kd_jax.methods.base import join, lift, standardize
from kd_jax.methods.saliency import gradcam_alignment
from kd_jax.types import Method

__all__ = ["LOSSES", "create", "join", "lift", "register", "standardize"]

LOSSES: dict[str, Callable[..., Method]] = {
    "cross_entropy": lift(logits.cross_entropy, arguments=("student", "targets")),
    "kd": lift(logits.kd),
    "rkd_distance": lift(relations.rkd_distance, on="embedding"),
    "rkd_angle": lift(relations.rkd_angle, on="embedding"),
    "adversarial": adversarial,
    "gradcam_alignment": gradcam_alignment,
    "original_cross_entropy": lift(original.cross_entropy, arguments=("student", "targets")),
    "original_kd": lift(original.kd),
    "original_rkd_distance": lift(original.rkd_distance),
    "original_rkd_angle": lift(original.rkd_angle),
    "original_adversarial": original.adversarial,
}

# What an option of a loss may be, by its default; None and no default allow anything.
KINDS = (((bool,), "true or false"), ((int, float), "a number"), ((str,), "a text"), ((list, tuple), "a list"))


def register(name: str, constructor: Callable[..., Method]) -> None:
    """Adds a loss of your own, which configs then know by `name`.

    Args:
      name: not yet taken.
      constructor: (term, **options) -> Method; `lift(function)` makes one out of a function of arrays.

    >>> import jax.numpy as jnp
    >>> def squared_error(student, teacher, *, scale=1.0):
    ...     return scale * jnp.square(student - teacher).mean(-1)
    >>> register("squared_error", lift(squared_error, on="logits"))
    >>> method = create({"squared_error": {"weight": 0.5, "scale": 2.0}})
    >>> sorted(method.reads), method.weights
    (['logits'], {'squared_error': 0.5})
    """
    if name in LOSSES:
        raise InputError(f"the loss {name!r} is registered already; expected another name")
    LOSSES[name] = constructor


def create(terms: Mapping[str, Mapping[str, Any]]) -> Method:
    """Joins the terms of a config into one method.

    Args:
      terms: {term: {"loss": a key of `LOSSES`, by default the term's name, "weight": 1.0, options of that loss}}.
    Raises:
      InputError: for an unknown loss or option, an option of another
        type, no term at all, or a weight that is not a finite number.
    """
    if not terms:
        raise InputError(f"method has no term; expected at least one of: {', '.join(sorted(LOSSES))}")
    methods, weights = {}, {}
    for term, given in terms.items():
        options = dict(given)
        constructor = choose(f"method.{term}.loss", options.pop("loss", term), LOSSES)
        weights[term] = options.pop("weight", 1.0)
        if type(weights[term]) not in (int, float) or not math.isfinite(weights[term]):
            raise InputError(f"method.{term}.weight is {weights[term]!r}; expected a finite number")
        known = {name: p.default for name, p in inspect.signature(constructor).parameters.items() if name != "name"}
        for option, value in options.items():
            choose(f"an option of method.{term}", option, ["loss", "weight", *known])
            for kind, expected in KINDS:
                if type(known[option]) in kind and type(value) not in kind:
                    raise InputError(f"method.{term}.{option} is {value!r}; expected {expected}")
        methods[term] = constructor(term, **options)
    return join(methods)._replace(weights=weights)
