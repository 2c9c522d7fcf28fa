"""Losses of logits that soften otherwise than KD, or compare the two distributions by another divergence.

One value per image, as in `logits`.
"""

import math
from typing import Annotated

import jax
import jax.numpy as jnp
import optax

from kd_jax.keys import ABOVE_0, TRACED, Factor, Temperature
from kd_jax.losses.logits import check_temperature, kd, standardize
from kd_jax.losses.masks import Where, check_rows, fixed, keep
from kd_jax.types import Array, Float

CLOSE = 0.5  # points that are this near have differences by a series, others by quotients
SERIES = 14  # terms of it, enough for float64
LARGEST_EXPONENT = 60.0  # of `abkd`, below float32's with room for the squared difference


def ttm(
    student_logits: Float[Array, "B K"],
    teacher_logits: Float[Array, "B K"],
    *,
    gamma: Annotated[float, ABOVE_0, TRACED] = 0.1,
    where: Where = None,
) -> Float[Array, " B"]:
    """Transformed teacher matching: KL(p_t^gamma / sum_c p_t^gamma || p_s), both of a temperature of one.

    That is KD where the teacher alone has a temperature, 1 / gamma, and without its square as a factor. Zheng and Yang,
    "Knowledge Distillation Based on Transformed Teacher Matching", ICLR 2024, section 3 (weight 45 beside the labels).

    Args:
      student_logits, teacher_logits: [B, K].
      gamma: the power, above zero.
      where: [B] bool, the images that count.
    Returns:
      [B], in nats.
    """
    check_rows(student_logits, teacher_logits)
    student = jax.nn.log_softmax(keep(where, student_logits))
    teacher = jax.nn.log_softmax(gamma * fixed(where, teacher_logits))
    return optax.losses.kl_divergence_with_log_targets(student, teacher)


def wttm(
    student_logits: Float[Array, "B K"],
    teacher_logits: Float[Array, "B K"],
    *,
    gamma: Annotated[float, ABOVE_0, TRACED] = 0.2,
    where: Where = None,
) -> Float[Array, " B"]:
    """Weighted transformed teacher matching: `ttm`, each image times its sum_c p_t^gamma.

    An image of which the teacher is less sure counts more. Zheng and Yang, ICLR 2024, section 4 (weight 4).

    Args:
      student_logits, teacher_logits: [B, K].
      gamma: the power, above zero.
      where: [B] bool, the images that count.
    Returns:
      [B], in nats times the weight, which is from 1 to K^(1 - gamma) for a gamma of at most one.
    """
    log_p = jax.nn.log_softmax(fixed(where, teacher_logits))
    weight = jnp.exp(jax.nn.logsumexp(gamma * log_p, axis=-1))
    return weight * ttm(student_logits, teacher_logits, gamma=gamma, where=where)


def normkd(
    student_logits: Float[Array, "B K"],
    teacher_logits: Float[Array, "B K"],
    *,
    temperature: Temperature = 2.0,
    where: Where = None,
) -> Float[Array, " B"]:
    """Normalized KD: (T sd_t)^2 KL(p_t || p_s) with p = softmax(z / (T sd)), sd being the row's own sample deviation.

    So the scale of the student's logits does not count, and that of the teacher's only as a weight. Chi et al.,
    "NormKD: Normalized Logits for Knowledge Distillation", 2023. A row of one value has the uniform distribution here,
    where the official code divides by zero.

    Args:
      student_logits, teacher_logits: [B, K].
      temperature: T, above zero.
      where: [B] bool, the images that count.
    Returns:
      [B], in nats times the square of T sd_t.
    Raises:
      InputError: for a temperature that is not above zero.
    """
    student, teacher = keep(where, student_logits), fixed(where, teacher_logits)
    return teacher.var(-1, ddof=1) * kd(standardize(student), standardize(teacher), temperature=temperature)


