"""Losses of logits: one value per image, as in optax."""

from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
import optax

from kd_jax.errors import InputError
from kd_jax.keys import ABOVE_0, TRACED, Factor, Temperature, listing
from kd_jax.losses.masks import Where, check_rows, fixed, keep
from kd_jax.types import Array, Float, Int


def cross_entropy(
    student_logits: Float[Array, "B K"], targets: Float[Array, "B K"], *, where: Where = None
) -> Float[Array, " B"]:
    """Cross entropy of the student with the label's distribution.

    Args:
      student_logits: [B, K].
      targets: [B, K], rows that sum to one, or to zero where the image has no label: its loss is zero.
      where: [B] bool, the images that count.
    Returns:
      [B], in nats.
    """
    check_rows(student_logits, targets)
    return optax.losses.softmax_cross_entropy(keep(where, student_logits), keep(where, targets))


def kd(
    student_logits: Float[Array, "B K"],
    teacher_logits: Float[Array, "B K"],
    *,
    temperature: Temperature = 4.0,
    where: Where = None,
) -> Float[Array, " B"]:
    """Knowledge distillation: T^2 KL(p_teacher || p_student) with p = softmax(logits / T), summed over the classes.

    The factor keeps the gradient's size when T changes. Hinton et al., "Distilling the Knowledge in a Neural Network",
    2015, section 2.

    Args:
      student_logits, teacher_logits: [B, K].
      temperature: T, above zero.
      where: [B] bool, the images that count.
    Returns:
      [B], in nats times T^2.
    Raises:
      InputError: for a temperature that is not above zero.

    >>> round(float(kd(jnp.array([[0.0, 0.0]]), jnp.array([[4.0, 0.0]]), temperature=4.0)[0]), 4)
    1.7751
    """
    check_temperature(temperature)
    check_rows(student_logits, teacher_logits)
    student = jax.nn.log_softmax(keep(where, student_logits) / temperature)
    teacher = jax.nn.log_softmax(fixed(where, teacher_logits) / temperature)
    return temperature**2 * optax.losses.kl_divergence_with_log_targets(student, teacher)


def dkd(
    student_logits: Float[Array, "B K"],
    teacher_logits: Float[Array, "B K"],
    labels: Int[Array, " B"],
    *,
    alpha: Factor = 1.0,
    beta: Factor = 8.0,
    temperature: Temperature = 4.0,
    where: Where = None,
) -> Float[Array, " B"]:
    """Decoupled knowledge distillation: T^2 (alpha TCKD + beta NCKD).

    TCKD is the divergence of the two-way distributions (the label, anything else), NCKD that of the distributions over
    the other classes. Zhao et al., "Decoupled Knowledge Distillation", CVPR 2022, equation 7. Computed from logarithms,
    so that a probability of zero is no infinity; the official code hides the label by subtracting 1000 from its logit,
    here it is left out. Published with a warm-up of 20 epochs on its weight.

    Args:
      student_logits, teacher_logits: [B, K]. labels: [B], from 0 to K - 1 wherever `where` keeps the image.
      alpha, beta: weights of the two parts. temperature: T, above zero.
      where: [B] bool, the images that count.
    Returns:
      [B], in nats times T^2.
    Raises:
      InputError: for a temperature that is not above zero.
    """
    check_temperature(temperature)
    check_rows(student_logits, teacher_logits)
    is_label = jax.nn.one_hot(labels, student_logits.shape[-1], dtype=bool)
    student, teacher = keep(where, student_logits) / temperature, fixed(where, teacher_logits) / temperature
    kl = optax.losses.kl_divergence_with_log_targets
    target = kl(two_way(student, is_label), two_way(teacher, is_label))
    others = kl(log_softmax_among(student, ~is_label), log_softmax_among(teacher, ~is_label))
    loss = temperature**2 * (alpha * target + beta * others)
    return keep(where, loss)


