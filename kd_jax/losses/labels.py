"""Losses of logits that set the label's class apart: one value per image.

Labels are from 0 to K - 1 wherever `where` keeps the image.
"""

from typing import Annotated

import jax
import jax.numpy as jnp
import optax

from kd_jax.errors import InputError
from kd_jax.keys import ABOVE_0, AT_LEAST_0, TRACED, Factor, NonNegative, Temperature, number, whole
from kd_jax.losses.arrays import unit
from kd_jax.losses.logits import check_temperature, kd, log_softmax_among, two_way
from kd_jax.losses.masks import Where, check_rows, fixed, keep
from kd_jax.types import Array, Float, Int

EPSILON = 1e-7  # of the official code of WSLD
SINKHORN_EPSILON = 1e-8  # of the official code of WKD
PROBABILITY = number(above=0, below=1, expected="a number above 0 and below 1")


def nkd(
    student_logits: Float[Array, "B K"],
    teacher_logits: Float[Array, "B K"],
    labels: Int[Array, " B"],
    *,
    gamma: NonNegative = 3.5,
    temperature: Temperature = 3.0,
    where: Where = None,
) -> Float[Array, " B"]:
    """Normalized knowledge distillation: -p_t^y log p_s^y + gamma T^2 H(q_t, q_s).

    p are the probabilities at a temperature of 1, whatever T is, y the label, q the probabilities at T of the other
    classes among themselves, and H their cross entropy. Yang et al., "From Knowledge Distillation to Self-Knowledge
    Distillation: A Unified Approach with Normalized Loss and Customized Soft Labels", ICCV 2023, as the official code
    has it. The defaults are those of CIFAR-100; ImageNet has T 1 and gamma 1.5.

    Args:
      student_logits, teacher_logits: [B, K]. labels: [B].
      gamma: weight of the other classes. temperature: T, above zero.
      where: [B] bool, the images that count.
    Returns:
      [B], in nats. A cross entropy, and so not zero where both agree.
    Raises:
      InputError: for a temperature that is not above zero.
    """
    check_temperature(temperature)
    check_rows(student_logits, teacher_logits)
    is_label = jax.nn.one_hot(labels, student_logits.shape[-1], dtype=bool)
    student, teacher = keep(where, student_logits), fixed(where, teacher_logits)
    own, target = (log_softmax_among(x / temperature, ~is_label) for x in (student, teacher))
    others = -(jnp.exp(target) * own).sum(-1)
    return keep(where, _of_label(student, teacher, is_label) + gamma * temperature**2 * others)


def _of_label(student: Array, teacher: Array, is_label: Array) -> Array:
    """-p_t^y log p_s^y, [B]."""
    return -jnp.where(is_label, jax.nn.softmax(teacher) * jax.nn.log_softmax(student), 0).sum(-1)


def wsld(
    student_logits: Float[Array, "B K"],
    teacher_logits: Float[Array, "B K"],
    labels: Int[Array, " B"],
    *,
    temperature: Temperature = 4.0,
    where: Where = None,
) -> Float[Array, " B"]:
    """Weighted soft labels: T^2 (1 - exp(-L_s / L_t)) H(p_t, p_s), with H the cross entropy at T.

    L are the cross entropies of student and teacher with the label, at a temperature of 1: an image counts for more
    where the teacher knows its label better than the student does. The weight carries no gradient. Zhou et al.,
    "Rethinking Soft Labels for Knowledge Distillation: A Bias-Variance Tradeoff Perspective", ICLR 2021, as the
    official code has it. Published on CIFAR-100 with a weight of 2.25; on ImageNet with T 2 and a weight of 2.5.

    Args:
      student_logits, teacher_logits: [B, K]. labels: [B].
      temperature: T, above zero.
      where: [B] bool, the images that count.
    Returns:
      [B], in nats times T^2.
    Raises:
      InputError: for a temperature that is not above zero.
    """
    check_temperature(temperature)
    check_rows(student_logits, teacher_logits)
    is_label = jax.nn.one_hot(labels, student_logits.shape[-1], dtype=bool)
    student, teacher = keep(where, student_logits), fixed(where, teacher_logits)
    of_student, of_teacher = (-jnp.where(is_label, jax.nn.log_softmax(x), 0).sum(-1) for x in (student, teacher))
    weight = -jnp.expm1(-jax.lax.stop_gradient(of_student) / (of_teacher + EPSILON))
    soft = optax.losses.softmax_cross_entropy(student / temperature, jax.nn.softmax(teacher / temperature))
    return keep(where, temperature**2 * weight * soft)


