"""A discriminator tells the teacher's outputs from the student's; the student learns to be taken for its teacher.

After Goodfellow et al., "Generative Adversarial Nets", 2014, and Xu et al., "Training Shallow and Thin Networks for
Acceleration via Knowledge Distillation with Conditional Adversarial Networks", 2018.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from kd_jax.errors import InputError, choose
from kd_jax.methods.base import field, read, standardize
from kd_jax.types import Method, MethodVariables, both_move

OBJECTIVES = ("nonsaturating", "wasserstein")


class Discriminator(nn.Module):
    """A perceptron with leaky ReLU and no batch normalisation: a penalty on its gradient needs independent images."""

    hidden: tuple[int, ...]

    @nn.compact
    def __call__(self, x):
        """x [B, D] -> (scores [B], high for the teacher's, and the last hidden layer [B, H])."""
        for width in self.hidden:
            x = nn.leaky_relu(nn.Dense(width, param_dtype=x.dtype)(x), 0.2)
        return nn.Dense(1, param_dtype=x.dtype)(x)[:, 0], x


def student_loss(objective: str, fake: jax.Array) -> jax.Array:
    """What the student lowers, from the scores [B] of its outputs: [B].

    Non-saturating: softplus(-D(s)), Goodfellow et al. 2014, section 3. Wasserstein: -D(s), Arjovsky et al. 2017.
    """
    return jax.nn.softplus(-fake) if objective == "nonsaturating" else -fake


def discriminator_loss(objective: str, real: jax.Array, fake: jax.Array) -> jax.Array:
    """What the discriminator lowers, from the scores [B] of the teacher's and the student's outputs: [B]."""
    if objective == "nonsaturating":
        return jax.nn.softplus(-real) + jax.nn.softplus(fake)
    return fake - real


def r1_penalty(score, real: jax.Array) -> jax.Array:
    """Half the squared norm of the score's gradient at the teacher's outputs [B, D]: [B].

    Mescheder et al., "Which Training Methods for GANs do actually Converge?", ICML 2018, equation 9.
    """
    gradient = jax.grad(lambda x: score(x).sum())(real)
    return 0.5 * jnp.square(gradient).sum(-1)


def interpolation_penalty(score, real: jax.Array, fake: jax.Array, rng: jax.Array) -> jax.Array:
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
    hidden: tuple[int, ...] = (64, 64),
    penalty: float | None = None,
    matching: float = 0.0,
    turns: tuple[int, int] | None = None,
) -> Method:
    """The logits discriminator. Two terms with disjoint gradients: `name`, the student's, and `name/discriminator`.

    Args:
      name: of the student's term.
      objective: "nonsaturating", with the R1 penalty, or "wasserstein", with the penalty on interpolates.
      on: what it reads of student and teacher (see `compose.read`).
      standardize: whether each row of that is standardised first.
      condition: "embedding" shows it the teacher's standardised embedding of the same image too, "none" does not.
      hidden: widths of its layers.
      penalty: weight of the gradient penalty; None for the papers' (1 for R1, 10 on interpolates).
      matching: weight, within the student's term, of the squared distance between the discriminator's last hidden layer
        at the student's and at the teacher's output of the same image. Salimans et al., "Improved Techniques for
        Training GANs", NeurIPS 2016, equation in section 3.1, there between means over the batch.
      turns: None when both move at every step, or [d, s]: d steps of the discriminator, then s of the student, and so
        on. The learning rates go on with the step, whoever moves.
    Raises:
      InputError: for an unknown objective, `on` or condition, no layer, or turns that are not two positive numbers.
    """
    choose(f"method.{name}.objective", objective, OBJECTIVES)
    choose(f"method.{name}.condition", condition, ("embedding", "none"))
    reads = frozenset({field(on)} | ({"embedding"} if condition == "embedding" else set()))
    if turns is not None and not (_are_counts(turns) and len(turns) == 2):
        raise InputError(f"method.{name}.turns is {turns!r}; expected [discriminator steps, student steps]")
    if not hidden or not _are_counts(hidden):
        raise InputError(f"method.{name}.hidden is {hidden!r}; expected the width of one layer or more")
    if penalty is not None and not (isinstance(penalty, int | float) and penalty >= 0):
        raise InputError(f"method.{name}.penalty is {penalty!r}; expected a number of at least 0")
    penalty = penalty if penalty is not None else {"nonsaturating": 1.0, "wasserstein": 10.0}[objective]
    network = Discriminator(tuple(hidden))

    def inputs(outputs):
        x = read(outputs, on)
        x = x.reshape(len(x), -1)
        return _standardize(x) if standardize else x

    def beside(x, teacher):
        return jnp.concatenate([x, _standardize(teacher.embedding)], -1) if condition == "embedding" else x

    def init(rng, student, teacher):
        fake, real = (jax.eval_shape(inputs, outputs).shape for outputs in (student, teacher))
        if fake != real:
            raise InputError(
                f"method.{name} reads {list(fake)} of the student, {list(real)} of the teacher; expected one"
            )
        shapes = jax.eval_shape(lambda outputs: beside(inputs(outputs), outputs), teacher)
        variables = network.init(rng, jnp.zeros(shapes.shape, shapes.dtype))
        return MethodVariables(variables["params"], {})

    def apply(variables, student, teacher, batch, *, step, rng, train, networks):
        del batch, step, train, networks
        teacher = jax.lax.stop_gradient(teacher)
        fake, real = inputs(student), inputs(teacher)
        fixed_fake, fixed_params = jax.lax.stop_gradient((fake, variables.params))

        def judge(params, x):
            return network.apply({"params": params}, beside(x, teacher))

        def own_score(x):
            return judge(variables.params, x)[0]

        loss = discriminator_loss(objective, own_score(real), own_score(fixed_fake))
        if penalty and objective == "nonsaturating":
            loss += penalty * r1_penalty(own_score, real)
        elif penalty:
            loss += penalty * interpolation_penalty(own_score, real, fixed_fake, rng)
        score, hidden_fake = judge(fixed_params, fake)
        fool = student_loss(objective, score)
        if matching:
            fool += matching * jnp.square(hidden_fake - judge(fixed_params, real)[1]).sum(-1)
        return {name: fool.mean(), f"{name}/discriminator": loss.mean()}, variables.state

    def take_turns(step):
        discriminator, student = turns
        discriminator_moves = step % (discriminator + student) < discriminator
        return {"student": ~discriminator_moves, "method": discriminator_moves}

    return Method(init, apply, reads, turns=both_move if turns is None else take_turns)


def _are_counts(values) -> bool:
    return isinstance(values, list | tuple) and all(type(value) is int and value >= 1 for value in values)


_standardize = standardize  # the constructor has an option of this name