def two_way(logits: Float[Array, "B K"], chosen: Array) -> Float[Array, "B 2"]:
    """Log-probabilities of the class that `chosen` [B, K] bool marks in each row, and of all others together."""
    log_p = jax.nn.log_softmax(logits)
    rest = jax.nn.logsumexp(log_p, axis=-1, where=~chosen)
    return jnp.stack([jnp.where(chosen, log_p, 0).sum(-1), rest], -1)


def log_softmax_among(logits: Float[Array, "B K"], among: Array) -> Float[Array, "B K"]:
    """Log-probabilities of the classes that `among` [B, K] bool marks, among themselves; zero for all others.

    A row that marks none is zero. As that is so on both sides, the others add nothing to a divergence.
    """
    return jnp.where(among, jax.nn.log_softmax(logits, where=among), 0)


def mlkd(
    student_logits: Float[Array, "B K"],
    teacher_logits: Float[Array, "B K"],
    *,
    temperatures: Annotated[tuple[float, ...], listing(ABOVE_0, least=1), TRACED] = (2.0, 3.0, 4.0, 5.0, 6.0),
    standardize_instances: bool = False,
    where: Where = None,
) -> Float[Array, ""]:
    """Multi-level logit distillation of one view: of instances, classes and the batch, summed over temperatures.

    With P = softmax(logits / T), [B, K], the sum of the mean of `kd`, of |P_s^T P_s - P_t^T P_t|^2 / K (classes) and of
    |P_s P_s^T - P_t P_t^T|^2 / B (images). Jin et al., "Multi-Level Logit Distillation", CVPR 2023, equations 5 to 9.
    The official code means to drop images of low confidence, but its mask only scales the loss, for two of the
    temperatures it reads the weak view in the strong one's place, and it adds the parts of classes and images for the
    weak view alone; none of that is done here.

    Args:
      student_logits, teacher_logits: [B, K].
      temperatures: one or more, above zero.
      standardize_instances: standardize the logits of `kd` alone, as Sun et al., CVPR 2024, do.
      where: [B] bool, the images that count.
    Returns:
      [], the three parts added up.
    Raises:
      InputError: for no temperature, or one that is not above zero.
    """
    check_rows(student_logits, teacher_logits)
    if not temperatures:
        raise InputError("temperatures is empty; expected one number above 0 or more")
    count = len(student_logits) if where is None else jnp.maximum(where.sum(), 1)
    total = jnp.zeros((), jnp.promote_types(student_logits.dtype, jnp.float32))
    rows = student_logits, teacher_logits
    if standardize_instances:
        rows = standardize(keep(where, student_logits)), standardize(fixed(where, teacher_logits))
    for temperature in temperatures:
        instances = keep(where, kd(*rows, temperature=temperature, where=where)).sum() / count
        student = keep(where, jax.nn.softmax(keep(where, student_logits) / temperature))
        teacher = keep(where, jax.nn.softmax(fixed(where, teacher_logits) / temperature))
        classes = jnp.square(student.T @ student - teacher.T @ teacher).sum() / student.shape[1]
        images = jnp.square(student @ student.T - teacher @ teacher.T).sum() / count
        total += instances + classes + images
    return total


def standardize(x: Float[Array, "B K"], epsilon: float = 1e-7) -> Float[Array, "B K"]:
    """Each row without its mean and divided by its standard deviation (of a sample, K - 1). [B, K] -> [B, K].

    Sun et al., "Logit Standardization in Knowledge Distillation", CVPR 2024, equation 9.
    """
    x = keep(None, x)
    centered = x - x.mean(-1, keepdims=True)
    # Safe at a constant row, where the square root has no finite derivative.
    variance = jnp.square(centered).sum(-1, keepdims=True) / (x.shape[-1] - 1)
    deviation = jnp.where(variance > 0, jnp.sqrt(jnp.where(variance > 0, variance, 1.0)), 0.0)
    return centered / (epsilon + deviation)


def check_temperature(temperature: float) -> None:
    if isinstance(temperature, jax.core.Tracer):
        return
    if not isinstance(temperature, int | float | np.number | jax.Array) or not temperature > 0:
        raise InputError(f"temperature is {temperature!r}; expected a number above 0")
