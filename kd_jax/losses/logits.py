"""Losses of logits: one value per image, as in optax."""

import jax
import optax

from kd_jax.errors import InputError


def cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Cross entropy of the student with the label's distribution.

    Args:
      logits: [B, K].
      targets: [B, K], rows that sum to one, or to zero where the image has no label: its loss is zero.
    Returns:
      [B], in nats.
    """
    _check_shapes(logits, targets)
    return optax.losses.softmax_cross_entropy(logits, targets)


def kd(student_logits: jax.Array, teacher_logits: jax.Array, *, temperature: float = 4.0) -> jax.Array:
    """Knowledge distillation: T^2 KL(p_teacher || p_student) with p = softmax(logits / T), summed over the classes.

    The factor keeps the gradient's size when T changes. Hinton et al., "Distilling the Knowledge in a Neural Network",
    2015, section 2.

    Args:
      student_logits, teacher_logits: [B, K].
      temperature: T, above zero.
    Returns:
      [B], in nats times T^2.
    Raises:
      InputError: for a temperature that is not above zero.

    >>> import jax.numpy as jnp
    >>> round(float(kd(jnp.array([[0.0, 0.0]]), jnp.array([[4.0, 0.0]]), temperature=4.0)[0]), 4)
    1.7751
    """
    if not isinstance(temperature, jax.core.Tracer) and not temperature > 0:
        raise InputError(f"temperature is {temperature}; expected a number above 0")
    _check_shapes(student_logits, teacher_logits)
    student = jax.nn.log_softmax(student_logits / temperature)
    teacher = jax.nn.log_softmax(jax.lax.stop_gradient(teacher_logits) / temperature)
    return temperature**2 * optax.losses.kl_divergence_with_log_targets(student, teacher)


def _check_shapes(student: jax.Array, other: jax.Array) -> None:
    if student.shape != other.shape:
        raise InputError(f"the loss compares {list(student.shape)} with {list(other.shape)}; expected equal shapes")
