"""Losses of what feature maps hold: where they are large, and how their channels go together."""

from typing import Annotated

import jax
import jax.numpy as jnp

from kd_jax.errors import InputError
from kd_jax.keys import NonNegative, whole
from kd_jax.losses.arrays import average_down, same_size, unit, windows
from kd_jax.losses.masks import Where, check_shapes, fixed, keep
from kd_jax.types import Array, Float

VARIANCE_EPSILON = 1e-5  # in wkd_features


def at(
    student: Float[Array, "B h w c"], teacher: Float[Array, "B i j d"], *, where: Where = None
) -> Float[Array, " B"]:
    """Attention transfer: the mean squared difference of the two attention maps.

    The attention is the mean of the squared channels at each pixel, divided by its norm over the pixels of the image.
    Zagoruyko and Komodakis, "Paying More Attention to Attention", ICLR 2017, with the mean in the place of
    the norm of the difference, as in the official code and in RepDistiller (weight 1000, the sum over the stages).
    Maps of two sizes meet at the smaller one, to which the other is averaged.

    Args:
      student: [B, h, w, c]. teacher: [B, i, j, d], another size and width are fine.
      where: [B] bool, the images that count.
    Returns:
      [B], without unit. A map of zeros has no attention anywhere.
    Raises:
      InputError: for what are no maps.
    """
    maps = same_size(keep(where, student), fixed(where, teacher))
    own, other = (unit(jnp.square(x).mean(-1).reshape(len(x), -1)) for x in maps)
    return jnp.square(own - other).mean(-1)


def nst(
    student: Float[Array, "B h w c"], teacher: Float[Array, "B i j d"], *, where: Where = None
) -> Float[Array, " B"]:
    """Neuron selectivity transfer: the squared maximum mean discrepancy between the channels of the two maps.

    A channel is a point, its map divided by its norm over the pixels. The kernel of two points is their squared inner
    product. The loss is mean k(t, t) + mean k(s, s) - 2 mean k(s, t), over all pairs of channels.
    Huang and Wang, "Like What You Like: Knowledge Distill via Neuron Selectivity Transfer", 2017, with the polynomial
    kernel, as RepDistiller has it (weight 50, the sum over the stages). Maps of two sizes meet at the smaller one. The
    inner products are one [B, c, d] product of matrices, where the official code makes a map for each pair.

    Args:
      student: [B, h, w, c]. teacher: [B, i, j, d], another size and width are fine.
      where: [B] bool, the images that count.
    Returns:
      [B], without unit.
    Raises:
      InputError: for what are no maps.
    """
    maps = same_size(keep(where, student), fixed(where, teacher))
    own, other = (unit(x.reshape(len(x), -1, x.shape[-1]), axis=1) for x in maps)

    def kernel(a: Array, b: Array) -> Array:
        return jnp.square(_products(a, b)).mean((1, 2))

    return kernel(other, other) + kernel(own, own) - 2 * kernel(own, other)


def fsp(
    student: Float[Array, "B h w c"],
    student_next: Float[Array, "B k l d"],
    teacher: Float[Array, "B i j c2"],
    teacher_next: Float[Array, "B m n d2"],
    *,
    where: Where = None,
) -> Float[Array, " B"]:
    """The flow of the solution procedure: the mean squared difference of the two networks' FSP matrices.

    The FSP matrix of two maps of a network holds, for each pair of their channels, the mean over the pixels of the
    product. Yim et al., "A Gift from Knowledge Distillation", CVPR 2017, with the mean over the
    entries, as RepDistiller has it. The larger of the two maps is averaged down to the other, where the paper takes the
    largest values.

    Args:
      student, student_next: [B, h, w, c] and [B, k, l, d]. teacher, teacher_next: with the same channels.
      where: [B] bool, the images that count.
    Returns:
      [B], in the unit of the maps to the fourth power.
    Raises:
      InputError: for other channels, and for what are no maps.
    """
    for own, other in ((student, teacher), (student_next, teacher_next)):
        _check_channels(own, other)
    own = _flow(keep(where, student), keep(where, student_next))
    other = _flow(fixed(where, teacher), fixed(where, teacher_next))
    return jnp.square(own - other).mean((1, 2))


def _flow(x: Array, following: Array) -> Array:
    """[B, c, d] of maps [B, h, w, c] and [B, k, l, d]."""
    x, following = same_size(x, following)
    return _products(x, following) / (x.shape[1] * x.shape[2])


