"""The losses of the project that this one reimplements, as they ran, so that its table can be made its way too.

maximzubkov/cnn-distillation. Each differs from its paper, and each docstring says how; the papers' forms are in
`kd_jax.losses` and `adversarial`. All read logits z and soften them by a temperature T of 1.5.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from kd_jax import losses
from kd_jax.keys import Temperature
from kd_jax.losses.logits import check_temperature
from kd_jax.losses.masks import check_rows
from kd_jax.models.layers import BatchNorm, Linear
from kd_jax.types import Array, Context, Method, MethodVariables, Terms

TEMPERATURE = 1.5
CYCLE, DISCRIMINATOR_STEPS = 200, 21  # of an epoch's steps, each 200 begin with 21 of the discriminator


def cross_entropy(student_logits: Array, targets: Array, *, temperature: Temperature = TEMPERATURE) -> Array:
    """Cross entropy of softened logits, beside the discriminator. [B, K], [B, K] -> [B]."""
    check_temperature(temperature)
    return losses.cross_entropy(student_logits / temperature, targets)


def kd(student_logits: Array, teacher_logits: Array, *, temperature: Temperature = TEMPERATURE) -> Array:
    """KD with the mean over the classes in the place of their sum, so K times too weak. [B, K], [B, K] -> [B]."""
    return losses.kd(student_logits, teacher_logits, temperature=temperature) / student_logits.shape[-1]


def rkd_distance(student_logits: Array, teacher_logits: Array, *, temperature: Temperature = TEMPERATURE) -> Array:
    """RKD of distances between the student's log-probabilities and the teacher's probabilities. [B, K] each -> [].

    The two lie in different spaces, so the loss is positive at equal logits.
    """
    check_temperature(temperature)
    student = jax.nn.log_softmax(student_logits / temperature)
    return losses.rkd_distance(student, jax.nn.softmax(teacher_logits / temperature))


def rkd_angle(student_logits: Array, teacher_logits: Array, *, temperature: Temperature = TEMPERATURE) -> Array:
    """RKD of angles, where the student's differences are log_softmax(z_j / T) - z_i. [B, K] each -> [].

    They mix log-probabilities with logits, so the loss is positive at equal logits. Memory is O(B^3 + B^2 K).
    """
    check_temperature(temperature)
    check_rows(student_logits, teacher_logits)
    student = jax.nn.log_softmax(student_logits / temperature)[None, :] - student_logits[:, None]
    soft = jax.nn.softmax(jax.lax.stop_gradient(teacher_logits) / temperature)
    difference = _cosines(student) - _cosines(soft[None, :] - soft[:, None])
    return optax.losses.huber_loss(difference).mean()


def _cosines(differences: Array) -> Array:
    """[B, B, K] -> [B, B, B]: of the differences (i, j) and (i, k)."""
    squared = jnp.square(differences).sum(-1, keepdims=True)
    unit = differences * jax.lax.rsqrt(jnp.maximum(squared, 1e-24))
    return jnp.einsum("ijc,ikc->ijk", unit, unit, precision=jax.lax.Precision.HIGHEST)


class Discriminator(nn.Module):
    """Two small convolutions along the classes and a sigmoid: [B, K] -> [B], K at least 10."""

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        uniform = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # PyTorch's default
        x = x[..., None]
        for features, size in ((4, 4), (16, 3)):
            common: dict[str, Any] = {"use_bias": False, "kernel_init": uniform, "param_dtype": x.dtype}
            x = nn.Conv(features, (size,), padding="VALID", **common)(x)
            x = nn.avg_pool(nn.relu(BatchNorm()(x, train=train)), (3,), (1,))  # the norm would remove a bias
        return nn.sigmoid(Linear(1)(x.mean(1)))[:, 0]  # of ten classes one place is left, and the mean is that


def adversarial(name: str, *, temperature: Temperature = TEMPERATURE) -> Method:
    """The logits discriminator, in which no two networks play against each other.

    Student and discriminator lower one loss together at every step: in 21 of each 200 steps of an epoch that of the
    discriminator, D(student) - D(teacher), in the others -D(student), times T^2. The discriminator reads
    log-probabilities of the student and probabilities of the teacher, ends in a sigmoid, and has batch norms and no
    gradient penalty. The original's optimizer is one for both, as here.

    Args:
      name: of the term.
      temperature: T.
    """
    network = Discriminator()

    def init(rng: Array, context: Context) -> MethodVariables:
        variables = network.init(rng, context.student.logits, train=False)
        return MethodVariables(variables["params"], variables["batch_stats"])

    def apply(variables: MethodVariables, context: Context) -> tuple[Terms, Any]:
        softened = context.options.get("temperature", temperature)
        fake = jax.nn.log_softmax(context.student.logits / softened)
        real = jax.nn.softmax(jax.lax.stop_gradient(context.teacher.logits) / softened)

        def score(x: Array, state: Any) -> tuple[Array, Any]:
            scores, changed = network.apply(
                {"params": variables.params, "batch_stats": state}, x, train=True, mutable=["batch_stats"]
            )
            return scores.mean(), changed["batch_stats"]

        own = {"params": variables.params, "batch_stats": variables.state}
        scores: Any = network.apply(own, fake, train=False)
        fixed = scores.mean()
        fake_score, state = score(fake, variables.state)
        real_score, state = score(real, state)
        students_turn = context.step % context.steps_per_epoch % CYCLE >= DISCRIMINATOR_STEPS
        loss = jnp.where(students_turn, -fixed, fake_score - real_score)
        state = jax.tree.map(lambda old, new: jnp.where(students_turn, old, new), variables.state, state)
        return {name: softened**2 * loss}, state

    return Method(init, apply, needs_teacher=True, traced={"temperature": float(temperature)})
