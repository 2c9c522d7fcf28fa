"""Losses of feature maps."""

import jax.numpy as jnp

from kd_jax.losses.masks import Where, check_shapes, fixed, keep
from kd_jax.types import Array, Float


def hint(student: Float[Array, "B ..."], teacher: Float[Array, "B ..."], *, where: Where = None) -> Array:
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
