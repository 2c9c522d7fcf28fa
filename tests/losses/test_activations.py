"""Losses of activations against float64 numpy and SciPy, written from the formulas."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from kd_jax import losses
from kd_jax.errors import InputError
from tests.methods.numeric import assert_gradient, slope

RNG = np.random.default_rng(0)
STUDENT, TEACHER = RNG.normal(size=(2, 5, 2, 3, 4))
CAMS = RNG.normal(size=(5, 4, 4, 3)), RNG.normal(size=(5, 2, 6, 3))
VARIANCE, MARGIN = np.array([0.3, 1.0, 2.0, 5.0]), np.array([-0.2, -0.5, -1.0, 0.0])


def vid(student, teacher):
    density = scipy.stats.norm.logpdf(teacher, loc=student, scale=np.sqrt(VARIANCE))
    return -(density + 0.5 * np.log(2 * np.pi)).mean((1, 2, 3))


def ofd(student, teacher):
    """The three cases of the paper's figure: below the margin, between it and zero, above zero."""
    loss = np.zeros(len(student))
    for index, s in np.ndenumerate(student):
        t, margin = teacher[index], MARGIN[index[-1]]
        if t > 0 or (t > margin and s > t):
            loss[index[0]] += (s - t) ** 2
        elif t <= margin and s > margin:
            loss[index[0]] += (s - margin) ** 2
    return loss


def ab(student, teacher, margin):
    off = (student + margin) ** 2 * ((student > -margin) & (teacher <= 0))
    on = (student - margin) ** 2 * ((student <= margin) & (teacher > 0))
    return (off + on).sum((1, 2, 3))


def factor_transfer(student, teacher, spatial):
    loss = []
    for pair in zip(student, teacher, strict=True):
        s, t = ((x**2).mean(-1).ravel() if spatial else x.ravel() for x in pair)
        loss.append(np.abs(s / np.linalg.norm(s) - t / np.linalg.norm(t)).mean())
    return np.array(loss)


