"""Leaving images out of a loss, so that neither its value nor its gradient sees what they hold."""

import jax
import jax.numpy as jnp

from kd_jax.errors import InputError
from kd_jax.types import Array, Float, at_least_float32

Where = Array | None  # [B] bool, the images that count; None for all


def keep(where: Array | None, x: Array) -> Array:
    """x [B, ...], at least float32, with zeros in the place of the images that `where` [B] leaves out."""
    x = at_least_float32(jnp.asarray(x))
    return x if where is None else jnp.where(where.reshape(-1, *(1,) * (x.ndim - 1)), x, jnp.zeros((), x.dtype))


def fixed(where: Array | None, x: Array) -> Array:
    """`keep` without a gradient, for the teacher's side."""
    return keep(where, jax.lax.stop_gradient(x))


def mean(loss: Float[Array, "..."], where: Array | None) -> Float[Array, ""]:
    """The mean over the images that `where` keeps; zero where it keeps none. A scalar loss is that already."""
    if where is None or not loss.ndim:
        return loss.mean()
    return loss.sum() / jnp.maximum(where.sum(), 1)


def check_rows(student: Array, other: Array) -> None:
    """Raises InputError where a loss of logits would compare anything but two arrays [B, K]."""
    if jnp.ndim(student) != 2 or jnp.ndim(other) != 2:
        shapes = f"{list(jnp.shape(student))} with {list(jnp.shape(other))}"
        raise InputError(f"the loss compares {shapes}; expected rows [B, K], as logits are, and not maps: see `on`")
    check_shapes(student, other)


def check_shapes(student: Array, other: Array) -> None:
    """Raises InputError where a loss would compare arrays of two shapes."""
    if student.shape != other.shape:
        raise InputError(f"the loss compares {list(student.shape)} with {list(other.shape)}; expected equal shapes")
