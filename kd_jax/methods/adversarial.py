"""A discriminator tells the teacher's outputs from the student's; the student learns to be taken for its teacher.

After Goodfellow et al., "Generative Adversarial Nets", 2014, and Xu et al., "Training Shallow and Thin Networks for
Acceleration via Knowledge Distillation with Conditional Adversarial Networks", 2018.
"""

from collections.abc import Callable, Mapping
from typing import Annotated, Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from kd_jax import losses
from kd_jax.errors import InputError, choose
from kd_jax.keys import SIZE, NonNegative, listing, whole
from kd_jax.methods.base import check_tap, reported, tap
from kd_jax.types import Array, Context, Method, MethodVariables, Outputs, Terms, nobody_waits

OBJECTIVES = ("nonsaturating", "wasserstein")
# A discriminator is trained by Adam of a constant rate, whatever trains the student.
OPTIMIZER = {
    "name": "adam",
    "learning_rate": 1e-3,
    "b1": 0.5,
    "b2": 0.999,
    "weight_decay": 0.0,
    "schedule": "constant",
    "warmup_epochs": 0.0,
}


class Discriminator(nn.Module):
    """A perceptron with leaky ReLU and no batch normalization: a penalty on its gradient needs independent images."""

    hidden: tuple[int, ...]

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, Array]:
        """x [B, D] -> (scores [B], high for the teacher's, and the last hidden layer [B, H])."""
        for width in self.hidden:
            x = nn.leaky_relu(nn.Dense(width, param_dtype=x.dtype)(x), 0.2)
        return nn.Dense(1, param_dtype=x.dtype)(x)[:, 0], x


def student_loss(objective: str, fake: Array) -> Array:
    """What the student lowers, from the scores [B] of its outputs: [B].

    Non-saturating: softplus(-D(s)), Goodfellow et al. 2014, section 3. Wasserstein: -D(s), Arjovsky et al. 2017.
    """
    return jax.nn.softplus(-fake) if objective == "nonsaturating" else -fake


def discriminator_loss(objective: str, real: jax.Array, fake: Array) -> Array:
    """What the discriminator lowers, from the scores [B] of the teacher's and the student's outputs: [B]."""
    if objective == "nonsaturating":
        return jax.nn.softplus(-real) + jax.nn.softplus(fake)
    return fake - real


def r1_penalty(score: Callable[[Array], Array], real: Array) -> Array:
    """Half the squared norm of the score's gradient at the teacher's outputs [B, D]: [B].

    Mescheder et al., "Which Training Methods for GANs do actually Converge?", ICML 2018, equation 9.
    """
    gradient = jax.grad(lambda x: score(x).sum())(real)
    return 0.5 * jnp.square(gradient).sum(-1)


def interpolation_penalty(score: Callable[[Array], Array], real: Array, fake: Array, rng: Array) -> Array:
    """(norm - 1)^2 of the score's gradient at random points between the two outputs [B, D]: [B].

    Gulrajani et al., "Improved Training of Wasserstein GANs", NeurIPS 2017, equation 3.
    """
    mix = jax.random.uniform(rng, (len(real), 1), real.dtype)
    gradient = jax.grad(lambda x: score(x).sum())(mix * real + (1 - mix) * fake)
    return jnp.square(jnp.sqrt(jnp.square(gradient).sum(-1) + 1e-12) - 1)


