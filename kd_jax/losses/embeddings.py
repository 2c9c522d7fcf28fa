"""Losses of embeddings that an adapter has brought to the teacher's width."""

from typing import Annotated

import jax
import jax.numpy as jnp
import optax

from kd_jax.keys import TRACED, Temperature, number
from kd_jax.losses.arrays import unit
from kd_jax.losses.logits import check_temperature
from kd_jax.losses.masks import Where, check_shapes, fixed, keep
from kd_jax.types import Array, Float


def cosine_distance(
    student: Float[Array, "B D"], teacher: Float[Array, "B D"], *, where: Where = None
) -> Float[Array, " B"]:
    """One minus the cosine of the two embeddings of each image.

    Args:
      student, teacher: [B, D]. where: [B] bool, the images that count.
    Returns:
      [B], from 0 to 2; one where either is zero, without a gradient there.
    """
    check_shapes(student, teacher)
    return keep(where, 1 - (unit(keep(where, student)) * unit(fixed(where, teacher))).sum(-1))


def cc(student: Float[Array, "B D"], teacher: Float[Array, "B D"], *, where: Where = None) -> Float[Array, ""]:
    """Correlation congruence: delta_i . delta_{i+1} with delta = |student - teacher|, the mean over neighbours.

    Peng et al., "Correlation Congruence for Knowledge Distillation", ICCV 2019, as RepDistiller has it of its authors
    (weight 0.02). The order of a batch is random, so neighbours are pairs at random. Both sides have a gradient, as
    both come out of a layer that trains.

    Args:
      student, teacher: [B, D].
      where: [B] bool, the images that count: neighbours of which both do.
    Returns:
      [], in squared units of the embeddings. Zero for a batch of one.
    """
    check_shapes(student, teacher)
    delta = jnp.abs(keep(where, student) - keep(where, teacher))
    count = len(delta) - 1 if where is None else (where[:-1] & where[1:]).sum()
    return (delta[:-1] * delta[1:]).sum() / jnp.maximum(count, 1)


def srd(
    student: Float[Array, "B D"],
    teacher: Float[Array, "B D"],
    *,
    exponent: Annotated[float, number(least=1, expected="a number of at least 1"), TRACED] = 4.0,
    where: Where = None,
) -> Float[Array, ""]:
    """A simple recipe for distillation: 2 log(sum |norm(student) - norm(teacher)|^exponent + 1e-5).

    The sum is over images and features, `norm` each feature over the batch without mean and divided by its standard
    deviation. Miles and Mikolajczyk, "Understanding the Role of the Projector in Knowledge Distillation", AAAI 2024,
    as the official ImageNet code has it, with its 2, and with the 1e-5 of its DeiT code, without which two
    equal sides have an infinite loss. Published beside `kd` at a temperature of 1.

    Args:
      student, teacher: [B, D].
      exponent: of the absolute difference.
      where: [B] bool, the images that count.
    Returns:
      [], a logarithm. Zero without any image.
    """
    check_shapes(student, teacher)
    own, target = (_over_batch(x, where) for x in (keep(where, student), fixed(where, teacher)))
    loss = 2 * jnp.log((jnp.abs(own - target) ** exponent).sum() + 1e-5)
    return loss if where is None else loss * where.any()


def vkd(student: Float[Array, "B D"], teacher: Float[Array, "B D"], *, where: Where = None) -> Float[Array, " B"]:
    """Smooth L1 between a projected embedding and the teacher's under layer norm without scale and bias.

    Miles et al., "VkD: Improving Knowledge Distillation using Orthogonal Projections", CVPR 2024, as the official
    code has it.

    Args:
      student, teacher: [B, D]. where: [B] bool, the images that count.
    Returns:
      [B], the mean over D.
    """
    check_shapes(student, teacher)
    target = fixed(where, teacher)
    centered = target - target.mean(-1, keepdims=True)
    target = centered * jax.lax.rsqrt(jnp.square(centered).mean(-1, keepdims=True) + 1e-5)
    return optax.losses.huber_loss(keep(where, student), target).mean(-1)


def nd(
    student: Float[Array, "B D"],
    teacher: Float[Array, "B D"],
    teacher_means: Float[Array, "B D"],
    *,
    where: Where = None,
) -> Float[Array, " B"]:
    """Norm and direction: 1 - (student . mean) / (|mean| max(|student|, |teacher|)), the mean being the class's.

    The student's embedding is drawn to the direction of its class's mean, and to at least its teacher's norm. Wang et
    al., "Improving Knowledge Distillation via Regularizing Feature Direction and Norm", ECCV 2024, as the official code
    has it.

    Args:
      student, teacher: [B, D]. teacher_means: [B, D], of each image's class.
      where: [B] bool, the images that count.
    Returns:
      [B], from 0 to 2.
    """
    check_shapes(student, teacher)
    check_shapes(student, teacher_means)
    own, target = keep(where, student), fixed(where, teacher)
    along = (own * unit(fixed(where, teacher_means))).sum(-1)
    squares = jnp.maximum(jnp.square(own).sum(-1), jnp.square(target).sum(-1))
    return keep(where, 1 - along * jax.lax.rsqrt(jnp.where(squares > 0, squares, 1.0)))


def rrd(
    student: Float[Array, "B D"],
    teacher: Float[Array, "B D"],
    teacher_queue: Float[Array, "Q D"],
    *,
    teacher_temperature: Temperature = 0.1,
    student_temperature: Temperature = 0.02,
    queued: Array | None = None,
    where: Where = None,
) -> Float[Array, " B"]:
    """Relational representation distillation: KL between whom of a queue teacher and student resemble.

    The distributions are softmax(cosines to the queue / temperature), each with its own temperature. Giakoumoglou and
    Stathaki, "Relational Representation Distillation", 2024; the official code leaves out the teacher's entropy, which
    has no gradient. With equal temperatures it is the loss of LightlyTrain's distillation.

    Args:
      student, teacher: [B, D]. teacher_queue: [Q, D], rows of norm one.
      teacher_temperature, student_temperature: above zero.
      queued: [Q] bool, the rows that count, at least one; None for all. where: [B] bool, the images that count.
    Returns:
      [B], in nats.
    Raises:
      InputError: for a temperature that is not above zero.
    """
    check_temperature(teacher_temperature)
    check_temperature(student_temperature)
    check_shapes(student, teacher)
    queue = jax.lax.stop_gradient(teacher_queue)
    counts = jnp.ones(len(queue), bool) if queued is None else queued

    def log_probabilities(x: Array, temperature: float) -> Array:
        scores = unit(x) @ queue.T / temperature
        return jnp.where(counts, scores - jax.nn.logsumexp(scores, axis=-1, keepdims=True, where=counts), 0.0)

    own = log_probabilities(keep(where, student), student_temperature)
    target = log_probabilities(fixed(where, teacher), teacher_temperature)
    return keep(where, jnp.where(counts, jnp.exp(target) * (target - own), 0.0).sum(-1))


def _over_batch(x: Float[Array, "B D"], where: Where, epsilon: float = 1e-4) -> Float[Array, "B D"]:
    """Batch normalization without scale and bias, over the images that count."""
    count = len(x) if where is None else jnp.maximum(where.sum(), 1)
    centered = keep(where, x - x.sum(0) / count)
    return centered * jax.lax.rsqrt(jnp.square(centered).sum(0) / count + epsilon)
