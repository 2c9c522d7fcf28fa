"""Losses of similarities and correlations within a batch. Under `jit` over a mesh they see the global batch."""

from typing import Annotated

import jax
import jax.numpy as jnp
import jax.scipy.linalg
import optax

from kd_jax.keys import ABOVE_0, TRACED, NonNegative, Temperature
from kd_jax.losses.arrays import unit
from kd_jax.losses.logits import check_temperature
from kd_jax.losses.masks import Where, check_rows, fixed, keep, mean
from kd_jax.types import Array, Float


def sp(student: Float[Array, "B ..."], teacher: Float[Array, "B ..."], *, where: Where = None) -> Float[Array, ""]:
    """Similarity-preserving distillation: |G_s - G_t|^2 / B^2, each G the Gram matrix with rows of norm one.

    Tung and Mori, "Similarity-Preserving Knowledge Distillation", ICCV 2019. The official code takes
    the last map (weight 3000).

    Args:
      student: [B, ...]. teacher: [B, ...], of any other shape; both are flattened.
      where: [B] bool, the images that count.
    Returns:
      [], without unit.
    """
    student, teacher = (unit(gram(flat(x))) for x in (keep(where, student), fixed(where, teacher)))
    return jnp.square(student - teacher).sum() / _count(student, where) ** 2


def pkt(student: Float[Array, "B ..."], teacher: Float[Array, "B ..."], *, where: Where = None) -> Float[Array, ""]:
    """Probabilistic knowledge transfer: the divergence of who resembles whom, by cosines.

    With K = (cosine + 1) / 2 of all pairs, the image with itself included, and p its rows divided by their sums, the
    mean over all B^2 pairs of p_t log((p_t + 1e-7) / (p_s + 1e-7)). Passalis and Tefas, "Learning Deep Representations
    with Probabilistic Knowledge Transfer", ECCV 2018, as RepDistiller has it of its authors (weight 30000). The 1e-7
    that it adds to a norm is left out.

    Args:
      student: [B, D]. teacher: [B, E], another width is fine.
      where: [B] bool, the images that count.
    Returns:
      [], in nats over B.
    """
    epsilon = 1e-7  # of the official code
    pairs = _pairs(student, where)

    def probabilities(x: Array) -> Array:
        kernel = jnp.where(pairs, (gram(unit(flat(x))) + 1) / 2, 0.0)
        total = kernel.sum(-1, keepdims=True)
        return kernel / jnp.where(total > 0, total, 1.0)

    own, target = probabilities(keep(where, student)), probabilities(fixed(where, teacher))
    return (target * jnp.log((target + epsilon) / (own + epsilon))).sum() / _count(own, where) ** 2


def dist(
    student_logits: Float[Array, "B K"],
    teacher_logits: Float[Array, "B K"],
    *,
    temperature: Temperature = 4.0,
    beta: NonNegative = 1.0,
    gamma: NonNegative = 1.0,
    where: Where = None,
) -> Float[Array, ""]:
    """Distillation from a stronger teacher: T^2 (beta inter + gamma intra), both one minus a mean correlation.

    With p = softmax(logits / T), inter takes Pearson's correlation of the networks over the classes of each image,
    intra over the images of each class. Huang et al., "Knowledge Distillation from A Stronger Teacher", NeurIPS 2022.
    T^2 is the official classification code's, whose weight is 2 with T 4 on CIFAR-100 and 1 on
    ImageNet. As there, 1e-8 is added to the product of two norms.

    Args:
      student_logits, teacher_logits: [B, K].
      temperature: T, above zero. beta, gamma: weights of inter and intra.
      where: [B] bool, the images that count.
    Returns:
      [], without unit. What is constant in either network correlates by zero.
    Raises:
      InputError: for a temperature that is not above zero.
    """
    check_temperature(temperature)
    check_rows(student_logits, teacher_logits)
    own, target = (
        keep(where, jax.nn.softmax(x / temperature))
        for x in (keep(where, student_logits), fixed(where, teacher_logits))
    )
    everywhere = jnp.ones_like(own, bool)
    kept = everywhere if where is None else everywhere & where[:, None]
    inter = mean(keep(where, 1 - _correlations(own, target, everywhere)), where)
    intra = (1 - _correlations(own.T, target.T, kept.T)).mean() * kept.any()  # without any image zero, as inter
    return temperature**2 * (beta * inter + gamma * intra)


