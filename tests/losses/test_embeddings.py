"""Losses of embeddings against loops over images in float64 numpy."""

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
from tests.methods.numeric import huber

RNG = np.random.default_rng(0)
STUDENT, TEACHER, MEANS = RNG.normal(size=(3, 6, 4))
QUEUE = RNG.normal(size=(7, 4))
QUEUE /= np.sqrt((QUEUE**2).sum(-1, keepdims=True))
QUEUED = np.array([True, True, False, True, True, True, False])


def unit(x):
    return x / np.sqrt((x**2).sum(-1, keepdims=True))


def cosine_distance(student, teacher):
    return np.array([1 - s @ t / np.sqrt((s @ s) * (t @ t)) for s, t in zip(student, teacher, strict=True)])


def cc(student, teacher):
    deltas = [np.abs(s - t) for s, t in zip(student, teacher, strict=True)]
    return np.mean([deltas[i] @ deltas[i + 1] for i in range(len(deltas) - 1)])


def srd(student, teacher, exponent=4.0):
    own, target = ((x - x.mean(0)) / np.sqrt(x.var(0) + 1e-4) for x in (student, teacher))
    return 2 * np.log((np.abs(own - target) ** exponent).sum() + 1e-5)


def vkd(student, teacher):
    targets = [(t - t.mean()) / np.sqrt(t.var() + 1e-5) for t in teacher]
    return np.array([huber(s - t).mean() for s, t in zip(student, targets, strict=True)])


def nd(student, teacher, means):
    """Image by image, as the official code has it."""
    losses = []
    for s, t, mean in zip(student, teacher, means, strict=True):
        direction = mean / np.sqrt(mean @ mean)
        losses.append(1 - s @ direction / max(np.sqrt(s @ s), np.sqrt(t @ t)))
    return np.array(losses)


def rrd(student, teacher, queue, teacher_temperature=0.1, student_temperature=0.02):
    losses = []
    for s, t in zip(unit(student), unit(teacher), strict=True):
        p, q = (
            np.exp((queue @ x - 1) / temperature)
            for x, temperature in ((t, teacher_temperature), (s, student_temperature))
        )
        p, q = p / p.sum(), q / q.sum()
        losses.append((p * np.log(p / q)).sum())
    return np.array(losses)


def rows(*arrays):
    return lambda n: tuple(x[:n] for x in arrays)


