"""The function of plain operations: which they are, and that it is the same function."""

from collections import Counter

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax.exporting.plain import plain
from kd_jax.models.convolution import convolution
from tests.exporting import small

X = np.random.default_rng(0).standard_normal((2, 7, 7, 4)).astype(np.float32)
DEPTHWISE = np.random.default_rng(1).standard_normal((3, 3, 1, 4)).astype(np.float32)


def operations(function, x=X):
    return Counter(equation.primitive.name for equation in jax.make_jaxpr(function)(x).jaxpr.eqns)


def test_a_depthwise_convolution_is_one_operation():
    def depthwise(x):
        return convolution(x, DEPTHWISE, 2, 4)

    assert operations(plain(depthwise)) == {"conv_general_dilated": 1}
    np.testing.assert_allclose(plain(depthwise)(X), depthwise(X), rtol=1e-5, atol=1e-5)


def test_a_resizing_is_of_convolutions():
    def resize(x):
        return jax.image.resize(x, (2, 9, 5, 4), "linear")

    found = operations(plain(resize))
    assert (found["conv_general_dilated"], found["dot_general"]) == (2, 0)
    np.testing.assert_allclose(plain(resize)(X), resize(X), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("pools", "name"), [(True, "reduce_window_max"), (False, "max")])
def test_a_maximum_over_windows_has_no_infinite_edge(pools, name):
    def pool(x):
        return nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))

    found = plain(pool, pools=pools)
    assert name in operations(found)
    assert "pad" not in operations(found)
    np.testing.assert_array_equal(found(X), pool(X))


def test_an_average_over_windows_is_a_convolution():
    def pool(x):
        return nn.avg_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))

    assert "reduce_window_sum" not in operations(plain(pool))
    np.testing.assert_allclose(plain(pool)(X), pool(X), rtol=1e-5, atol=1e-6)


def test_what_is_known_is_computed_at_once():
    found = plain(lambda x: x * jax.lax.rsqrt(jnp.asarray([1.0, 4.0, 9.0, 16.0])))
    assert "rsqrt" not in operations(found)
    np.testing.assert_allclose(found(X), X / [1, 2, 3, 4], rtol=1e-6)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the .imagenet. stem divides")
@pytest.mark.parametrize("name", small.FAMILIES)
def test_each_family_is_of_plain_operations(name):
    program = small.program(name, small.SIZE, 3)
    pixels = small.images(program, 2)
    found = plain(program.apply)
    assert not {"jit", "cond", "custom_vjp_call", "custom_jvp_call"} & operations(found, pixels).keys()
    expected = jax.jit(program.apply)(pixels)
    np.testing.assert_allclose(jax.jit(found)(pixels), expected, atol=1e-5 * np.abs(expected).max())