def skd(
    student_logits: Float[Array, "B K"],
    teacher_logits: Float[Array, "B K"],
    *,
    temperature: Temperature = 4.0,
    instance: NonNegative = 1.0,
    direction: NonNegative = 1.0,
    ridge: Annotated[float, ABOVE_0, TRACED] = 0.1,
    where: Where = None,
) -> Float[Array, ""]:
    """Streamlined knowledge distillation: of each image's classes, and of the directions between images.

    The instance part is KL(p_teacher || p_student) at T, without T^2. The direction part is the mean over the rows d of
    G_s - G_t, G the Gram matrix of logits of norm one, of sqrt(d (S + ridge I)^-1 d), S the covariance of these rows.
    Jeong et al., "Streamlined Knowledge Distillation", CVPR 2026, as torchdistill has it; the paper gives no number for
    T and the ridge, these are of its code.

    Args:
      student_logits, teacher_logits: [B, K].
      temperature: T, above zero. instance, direction: weights of the parts. ridge: added to the covariance.
      where: [B] bool, the images that count.
    Returns:
      [], the two parts added up.
    Raises:
      InputError: for a temperature that is not above zero.
    """
    check_temperature(temperature)
    check_rows(student_logits, teacher_logits)
    sides = keep(where, student_logits), fixed(where, teacher_logits)
    logs = (jax.nn.log_softmax(x / temperature) for x in sides)
    divergence = mean(keep(where, optax.losses.kl_divergence_with_log_targets(*logs)), where)
    own, target = (gram(unit(x)) for x in sides)
    rows, count = own - target, _count(own, where)
    centered = keep(where, rows - rows.sum(0) / count)
    covariance = _product(centered.T, centered) / jnp.maximum(count - 1, 1) + ridge * jnp.eye(
        len(rows), dtype=own.dtype
    )
    solved = jax.scipy.linalg.cho_solve(jax.scipy.linalg.cho_factor(covariance, lower=True), rows.T).T
    return instance * divergence + direction * mean(_root((rows * solved).sum(-1)), where)


def flat(x: Float[Array, "B ..."]) -> Float[Array, "B D"]:
    """Each image's values in one row."""
    return x.reshape(len(x), -1)


def gram(x: Float[Array, "B D"]) -> Float[Array, "B B"]:
    """The inner products of all pairs of rows."""
    return _product(x, x.T)


def _product(a: Array, b: Array) -> Array:
    # A difference of two Gram matrices cancels most of their digits.
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def _pairs(x: Array, where: Where) -> Array:
    """[B, B] bool: both count."""
    return jnp.ones((len(x), len(x)), bool) if where is None else where[:, None] & where[None, :]


def _count(x: Array, where: Where) -> Array:
    """How many images count, at least 1, as a number of x's type."""
    return jnp.asarray(len(x) if where is None else jnp.maximum(where.sum(), 1), x.dtype)


def _root(squares: Array) -> Array:
    """The square root, zero and without a gradient where rounding leaves nothing to take it of."""
    return jnp.where(squares > 0, jnp.sqrt(jnp.where(squares > 0, squares, 1.0)), 0.0)


def _correlations(a: Float[Array, "N M"], b: Float[Array, "N M"], kept: Array) -> Float[Array, " N"]:
    """Pearson's correlation of each pair of rows over the entries that `kept` [N, M] marks, the others being zero."""
    count = jnp.maximum(kept.sum(-1, keepdims=True), 1)

    def centered(x: Array) -> tuple[Array, Array]:
        """Rows without their mean, and their norms [N]; zero where they vary by rounding alone."""
        rest = jnp.where(kept, x - x.sum(-1, keepdims=True) / count, 0.0)
        squares, rounding = jnp.square(rest).sum(-1), 16 * jnp.finfo(x.dtype).eps
        varies = squares > rounding**2 * jnp.square(x).sum(-1)
        return jnp.where(varies[:, None], rest, 0.0), _root(jnp.where(varies, squares, 0.0))

    (a, norm_a), (b, norm_b) = centered(a), centered(b)
    return (a * b).sum(-1) / (norm_a * norm_b + 1e-8)