CASES = {
    "cosine_distance": Case(losses.cosine_distance, cosine_distance, rows(STUDENT, TEACHER)),
    # Both sides come out of layers that train.
    "cc": Case(losses.cc, cc, rows(STUDENT, TEACHER), fixed=False),
    "srd": Case(losses.srd, srd, rows(STUDENT, TEACHER)),
    # The student's spread is such that both halves of the smooth L1 occur.
    "vkd": Case(losses.vkd, vkd, rows(STUDENT, 3 * TEACHER)),
    # The student's norm is the larger one for some images, the smaller for others.
    "nd": Case(losses.nd, nd, rows(STUDENT, TEACHER, MEANS)),
    "rrd": Case(losses.rrd, rrd, lambda n: (STUDENT[:n], TEACHER[:n], QUEUE)),
}
OPTIONS = {
    "srd": {"exponent": 2.0},
    "rrd": {"teacher_temperature": 0.3, "student_temperature": 0.5},
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


@pytest.mark.parametrize("name", [name for name in CASES if name != "cc"])
def test_what_is_left_out_changes_nothing(name):
    assert_left_out(CASES[name])


def test_of_neighbours_in_cc_both_must_count():
    dirty = [np.where(KEPT[:, None], x, np.nan) for x in (STUDENT, TEACHER)]
    value, gradient, _ = run(CASES["cc"], dirty, KEPT)
    # Of 0, 1, 3 and 4 those that follow one another.
    expected = (cc(STUDENT[[0, 1]], TEACHER[[0, 1]]) + cc(STUDENT[[3, 4]], TEACHER[[3, 4]])) / 2
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    assert np.isfinite(gradient).all()
    assert not np.any(gradient[~KEPT])


@every
def test_without_any_image_the_loss_is_zero(name):
    assert_zero_without_any_image(CASES[name])


@every
def test_bfloat16_is_as_float32_and_finite(name):
    assert_bfloat16(CASES[name])


CONSTANT = np.ones((6, 4))
DEGENERATE = {
    "equal rows": (STUDENT[[1] * 6], TEACHER[[1] * 6]),
    "both equal": (STUDENT, STUDENT),
    "constant": (CONSTANT, CONSTANT),
    "zeros": (0 * STUDENT, 0 * TEACHER),
    "large": (1e4 * STUDENT, 1e4 * TEACHER),
}


@every
def test_value_and_gradient_are_finite_at_degenerate_inputs(name):
    _, _, *others = CASES[name].arrays(6)
    for what, (student, teacher) in DEGENERATE.items():
        value, *gradients = run(CASES[name], (student, teacher, *others))
        for array in (value, *gradients):
            assert np.isfinite(array).all(), what
        assert np.abs(gradients[0]).max() < 1e5, what


@every
def test_a_batch_of_one_is_finite(name):
    value, *gradients = run(CASES[name], CASES[name].arrays(1))
    for array in (value, *gradients):
        assert np.isfinite(array).all()


@pytest.mark.parametrize("name", ["cosine_distance", "rrd"])
def test_the_scale_of_an_embedding_does_not_count(name):
    student, teacher, *others = CASES[name].arrays(6)
    scales = np.array([1, 2, 3, 0.5, 0.1, 7])[:, None]
    got = run(CASES[name], (scales * student, teacher / scales, *others))[0]
    np.testing.assert_allclose(got, CASES[name].formula(student, teacher, *others), rtol=1e-4)


def test_an_embedding_of_zero_has_the_distance_one_and_no_gradient():
    value, gradient, _ = run(CASES["cosine_distance"], (0 * STUDENT, TEACHER))
    np.testing.assert_array_equal(value, np.ones(6))
    assert not np.any(gradient)


def test_srd_does_not_see_mean_and_scale_of_a_feature():
    value = run(CASES["srd"], (STUDENT, 1e3 * TEACHER + 5))[0]
    # But for the 1e-4 that is added to a variance.
    np.testing.assert_allclose(value, srd(STUDENT, TEACHER), rtol=1e-3)


def test_rrd_of_a_part_of_the_queue_is_that_of_a_shorter_one():
    hidden = np.where(QUEUED[:, None], QUEUE, 1e3)
    loss = functools.partial(losses.rrd, queued=jnp.asarray(QUEUED))
    value, gradient, _ = run(CASES["rrd"]._replace(loss=loss), (STUDENT, TEACHER, hidden))
    np.testing.assert_allclose(value, rrd(STUDENT, TEACHER, QUEUE[QUEUED]), rtol=1e-5)
    assert np.isfinite(gradient).all()


def test_rrd_is_zero_where_both_agree_and_have_one_temperature():
    loss = functools.partial(losses.rrd, teacher_temperature=0.07, student_temperature=0.07)
    value = run(CASES["rrd"]._replace(loss=loss), (STUDENT, 2 * STUDENT, QUEUE))[0]
    np.testing.assert_allclose(value, 0, atol=1e-5)


@pytest.mark.parametrize("option", ["teacher_temperature", "student_temperature"])
def test_a_temperature_that_is_not_above_zero_is_refused(option):
    with pytest.raises(InputError, match="expected a number above 0"):
        losses.rrd(*map(jnp.asarray, CASES["rrd"].arrays(3)), **{option: -1.0})


@every
def test_embeddings_of_two_widths_are_refused(name):
    _, _, *others = CASES[name].arrays(3)
    with pytest.raises(InputError, match="expected equal shapes"):
        CASES[name].loss(jnp.ones((3, 4)), jnp.ones((3, 5)), *map(jnp.asarray, others))
