"""Losses of feature maps."""

import jax
import jax.numpy as jnp

from kd_jax.losses.masks import check_shapes, fixed, keep
from kd_jax.types import Array, Float


def hint(student: Float[Array, "B ..."], teacher: Float[Array, "B ..."], *, where: Array | None = None) -> Array:
    """The mean squared error of each image's maps.

    Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015, equation 3, with the mean in the place of half the
    sum, as RepDistiller has it.

    Args:
      student, teacher: [B, ...], of one shape. where: [B] bool, the images that count.
    Returns:
      [B].
    """
    check_shapes(student, teacher)
    squares = jnp.square(keep(where, student) - fixed(where, teacher))
    return squares.mean(tuple(range(1, squares.ndim)))


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
