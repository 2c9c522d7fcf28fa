"""The logits discriminator against a perceptron in float64 numpy: values, gradients, whose gradient, whose turn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax import methods
from kd_jax.errors import InputError
from kd_jax.types import MethodVariables
from tests.methods.numeric import (
    STUDENT,
    TEACHER,
    assert_gradient,
    context,
    grad,
    log_softmax,
    outputs,
    slope,
    standardized,
    terms,
)

EMBEDDING = np.random.default_rng(3).normal(size=(6, 4))
OBJECTIVES = ("nonsaturating", "wasserstein")
RNG = jax.random.key(5)
each = pytest.mark.parametrize("objective", OBJECTIVES)


def build(**options):
    """A method of one adversarial term and its variables."""
    method = methods.create({"adversarial": {"hidden": [8, 6]} | options})
    return method, initial(method, outputs(STUDENT), outputs(TEACHER, EMBEDDING))


def initial(method, *arguments):
    return jax.jit(lambda: method.init(jax.random.key(0), context(*arguments)))()


def apply(method, variables, student, teacher=None):
    teacher = outputs(TEACHER, EMBEDDING) if teacher is None else teacher
    return terms(method, student, teacher, variables=variables, rng=RNG)


def hidden(params, x):
    """The discriminator's last hidden layer, layer by layer."""
    for i in range(2):
        x = linear(params, i, x)
        x = np.where(x > 0, x, 0.2 * x)
    return x


def linear(params, i, x):
    layer = params["adversarial"][f"Dense_{i}"]
    return x @ np.asarray(layer["kernel"], np.float64) + np.asarray(layer["bias"], np.float64)


def score(params, x):
    return linear(params, 2, hidden(params, x))[:, 0]


def seen(logits):
    """What the discriminator reads: log-probabilities beside the teacher's standardized embedding."""
    return np.concatenate([log_softmax(logits), standardized(EMBEDDING)], -1)


def softplus(x):
    return np.logaddexp(0, x)


def student_term(objective, params, student, matching=0.0):
    scores = score(params, seen(student))
    distance = np.square(hidden(params, seen(student)) - hidden(params, seen(TEACHER))).sum(-1)
    return ((softplus(-scores) if objective == "nonsaturating" else -scores) + matching * distance).mean()


def input_gradient(params, x):
    """The score's gradient by its log-probabilities [6, 5], not by the embedding, by finite differences."""
    beside = standardized(EMBEDDING)
    return slope(lambda x: score(params, np.concatenate([x, beside], -1)).sum(), x, step=1e-4)


def penalties(objective, params):
    """Mescheder et al., equation 9, at the teacher's outputs; Gulrajani et al., equation 3, between the outputs."""
    if objective == "nonsaturating":
        return 0.5 * np.square(input_gradient(params, log_softmax(TEACHER))).sum(-1)
    share = np.asarray(jax.random.uniform(jax.random.fold_in(RNG, 0), (6, 1)), np.float64)
    between = share * log_softmax(TEACHER) + (1 - share) * log_softmax(STUDENT)
    return np.square(np.sqrt(np.square(input_gradient(params, between)).sum(-1)) - 1)


def discriminator_term(objective, params, penalty):
    real, fake = (score(params, seen(x)) for x in (TEACHER, STUDENT))
    loss = softplus(-real) + softplus(fake) if objective == "nonsaturating" else fake - real
    return (loss + (penalty * penalties(objective, params) if penalty else 0.0)).mean()


@each
@pytest.mark.parametrize("matching", [0.0, 2.0])
def test_the_students_term_is_the_papers(objective, matching):
    method, variables = build(objective=objective, matching=matching)
    expected = student_term(objective, variables.params, STUDENT, matching)
    np.testing.assert_allclose(apply(method, variables, outputs(STUDENT))["adversarial"], expected, rtol=1e-5)


@each
def test_the_students_gradient_is_that_of_finite_differences(objective):
    method, variables = build(objective=objective)
    gradient = grad(lambda x: apply(method, variables, outputs(x))["adversarial"])(jnp.asarray(STUDENT, jnp.float32))
    assert_gradient(gradient, slope(lambda x: student_term(objective, variables.params, x), STUDENT))


@pytest.mark.parametrize(
    ("objective", "options", "penalty"),
    [
        ("nonsaturating", {"penalty": 0}, 0.0),
        ("nonsaturating", {"penalty": 2.5}, 2.5),
        ("nonsaturating", {}, 1.0),
        ("wasserstein", {"penalty": 0}, 0.0),
        ("wasserstein", {"penalty": 2.5}, 2.5),
        ("wasserstein", {}, 10.0),
    ],
)
def test_the_discriminators_term_is_the_papers_with_its_penalty(objective, options, penalty):
    method, variables = build(objective=objective, **options)
    expected = discriminator_term(objective, variables.params, penalty)
    measured = apply(method, variables, outputs(STUDENT))["adversarial/discriminator"]
    np.testing.assert_allclose(measured, expected, rtol=1e-5)


