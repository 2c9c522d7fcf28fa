"""From losses to methods: lift a function of arrays, join methods into one, transform what a loss reads."""

import inspect
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from kd_jax.errors import InputError, choose
from kd_jax.models.layers import at_least_float32
from kd_jax.types import Method, MethodVariables, Outputs, student_logits

READS = {
    "logits": "logits",
    "probabilities": "logits",
    "log_probabilities": "logits",
    "embedding": "embedding",
    "pooled": "pooled",
}
ARGUMENTS = ("student", "teacher", "targets", "labels")


def read(outputs: Outputs, on: str) -> jax.Array:
    """What `on` names: a key of `READS`, or `feature:N` for the N-th map, the stem's being 0 and the last -1."""
    if on.startswith("feature:"):
        number, count = int(on.removeprefix("feature:")), len(outputs.features)
        if not -count <= number < count:
            raise InputError(f"on is {on!r}; expected feature:0 (the stem's map) to feature:{count - 1}")
        return at_least_float32(outputs.features[number])  # relations and norms lose too much in bfloat16
    value = getattr(outputs, READS[on])
    if on == "probabilities":
        return jax.nn.softmax(value)
    return jax.nn.log_softmax(value) if on == "log_probabilities" else value


def field(on: str) -> str:
    """The field of Outputs that `on` is read from; raises InputError for an unknown name."""
    if on.startswith("feature:") and on.removeprefix("feature:").lstrip("-").isdecimal():
        return "features"
    return choose("on", on, {**READS, "feature:N": "features"})


def standardize(x: jax.Array, epsilon: float = 1e-7) -> jax.Array:
    """Each row without its mean and divided by its standard deviation (of a sample, K - 1). [B, K] -> [B, K].

    Sun et al., "Logit Standardization in Knowledge Distillation", CVPR 2024, equation 9.
    """
    centred = x - x.mean(-1, keepdims=True)
    # Safe at a constant row, where the square root has no finite derivative.
    variance = jnp.square(centred).sum(-1, keepdims=True) / (x.shape[-1] - 1)
    deviation = jnp.where(variance > 0, jnp.sqrt(jnp.where(variance > 0, variance, 1.0)), 0.0)
    return centred / (epsilon + deviation)


def lift(
    function: Callable, *, on: str = "logits", arguments: tuple[str, ...] = ("student", "teacher")
) -> Callable[..., Method]:
    """Makes a method's constructor out of a plain function of arrays.

    Args:
      function: takes `arguments` by position, its own options by keyword; returns [B] or [].
      on: what "student" and "teacher" are by default (see `read`).
      arguments: of "student", "teacher" (without gradient), "targets" [B, K] and "labels" [B]. With one of the last
        two, images without a label do not count in the mean.
    Returns:
      constructor(name, *, on, standardize, **options) -> Method with one term of that name.
    """
    own = [p for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY]
    labelled_only = bool({"targets", "labels"} & set(arguments))
    default, keyword = on, inspect.Parameter.KEYWORD_ONLY

    def construct(name: str, *, on: str = default, standardize: bool = False, **options) -> Method:
        source = field(on)
        transform = _standardize if standardize else lambda x: x

        def init(rng, student, teacher):
            del rng, student, teacher
            return MethodVariables({}, {})

        def apply(variables, student, teacher, batch, *, step, rng, train, networks):
            del step, rng, train, networks
            values = {"student": transform(read(student, on)), "targets": batch.targets, "labels": batch.labels}
            if "teacher" in arguments:
                values["teacher"] = jax.lax.stop_gradient(transform(read(teacher, on)))
            loss = function(*(values[a] for a in arguments), **options)
            if loss.ndim and labelled_only:
                labelled = (batch.labels >= 0).astype(loss.dtype)
                loss = (loss * labelled).sum() / jnp.maximum(labelled.sum(), 1)
            return {name: loss.mean()}, variables.state

        return Method(init, apply, frozenset({source} if "teacher" in arguments else ()))

    construct.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            inspect.Parameter("name", inspect.Parameter.POSITIONAL_OR_KEYWORD),
            inspect.Parameter("on", keyword, default=on),
            inspect.Parameter("standardize", keyword, default=False),
            *own,
        ]
    )
    return construct


_standardize = standardize  # `lift`'s constructors have an option of this name


def join(methods: Mapping[str, Method]) -> Method:
    """One method of several: all their terms, each with variables of its own. A group moves when all let it move."""
    overridden = [name for name, method in methods.items() if method.predict is not student_logits]
    if len(overridden) > 1:
        raise InputError(f"the terms {', '.join(overridden)} each replace the student's prediction; at most one may")

    def own(variables, name):
        return MethodVariables(variables.params[name], variables.state[name])

    def init(rng, student, teacher):
        made = {
            name: method.init(jax.random.fold_in(rng, i), student, teacher)
            for i, (name, method) in enumerate(methods.items())
        }
        return MethodVariables(
            {name: variables.params for name, variables in made.items()},
            {name: variables.state for name, variables in made.items()},
        )

    def apply(variables, student, teacher, batch, *, step, rng, train, networks):
        terms, state = {}, {}
        for i, (name, method) in enumerate(methods.items()):
            new, state[name] = method.apply(
                own(variables, name),
                student,
                teacher,
                batch,
                step=step,
                rng=jax.random.fold_in(rng, i),
                train=train,
                networks=networks,
            )
            terms |= new
        return terms, state

    def turns(step):
        each = [method.turns(step) for method in methods.values()]
        return {
            group: jnp.all(jnp.array([turn[group] for turn in each])) if each else True
            for group in ("student", "method")
        }

    def predict(variables, outputs):
        if not overridden:
            return outputs.logits
        return methods[overridden[0]].predict(own(variables, overridden[0]), outputs)

    return Method(
        init,
        apply,
        reads=frozenset().union(*(method.reads for method in methods.values())),
        weights={term: weight for method in methods.values() for term, weight in method.weights.items()},
        turns=turns,
        predict=predict if overridden else student_logits,
    )