def catkd(student, teacher, normalize):
    """Both maps at 2x2: means of blocks."""
    small = [x.reshape(len(x), 2, x.shape[1] // 2, 2, x.shape[2] // 2, -1).mean((2, 4)) for x in (student, teacher)]
    if normalize:
        small = [x / np.sqrt((x**2).sum((1, 2), keepdims=True)) for x in small]
    return ((small[0] - small[1]) ** 2).mean((1, 2, 3))


CASES = {
    "vid": (lambda s, t, w: losses.vid(s, t, jnp.asarray(VARIANCE), where=w), vid),
    "ofd": (lambda s, t, w: losses.ofd(s, t, jnp.asarray(MARGIN), where=w), ofd),
    "ab": (lambda s, t, w: losses.ab(s, t, where=w), lambda s, t: ab(s, t, 1.0)),
    "ab, another margin": (lambda s, t, w: losses.ab(s, t, margin=0.3, where=w), lambda s, t: ab(s, t, 0.3)),
    "factor transfer": (
        lambda s, t, w: losses.factor_transfer(s, t, where=w),
        lambda s, t: factor_transfer(s, t, True),
    ),
    "factor transfer of whole factors": (
        lambda s, t, w: losses.factor_transfer(s, t, spatial=False, where=w),
        lambda s, t: factor_transfer(s, t, False),
    ),
    "catkd": (lambda s, t, w: losses.catkd(s, t, where=w), lambda s, t: catkd(s, t, False)),
    "catkd, normalized": (
        lambda s, t, w: losses.catkd(s, t, normalize=True, where=w),
        lambda s, t: catkd(s, t, True),
    ),
}
every = pytest.mark.parametrize("case", CASES)


def maps(case):
    return CAMS if case.startswith("catkd") else (STUDENT, TEACHER)


@functools.cache
def program(case):
    """(student, teacher, where) -> (values, (gradient of their sum to the student, to the teacher))."""
    function, _ = CASES[case]

    def total(student, teacher, where):
        values = function(student, teacher, where)
        return values.sum(), values

    def run(*arguments):
        (_, values), gradients = jax.value_and_grad(total, (0, 1), has_aux=True)(*arguments)
        return values, gradients

    return jax.jit(run)


@functools.cache
def results(case, count=5):
    return program(case)(*(jnp.asarray(x[:count], jnp.float32) for x in maps(case)), None)


@every
@pytest.mark.parametrize("count", [5, 2])
def test_the_loss_of_each_image_is_the_papers(case, count):
    expected = CASES[case][1](*(x[:count] for x in maps(case)))
    np.testing.assert_allclose(results(case, count)[0], expected, rtol=1e-5)


@every
def test_the_gradient_is_that_of_finite_differences(case):
    student, teacher = maps(case)
    expected = slope(lambda x: CASES[case][1](x, teacher[:2]).sum(), student[:2])
    assert_gradient(results(case, 2)[1][0], expected)


@every
def test_the_teacher_gets_no_gradient(case):
    assert not np.any(results(case)[1][1])


@every
def test_an_image_that_is_left_out_counts_nothing_whatever_it_holds(case):
    where = np.array([True, False, True, True, False])
    student, teacher = (np.where(where[:, None, None, None], x, np.nan) for x in maps(case))
    values, (gradient, _) = program(case)(*(jnp.asarray(x, jnp.float32) for x in (student, teacher)), where)
    all_values, (all_gradient, _) = results(case)
    np.testing.assert_allclose(values, np.where(where, all_values, 0), rtol=1e-6)
    np.testing.assert_allclose(gradient, np.where(where[:, None, None, None], all_gradient, 0), rtol=1e-5, atol=1e-7)


@every
def test_maps_in_half_precision_are_compared_in_float32(case):
    values, (gradient, _) = program(case)(*(jnp.asarray(x, jnp.bfloat16) for x in maps(case)), None)
    assert values.dtype == jnp.float32
    assert np.isfinite(np.float32(gradient)).all()
    np.testing.assert_allclose(values, results(case)[0], rtol=2e-2)


@every
def test_maps_of_zeros_give_finite_values_and_gradients(case):
    zeros = [jnp.zeros(x.shape) for x in maps(case)]
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(program(case)(*zeros, None)))


def test_the_variance_gets_the_gradient_of_finite_differences():
    got = jax.jit(jax.grad(lambda v: losses.vid(STUDENT, TEACHER, v).sum()))(jnp.float32(VARIANCE))

    def loss(variance):
        return 0.5 * ((STUDENT - TEACHER) ** 2 / variance + np.log(variance)).mean((1, 2, 3)).sum()

    assert_gradient(got, slope(loss, VARIANCE))


def test_a_value_that_both_networks_switch_off_costs_nothing_in_ofd():
    below = np.broadcast_to(MARGIN, TEACHER.shape) - np.abs(TEACHER) - 0.1
    values, (gradient, _) = program("ofd")(jnp.float32(below - 1), jnp.float32(below), None)
    assert not np.any(values)
    assert not np.any(gradient)


def test_a_value_beyond_its_margin_on_the_teachers_side_costs_nothing_in_ab():
    values, _ = program("ab")(jnp.float32(1.01 * np.sign(TEACHER)), jnp.float32(TEACHER), None)
    assert not np.any(values)


@pytest.mark.parametrize("case", ["factor transfer", "factor transfer of whole factors", "catkd, normalized"])
def test_a_factor_on_either_map_changes_nothing_where_maps_have_norm_one(case):
    student, teacher = maps(case)
    values, _ = program(case)(jnp.float32(3 * student), jnp.float32(0.5 * teacher), None)
    np.testing.assert_allclose(values, results(case)[0], rtol=1e-5)


def test_class_maps_are_compared_at_the_size_of_a_map_that_is_smaller_than_asked():
    student, teacher = RNG.normal(size=(3, 1, 2, 4)), RNG.normal(size=(3, 4, 4, 4))
    got = jax.jit(losses.catkd)(student, teacher)
    expected = (student - teacher.reshape(3, 1, 4, 2, 2, 4).mean((2, 4))) ** 2
    np.testing.assert_allclose(got, expected.mean((1, 2, 3)), rtol=1e-5)


SCALE = np.array([1.0, -2.0, 0.5, 1.0, 1.0, 3.0, 1.0, 0.1])
BIAS = np.array([0.0, 1.0, 1.0, -50.0, 3.08, 9.3, 60.0, -1.0])
margin = jax.jit(losses.ofd_margin)


def test_the_margin_is_the_mean_of_the_normals_negative_part():
    deviation = np.abs(SCALE)
    some = scipy.stats.norm.cdf(0, BIAS, deviation) > 1e-3
    assert some.tolist() == [True] * 5 + [False, False, True]
    mean = scipy.stats.truncnorm.mean(-np.inf, -BIAS / deviation, loc=BIAS, scale=deviation)
    np.testing.assert_allclose(margin(SCALE, BIAS), np.where(some, mean, -3 * deviation), rtol=1e-5)


def test_the_margin_of_a_channel_that_is_constant_is_its_negative_value():
    got = margin(np.array([0.0, 0.0, 0.0, 1e-20]), np.array([-2.0, 2.0, 0.0, -1e4]))
    np.testing.assert_allclose(got, [-2, 0, 0, -1e4])


def test_the_margin_has_no_gradient():
    gradient = jax.jit(jax.grad(lambda s, b: losses.ofd_margin(s, b).sum(), (0, 1)))(jnp.ones(2), jnp.ones(2))
    assert not np.any(gradient)


@pytest.mark.parametrize("name", ["ofd", "vid", "ab", "factor_transfer", "catkd"])
def test_maps_of_other_widths_are_refused(name):
    extra = {"ofd": (MARGIN,), "vid": (VARIANCE,)}.get(name, ())
    with pytest.raises(InputError, match=r"the loss compares .*; expected equal shapes"):
        jax.eval_shape(getattr(losses, name), STUDENT, TEACHER[..., :3], *extra)
