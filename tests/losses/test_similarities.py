"""Losses of similarities and correlations against loops over images and classes in float64 numpy."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax import losses
from kd_jax.errors import InputError
from tests.losses.against_numpy import (
    KEPT,
    Case,
    assert_bfloat16,
    assert_gradients,
    assert_left_out,
    assert_value,
    assert_zero_without_any_image,
    run,
)

RNG = np.random.default_rng(0)
MAPS = RNG.exponential(size=(6, 3, 2, 4)), RNG.exponential(size=(6, 2, 2, 5))
EMBEDDINGS = RNG.normal(size=(6, 4)), RNG.normal(size=(6, 7))
LOGITS = tuple(RNG.normal(scale=2.0, size=(2, 6, 5)))


def inner(x):
    """[i, j]: the inner product of what images i and j hold."""
    return np.array([[(a * b).sum() for b in x] for a in x])


def cosines(x):
    return np.array([[(a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum()) for b in x] for a in x])


def softmax(x):
    return np.exp(x) / np.exp(x).sum(-1, keepdims=True)


def sp(student, teacher):
    own, target = ([row / np.sqrt((row**2).sum()) for row in inner(x)] for x in (student, teacher))
    return ((np.array(own) - target) ** 2).sum() / len(student) ** 2


def pkt(student, teacher):
    total = 0.0
    for own, target in zip(cosines(student), cosines(teacher), strict=True):
        p, q = (own + 1) / (own + 1).sum(), (target + 1) / (target + 1).sum()
        total += sum(b * np.log((b + 1e-7) / (a + 1e-7)) for a, b in zip(p, q, strict=True))
    return total / len(student) ** 2


def dist(student, teacher, temperature=4.0, beta=1.0, gamma=1.0):
    p, q = softmax(student / temperature), softmax(teacher / temperature)
    inter = np.mean([1 - np.corrcoef(a, b)[0, 1] for a, b in zip(p, q, strict=True)])
    intra = np.mean([1 - np.corrcoef(a, b)[0, 1] for a, b in zip(p.T, q.T, strict=True)])
    return temperature**2 * (beta * inter + gamma * intra)


def skd(student, teacher, temperature=4.0, instance=1.0, direction=1.0, ridge=0.1):
    p, q = softmax(student / temperature), softmax(teacher / temperature)
    rows = cosines(student) - cosines(teacher)
    inverse = np.linalg.inv(np.cov(rows, rowvar=False) + ridge * np.eye(len(rows)))
    distances = [np.sqrt(row @ inverse @ row) for row in rows]
    return instance * (q * np.log(q / p)).sum() / len(p) + direction * np.mean(distances)


OPTIONS = {
    "dist": {"temperature": 2.0, "beta": 0.5, "gamma": 3.0},
    "skd": {"temperature": 2.0, "instance": 0.5, "direction": 3.0, "ridge": 0.4},
}
CASES = {
    "sp": Case(losses.sp, sp, lambda n: tuple(x[:n] for x in MAPS)),
    "pkt": Case(losses.pkt, pkt, lambda n: tuple(x[:n] for x in EMBEDDINGS)),
    "dist": Case(losses.dist, dist, lambda n: tuple(x[:n] for x in LOGITS)),
    "skd": Case(losses.skd, skd, lambda n: tuple(x[:n] for x in LOGITS)),
}
every = pytest.mark.parametrize("name", CASES)


@every
@pytest.mark.parametrize("batch", [6, 3])
def test_the_value_is_the_formulas(name, batch):
    assert_value(CASES[name], batch)


@every
@pytest.mark.parametrize("batch", [6, 3])
def test_the_gradients_are_those_of_finite_differences(name, batch):
    assert_gradients(CASES[name], batch)


@pytest.mark.parametrize("name", OPTIONS)
def test_the_options_are_the_formulas(name):
    case = CASES[name]
    loss, formula = (functools.partial(f, **OPTIONS[name]) for f in (case.loss, case.formula))
    assert_value(case._replace(loss=loss, formula=formula), 6)


@every
def test_what_is_left_out_changes_nothing(name):
    assert_left_out(CASES[name])


@every
def test_without_any_image_the_loss_is_zero(name):
    assert_zero_without_any_image(CASES[name])


@every
def test_bfloat16_is_as_float32_and_finite(name):
    assert_bfloat16(CASES[name])


@every
def test_the_order_of_the_batch_does_not_count(name):
    case, order = CASES[name], np.array([3, 0, 5, 1, 4, 2])
    arrays = case.arrays(6)
    value, gradient, _ = run(case, arrays)
    permuted, its_gradient, _ = run(case, [x[order] for x in arrays])
    np.testing.assert_allclose(permuted, value, rtol=1e-5)
    np.testing.assert_allclose(its_gradient, gradient[order], atol=1e-5 * np.abs(gradient).max())


@every
def test_a_side_that_equals_the_other_has_no_loss(name):
    case = CASES[name]
    student = case.arrays(6)[0]
    np.testing.assert_allclose(run(case, (student, student))[0], 0, atol=5e-5)


@pytest.mark.parametrize("name", ["sp", "pkt"])
def test_the_scale_of_a_network_does_not_count(name):
    case = CASES[name]
    student, teacher = case.arrays(6)
    np.testing.assert_allclose(run(case, (30 * student, teacher / 30))[0], run(case, (student, teacher))[0], rtol=1e-5)


def test_the_scale_of_an_image_does_not_count_in_pkt():
    student, teacher = EMBEDDINGS
    scaled = student * np.array([1, 2, 3, 0.5, 0.1, 7])[:, None]
    np.testing.assert_allclose(run(CASES["pkt"], (scaled, teacher))[0], pkt(student, teacher), rtol=1e-5)


def degenerate(name):
    student, teacher = CASES[name].arrays(6)
    yield "equal rows", (student[[1] * 6], teacher)
    yield "equal rows of the teacher", (student, teacher[[1] * 6])
    yield "both equal and constant", (0 * student + 1, 0 * teacher + 1)
    yield "zeros", (0 * student, 0 * teacher)
    yield "large", (1e4 * student, 1e4 * teacher)
    opposite = np.array([1, -1, 1, -1, 1, -1]).reshape(-1, *(1,) * (student.ndim - 1))
    yield "opposite rows", (student[[1] * 6] * opposite, teacher[[1] * 6] * opposite[::-1])


@every
def test_value_and_gradient_are_finite_at_degenerate_inputs(name):
    for what, arrays in degenerate(name):
        for where in (None, KEPT):
            value, gradient, _ = run(CASES[name], arrays, where)
            assert np.isfinite(value), what
            assert np.isfinite(gradient).all(), what
            # Where a norm is rounding alone, a derivative must not be its reciprocal.
            assert np.abs(gradient).max() < 1e3, what


@every
def test_a_batch_of_one_is_finite(name):
    value, gradient, _ = run(CASES[name], CASES[name].arrays(1))
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()


def test_an_embedding_of_zero_has_no_gradient_in_pkt():
    student, teacher = (x.copy() for x in EMBEDDINGS)
    student[2] = 0
    gradient = run(CASES["pkt"], (student, teacher))[1]
    assert not np.any(gradient[2])
    assert np.any(gradient[3])


def test_dist_is_not_changed_by_what_correlation_does_not_see():
    # The logits' level drops out of the softmax.
    student, teacher = LOGITS
    shifted = student + np.arange(6.0)[:, None]
    np.testing.assert_allclose(run(CASES["dist"], (shifted, teacher))[0], dist(student, teacher), rtol=1e-5)


def test_dist_counts_no_class_that_neither_network_gives_a_chance():
    # As the official code's 1e-8 has it: such a class's correlation is that of next to nothing.
    student, teacher = (np.concatenate([x, x[:, :1] - 60], -1) for x in LOGITS)
    p, q = softmax(student / 4), softmax(teacher / 4)
    a, b = p[:, 5] - p[:, 5].mean(), q[:, 5] - q[:, 5].mean()
    lost = np.corrcoef(a, b)[0, 1] - a @ b / (np.sqrt(a @ a * (b @ b)) + 1e-8)
    assert abs(lost) > 0.1
    expected = dist(student, teacher) + 16 * lost / 6
    np.testing.assert_allclose(run(CASES["dist"], (student, teacher))[0], expected, rtol=1e-5)


@pytest.mark.parametrize("name", ["dist", "skd"])
def test_a_temperature_that_is_not_above_zero_is_refused(name):
    with pytest.raises(InputError, match="expected a number above 0"):
        CASES[name].loss(*map(jnp.asarray, LOGITS), temperature=0.0)


@pytest.mark.parametrize("name", ["dist", "skd"])
def test_logits_of_other_classes_are_refused(name):
    with pytest.raises(InputError, match="expected equal shapes"):
        CASES[name].loss(jnp.ones((3, 4)), jnp.ones((3, 5)))
