"""Losses of what feature maps hold against float64 numpy, in other forms than the package computes them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax import losses
from kd_jax.errors import InputError
from tests.methods.numeric import assert_gradient, jitted, slope
from tests.methods.numeric_maps import cells, pooled, smaller

maps = jitted(losses.maps)


def at(student, teacher):
    def attention(x):
        powers = np.square(x).sum(-1)  # the mean differs by a factor, which the norm removes
        return powers / np.sqrt(np.square(powers).sum((1, 2), keepdims=True))

    student, teacher = smaller(student, teacher)
    return np.square(attention(student) - attention(teacher)).mean((1, 2))


def nst(student, teacher):
    """As the distance between the means of the kernel's own features, the products of two pixels."""

    def mean_of_features(x):
        x = x.reshape(len(x), -1, x.shape[-1])
        x = x / np.linalg.norm(x, axis=1, keepdims=True)
        return (x[:, :, None] * x[:, None]).mean(-1)

    student, teacher = smaller(student, teacher)
    return np.square(mean_of_features(student) - mean_of_features(teacher)).sum((1, 2))


def fsp(student, student_next, teacher, teacher_next):
    def flow(x, y):
        x, y = smaller(x, y)
        return np.stack([(x[..., [c]] * y).mean((1, 2)) for c in range(x.shape[-1])], 1)

    difference = flow(student, student_next) - flow(teacher, teacher_next)
    return np.square(difference).sum((1, 2)) / difference[0].size


def ickd(student, teacher):
    def correlations(x):
        rows = np.stack([(x[..., [c]] * x).sum((1, 2)) for c in range(x.shape[-1])], 1)
        return rows / np.linalg.norm(rows, axis=2, keepdims=True)

    difference = correlations(student) - correlations(teacher)
    return np.square(difference).sum((1, 2)) / student.shape[-1]


def wkd_features(student, teacher, ratio=4.0, grid=1):
    total = np.zeros(len(student))
    for own, other in zip(cells(student, grid, grid), cells(teacher, grid, grid), strict=True):
        pixels = [x.reshape(len(x), -1, x.shape[-1]) for x in (own, other)]
        means = pixels[0].mean(1) - pixels[1].mean(1)
        deviations = [np.sqrt(x.var(1, ddof=1) + 1e-5) for x in pixels]
        total += (ratio * np.square(means) + np.square(deviations[0] - deviations[1])).sum(1)
    return total / grid**2


def hcl(student, teacher):
    """With the levels and weights of the official code, which knows square maps alone."""

    def error(x, y):
        return np.square(x - y).mean((1, 2, 3))

    total, weight, weights = error(student, teacher), 1.0, 1.0
    for size in (4, 2, 1):
        if size >= max(student.shape[1:3]):
            continue
        to = np.minimum(size, student.shape[1:3])
        weight /= 2
        total = total + weight * error(pooled(student, *to), pooled(teacher, *to))
        weights += weight
    return total / weights


# Maps of the student and of the teacher, without the batch, and options.
CASES = {
    "at": (at, [(4, 2, 3)], [(2, 3, 5)], {}),
    "nst": (nst, [(4, 2, 3)], [(2, 3, 5)], {}),
    "fsp": (fsp, [(4, 2, 3), (2, 3, 2)], [(3, 3, 3), (1, 2, 2)], {}),
    "ickd": (ickd, [(4, 2, 3)], [(2, 3, 3)], {}),
    "wkd_features": (wkd_features, [(4, 2, 3)], [(2, 3, 3)], {}),
    "wkd_features in cells": (wkd_features, [(5, 3, 2)], [(3, 4, 2)], {"ratio": 3.0, "grid": 2}),
    "hcl": (hcl, [(5, 5, 2)], [(5, 5, 2)], {}),
    "hcl of maps of two rows": (hcl, [(2, 3, 3)], [(2, 3, 3)], {}),
}
every = pytest.mark.parametrize("case", CASES)
WHERE = np.array([True, False, True])


@functools.cache
def arrays(case):
    """Maps of three images: the student's, the teacher's."""
    rng = np.random.default_rng(list(CASES).index(case))
    _, students, teachers, _ = CASES[case]
    return [[rng.normal(size=(3, *shape)) for shape in shapes] for shapes in (students, teachers)]


@functools.cache
def program(case):
    """A function of (maps of the student, of the teacher, where): the values [B] and the gradients of their sum."""
    _, _, _, options = CASES[case]
    loss = getattr(losses, case.split()[0])

    @jax.jit
    def run(students, teachers, where=None):
        def total(students, teachers):
            values = loss(*students, *teachers, **options, where=where)
            return values.sum(), values

        (_, values), gradients = jax.value_and_grad(total, (0, 1), has_aux=True)(students, teachers)
        return values, *gradients

    return run


def float32(arrays):
    return [jnp.asarray(x, jnp.float32) for x in arrays]


@every
@pytest.mark.parametrize("batch", [1, 3])
def test_a_loss_is_that_of_its_formula(case, batch):
    function, _, _, options = CASES[case]
    students, teachers = ([x[:batch] for x in side] for side in arrays(case))
    values, _, _ = program(case)(float32(students), float32(teachers))
    np.testing.assert_allclose(values, function(*students, *teachers, **options), rtol=1e-5)


