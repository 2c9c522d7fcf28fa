"""The losses of the project that this one reimplements, as they ran, so that its table can be made its way too.

maximzubkov/cnn-distillation. Each differs from its paper, and each docstring says how; the papers' forms are in
`logits`, `relations` and `adversarial`. All read logits z and soften them by a temperature T of 1.5.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from kd_jax.losses import logits, relations
from kd_jax.models.layers import BatchNorm, Linear
from kd_jax.types import Method, MethodVariables

TEMPERATURE = 1.5
CYCLE, DISCRIMINATOR_STEPS = 200, 21  # of an epoch's steps, each 200 begin with 21 of the discriminator


def cross_entropy(student_logits: jax.Array, targets: jax.Array, *, temperature: float = TEMPERATURE) -> jax.Array:
    """Cross entropy of softened logits, beside the discriminator. [B, K], [B, K] -> [B]."""
    return logits.cross_entropy(student_logits / temperature, targets)


def kd(student_logits: jax.Array, teacher_logits: jax.Array, *, temperature: float = TEMPERATURE) -> jax.Array:
    """KD with the mean over the classes in the place of their sum, so K times too weak. [B, K], [B, K] -> [B]."""
    return logits.kd(student_logits, teacher_logits, temperature=temperature) / student_logits.shape[-1]


def rkd_distance(
    student_logits: jax.Array, teacher_logits: jax.Array, *, temperature: float = TEMPERATURE
) -> jax.Array:
    """RKD of distances between the student's log-probabilities and the teacher's probabilities. [B, K] each -> [].

    The two lie in different spaces, so the loss is positive at equal logits.
    """
    student = jax.nn.log_softmax(student_logits / temperature)
    return relations.rkd_distance(student, jax.nn.softmax(teacher_logits / temperature))


def rkd_angle(student_logits: jax.Array, teacher_logits: jax.Array, *, temperature: float = TEMPERATURE) -> jax.Array:
    """RKD of angles, where the student's differences are log_softmax(z_j / T) - z_i. [B, K] each -> [].

    They mix log-probabilities with logits, so the loss is positive at equal logits. Memory is O(B^3 + B^2 K).
    """
    student = jax.nn.log_softmax(student_logits / temperature)[None, :] - student_logits[:, None]
    soft = jax.nn.softmax(jax.lax.stop_gradient(teacher_logits) / temperature)
    difference = _cosines(student) - _cosines(soft[None, :] - soft[:, None])
    return optax.losses.huber_loss(difference).mean()


def _cosines(differences):
    """[B, B, K] -> [B, B, B]: of the differences (i, j) and (i, k)."""
    squared = jnp.square(differences).sum(-1, keepdims=True)
    unit = differences * jax.lax.rsqrt(jnp.maximum(squared, 1e-24))
    return jnp.einsum("ijc,ikc->ijk", unit, unit, precision=jax.lax.Precision.HIGHEST)


class Discriminator(nn.Module):
    """Two small convolutions along the classes and a sigmoid: [B, K] -> [B], K at least 10."""

    @nn.compact
    def __call__(self, x, *, train: bool):
        uniform = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # PyTorch's default
        x = x[..., None]
        for features, size in ((4, 4), (16, 3)):
            x = nn.Conv(features, (size,), padding="VALID", use_bias=False, kernel_init=uniform)(x)
            x = nn.avg_pool(nn.relu(BatchNorm()(x, train=train)), (3,), (1,))  # the norm would remove a bias
        return nn.sigmoid(Linear(1)(x.mean(1)))[:, 0]  # of ten classes one place is left, and the mean is that


def adversarial(name: str, *, temperature: float = TEMPERATURE, steps_per_epoch: int = 1562) -> Method:
    """The logits discriminator, in which no two networks play against each other.

    Student and discriminator lower one loss together at every step: in 21 of 200 steps that of the discriminator,
    D(student) - D(teacher), in the others -D(student), times T^2. The discriminator reads log-probabilities of the
    student and probabilities of the teacher, ends in a sigmoid, and has batch norms and no gradient penalty.

    Args:
      name: of the term.
      temperature: T.
      steps_per_epoch: the 200 steps are counted anew in every epoch; 1562 are those of 50,000 images by 32.
    """
    network = Discriminator()

    def init(rng, student, teacher):
        del teacher
        variables = network.init(rng, jnp.zeros((2, student.logits.shape[-1])), train=False)
        return MethodVariables(variables["params"], variables["batch_stats"])

    def apply(variables, student, teacher, batch, *, step, rng, train, networks):
        del batch, rng, train, networks
        fake = jax.nn.log_softmax(student.logits / temperature)
        real = jax.nn.softmax(jax.lax.stop_gradient(teacher.logits) / temperature)

        def score(x, state):
            scores, changed = network.apply(
                {"params": variables.params, "batch_stats": state}, x, train=True, mutable=["batch_stats"]
            )
            return scores.mean(), changed["batch_stats"]

        fixed = network.apply({"params": variables.params, "batch_stats": variables.state}, fake, train=False).mean()
        fake_score, state = score(fake, variables.state)
        real_score, state = score(real, state)
        students_turn = step % steps_per_epoch % CYCLE >= DISCRIMINATOR_STEPS
        loss = jnp.where(students_turn, -fixed, fake_score - real_score)
        state = jax.tree.map(lambda old, new: jnp.where(students_turn, old, new), variables.state, state)
        return {name: temperature**2 * loss}, state

    return Method(init, apply, frozenset({"logits"}))