def rld(
    student_logits: Float[Array, "B K"],
    teacher_logits: Float[Array, "B K"],
    labels: Int[Array, " B"],
    *,
    alpha: Factor = 1.0,
    beta: Factor = 8.0,
    temperature: Temperature = 4.0,
    label_temperature: Temperature | None = None,
    where: Where = None,
) -> Float[Array, " B"]:
    """Refined logit distillation: T_a^2 alpha SCD + T^2 beta MCD, in neither of which a wrong teacher misleads.

    SCD is the divergence of two-way distributions at T_a: the teacher's top class against the rest, and the student's
    probability of the label against the rest. MCD is that among the classes that the teacher ranks below the label, at
    T; it is zero where there is none. Sun et al., "Knowledge Distillation with Refined Logits", 2024. Computed from
    logarithms, where the official code has the logarithm of a sum of probabilities, which may be zero. Published with
    a warm-up of 20 epochs on its weight.

    Args:
      student_logits, teacher_logits: [B, K]. labels: [B].
      alpha, beta: weights of the two parts; beta by pair of networks, as in `dkd`.
      temperature: T, above zero. label_temperature: T_a; None for the same. The official code has 1 unless it is told
        to take the same, as it is in the command that is published.
      where: [B] bool, the images that count.
    Returns:
      [B], in nats times the squared temperatures.
    Raises:
      InputError: for a temperature that is not above zero.
    """
    label_temperature = temperature if label_temperature is None else label_temperature
    check_temperature(temperature)
    check_temperature(label_temperature)
    check_rows(student_logits, teacher_logits)
    is_label = jax.nn.one_hot(labels, student_logits.shape[-1], dtype=bool)
    student, teacher = keep(where, student_logits), fixed(where, teacher_logits)
    below = teacher < jnp.where(is_label, teacher, 0).sum(-1, keepdims=True)
    kl = optax.losses.kl_divergence_with_log_targets
    single = kl(two_way(student / label_temperature, is_label), two_way(teacher / label_temperature, _is_top(teacher)))
    masked = kl(log_softmax_among(student / temperature, below), log_softmax_among(teacher / temperature, below))
    return keep(where, label_temperature**2 * alpha * single + temperature**2 * beta * masked)


def _is_top(logits: Array) -> Array:
    """[B, K] bool: the largest of each row, the first of several."""
    return jax.nn.one_hot(logits.argmax(-1), logits.shape[-1], dtype=bool)


def swap(teacher_logits: Float[Array, "B K"], labels: Int[Array, " B"]) -> Float[Array, "B K"]:
    """The teacher's logits with the label's and the largest exchanged, so that the teacher is always right.

    The "probability shift" of Wen et al., "Preparing Lessons: Improve Knowledge Distillation with Better Supervision",
    2019: exchanging logits exchanges probabilities.

    Args:
      teacher_logits: [B, K]. labels: [B], -1 for none: such a row stays as it is.
    Returns:
      [B, K].

    >>> swap(jnp.array([[3.0, 1.0, 2.0]]), jnp.array([1])).tolist()
    [[1.0, 3.0, 2.0]]
    """
    is_label = jax.nn.one_hot(labels, teacher_logits.shape[-1], dtype=bool)
    label = jnp.where(is_label, teacher_logits, 0).sum(-1, keepdims=True)
    demoted = jnp.where(_is_top(teacher_logits), label, teacher_logits)
    swapped = jnp.where(is_label, teacher_logits.max(-1, keepdims=True), demoted)
    return jnp.where((labels >= 0)[:, None], swapped, teacher_logits)


