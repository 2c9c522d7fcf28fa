"""What holds of a loss of two sides and of its numpy formula: value, gradients, images that are left out, bfloat16."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tests.methods.numeric import assert_gradient, slope

KEPT = np.array([True, True, False, True, True, False])


class Case(NamedTuple):
    """A loss, its formula, and for each number of images the arrays that both take, the student's first."""

    loss: Callable[..., Any]
    formula: Callable[..., Any]
    arrays: Callable[[int], tuple[np.ndarray, ...]]
    fixed: bool = True  # the teacher's side has no gradient


@functools.cache
def compiled(loss):
    """A function of (arrays, where) -> loss, gradients by the first two of the loss weighed by image."""

    def weighed(*arrays, where):
        value = loss(*arrays, where=where)
        weights = jnp.cos(jnp.arange(value.size, dtype=value.dtype)).reshape(value.shape)
        return (weights * value).sum(), value

    @jax.jit
    def run(arrays, where=None):
        gradients, value = jax.grad(weighed, (0, 1), has_aux=True)(*arrays, where=where)
        return value, *gradients

    return run


def run(case, arrays, where=None, dtype=jnp.float32):
    return compiled(case.loss)(tuple(jnp.asarray(x, dtype) for x in arrays), where)


def assert_value(case, batch):
    arrays = case.arrays(batch)
    np.testing.assert_allclose(run(case, arrays)[0], case.formula(*arrays), rtol=1e-5, atol=1e-7)


def assert_gradients(case, batch):
    arrays = case.arrays(batch)
    value, by_student, by_teacher = run(case, arrays)
    weights = np.cos(np.arange(value.size)).reshape(value.shape)
    student, teacher, *others = arrays
    assert_gradient(by_student, slope(lambda x: (weights * case.formula(x, teacher, *others)).sum(), student))
    if case.fixed:
        assert not by_teacher.any()
    else:
        assert_gradient(by_teacher, slope(lambda x: (weights * case.formula(student, x, *others)).sum(), teacher))


def assert_left_out(case):
    """Images that are left out change nothing, though they hold numbers that are none."""
    arrays = case.arrays(len(KEPT))
    dirty = [np.where(KEPT.reshape(-1, *(1,) * (x.ndim - 1)), x, np.nan) if len(x) == len(KEPT) else x for x in arrays]
    value, gradient, _ = run(case, dirty, KEPT)
    expected = case.formula(*(x[KEPT] if len(x) == len(KEPT) else x for x in arrays))
    np.testing.assert_allclose(value[KEPT] if value.ndim else value, expected, rtol=1e-5, atol=1e-7)
    if value.ndim:
        assert not np.any(value[~KEPT])
    assert np.isfinite(gradient).all()
    assert not np.any(gradient[~KEPT])
    assert np.any(gradient[KEPT])


def assert_zero_without_any_image(case):
    value, gradient, _ = run(case, case.arrays(len(KEPT)), np.zeros(len(KEPT), bool))
    assert not np.any(value)
    assert not np.any(gradient)


def assert_bfloat16(case):
    arrays = [np.float32(jnp.asarray(x, jnp.bfloat16)) for x in case.arrays(len(KEPT))]
    value, *gradients = run(case, arrays, dtype=jnp.bfloat16)
    np.testing.assert_allclose(value, run(case, arrays)[0], rtol=2e-2, atol=2e-2)
    assert all(np.isfinite(np.float32(x)).all() for x in gradients)