@every
@pytest.mark.parametrize("batch", [1, 3])
def test_its_gradient_is_that_of_finite_differences(case, batch):
    function, _, _, options = CASES[case]
    students, teachers = ([x[:batch] for x in side] for side in arrays(case))
    _, gradients, _ = program(case)(float32(students), float32(teachers))
    for i, gradient in enumerate(gradients):

        def total(x, i=i):
            return function(*students[:i], x, *students[i + 1 :], *teachers, **options).sum()

        assert_gradient(gradient, slope(total, students[i]))


@every
def test_the_teacher_gets_no_gradient(case):
    students, teachers = map(float32, arrays(case))
    _, _, gradients = program(case)(students, teachers)
    assert not any(np.any(gradient) for gradient in gradients)


@every
def test_images_that_are_left_out_change_nothing(case):
    students, teachers = arrays(case)
    expected, expected_gradients, _ = program(case)(float32(students), float32(teachers))
    broken = [[np.where(WHERE[:, None, None, None], x, np.nan) for x in side] for side in (students, teachers)]
    values, gradients, _ = program(case)(*map(float32, broken), WHERE)
    np.testing.assert_allclose(values, np.where(WHERE, expected, 0), rtol=1e-6)
    for gradient, of_all in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(gradient, np.where(WHERE[:, None, None, None], of_all, 0), rtol=1e-5, atol=1e-7)


@every
def test_bfloat16_is_computed_in_float32(case):
    _, _, _, options = CASES[case]
    students, teachers = ([x.astype(jnp.bfloat16) for x in float32(side)] for side in arrays(case))
    values = getattr(maps, case.split()[0])(*students, *teachers, **options)
    assert values.dtype == jnp.float32
    expected, _, _ = program(case)(*([x.astype(jnp.float32) for x in side] for side in (students, teachers)))
    np.testing.assert_allclose(values, expected, rtol=1e-5)


@every
def test_maps_of_zeros_have_a_finite_gradient(case):
    zeros = [[np.zeros_like(x) for x in side] for side in arrays(case)]
    values, gradients, _ = program(case)(*map(float32, zeros))
    np.testing.assert_array_equal(values, 0)
    assert all(np.isfinite(gradient).all() for gradient in gradients)


@every
def test_it_is_zero_where_both_are_alike(case):
    students, teachers = arrays(case)
    # Where the shapes differ, maps that are constant over the pixels are alike at every size.
    constant = [
        [np.broadcast_to(np.arange(1.0, 1 + x.shape[-1]), x.shape) for x in side] for side in (students, teachers)
    ]
    if case == "nst":  # every channel is the same point
        constant = [[np.ones_like(x) for x in side] for side in constant]
    values, _, _ = program(case)(*map(float32, constant))
    np.testing.assert_allclose(values, 0, atol=1e-6)


@pytest.mark.parametrize("name", ["at", "nst", "ickd"])
def test_the_scale_of_an_images_map_does_not_matter(name):
    (student,), (teacher,) = arrays(name)
    scaled = student * np.array([0.1, 3, 20]).reshape(-1, 1, 1, 1)
    values = [getattr(maps, name)(x, teacher) for x in (student, scaled)]
    np.testing.assert_allclose(*values, rtol=2e-5)


def test_the_order_of_channels_does_not_matter_to_neuron_selectivity():
    (student,), (teacher,) = arrays("nst")
    np.testing.assert_allclose(maps.nst(student[..., ::-1], teacher), maps.nst(student, teacher), rtol=1e-5)


@pytest.mark.parametrize("name", ["ickd", "wkd_features"])
def test_the_order_of_pixels_does_not_matter_to_what_is_taken_over_all(name):
    (student,), (teacher,) = arrays(name)
    loss = getattr(maps, name)
    np.testing.assert_allclose(loss(student[:, ::-1, ::-1], teacher), loss(student, teacher), rtol=1e-5)


def test_the_deviation_of_one_pixel_is_zero():
    student, teacher = np.full((1, 1, 1, 2), 3.0), np.full((1, 1, 1, 2), 1.0)
    np.testing.assert_allclose(maps.wkd_features(student, teacher), [4.0 * 2 * 2**2], rtol=1e-6)


def test_a_constant_difference_is_its_square_at_every_level_of_the_hierarchical_loss():
    student = arrays("hcl")[0][0]
    np.testing.assert_allclose(maps.hcl(student + 3, student), [9] * 3, rtol=1e-5)


@pytest.mark.parametrize("name", ["ickd", "wkd_features"])
def test_other_channels_are_refused(name):
    with pytest.raises(
        InputError, match="the student's map has 3 channels, and the teacher's 2; expected equally many"
    ):
        getattr(losses, name)(np.ones((2, 2, 2, 3)), np.ones((2, 2, 2, 2)))


def test_other_channels_of_the_second_of_two_stages_are_refused():
    one, other = np.ones((2, 2, 2, 3)), np.ones((2, 2, 2, 2))
    with pytest.raises(
        InputError, match="the student's map has 3 channels, and the teacher's 2; expected equally many"
    ):
        losses.fsp(one, one, one, other)


def test_maps_of_other_sizes_are_refused_by_the_hierarchical_loss():
    with pytest.raises(InputError, match=r"the loss compares \[2, 2, 2, 3\] with \[2, 1, 2, 3\]; expected equal"):
        losses.hcl(np.ones((2, 2, 2, 3)), np.ones((2, 1, 2, 3)))


@pytest.mark.parametrize("name", ["at", "nst"])
def test_what_are_no_maps_is_refused(name):
    with pytest.raises(InputError, match=r"the loss compares \[2, 3\] with \[2, 3\]; expected maps \[B, h, w, c\]"):
        getattr(losses, name)(np.ones((2, 3)), np.ones((2, 3)))