def swapped_kd(
    student_logits: Float[Array, "B K"],
    teacher_logits: Float[Array, "B K"],
    labels: Int[Array, " B"],
    *,
    temperature: Temperature = 4.0,
    where: Where = None,
) -> Float[Array, " B"]:
    """`kd` with the teacher's logits as `swap` leaves them.

    Args:
      student_logits, teacher_logits: [B, K]. labels: [B].
      temperature: T, above zero.
      where: [B] bool, the images that count.
    Returns:
      [B], in nats times T^2.
    Raises:
      InputError: for a temperature that is not above zero.
    """
    return kd(student_logits, swap(teacher_logits, labels), temperature=temperature, where=where)


def wkd_logits(
    student_logits: Float[Array, "B K"],
    teacher_logits: Float[Array, "B K"],
    labels: Int[Array, " B"],
    *,
    cost: Float[Array, "K K"],
    alpha: NonNegative = 1.0,
    gamma: Annotated[float, AT_LEAST_0] = 600.0,
    temperature: Temperature = 8.0,
    regularization: Annotated[float, ABOVE_0, TRACED] = 0.05,
    iterations: Annotated[int, whole(1, 10000)] = 10,
    where: Where = None,
) -> Float[Array, " B"]:
    """Wasserstein distillation of logits: alpha (-p_t^y log p_s^y) + gamma W(q_s, q_t).

    p are probabilities at a temperature of 1, y the label, q the probabilities at T of the other classes among
    themselves. W is what it costs to carry q_s to q_t, by Sinkhorn's iterations. Lv et al., "Wasserstein Distance
    Rivals Kullback-Leibler Divergence for Knowledge Distillation", NeurIPS 2024, WKD-L, as the official code has it,
    without a factor of T^2. That code cuts a matrix of costs without the label for every image, [B, K - 1, K - 1];
    here all share one [K, K], which gives the same numbers, as the label has no mass. ImageNet has T 2 and gamma 30.

    Args:
      student_logits, teacher_logits: [B, K]. labels: [B].
      cost: [K, K], of carrying mass from the student's class to the teacher's; below zero counts as zero.
      alpha, gamma: weights of the label's part and of W. temperature: T, above zero.
      regularization: of the entropy; the smaller, the closer to W and the more iterations it takes.
      iterations: of Sinkhorn.
      where: [B] bool, the images that count.
    Returns:
      [B], in nats, and in units of the cost.
    Raises:
      InputError: for a temperature that is not above zero, and for a cost of another shape.
    """
    check_temperature(temperature)
    check_rows(student_logits, teacher_logits)
    if cost.shape != (student_logits.shape[-1],) * 2:
        raise InputError(f"cost is {list(cost.shape)}; expected [K, K] with K = {student_logits.shape[-1]} classes")
    is_label = jax.nn.one_hot(labels, student_logits.shape[-1], dtype=bool)
    student, teacher = keep(where, student_logits), fixed(where, teacher_logits)
    label = alpha * _of_label(student, teacher, is_label)
    if not isinstance(gamma, jax.Array) and not gamma:
        return keep(where, label)
    logs = (log_softmax_among(x / temperature, ~is_label) for x in (student, teacher))
    given, wanted = (jnp.where(is_label, 0, jnp.exp(log)) for log in logs)
    cost = jnp.maximum(keep(None, cost), 0) + SINKHORN_EPSILON
    carried = _transport(given, wanted, ~is_label, cost, regularization, iterations)
    return keep(where, label + gamma * carried)


