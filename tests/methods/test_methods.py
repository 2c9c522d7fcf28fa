"""Methods by name: what holds for all of them, their weights, their options, a loss of one's own."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax import methods
from kd_jax.errors import InputError
from kd_jax.types import MethodVariables
from tests.methods.numeric import STUDENT, TEACHER, batch, log_softmax, outputs

METHODS = {
    "cross_entropy": {"cross_entropy": {}},
    "kd": {"kd": {}},
    "standardised": {"kd": {"standardize": True}},
    "rkd_distance": {"rkd_distance": {}},
    "rkd_angle": {"rkd_angle": {}},
    "nonsaturating": {"adversarial": {"hidden": [8]}},
    "wasserstein": {"adversarial": {"hidden": [8], "objective": "wasserstein"}},
}
every = pytest.mark.parametrize("name", METHODS)


@functools.cache
def build(name):
    """A function of (parameters, student's logits, teacher's Outputs) that sums a method's terms, and parameters."""
    method = methods.create(METHODS[name])
    variables = method.init(jax.random.key(0), outputs(STUDENT), outputs(TEACHER))

    def loss(params, student, teacher):
        own = MethodVariables(params, variables.state)
        labels = batch([0] * len(student))
        terms, _ = method.apply(
            own, outputs(student), teacher, labels, step=0, rng=jax.random.key(1), train=True, networks=None
        )
        return sum(terms.values())

    return loss, jax.jit(jax.value_and_grad(loss, (0, 1))), variables.params


CASES = {
    "the student's rows are equal": (STUDENT[[1] * 6], TEACHER),
    "the teacher's rows are equal": (STUDENT, TEACHER[[1] * 6]),
    "all rows are equal": (STUDENT[[1] * 6], STUDENT[[1] * 6]),
    "all entries are zero": (0 * STUDENT, 0 * TEACHER),
    "there is one image": (STUDENT[:1], TEACHER[:1]),
    "logits are large": (1e4 * STUDENT, 1e4 * TEACHER),
}


@every
@pytest.mark.parametrize("case", CASES)
def test_value_and_gradients_are_finite_when(name, case):
    student, teacher = CASES[case]
    _, value_and_gradients, params = build(name)
    results = value_and_gradients(params, jnp.asarray(student, jnp.float32), outputs(teacher))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(results))


@every
def test_the_teacher_gets_exactly_no_gradient(name):
    loss, _, params = build(name)
    gradients = jax.jit(jax.grad(loss, 2))(params, jnp.asarray(STUDENT, jnp.float32), outputs(TEACHER))
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradients))


@every
def test_students_can_be_mapped_over(name):
    loss, value_and_gradients, params = build(name)
    students = jnp.asarray([STUDENT, STUDENT[::-1]], jnp.float32)
    mapped = jax.jit(jax.vmap(loss, (None, 0, None)))(params, students, outputs(TEACHER))
    single = [value_and_gradients(params, student, outputs(TEACHER))[0] for student in students]
    np.testing.assert_allclose(mapped, single, rtol=1e-5)


def apply(method, student, teacher, labels=(0,) * 6):
    """The terms of a method without parameters."""
    rng = jax.random.key(0)
    variables = method.init(rng, student, teacher)
    return method.apply(variables, student, teacher, batch(labels), step=0, rng=rng, train=True, networks=None)[0]


def cross_entropy(logits, labels):
    """The cross entropy of a method and its gradient to the logits."""
    method = methods.create({"cross_entropy": {}})

    def loss(logits):
        return apply(method, outputs(logits), None, labels)["cross_entropy"]

    return jax.value_and_grad(loss)(jnp.asarray(logits, jnp.float32))


def test_images_without_a_label_do_not_enter_the_mean_of_the_cross_entropy():
    value, _ = cross_entropy(STUDENT, [2, -1, -1, 4, -1, -1])
    np.testing.assert_allclose(value, -log_softmax(STUDENT)[[0, 3], [2, 4]].mean(), rtol=1e-5)


def test_without_any_label_the_cross_entropy_and_its_gradient_are_zero():
    value, gradient = cross_entropy(STUDENT, [-1] * 6)
    assert value == 0
    assert not gradient.any()


