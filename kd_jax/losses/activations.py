"""Losses of activations: of a regressed mean, of the sign and size before a ReLU, of factors, of class maps."""

from typing import Annotated

import jax
import jax.numpy as jnp

from kd_jax.keys import SIZE, NonNegative
from kd_jax.losses.arrays import average_down, unit
from kd_jax.losses.masks import Where, check_shapes, fixed, keep
from kd_jax.types import Array, Float, at_least_float32

MARGIN_BELOW = 1e-3  # where fewer of the values are negative, their mean is not taken


def vid(
    student_mean: Float[Array, "B h w c"],
    teacher: Float[Array, "B h w c"],
    student_variance: Float[Array, " c"],
    *,
    where: Where = None,
) -> Float[Array, " B"]:
    """Variational information distillation: the mean of ((mean - t)^2 / variance + log variance) / 2.

    The negative logarithm of a normal density of the teacher's map, without its constant. Ahn et al., "Variational
    Information Distillation for Knowledge Transfer", CVPR 2019; the mean in the place of the sum, as in the official
    code.

    Args:
      student_mean, teacher: [B, h, w, c], the first regressed from the student's map.
      student_variance: [c], above zero. where: [B] bool, the images that count.
    Returns:
      [B], in nats of an element.
    """
    check_shapes(student_mean, teacher)
    variance = at_least_float32(student_variance)
    squares = jnp.square(keep(where, student_mean) - fixed(where, teacher))
    return keep(where, 0.5 * (squares / variance + jnp.log(variance)).mean((1, 2, 3)))


def ofd(
    student: Float[Array, "B h w c"],
    teacher: Float[Array, "B h w c"],
    teacher_margin: Float[Array, " c"],
    *,
    where: Where = None,
) -> Float[Array, " B"]:
    """Overhaul of feature distillation: the partial squared error with the teacher's map before its ReLU.

    The sum of (s - t')^2 with t' = max(t, margin), but for what is at most t' where t is not positive: such a value is
    switched off in both networks. Heo et al., "A Comprehensive Overhaul of Feature Distillation", ICCV 2019, section 3.

    Args:
      student, teacher: [B, h, w, c], before the ReLU. teacher_margin: [c], at most zero, see `ofd_margin`.
      where: [B] bool, the images that count.
    Returns:
      [B], a sum over the elements.
    """
    check_shapes(student, teacher)
    student, teacher = keep(where, student), fixed(where, teacher)
    target = jnp.maximum(teacher, fixed(None, teacher_margin))
    counts = (student > target) | (target > 0)
    return jnp.where(counts, jnp.square(student - target), 0).sum((1, 2, 3))


def ofd_margin(scale: Float[Array, " c"], bias: Float[Array, " c"]) -> Float[Array, " c"]:
    """The mean of the negative values behind a batch normalization: E[x | x < 0] of a normal x.

    Heo et al., ICCV 2019, section 3. As in the official code -3 |scale| where fewer than one value in a thousand is
    negative.

    Args:
      scale, bias: [c], deviation (of any sign) and mean of each channel.
    Returns:
      [c], at most zero, without gradient.
    """
    deviation, mean = jnp.abs(fixed(None, scale)), fixed(None, bias)
    ratio = mean / jnp.maximum(deviation, 1e-30)
    hazard = jnp.exp(jax.scipy.stats.norm.logpdf(ratio) - jax.scipy.stats.norm.logcdf(-ratio))
    negative = jax.scipy.stats.norm.cdf(-ratio)
    return jnp.where(negative > MARGIN_BELOW, mean - deviation * hazard, -3 * deviation)


def ab(
    student: Float[Array, "B ..."],
    teacher: Float[Array, "B ..."],
    *,
    margin: NonNegative = 1.0,
    where: Where = None,
) -> Float[Array, " B"]:
    """Activation boundaries: the squared distance by which a value misses its margin on the teacher's side of zero.

    The sum of relu(s + margin)^2 where the teacher's value is at most zero, and of relu(margin - s)^2 where it is
    positive. Heo et al., "Knowledge Transfer via Distillation of Activation Boundaries Formed by Hidden Neurons", AAAI
    2019.

    Args:
      student, teacher: [B, ...], before the ReLU. margin: at least zero. where: [B] bool, the images that count.
    Returns:
      [B], a sum over the elements.
    """
    check_shapes(student, teacher)
    side = jnp.where(fixed(where, teacher) > 0, 1.0, -1.0)
    loss = jnp.square(jax.nn.relu(margin - side * keep(where, student)))
    return keep(where, loss.sum(tuple(range(1, loss.ndim))))


def factor_transfer(
    student: Float[Array, "B h w f"],
    teacher: Float[Array, "B h w f"],
    *,
    spatial: bool = True,
    where: Where = None,
) -> Float[Array, " B"]:
    """Factor transfer: the mean absolute difference of two factors, each divided by its norm.

    Kim et al., "Paraphrasing Complex Network: Network Compression via Factor Transfer", NeurIPS 2018, with p = 1,
    takes a factor as one vector. RepDistiller takes the mean of its squares over the channels, and with
    `spatial` so do we: the published figures of other papers are those of this form.

    Args:
      student, teacher: [B, h, w, f]. spatial: compare the means of the squares at each pixel, not the factors.
      where: [B] bool, the images that count.
    Returns:
      [B], without unit.
    """
    check_shapes(student, teacher)
    sides = [keep(where, student), fixed(where, teacher)]
    if spatial:
        sides = [jnp.square(x).mean(-1, keepdims=True) for x in sides]
    own, other = (unit(x, (1, 2, 3)) for x in sides)
    return jnp.abs(own - other).mean((1, 2, 3))


def catkd(
    student: Float[Array, "B h w K"],
    teacher: Float[Array, "B i j K"],
    *,
    size: Annotated[int, SIZE] = 2,
    normalize: bool = False,
    where: Where = None,
) -> Float[Array, " B"]:
    """Class attention transfer: the mean squared error of the class activation maps, averaged down to a few pixels.

    Guo et al., "Class Attention Transfer Based Knowledge Distillation", CVPR 2023.

    Args:
      student, teacher: [B, h, w, K], the logits that the classifier has at each pixel, without its bias.
      size: of the averaged maps, or less where a map is smaller. normalize: divide each class's map by its norm, as
        published where the networks are of different families. where: [B] bool, the images that count.
    Returns:
      [B].
    """
    common = tuple(min(size, *lengths) for lengths in zip(student.shape[1:3], teacher.shape[1:3], strict=True))
    sides = [average_down(x, common) for x in (keep(where, student), fixed(where, teacher))]
    check_shapes(*sides)
    own, other = (unit(x, (1, 2)) for x in sides) if normalize else sides
    return jnp.square(own - other).mean((1, 2, 3))
