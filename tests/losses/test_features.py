"""Losses of feature maps against float64 numpy."""

import jax.numpy as jnp
import numpy as np
import pytest

import kd_jax.losses
from kd_jax.errors import InputError
from tests.methods.numeric import assert_gradient, grad, jitted, slope

losses = jitted(kd_jax.losses)
STUDENT, TEACHER = np.random.default_rng(0).normal(size=(2, 3, 2, 2, 4))


def hint(student, teacher):
    return np.array([np.square(s - t).sum() / s.size for s, t in zip(student, teacher, strict=True)])


def test_a_hint_is_the_mean_squared_error_of_each_images_maps():
    np.testing.assert_allclose(losses.hint(STUDENT, TEACHER), hint(STUDENT, TEACHER), rtol=1e-5)


def test_its_gradient_is_that_of_finite_differences():
    gradient = grad(lambda x: losses.hint(x, TEACHER).sum())(jnp.float32(STUDENT))
    assert_gradient(gradient, slope(lambda x: hint(x, TEACHER).sum(), STUDENT))


def test_maps_of_other_shapes_are_refused():
    with pytest.raises(InputError, match=r"the loss compares \[3, 2, 2, 4\] with \[3, 2, 2, 3\]; expected equal"):
        losses.hint(STUDENT, TEACHER[..., :3])
