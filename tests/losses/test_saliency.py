"""The alignment of Grad-CAM maps, against float64 numpy."""

import jax.numpy as jnp
import numpy as np
import pytest

import kd_jax.losses
from kd_jax.errors import InputError
from tests.methods.numeric import assert_gradient, grad, jitted, slope

losses = jitted(kd_jax.losses)
MAPS, OTHERS = np.random.default_rng(0).exponential(size=(2, 6, 4, 4))
FORMULAS = {
    "cosine": lambda a, b: (a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum()),
    "pearson": lambda a, b: np.corrcoef(a.ravel(), b.ravel())[0, 1],
}
each = pytest.mark.parametrize("similarity", FORMULAS)


def distances(similarity, student, teacher):
    return np.array([1 - FORMULAS[similarity](a, b) for a, b in zip(student, teacher, strict=True)])


@each
def test_the_alignment_is_one_minus_the_similarity_of_the_maps(similarity):
    got = losses.gradcam_alignment(jnp.asarray(MAPS), jnp.asarray(OTHERS), similarity=similarity)
    np.testing.assert_allclose(got, distances(similarity, MAPS, OTHERS), rtol=1e-5)


@each
def test_the_gradient_of_the_alignment_is_that_of_finite_differences(similarity):
    def loss(student):
        return losses.gradcam_alignment(student, jnp.asarray(OTHERS), similarity=similarity).sum()

    expected = slope(lambda x: distances(similarity, x, OTHERS).sum(), MAPS)
    assert_gradient(grad(loss)(jnp.asarray(MAPS)), expected)


def test_a_smaller_map_is_brought_to_the_size_of_the_larger():
    # Twice as many pixels, linear between the centers: a quarter and three quarters of the neighbors.
    along = np.array([[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]])
    small = MAPS[:, :2, :2]
    enlarged = along @ small @ along.T
    expected = distances("cosine", enlarged, OTHERS)
    np.testing.assert_allclose(losses.gradcam_alignment(jnp.asarray(small), jnp.asarray(OTHERS)), expected, rtol=1e-5)
    np.testing.assert_allclose(losses.gradcam_alignment(jnp.asarray(OTHERS), jnp.asarray(small)), expected, rtol=1e-5)


def test_a_map_of_zeros_is_at_distance_one():
    np.testing.assert_array_equal(losses.gradcam_alignment(jnp.zeros((2, 4, 4)), jnp.asarray(OTHERS[:2])), [1, 1])


def test_maps_of_one_pixel_are_refused():
    with pytest.raises(
        InputError, match="the maps of this stage have one pixel, which locates nothing; expected an earlier"
    ):
        losses.gradcam_alignment(jnp.ones((2, 1, 1)), jnp.ones((2, 1, 1)))