def ickd(
    student: Float[Array, "B h w c"], teacher: Float[Array, "B i j c2"], *, where: Where = None
) -> Float[Array, " B"]:
    """Inter-channel correlation: the squared difference of how the channels of each map go together, over c.

    The matrix of a map holds the inner products of its channels over the pixels, each row divided by its norm.
    Liu et al., "Exploring Inter-Channel Correlation for Diversity-Preserved Knowledge Distillation", ICCV 2021, for
    classification. The division by c, and not by its square, is that of the official code for CIFAR-100.

    Args:
      student: [B, h, w, c]. teacher: [B, i, j, c], another size is fine.
      where: [B] bool, the images that count.
    Returns:
      [B], without unit.
    Raises:
      InputError: for other channels.
    """
    _check_channels(student, teacher)
    own, other = (unit(_products(x, x)) for x in (keep(where, student), fixed(where, teacher)))
    return jnp.square(own - other).sum((1, 2)) / student.shape[-1]


def wkd_features(
    student: Float[Array, "B h w c"],
    teacher: Float[Array, "B i j c2"],
    *,
    ratio: NonNegative = 4.0,
    grid: Annotated[int, whole(1, 16)] = 1,
    where: Where = None,
) -> Float[Array, " B"]:
    """The squared Wasserstein distance between Gaussians, one for each channel and cell of a map.

    `ratio` times the squared difference of the means plus that of the deviations, over the pixels of a cell: the sum
    over the channels, and the mean over the cells. Lv, Yang and Li, "Wasserstein Distance Rivals Kullback-Leibler
    Divergence for Knowledge Distillation", NeurIPS 2024, WKD-F with diagonal covariances. As in the official code a
    deviation is the root of the unbiased variance plus 1e-5. The variance of one pixel is zero, there it is NaN.

    Args:
      student: [B, h, w, c]. teacher: [B, i, j, c], another size is fine.
      ratio: of the means. grid: cells along each side, the windows of PyTorch's adaptive pooling.
      where: [B] bool, the images that count.
    Returns:
      [B], in the squared unit of the maps.
    Raises:
      InputError: for other channels.
    """
    _check_channels(student, teacher)
    own, other = (_moments(x, grid) for x in (keep(where, student), fixed(where, teacher)))
    means, deviations = (jnp.square(a - b).sum((1, 2)) / grid**2 for a, b in zip(own, other, strict=True))
    return ratio * means + deviations


def _moments(x: Array, grid: int) -> tuple[Array, Array]:
    """The means and the deviations [B, cells, c] over the pixels of each cell."""
    rows, columns = (windows(length, grid) for length in x.shape[1:3])
    means, deviations = [], []
    for (top, bottom), (left, right) in ((row, column) for row in rows for column in columns):
        cell = x[:, top:bottom, left:right]
        means.append(cell.mean((1, 2)))
        squares = jnp.square(cell - means[-1][:, None, None]).sum((1, 2))
        pixels = (bottom - top) * (right - left)
        deviations.append(jnp.sqrt(squares / max(pixels - 1, 1) + VARIANCE_EPSILON))
    return jnp.stack(means, 1), jnp.stack(deviations, 1)


def hcl(
    student: Float[Array, "B h w c"], teacher: Float[Array, "B h w c"], *, where: Where = None
) -> Float[Array, " B"]:
    """The hierarchical context loss: the mean squared error of the maps, and of what they are averaged down to.

    Averaged to 4, to 2 and to 1 pixels along each side, as far as that is smaller than the map. Each weighs half of the
    one before, and the sum is divided by that of the weights. Chen et al., "Distilling Knowledge via Knowledge Review",
    CVPR 2021, with the sizes and weights of the official code, whose maps are square.

    Args:
      student, teacher: [B, h, w, c], of one shape. where: [B] bool, the images that count.
    Returns:
      [B], in the squared unit of the maps.
    Raises:
      InputError: for two shapes.
    """
    check_shapes(student, teacher)
    difference = keep(where, student) - fixed(where, teacher)
    height, width = difference.shape[1:3]
    sizes = [(min(size, height), min(size, width)) for size in (4, 2, 1) if size < max(height, width)]
    levels = [difference, *(average_down(difference, size) for size in sizes)]
    weights = [0.5**level for level in range(len(levels))]
    errors = [weight * jnp.square(x).mean((1, 2, 3)) for weight, x in zip(weights, levels, strict=True)]
    return sum(errors[1:], errors[0]) / sum(weights)


def _products(x: Array, y: Array) -> Array:
    """[B, c, d]: the inner products over all pixels of the channels of x [B, ..., c] with those of y [B, ..., d]."""
    x, y = (z.reshape(len(z), -1, z.shape[-1]) for z in (x, y))
    return jnp.einsum("bxc,bxd->bcd", x, y, precision=jax.lax.Precision.HIGHEST)


def _check_channels(student: Array, teacher: Array) -> None:
    if student.shape[-1] != teacher.shape[-1]:
        raise InputError(
            f"the student's map has {student.shape[-1]} channels, and the teacher's {teacher.shape[-1]};"
            " expected equally many"
        )
