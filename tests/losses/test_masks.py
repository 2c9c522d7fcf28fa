"""`where`: an image that is left out changes neither value nor gradient, whatever it holds."""

import numpy as np
import pytest

import kd_jax.losses
from tests.methods.numeric import STUDENT, TEACHER, grad, jitted

losses = jitted(kd_jax.losses)
KEPT = np.array([True, True, False, True, False, True])
MAPS = np.random.default_rng(1).exponential(size=(2, 6, 4, 4))
LABELS = np.array([0, 1, 2, 3, 4, 0])
# (loss of two arrays, the arrays)
LOSSES = {
    "cross_entropy": (losses.cross_entropy, (STUDENT, np.eye(5)[LABELS])),
    "kd": (losses.kd, (STUDENT, TEACHER)),
    "dkd": (lambda s, t, where: losses.dkd(s, t, LABELS, where=where), (STUDENT, TEACHER)),
    "mlkd": (losses.mlkd, (STUDENT, TEACHER)),
    "rkd_distance": (losses.rkd_distance, (STUDENT, TEACHER)),
    "rkd_angle": (losses.rkd_angle, (STUDENT, TEACHER)),
    "hint": (losses.hint, (STUDENT, TEACHER)),
    "gradcam_alignment": (losses.gradcam_alignment, tuple(MAPS)),
}
every = pytest.mark.parametrize("name", LOSSES)


def masked(name, student):
    loss, (_, teacher) = LOSSES[name]
    return loss(student, teacher, where=KEPT)


def dirty(name):
    """The student's side, with numbers that are none in the images that are left out."""
    student = np.array(LOSSES[name][1][0], np.float32)
    student[~KEPT] = np.nan
    return student


@every
def test_what_is_left_out_changes_no_value(name):
    loss, arrays = LOSSES[name]
    if name == "dkd":
        expected = losses.dkd(*(x[KEPT] for x in arrays), LABELS[KEPT])
    else:
        expected = loss(*(x[KEPT] for x in arrays))
    got = np.asarray(masked(name, dirty(name)))
    np.testing.assert_allclose(got[KEPT] if got.ndim else got, expected, rtol=1e-5, atol=1e-6)
    if got.ndim:
        assert not got[~KEPT].any()


@every
def test_what_is_left_out_has_a_gradient_of_zero_and_the_rest_a_finite_one(name):
    loss, (_, teacher) = LOSSES[name]
    gradient = grad(lambda s: loss(s, teacher, where=KEPT).sum())(dirty(name))
    assert np.isfinite(gradient).all()
    gradient = np.asarray(gradient)
    assert not np.any(gradient[~KEPT])
    assert np.any(gradient[KEPT])


@every
def test_without_any_image_the_loss_is_zero(name):
    loss, (student, teacher) = LOSSES[name]
    assert not np.any(loss(student, teacher, where=np.zeros(6, bool)))