def luminet(
    student_logits: Float[Array, "B K"],
    teacher_logits: Float[Array, "B K"],
    *,
    temperature: Temperature = 4.0,
    where: Where = None,
) -> Float[Array, " B"]:
    """LumiNet: KL(p_t || p_s) at a temperature, of logits that are standardized class by class over the batch.

    Each class loses its mean over the images and is divided by sqrt(variance + 1e-5), in both networks; the gradient
    goes through the student's. Hossain et al., "LumiNet: Perception-Driven Knowledge Distillation via Statistical Logit
    Calibration", 2023. There is no factor of T^2: the official code has the square of a weight in its place, 33^2 for
    ResNet-32x4 to 8x4, which here is the term's weight (1089). An image's loss depends on the others of its batch.

    Args:
      student_logits, teacher_logits: [B, K].
      temperature: T, above zero.
      where: [B] bool, the images that count, in the statistics too.
    Returns:
      [B], in nats.
    Raises:
      InputError: for a temperature that is not above zero.
    """
    check_temperature(temperature)
    check_rows(student_logits, teacher_logits)
    count = len(student_logits) if where is None else jnp.maximum(where.sum(), 1)

    def log_probabilities(logits: Array) -> Array:
        centered = keep(where, logits - logits.sum(0) / count)
        variance = jnp.square(centered).sum(0) / count
        return jax.nn.log_softmax(centered * jax.lax.rsqrt(variance + 1e-5) / temperature)

    student, teacher = (log_probabilities(x) for x in (keep(where, student_logits), fixed(where, teacher_logits)))
    return optax.losses.kl_divergence_with_log_targets(student, teacher)


def abkd(
    student_logits: Float[Array, "B K"],
    teacher_logits: Float[Array, "B K"],
    *,
    alpha: Factor = 0.8,
    beta: Factor = 0.3,
    temperature: Temperature = 4.0,
    where: Where = None,
) -> Float[Array, " B"]:
    """The alpha-beta divergence of the teacher's probabilities p and the student's q, softmax(z / T).

    sum_c p^(a + b) / (b (a + b)) + q^(a + b) / (a (a + b)) - p^a q^b / (a b). Wang et al., "ABKD: Pursuing a Proper
    Allocation of the Probability Mass in Knowledge Distillation via alpha-beta-Divergence", ICML 2025 (defaults of
    ResNet-56 to 20, weight 32); like the official code without T^2. At a = 1, b = 0 this is KL(p || q), at a = 0, b = 1
    KL(q || p), at a = b = 0 half the squared difference of the logarithms, and a + b = 0 is the limit too. The official
    code has 1 / a or 1 / b at limits where the formula tends to the square of it.

    With d = log q - log p a class counts d^2 exp[(a + b) log p, (a + b) log q, a log p + b log q], the brackets being
    the divided difference of the exponential, which is smooth where points meet. With a or b below zero small
    probabilities count without bound; exponents above 60 are then held there.

    Args:
      student_logits, teacher_logits: [B, K].
      alpha, beta: any numbers. temperature: T, above zero.
      where: [B] bool, the images that count.
    Returns:
      [B], in nats where a + b is 1.
    Raises:
      InputError: for a temperature that is not above zero.
    """
    check_temperature(temperature)
    check_rows(student_logits, teacher_logits)
    q = jax.nn.log_softmax(keep(where, student_logits) / temperature)
    p = jax.nn.log_softmax(fixed(where, teacher_logits) / temperature)
    points = jnp.stack([(alpha + beta) * p, (alpha + beta) * q, alpha * p + beta * q])
    return (jnp.square(q - p) * _second_difference(jnp.minimum(points, LARGEST_EXPONENT))).sum(-1)


def _second_difference(points: Float[Array, "3 ..."]) -> Array:
    """exp[x, y, z], the second divided difference of the exponential: half its second derivative where they meet."""
    low, middle, high = jnp.sort(points, axis=0)
    close = high - low < CLOSE
    wide = jnp.where(close, 1.0, high - low)
    quotient = (_first_difference(middle, high) - _first_difference(low, middle)) / wide
    series = _series(jnp.where(close, low - middle, 0.0), jnp.where(close, high - middle, 0.0), 2)
    return jnp.where(close, jnp.exp(middle) * series, quotient)


def _first_difference(low: Array, high: Array) -> Array:
    """exp[x, y], the slope of the exponential from x to y."""
    gap = high - low
    close = gap < CLOSE
    wide = jnp.where(close, 1.0, gap)
    series = _series(jnp.zeros_like(gap), jnp.where(close, -gap, 0.0), 1)
    return jnp.exp(high) * jnp.where(close, series, -jnp.expm1(-wide) / wide)


