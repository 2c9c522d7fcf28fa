"""Relational losses against loops over pairs and triples in float64 numpy."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend import core

from kd_jax.losses import relations
from tests.methods.numeric import STUDENT, assert_gradient, huber, slope, value_and_grad

TEACHER = np.random.default_rng(2).normal(size=(6, 7))  # another width than the student's


def relative_distances(x):
    """Park et al., equation 6 with mu of equation 7: the mean over the pairs of different images."""
    n = len(x)
    d = np.array([[np.sqrt(np.square(a - b).sum()) for b in x] for a in x])
    return d / (d.sum() / (n * (n - 1)))


def cosines(x):
    """Equation 8 with the anchor first: [i, j, k] is the cosine at i between j and k; 0 where it is not defined."""
    n = len(x)
    result = np.zeros((n, n, n))
    for i, j, k in itertools.product(range(n), repeat=3):
        a, b = x[j] - x[i], x[k] - x[i]
        if a.any() and b.any():
            result[i, j, k] = a @ b / np.sqrt((a @ a) * (b @ b))
    return result


def rkd_distance(student, teacher):
    return huber(relative_distances(student) - relative_distances(teacher)).mean()


def rkd_angle(student, teacher):
    return huber(cosines(student) - cosines(teacher)).mean()


LOSSES = [(relations.rkd_distance, rkd_distance), (relations.rkd_angle, rkd_angle)]
both = pytest.mark.parametrize(("loss", "formula"), LOSSES, ids=["distance", "angle"])
each = pytest.mark.parametrize("loss", [loss for loss, _ in LOSSES], ids=["distance", "angle"])


@both
def test_the_value_is_the_papers(loss, formula):
    np.testing.assert_allclose(jax.jit(loss)(STUDENT, TEACHER), formula(STUDENT, TEACHER), rtol=1e-5)


@both
def test_the_gradient_is_that_of_finite_differences(loss, formula):
    gradient = jax.jit(jax.grad(loss))(jnp.asarray(STUDENT, jnp.float32), TEACHER)
    assert_gradient(gradient, slope(lambda x: formula(x, TEACHER), STUDENT))


@both
def test_a_common_shift_of_all_images_costs_no_accuracy(loss, formula):
    np.testing.assert_allclose(jax.jit(loss)(STUDENT + 1000.0, TEACHER), formula(STUDENT, TEACHER), rtol=1e-3)


@both
def test_nor_does_one_of_the_images_that_count(loss, formula):
    kept = np.array([True, True, False, True, False, True])
    got = jax.jit(lambda x: loss(x, TEACHER, where=kept))(STUDENT + 1000.0)
    np.testing.assert_allclose(got, formula(STUDENT[kept], TEACHER[kept]), rtol=1e-3)


@each
def test_equal_relations_give_zero_with_zero_gradient(loss):
    value, gradient = jax.jit(jax.value_and_grad(loss))(jnp.asarray(TEACHER, jnp.float32), TEACHER)
    np.testing.assert_allclose(value, 0, atol=1e-10)
    np.testing.assert_allclose(gradient, 0, atol=1e-6)


@each
def test_a_scaled_rotated_copy_of_the_teacher_has_its_relations(loss):
    rotation = np.linalg.qr(np.random.default_rng(3).normal(size=(7, 7)))[0]
    np.testing.assert_allclose(jax.jit(loss)(3.0 * TEACHER @ rotation, TEACHER), 0, atol=1e-9)


@each
@pytest.mark.parametrize("same", ["student", "teacher", "both", "pair"])
def test_images_that_coincide_give_finite_values_and_gradients(loss, same):
    student, teacher = jnp.asarray(STUDENT, jnp.float32), jnp.asarray(TEACHER, jnp.float32)
    if same in ("student", "both"):
        student = jnp.broadcast_to(student[:1], student.shape)
    if same in ("teacher", "both"):
        teacher = jnp.broadcast_to(teacher[:1], teacher.shape)
    if same == "pair":
        student = student.at[1].set(student[0])
    value, gradient = jax.jit(jax.value_and_grad(loss))(student, teacher)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()


@both
def test_two_images_that_coincide_are_at_no_distance_and_make_no_angle(loss, formula):
    student = STUDENT[[0, 0, 2, 3, 4, 5]]
    np.testing.assert_allclose(jax.jit(loss)(student, TEACHER), formula(student, TEACHER), rtol=1e-5)


@each
def test_a_batch_of_one_gives_zero_and_a_finite_gradient(loss):
    value, gradient = jax.jit(jax.value_and_grad(loss))(jnp.ones((1, 5)), jnp.ones((1, 7)))
    assert value == 0
    assert not gradient.any()


@each
def test_the_teacher_gets_no_gradient(loss):
    assert not jax.jit(jax.grad(loss, 1))(STUDENT, jnp.asarray(TEACHER, jnp.float32)).any()


@pytest.mark.parametrize("group", [1, 2, 4])  # anchors at a time; 4 do not divide the batch
def test_groups_of_anchors_give_the_papers_value_and_gradient_too(monkeypatch, group):
    monkeypatch.setattr(relations, "LARGEST_INTERMEDIATE", group * 6**2)
    loss = jax.jit(jax.value_and_grad(lambda x: relations.rkd_angle(x, TEACHER)))  # not from an earlier size's cache
    value, gradient = loss(jnp.asarray(STUDENT, jnp.float32))
    np.testing.assert_allclose(value, rkd_angle(STUDENT, TEACHER), rtol=1e-5)
    assert_gradient(gradient, slope(lambda x: rkd_angle(x, TEACHER), STUDENT))


def equations(jaxpr):
    """All equations of a program, those of its parts included."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in core.jaxprs_in_params(equation.params):
            yield from equations(inner)


@functools.cache
def program(loss, batch, width):
    """The equations of a loss and its gradient."""
    x = jax.ShapeDtypeStruct((batch, width), jnp.float32)
    return list(equations(jax.make_jaxpr(value_and_grad(loss))(x, x).jaxpr))


def largest(equations):
    return max(variable.aval.size for equation in equations for variable in equation.outvars)


@each
def test_no_difference_of_two_images_is_kept_per_feature(loss):
    assert largest(program(loss, 32, 512)) < 32 * 32 * 512


@each
def test_memory_of_a_large_batch_does_not_grow_with_triples(loss):
    assert largest(program(loss, 1024, 4096)) <= relations.LARGEST_INTERMEDIATE  # 1024^3 is 64 times as many


@each
@pytest.mark.parametrize("batch", [32, 1024])
def test_products_are_at_the_highest_precision(loss, batch):
    products = [e.params["precision"] for e in program(loss, batch, 512) if e.primitive.name == "dot_general"]
    assert products
    assert all(p == (jax.lax.Precision.HIGHEST,) * 2 for p in products)


@pytest.mark.parametrize("loss", [relations.rkd_distance, relations.rkd_angle])
def test_a_batch_whose_triples_exceed_32_bits_is_traced(loss):
    x = jax.ShapeDtypeStruct((2048, 4), jnp.float32)
    assert jax.eval_shape(loss, x, x).shape == ()
