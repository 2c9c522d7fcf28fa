"""Pieces that many losses are made of: vectors of norm one, maps of other sizes."""

import jax
import jax.numpy as jnp

from kd_jax.errors import InputError
from kd_jax.types import Array


def unit(x: Array, axis: int | tuple[int, ...] = -1) -> Array:
    """x with norm one over the axes; zero, and without a gradient, where there is nothing to divide."""
    squares = jnp.square(x).sum(axis, keepdims=True)
    is_long = squares > 1e-24
    return jnp.where(is_long, x * jax.lax.rsqrt(jnp.where(is_long, squares, 1)), 0)


def average_down(x: Array, size: tuple[int, ...]) -> Array:
    """Maps [B, h, w, c] averaged to [B, *size, c], as PyTorch's adaptive pooling does it. Larger sizes share pixels."""
    for axis, length in enumerate(size, start=1):
        if x.shape[axis] != length:
            x = _average_axis(x, axis, length)
    return x


def _average_axis(x: Array, axis: int, length: int) -> Array:
    parts = [jax.lax.slice_in_dim(x, a, b, axis=axis).mean(axis) for a, b in windows(x.shape[axis], length)]
    return jnp.stack(parts, axis)


def windows(whole: int, length: int) -> list[tuple[int, int]]:
    """Where each of `length` parts of an axis begins and ends, as PyTorch's adaptive pooling takes them."""
    return [(i * whole // length, -(-(i + 1) * whole // length)) for i in range(length)]


def same_size(x: Array, y: Array) -> tuple[Array, Array]:
    """Both maps [B, h, w, c], of which each axis of pixels that is longer in one is averaged down to the other's."""
    if x.ndim != 4 or y.ndim != 4:
        raise InputError(f"the loss compares {list(x.shape)} with {list(y.shape)}; expected maps [B, h, w, c]")
    size = tuple(map(min, x.shape[1:3], y.shape[1:3]))
    return average_down(x, size), average_down(y, size)
