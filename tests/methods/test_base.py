"""What losses read, and how they are lifted and joined."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax.errors import InputError
from kd_jax.methods import base
from kd_jax.types import Method, MethodVariables
from tests.methods.numeric import STUDENT, TEACHER, batch, log_softmax, outputs, slope, standardized


def apply(method, student=STUDENT, teacher=TEACHER, labels=(0, 1, 2, 3, 4, 0)):
    variables = method.init(jax.random.key(0), outputs(student), outputs(teacher))
    return method.apply(
        variables,
        outputs(student),
        outputs(teacher),
        batch(list(labels)),
        step=0,
        rng=jax.random.key(0),
        train=True,
        networks=None,
    )[0]


@pytest.mark.parametrize(
    ("on", "expected"),
    [
        ("logits", STUDENT),
        ("probabilities", np.exp(log_softmax(STUDENT))),
        ("log_probabilities", log_softmax(STUDENT)),
        ("embedding", TEACHER),
        ("feature:0", np.ones((6, 4, 4, 3))),
        ("feature:-1", 3 * np.ones((6, 1, 1, 3))),
    ],
)
def test_a_loss_reads_what_it_names(on, expected):
    np.testing.assert_allclose(base.read(outputs(STUDENT, TEACHER), on), expected, rtol=1e-5)


@pytest.mark.parametrize("on", ["logit", "feature", "feature:last"])
def test_an_unknown_name_is_refused_with_the_choices(on):
    with pytest.raises(InputError, match="expected one of: embedding, feature:N, log_probabilities, logits, pooled"):
        base.field(on)


def test_standardising_takes_out_mean_and_sample_deviation():
    np.testing.assert_allclose(base.standardize(STUDENT), standardized(STUDENT), rtol=1e-4, atol=1e-6)


def test_standardisings_gradient_is_that_of_finite_differences():
    weight = np.random.default_rng(9).normal(size=STUDENT.shape)
    gradient = jax.grad(lambda x: (base.standardize(x) * weight).sum())(jnp.asarray(STUDENT, jnp.float32))
    expected = slope(lambda x: (standardized(x) * weight).sum(), STUDENT)
    np.testing.assert_allclose(gradient, expected, atol=1e-4 * np.abs(expected).max())


def test_a_constant_row_standardises_to_zero_with_a_finite_gradient():
    value, gradient = jax.value_and_grad(lambda x: (base.standardize(x) ** 2).sum())(jnp.ones((2, 5)))
    assert value == 0
    assert np.isfinite(gradient).all()


def test_a_loss_per_image_is_averaged_over_the_batch():
    method = base.lift(lambda student, teacher: (student - teacher).sum(-1))("term")
    np.testing.assert_allclose(apply(method)["term"], (STUDENT - TEACHER).sum(-1).mean(), rtol=1e-4)


def test_a_loss_of_the_batch_is_taken_as_it_is():
    method = base.lift(lambda student, teacher: (student * teacher).sum())("term")
    np.testing.assert_allclose(apply(method)["term"], (STUDENT * TEACHER).sum(), rtol=1e-4)


def test_a_loss_of_labels_counts_only_images_that_have_one():
    method = base.lift(lambda student, labels: student[:, 0] + labels, arguments=("student", "labels"))("term")
    expected = (STUDENT[[0, 3], 0] + [2, 4]).mean()
    np.testing.assert_allclose(apply(method, labels=(2, -1, -1, 4, -1, -1))["term"], expected, rtol=1e-5)


def test_without_any_label_such_a_loss_is_zero():
    method = base.lift(lambda student, labels: student[:, 0], arguments=("student", "labels"))("term")
    assert apply(method, labels=[-1] * 6)["term"] == 0


def test_a_lifted_loss_gives_the_teacher_no_gradient():
    method = base.lift(lambda student, teacher: (student * teacher).sum(-1), on="embedding")("term")
    gradient = jax.grad(lambda t: apply(method, teacher=t)["term"])(jnp.asarray(TEACHER, jnp.float32))
    assert not gradient.any()


def test_standardize_is_an_option_of_every_lifted_loss():
    method = base.lift(lambda student, teacher: (student * teacher).sum(-1))("term", standardize=True)
    expected = (standardized(STUDENT) * standardized(TEACHER)).sum(-1).mean()
    np.testing.assert_allclose(apply(method)["term"], expected, rtol=1e-4)


def counter(name, start=0.0, moves=True, **fields):
    """A method whose parameter is its term and whose state counts its calls, both from `start`."""

    def init(rng, student, teacher):
        return MethodVariables(jnp.float32(start), jnp.int32(start))

    def run(variables, student, teacher, batch, *, step, rng, train, networks):
        return {name: variables.params}, variables.state + 1

    return Method(init, run, turns=lambda step: {"student": moves, "method": True}, **fields)


def test_joined_methods_keep_their_own_variables():
    joined = base.join({"a": counter("a", 1.0), "b": counter("b", 2.0)})
    variables = joined.init(jax.random.key(0), None, None)
    terms, state = joined.apply(variables, None, None, None, step=0, rng=jax.random.key(0), train=True, networks=None)
    assert (terms, state) == ({"a": 1.0, "b": 2.0}, {"a": 2, "b": 3})


def test_joined_methods_have_randomness_of_their_own():
    def noise(name):
        def init(rng, student, teacher):
            return MethodVariables(jax.random.normal(rng), {})

        def run(variables, student, teacher, batch, *, step, rng, train, networks):
            return {f"{name}/init": variables.params, f"{name}/apply": jax.random.normal(rng)}, {}

        return Method(init, run)

    joined = base.join({"a": noise("a"), "b": noise("b")})
    variables = joined.init(jax.random.key(0), None, None)
    terms, _ = joined.apply(variables, None, None, None, step=0, rng=jax.random.key(1), train=True, networks=None)
    assert len({float(value) for value in terms.values()}) == 4


def test_joined_methods_keep_their_weights():
    joined = base.join({name: counter(name, weights={name: weight}) for name, weight in [("a", 0.5), ("b", 2.0)]})
    assert joined.weights == {"a": 0.5, "b": 2.0}


def test_joined_methods_read_what_any_of_them_reads():
    fields = [frozenset({"logits"}), frozenset({"embedding", "logits"})]
    joined = base.join({str(i): counter(str(i), reads=reads) for i, reads in enumerate(fields)})
    assert joined.reads == {"logits", "embedding"}


@pytest.mark.parametrize(("first", "second", "both"), [(True, True, True), (True, False, False), (False, False, False)])
def test_a_group_moves_when_all_methods_let_it(first, second, both):
    joined = base.join({"a": counter("a", moves=first), "b": counter("b", moves=second)})
    assert bool(joined.turns(0)["student"]) is both


def test_a_method_that_replaces_the_prediction_predicts_for_the_sum():
    joined = base.join({"a": counter("a"), "b": counter("b", 3.0, predict=lambda variables, out: variables.params)})
    assert joined.predict(joined.init(jax.random.key(0), None, None), outputs(STUDENT)) == 3.0


def test_two_methods_that_replace_the_prediction_are_refused():
    replacing = {name: counter(name, predict=lambda variables, out: out.logits) for name in "ab"}
    with pytest.raises(InputError, match="the terms a, b each replace the student's prediction"):
        base.join(replacing)