def _series(x: Array, y: Array, order: int) -> Array:
    """sum_k h_k(x, y) / (k + order)!, h_k being the sum of all products of k factors x or y."""
    products = power = jnp.ones_like(x)
    total = products / math.factorial(order)
    for k in range(1, SERIES):
        power = power * x
        products = products * y + power
        total += products / float(math.factorial(k + order))
    return total


def jensen_shannon(
    student_logits: Float[Array, "B K"],
    teacher_logits: Float[Array, "B K"],
    *,
    temperature: Temperature = 4.0,
    where: Where = None,
) -> Float[Array, " B"]:
    """T^2 times the Jensen-Shannon divergence: the mean of KL(p || m) and KL(q || m), m being the mean of p and q.

    Lin, "Divergence Measures Based on the Shannon Entropy", 1991, with equal weights; the factor is that of `kd`.
    Symmetric, and at most T^2 log 2.

    Args:
      student_logits, teacher_logits: [B, K].
      temperature: T, above zero.
      where: [B] bool, the images that count.
    Returns:
      [B], in nats times T^2.
    Raises:
      InputError: for a temperature that is not above zero.
    """
    check_temperature(temperature)
    check_rows(student_logits, teacher_logits)
    q = jax.nn.log_softmax(keep(where, student_logits) / temperature)
    p = jax.nn.log_softmax(fixed(where, teacher_logits) / temperature)
    mean = jnp.logaddexp(p, q) - math.log(2)
    divergences = [optax.losses.kl_divergence_with_log_targets(mean, x) for x in (p, q)]
    return keep(where, 0.5 * temperature**2 * (divergences[0] + divergences[1]))


def bce(
    student_logits: Float[Array, "B K"], teacher_logits: Float[Array, "B K"], *, where: Where = None
) -> Float[Array, " B"]:
    """Binary cross entropy of the sigmoid of each of the student's logits with the teacher's probability of that class.

    The teacher's are softmax(z). The mean over the classes, as in the official code of Hao et al., "Revisit the Power
    of Vanilla Knowledge Distillation: from Small Scale to Large Scale", NeurIPS 2023 (its BKD). It is K times smaller
    than a sum, and not zero where both agree.

    Args:
      student_logits, teacher_logits: [B, K].
      where: [B] bool, the images that count.
    Returns:
      [B], in nats per class.
    """
    check_rows(student_logits, teacher_logits)
    teacher = jax.nn.softmax(fixed(where, teacher_logits))
    loss = optax.losses.sigmoid_binary_cross_entropy(keep(where, student_logits), teacher)
    return keep(where, loss.mean(-1))


def binary_kd(
    student_logits: Float[Array, "B K"],
    teacher_logits: Float[Array, "B K"],
    *,
    norm: bool = False,
    temperature: Temperature = 2.0,
    where: Where = None,
) -> Float[Array, " B"]:
    """T^2 sum_c KL(p_t || p_s) of two-way distributions, class or not, with p = sigmoid(z / T).

    Unlike KD it sees a constant that is added to all logits. Yang et al., "Dual-Head Knowledge Distillation: Enhancing
    Logits Utilization with an Auxiliary Head", 2024: BinaryKL, and with `norm` BinaryKL-Norm, KL(1/2 || p) with
    p = sigmoid((z_s - z_t) / T). Computed from logarithms, where the official code holds p at 1e-8 from zero and one.

    Args:
      student_logits, teacher_logits: [B, K].
      norm: whether the difference of the logits is compared with zero. temperature: T, above zero.
      where: [B] bool, the images that count.
    Returns:
      [B], in nats times T^2.
    Raises:
      InputError: for a temperature that is not above zero.
    """
    check_temperature(temperature)
    check_rows(student_logits, teacher_logits)
    student, teacher = keep(where, student_logits), fixed(where, teacher_logits)
    if norm:
        student, teacher = student - teacher, jnp.zeros_like(teacher)

    def log_probabilities(logits: Array) -> Array:
        """[B, K, 2] of the class, and of any other."""
        return jax.nn.log_sigmoid(jnp.stack([logits, -logits], -1) / temperature)

    divergence = optax.losses.kl_divergence_with_log_targets(log_probabilities(student), log_probabilities(teacher))
    return temperature**2 * divergence.sum(-1)