@each
@pytest.mark.parametrize("penalty", [0.0, 3.0])
@pytest.mark.parametrize("layer", [("Dense_0", "bias"), ("Dense_1", "kernel")], ids=".".join)
def test_the_discriminators_gradient_is_that_of_finite_differences(objective, penalty, layer):
    method, variables = build(objective=objective, penalty=penalty)
    network = variables.params["adversarial"]
    first = {**network["Dense_0"], "bias": np.random.default_rng(1).normal(size=8)}
    network = {**network, "Dense_0": first}

    def changed(value):
        return {"adversarial": {**network, layer[0]: {**network[layer[0]], layer[1]: value}}}

    def loss(value):
        own = MethodVariables(changed(value), variables.state)
        return apply(method, own, outputs(STUDENT))["adversarial/discriminator"]

    value = np.asarray(network[layer[0]][layer[1]], np.float64)
    expected = slope(lambda x: discriminator_term(objective, changed(x), penalty), value, step=1e-5)
    assert_gradient(jax.jit(jax.grad(loss))(jnp.asarray(value, jnp.float32)), expected)


@each
@pytest.mark.parametrize("matching", [0.0, 2.0])
def test_each_term_moves_one_side_only(objective, matching):
    method, variables = build(objective=objective, matching=matching)

    def both(params, student):
        return apply(method, MethodVariables(params, variables.state), outputs(student))

    sides = jax.jit(jax.jacobian(both, (0, 1)))(variables.params, jnp.asarray(STUDENT, jnp.float32))
    moved = {name: [any(np.any(x) for x in jax.tree.leaves(side)) for side in both] for name, both in sides.items()}
    assert moved == {"adversarial": [False, True], "adversarial/discriminator": [True, False]}


def test_both_move_at_every_step_unless_turns_are_given():
    assert build()[0].trains(7) == {}


@pytest.mark.parametrize(
    ("step", "who"), [(0, "adversarial"), (29, "adversarial"), (30, "student"), (199, "student"), (200, "adversarial")]
)
def test_turns_say_who_moves(step, who):
    for now in (step, jnp.int32(step)):
        trains = build(turns=[30, 170])[0].trains(now)
        assert {group for group in trains if trains[group]} == {who}


def test_without_condition_the_embedding_is_not_read():
    method = methods.create({"adversarial": {"hidden": [8, 6], "condition": "none"}})
    student, teacher = (outputs(x)._replace(embedding=None) for x in (STUDENT, TEACHER))
    variables = initial(method, student, teacher)
    expected = softplus(-score(variables.params, log_softmax(STUDENT))).mean()
    np.testing.assert_allclose(apply(method, variables, student, teacher)["adversarial"], expected, rtol=1e-5)


def test_its_inputs_are_standardized_on_request():
    method, variables = build(on="logits", standardize=True)
    expected = softplus(-score(variables.params, np.concatenate([standardized(STUDENT), standardized(EMBEDDING)], -1)))
    np.testing.assert_allclose(apply(method, variables, outputs(STUDENT))["adversarial"], expected.mean(), rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"objective": "hinge"},
            "method.adversarial.objective is 'hinge'; expected one of: nonsaturating, wasserstein",
        ),
        ({"condition": "labels"}, "method.adversarial.condition is 'labels'; expected one of: embedding, none"),
        ({"on": "logit"}, "on is 'logit'; .*; did you mean 'logits'"),
        ({"turns": [30]}, r"method.adversarial.turns is \[30\]; expected"),
        ({"turns": [0, 5]}, r"method.adversarial.turns is \[0, 5\]; expected"),
        ({"turns": [1.5, 2]}, r"method.adversarial.turns is \[1.5, 2\]; expected"),
        ({"turns": 5}, "method.adversarial.turns is 5; expected"),
        ({"hidden": [6.5]}, r"method.adversarial.hidden is \[6.5\]; expected"),
        ({"penalty": -1.0}, "method.adversarial.penalty is -1.0; expected a number of at least 0"),
        ({"hidden": []}, r"method.adversarial.hidden is \[\]; expected a list: the width of one layer or more"),
    ],
)
def test_a_wrong_option_is_named_with_the_choices(options, said):
    with pytest.raises(InputError, match=said):
        methods.create({"adversarial": options})