def adversarial(
    name: str,
    *,
    objective: str = "nonsaturating",
    on: str = "log_probabilities",
    standardize: bool = False,
    condition: str = "embedding",
    hidden: Annotated[tuple[int, ...], listing(SIZE, least=1, expected="a list: the width of one layer or more")] = (
        64,
        64,
    ),
    penalty: NonNegative | None = None,
    matching: NonNegative = 0.0,
    turns: Annotated[
        tuple[int, int], listing(whole(1), least=2, most=2, expected="[discriminator steps, student steps]")
    ]
    | None = None,
) -> Method:
    """The logits discriminator. Two terms with disjoint gradients: `name`, the student's, and `name/discriminator`.

    Args:
      name: of the student's term.
      objective: "nonsaturating", with the R1 penalty, or "wasserstein", with the penalty on interpolates.
      on: what it reads of student and teacher (see `methods.tap`).
      standardize: whether each row of that is standardized first.
      condition: "embedding" shows it the teacher's standardized embedding of the same image too, "none" does not.
      hidden: widths of its layers.
      penalty: weight of the gradient penalty; None for the papers' (1 for R1, 10 on interpolates).
      matching: weight, within the student's term, of the squared distance between the discriminator's last hidden layer
        at the student's and at the teacher's output of the same image. Salimans et al., "Improved Techniques for
        Training GANs", NeurIPS 2016, equation in section 3.1, there between means over the batch.
      turns: None when both move at every step, or [d, s]: d steps of the discriminator, then s of the student, and so
        on. The learning rates go on with the step, whoever moves.
    Raises:
      InputError: for an unknown objective, `on` or condition.
    """
    choose(f"method.{name}.objective", objective, OBJECTIVES)
    choose(f"method.{name}.condition", condition, ("embedding", "none"))
    check_tap(on)
    penalty = penalty if penalty is not None else {"nonsaturating": 1.0, "wasserstein": 10.0}[objective]
    network = Discriminator(tuple(hidden))
    # A part that weighs nothing is left out.
    traced = {key: float(weight) for key, weight in (("penalty", penalty), ("matching", matching)) if weight}

    def inputs(outputs: Outputs, who: str) -> Array:
        x = tap(outputs, on, who)
        x = x.reshape(len(x), -1)
        return losses.standardize(x) if standardize else x

    def beside(x: Array, teacher: Outputs) -> Array:
        """x with what the discriminator is told about the image."""
        if condition == "none":
            return x
        return jnp.concatenate([x, losses.standardize(reported(teacher, "embedding", "the teacher"))], -1)

    def init(rng: Array, context: Context) -> MethodVariables:
        fake, real = inputs(context.student, "the student"), inputs(context.teacher, "the teacher")
        if fake.shape != real.shape:
            raise InputError(
                f"method.{name} reads {list(fake.shape)} of the student, {list(real.shape)} of the teacher;"
                " expected equal shapes"
            )
        return MethodVariables(network.init(rng, beside(real, context.teacher))["params"], {})

    def apply(variables: MethodVariables, context: Context) -> tuple[Terms, Any]:
        weights = {**traced, **context.options}
        teacher = jax.lax.stop_gradient(context.teacher)
        fake, real = inputs(context.student, "the student"), inputs(teacher, "the teacher")
        fixed_fake, fixed_params = jax.lax.stop_gradient((fake, variables.params))

        def judge(params: Any, x: Array) -> tuple[Array, Array]:
            judged: Any = network.apply({"params": params}, beside(x, teacher))
            return judged

        def own_score(x: Array) -> Array:
            return judge(variables.params, x)[0]

        loss = discriminator_loss(objective, own_score(real), own_score(fixed_fake))
        if penalty and objective == "nonsaturating":
            loss += weights["penalty"] * r1_penalty(own_score, real)
        elif penalty:
            loss += weights["penalty"] * interpolation_penalty(own_score, real, fixed_fake, context.key)
        score, hidden_fake = judge(fixed_params, fake)
        fool = student_loss(objective, score)
        if matching:
            fool += weights["matching"] * jnp.square(hidden_fake - judge(fixed_params, real)[1]).sum(-1)
        return {name: fool.mean(), f"{name}/discriminator": loss.mean()}, variables.state

    def alternate(step: Array | int) -> Mapping[str, Any]:
        assert turns is not None
        discriminator, student = turns
        discriminator_moves = step % (discriminator + student) < discriminator
        return {"student": jnp.logical_not(discriminator_moves), name: discriminator_moves}

    return Method(
        init,
        apply,
        needs_teacher=True,
        weights={f"{name}/discriminator": 1.0},
        trains=nobody_waits if turns is None else alternate,
        optimizers={name: OPTIMIZER},
        traced=traced,
    )
