"""Every loss of bfloat16 inputs is finite, and about that of the same numbers in float32."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax import losses
from tests.test_shapes import ARGUMENTS, OPTIONS


def in_type(tree, dtype):
    return jax.tree.map(lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree)


@pytest.mark.parametrize("name", ARGUMENTS)
def test_a_loss_of_half_precision_is_about_that_of_float32(name):
    loss = jax.jit(functools.partial(getattr(losses, name), **OPTIONS.get(name, {})))
    half = in_type(ARGUMENTS[name], jnp.bfloat16)
    got, expected = (np.asarray(loss(*in_type(half, dtype)), np.float32) for dtype in (jnp.bfloat16, jnp.float32))
    assert np.isfinite(got).all()
    np.testing.assert_allclose(got, expected, atol=2e-2 * max(np.abs(expected).max(), 1e-3))