def test_a_terms_options_reach_its_loss():
    method = methods.create({"soft": {"loss": "kd", "temperature": 2, "on": "embedding"}})
    student, teacher = outputs(TEACHER, STUDENT), outputs(STUDENT, TEACHER)
    terms = apply(method, student, teacher)
    p, q = log_softmax(TEACHER / 2), log_softmax(STUDENT / 2)
    np.testing.assert_allclose(terms["soft"], 4 * (np.exp(p) * (p - q)).sum(-1).mean(), rtol=1e-5)


@pytest.mark.parametrize("loss", ["rkd_distance", "rkd_angle"])
def test_maps_of_half_precision_are_compared_in_float32(loss):
    rng = np.random.default_rng(0)
    # Two close clusters, whose inner distances bfloat16's products would lose.
    maps = [np.repeat(rng.normal(size=(2, 2, 2, 3)), 3, 0) + 0.05 * rng.normal(size=(6, 2, 2, 3)) for _ in range(2)]
    half = [jnp.asarray(x, jnp.bfloat16) for x in maps]
    method = methods.create({loss: {"on": "feature:0"}})

    def value(pair):
        return apply(method, *(outputs(STUDENT)._replace(features=(x,)) for x in pair))[loss]

    np.testing.assert_allclose(value(half), value([x.astype(jnp.float32) for x in half]), rtol=1e-6)


def test_a_terms_name_is_its_loss_unless_it_says_otherwise():
    method = methods.create({"soft": {"loss": "kd", "weight": 0.9, "temperature": 2.0}, "cross_entropy": {}})
    assert method.weights == {"soft": 0.9, "cross_entropy": 1.0}
    assert method.reads == {"logits"}


def test_labels_need_no_teacher():
    assert methods.create({"cross_entropy": {}}).reads == frozenset()


@pytest.mark.parametrize(
    ("terms", "said"),
    [
        ({}, "method has no term; expected at least one of: adversarial, cross_entropy"),
        ({"kdd": {}}, "method.kdd.loss is 'kdd'; expected one of: .*; did you mean 'kd'"),
        ({"kd": {"loss": "dk"}}, "method.kd.loss is 'dk'"),
        ({"kd": {"temprature": 2.0}}, "'temprature'; expected one of: .*; did you mean 'temperature'"),
        ({"kd": {"temperature": "hot"}}, "method.kd.temperature is 'hot'; expected a number"),
        ({"kd": {"standardize": 1}}, "method.kd.standardize is 1; expected true or false"),
        ({"kd": {"on": 3}}, "method.kd.on is 3; expected a text"),
        ({"adversarial": {"hidden": 64}}, "method.adversarial.hidden is 64; expected a list"),
        ({"kd": {"weight": "1"}}, "method.kd.weight is '1'; expected a finite number"),
        ({"kd": {"weight": True}}, "method.kd.weight is True; expected a finite number"),
        ({"kd": {"weight": float("nan")}}, "method.kd.weight is nan; expected a finite number"),
    ],
)
def test_a_wrong_term_is_named_with_the_choices(terms, said):
    with pytest.raises(InputError, match=said):
        methods.create(terms)


def test_a_registered_loss_is_a_term_with_its_own_options(monkeypatch):
    monkeypatch.setattr(methods, "LOSSES", dict(methods.LOSSES))

    def difference(student, teacher, *, scale=1.0):
        return scale * jnp.abs(student - teacher).mean(-1)

    methods.register("difference", methods.lift(difference, on="embedding"))
    method = methods.create({"difference": {"scale": 2.0}})
    student, teacher = outputs(TEACHER, STUDENT), outputs(TEACHER, TEACHER)
    terms = apply(method, student, teacher)
    np.testing.assert_allclose(terms["difference"], 2 * np.abs(STUDENT - TEACHER).mean(), rtol=1e-5)


def test_a_registered_losses_unknown_option_is_named_with_the_choices(monkeypatch):
    monkeypatch.setitem(methods.LOSSES, "difference", methods.lift(lambda student, teacher, *, scale=1.0: scale))
    with pytest.raises(InputError, match="is 'size'; expected one of: loss, on, scale"):
        methods.create({"difference": {"size": 2.0}})


def test_a_name_that_is_taken_cannot_be_registered():
    with pytest.raises(InputError, match="the loss 'kd' is registered already"):
        methods.register("kd", methods.LOSSES["kd"])
