"""Losses of logits against float64 numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax import losses
from kd_jax.errors import InputError
from tests.methods.numeric import (
    STUDENT,
    TEACHER,
    assert_gradient,
    grad,
    jitted,
    log_softmax,
    slope,
    standardized,
    value_and_grad,
)

logits = jitted(losses.logits)
TARGETS = np.random.default_rng(1).dirichlet(np.ones(5), 6)


def kd(student, teacher, temperature):
    p, q = log_softmax(teacher / temperature), log_softmax(student / temperature)
    return temperature**2 * (np.exp(p) * (p - q)).sum(-1)


def cross_entropy(student, targets):
    return -(targets * log_softmax(student)).sum(-1)


def test_cross_entropy_is_that_of_the_targets():
    expected = cross_entropy(STUDENT, TARGETS)
    np.testing.assert_allclose(logits.cross_entropy(STUDENT, TARGETS), expected, rtol=1e-5)


def test_cross_entropys_gradient_is_that_of_finite_differences():
    gradient = grad(lambda x: logits.cross_entropy(x, TARGETS).sum())(jnp.asarray(STUDENT, jnp.float32))
    assert_gradient(gradient, slope(lambda x: cross_entropy(x, TARGETS).sum(), STUDENT))


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_kd_is_the_divergence_of_the_student_times_the_squared_temperature(temperature):
    expected = kd(STUDENT, TEACHER, temperature)
    np.testing.assert_allclose(logits.kd(STUDENT, TEACHER, temperature=temperature), expected, rtol=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_kds_gradient_is_that_of_finite_differences(temperature):
    gradient = grad(lambda x: logits.kd(x, TEACHER, temperature=temperature).sum())(jnp.asarray(STUDENT, jnp.float32))
    assert_gradient(gradient, slope(lambda x: kd(x, TEACHER, temperature).sum(), STUDENT))


def test_kd_is_zero_where_both_agree_up_to_a_constant():
    value, gradient = value_and_grad(lambda x: logits.kd(x, TEACHER).sum())(jnp.asarray(TEACHER + 3, jnp.float32))
    np.testing.assert_allclose(value, 0, atol=1e-5)
    np.testing.assert_allclose(gradient, 0, atol=1e-5)


def test_kds_gradient_tends_to_that_of_the_logits_at_high_temperature():
    # Hinton et al. 2015, section 2.1: (1 / K) (z - v) for logits of zero mean.
    centered = [x - x.mean(-1, keepdims=True) for x in (STUDENT, TEACHER)]
    student, teacher = centered
    gradient = grad(lambda x: logits.kd(x, teacher, temperature=1e3).sum())(jnp.asarray(student, jnp.float32))
    np.testing.assert_allclose(gradient, (student - teacher) / 5, rtol=0.02, atol=5e-3)


@pytest.mark.parametrize("loss", [logits.kd, logits.cross_entropy])
def test_large_logits_give_finite_values_and_gradients(loss):
    large = np.array([[1e4, -1e4, 0.0], [-1e4, 1e4, 0.0]], np.float32)
    value, gradient = value_and_grad(lambda x: loss(x, jax.nn.softmax(jnp.asarray(large[::-1]))).sum())(large)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()


def test_kd_of_bfloat16_logits_is_finite_with_a_finite_gradient():
    student, teacher = (jnp.asarray(x, jnp.bfloat16) for x in (STUDENT, TEACHER))
    value, gradient = value_and_grad(lambda x: logits.kd(x, teacher).sum())(student)
    assert np.isfinite(value)
    assert np.isfinite(np.float32(gradient)).all()


def test_kd_has_no_gradient_to_the_teacher():
    assert not grad(lambda t: logits.kd(STUDENT, t).sum())(jnp.asarray(TEACHER, jnp.float32)).any()


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_a_temperature_that_is_not_above_zero_is_refused(temperature):
    with pytest.raises(InputError, match="expected a number above 0"):
        logits.kd(STUDENT, TEACHER, temperature=temperature)


def test_a_temperature_may_be_traced():
    traced = jax.jit(lambda t: losses.kd(STUDENT, TEACHER, temperature=t))(4.0)
    np.testing.assert_allclose(traced, kd(STUDENT, TEACHER, 4.0), rtol=1e-5)


LABELS = np.array([0, 1, 2, 3, 4, 0])


def dkd(student, teacher, alpha, beta, temperature):
    """Zhao et al., equation 7, image by image and class by class."""
    losses = []
    for s, t, label in zip(student / temperature, teacher / temperature, LABELS, strict=True):
        p, q = (np.exp(log_softmax(x)) for x in (t, s))
        target = p[label] * np.log(p[label] / q[label]) + (1 - p[label]) * np.log((1 - p[label]) / (1 - q[label]))
        others = [k for k in range(len(s)) if k != label]
        a, b = (np.exp(log_softmax(x[others])) for x in (t, s))
        losses.append(temperature**2 * (alpha * target + beta * (a * np.log(a / b)).sum()))
    return np.array(losses)


DKD = {"alpha": 0.7, "beta": 6.0, "temperature": 3.0}


def test_dkd_is_the_papers():
    got = jax.jit(lambda s, t: logits.dkd(s, t, LABELS, **DKD))(STUDENT, TEACHER)
    np.testing.assert_allclose(got, dkd(STUDENT, TEACHER, *DKD.values()), rtol=1e-5)


def test_dkds_gradient_is_that_of_finite_differences():
    gradient = jax.jit(jax.grad(lambda s: logits.dkd(s, TEACHER, LABELS, **DKD).sum()))(jnp.float32(STUDENT))
    assert_gradient(gradient, slope(lambda s: dkd(s, TEACHER, *DKD.values()).sum(), STUDENT))


def test_dkd_of_equal_weights_by_the_others_probability_is_kd():
    # Zhao et al., equation 6: KD = TCKD + (1 - p of the label) NCKD.
    rest = 1 - np.exp(log_softmax(TEACHER / 4))[np.arange(6), LABELS]
    parts = [logits.dkd(STUDENT, TEACHER, LABELS, alpha=a, beta=b, temperature=4.0) for a, b in ((1, 0), (0, 1))]
    np.testing.assert_allclose(parts[0] + rest * parts[1], kd(STUDENT, TEACHER, 4.0), rtol=1e-5)


def test_dkd_where_the_label_is_certain_is_finite_with_a_finite_gradient():
    certain = np.float32(1e3 * np.eye(5)[LABELS])
    value, gradient = value_and_grad(lambda s: logits.dkd(s, certain, LABELS).sum())(-certain)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()


TEMPERATURES = (2.0, 5.0)


def mlkd(student, teacher):
    """Jin et al., equations 5 to 9: instances, classes and images, summed over temperatures."""
    total = 0.0
    for temperature in TEMPERATURES:
        p, q = (np.exp(log_softmax(x / temperature)) for x in (teacher, student))
        total += kd(student, teacher, temperature).mean()
        total += np.square(q.T @ q - p.T @ p).sum() / q.shape[1] + np.square(q @ q.T - p @ p.T).sum() / len(q)
    return total


def test_mlkd_is_the_papers():
    got = jax.jit(lambda s, t: logits.mlkd(s, t, temperatures=TEMPERATURES))(STUDENT, TEACHER)
    np.testing.assert_allclose(got, mlkd(STUDENT, TEACHER), rtol=1e-5)


def test_mlkds_gradient_is_that_of_finite_differences():
    gradient = jax.jit(jax.grad(lambda s: logits.mlkd(s, TEACHER, temperatures=TEMPERATURES)))(jnp.float32(STUDENT))
    assert_gradient(gradient, slope(lambda s: mlkd(s, TEACHER), STUDENT))


def test_mlkds_divergence_alone_can_be_of_standardized_logits():
    got = jax.jit(lambda s, t: logits.mlkd(s, t, temperatures=TEMPERATURES, standardize_instances=True))(
        STUDENT, TEACHER
    )
    rows = standardized(STUDENT), standardized(TEACHER)
    change = sum(kd(*rows, t).mean() - kd(STUDENT, TEACHER, t).mean() for t in TEMPERATURES)
    np.testing.assert_allclose(got, mlkd(STUDENT, TEACHER) + change, rtol=1e-5)


def test_mlkd_without_a_temperature_is_refused():
    with pytest.raises(InputError, match="temperatures is empty"):
        logits.mlkd(STUDENT, TEACHER, temperatures=())


def test_standardizing_takes_out_mean_and_sample_deviation():
    np.testing.assert_allclose(logits.standardize(STUDENT), standardized(STUDENT), rtol=1e-4, atol=1e-6)


def test_standardizings_gradient_is_that_of_finite_differences():
    weight = np.random.default_rng(9).normal(size=STUDENT.shape)
    gradient = grad(lambda x: (logits.standardize(x) * weight).sum())(jnp.asarray(STUDENT, jnp.float32))
    assert_gradient(gradient, slope(lambda x: (standardized(x) * weight).sum(), STUDENT))


def test_a_constant_row_standardizes_to_zero_with_a_finite_gradient():
    value, gradient = value_and_grad(lambda x: (logits.standardize(x) ** 2).sum())(jnp.ones((2, 5)))
    assert value == 0
    assert np.isfinite(gradient).all()