def _transport(
    student: Array, teacher: Array, among: Array, cost: Array, regularization: float, iterations: int
) -> Array:
    """What Sinkhorn's plan from `student` to `teacher` costs, [B]; both [B, K] are zero outside of `among`."""

    def times(x: Array, matrix: Array) -> Array:
        return jnp.matmul(x, matrix, precision=jax.lax.Precision.HIGHEST)

    kernel = jnp.exp(-cost / regularization)

    def iteration(_: Array, scales: tuple[Array, Array]) -> tuple[Array, Array]:
        rows, _ = scales
        columns = teacher / (times(rows, kernel) + SINKHORN_EPSILON)
        return student / (times(columns, kernel.T) + SINKHORN_EPSILON), columns

    start = among / jnp.maximum(among.sum(-1, keepdims=True), 1).astype(jnp.result_type(student, teacher, cost))
    rows, columns = jax.lax.fori_loop(0, iterations, iteration, (start, jnp.zeros_like(start)))
    return (times(rows, kernel * cost) * columns).sum(-1)


def class_cost(teacher_kernel: Float[Array, "D K"], *, kappa: Annotated[float, ABOVE_0] = 1.0) -> Float[Array, "K K"]:
    """The cost between two classes: 1 - exp(-kappa (1 - s)), with s the cosine of their rows in the teacher's head.

    Lv et al., NeurIPS 2024, with the cosine in the place of the paper's default, the centred kernel alignment of the
    classes' features; the official code offers both.

    Args:
      teacher_kernel: [D, K], of the final linear layer.
      kappa: sharpens the cost; the official code has 1, and 2 for ResNet-50 to MobileNet.
    Returns:
      [K, K], from 0 to 1 - exp(-2 kappa), symmetric, without gradient. A class costs nothing to itself.
    """
    kernel = fixed(None, teacher_kernel)
    rows = unit(kernel.T)
    similarity = jnp.matmul(rows, rows.T, precision=jax.lax.Precision.HIGHEST)
    return jnp.fill_diagonal(-jnp.expm1(-kappa * jnp.maximum(1 - similarity, 0)), 0, inplace=False)


def teacher_free(
    student_logits: Float[Array, "B K"],
    labels: Int[Array, " B"],
    *,
    correct: Annotated[float, PROBABILITY] = 0.99,
    temperature: Temperature = 20.0,
    where: Where = None,
) -> Float[Array, " B"]:
    """Teacher-free distillation by regularization: `kd` of a teacher that is made by hand.

    That gives the label the probability `correct`, the other classes the rest in equal parts, and is softened at T as
    the student is. Yuan et al., "Revisiting Knowledge Distillation via Label Smoothing Regularization", CVPR 2020,
    Tf-KD_reg, whose formula is KL(p_d at T || p_s at T); `kd` multiplies by T^2. The official code does otherwise: it
    leaves the student at a temperature of 1, takes the softmax of p_d / T, probabilities in the place of logits, which
    is all but uniform, and divides by the number of classes too, for which a factor makes up (100 for ResNet-18 on
    CIFAR-100, with a weight of 0.1 and labels 0.9).

    Args:
      student_logits: [B, K]. labels: [B].
      correct: probability of the label. temperature: T, above zero.
      where: [B] bool, the images that count.
    Returns:
      [B], in nats times T^2.
    Raises:
      InputError: for a temperature that is not above zero, and a probability that is not between zero and one.
    """
    if not isinstance(correct, jax.core.Tracer) and not 0 < correct < 1:
        raise InputError(f"correct is {correct!r}; expected {PROBABILITY.expected}")
    student = keep(where, student_logits)
    is_label = jax.nn.one_hot(labels, student.shape[-1], dtype=bool)
    others = jnp.log((1 - correct) / max(student.shape[-1] - 1, 1))
    by_hand = jnp.where(is_label, jnp.log(correct), others).astype(student.dtype)
    return keep(where, kd(student, by_hand, temperature=temperature))
