"""Convolution and its gradients, against the definition in float64: as a CPU computes them, and as others do."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax import sharding
from kd_jax.models import convolution as module
from kd_jax.models.convolution import KEEP_BARRIERS, convolution

CASES = {  # of x [B, H, W, C] and kernel [k, k, C / groups, O]: shapes, stride, groups, padding where it is not "half"
    "3x3": ((2, 6, 5, 4), (3, 3, 4, 6), 1, 1),
    "3x3 of stride 2, odd": ((2, 7, 5, 4), (3, 3, 4, 6), 2, 1),
    "3x3 of stride 2, even": ((2, 6, 8, 4), (3, 3, 4, 6), 2, 1),
    "7x7 of stride 2": ((2, 9, 8, 3), (7, 7, 3, 4), 2, 1),
    "1x1": ((2, 6, 5, 4), (1, 1, 4, 6), 1, 1),
    "1x1 of stride 2": ((2, 7, 6, 4), (1, 1, 4, 6), 2, 1),
    "depthwise": ((2, 6, 5, 4), (3, 3, 1, 4), 1, 4),
    "depthwise of stride 2": ((2, 7, 6, 4), (5, 5, 1, 4), 2, 4),
    "depthwise 7x7": ((4, 6, 5, 3), (7, 7, 1, 3), 1, 3),
    "depthwise of many images": ((12, 5, 4, 3), (3, 3, 1, 3), 1, 3),
    "groups": ((2, 6, 5, 4), (3, 3, 2, 6), 2, 2),
    "groups of stride 2": ((2, 7, 6, 6), (3, 3, 2, 3), 2, 3),
    "1x1 in groups": ((2, 6, 5, 4), (1, 1, 2, 6), 1, 2),
    "1x1 in groups of stride 2": ((2, 6, 5, 4), (1, 1, 2, 6), 2, 2),
    "same": ((2, 6, 5, 4), (3, 3, 4, 6), 1, 1, "same"),
    "same 3x3 of stride 2": ((2, 6, 5, 4), (3, 3, 4, 6), 2, 1, "same"),
    "same 5x5 of stride 2": ((2, 7, 8, 4), (5, 5, 4, 6), 2, 1, "same"),
    "same 1x1 of stride 2": ((2, 7, 6, 4), (1, 1, 4, 6), 2, 1, "same"),
    "same 3x3 of stride 3": ((2, 7, 8, 4), (3, 3, 4, 6), 3, 1, "same"),
    "same depthwise": ((2, 6, 5, 4), (5, 5, 1, 4), 1, 4, "same"),
    "same depthwise 3x3 of stride 2": ((4, 7, 6, 4), (3, 3, 1, 4), 2, 4, "same"),
    "same depthwise 5x5 of stride 2": ((4, 6, 5, 4), (5, 5, 1, 4), 2, 4, "same"),
    "same groups": ((2, 6, 5, 4), (5, 5, 2, 6), 1, 2, "same"),
    "same groups of stride 2": ((2, 7, 6, 6), (3, 3, 2, 3), 2, 3, "same"),
}


def padded_by(x, size, stride, padding):
    """(x with zeros around it, the rows and columns before it)."""
    before, behind = [size // 2] * 2, [size // 2] * 2
    if padding == "same":
        missing = [max((-(-n // stride) - 1) * stride + size - n, 0) for n in x.shape[1:3]]
        before, behind = [n // 2 for n in missing], [n - n // 2 for n in missing]
    return np.pad(x, ((0, 0), *zip(before, behind, strict=True), (0, 0))), before


def defined(x, kernel, dy, stride, groups, padding="half"):
    """(y, dx, d kernel) by the definition, one output pixel after another."""
    size, out = kernel.shape[0], kernel.shape[-1] // groups
    padded, (above, left) = padded_by(x, size, stride, padding)
    y, d_padded, d_kernel = np.zeros(dy.shape), np.zeros(padded.shape), np.zeros(kernel.shape)
    for i, j, g in np.ndindex(*dy.shape[1:3], groups):
        own = slice(g * kernel.shape[2], (g + 1) * kernel.shape[2])
        to = slice(g * out, (g + 1) * out)
        window = (slice(None), slice(i * stride, i * stride + size), slice(j * stride, j * stride + size), own)
        y[:, i, j, to] = np.einsum("bhwc,hwco->bo", padded[window], kernel[..., to])
        d_kernel[..., to] += np.einsum("bhwc,bo->hwco", padded[window], dy[:, i, j, to])
        d_padded[window] += np.einsum("hwco,bo->bhwc", kernel[..., to], dy[:, i, j, to])
    return y, d_padded[:, above : above + x.shape[1], left : left + x.shape[2]], d_kernel


@pytest.fixture(params=CASES)
def case(request):
    x_shape, kernel_shape, stride, groups, *padding = CASES[request.param]
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=x_shape), rng.normal(size=kernel_shape)
    dy = rng.normal(size=(len(x), *(-(-n // stride) for n in x_shape[1:3]), kernel_shape[-1]))
    return x, kernel, dy, (stride, groups, *padding)


def all_of(function, x, kernel, dy):
    y, pull_back = jax.vjp(function, x, kernel)
    return y, *pull_back(dy)


def by(how):
    return lambda x, kernel: convolution(x, kernel, *how)


def elsewhere(x, kernel, stride, groups, padding="half"):
    """What the functions take that do not decide by the platform."""
    return {"stride": stride, "groups": groups, "edges": module._edges(x, kernel, stride, padding)}


def test_equals_the_definition_on_a_cpu(case):
    x, kernel, dy, how = case
    function = by(how)
    arrays = (jnp.asarray(a, jnp.float32) for a in (x, kernel, dy))
    found = jax.jit(functools.partial(all_of, function), compiler_options=KEEP_BARRIERS)(*arrays)
    for here, there in zip(found, defined(x, kernel, dy, *how), strict=True):
        np.testing.assert_allclose(here, there, rtol=1e-5, atol=1e-5)


def test_equals_the_definition_elsewhere(case):
    x, kernel, dy, how = case
    options = elsewhere(x, kernel, *how)
    x32, kernel32, dy32 = (jnp.asarray(a, jnp.float32) for a in (x, kernel, dy))
    found = (
        module._anywhere(x32, kernel32, **options),
        *module._gradients_of_rounded_kernel(x32, kernel32, dy32, **options),
    )
    for here, there in zip(found, defined(x, kernel, dy, *how), strict=True):
        np.testing.assert_allclose(here, there, rtol=1e-5, atol=1e-5)


def test_the_gradient_of_a_float32_kernel_is_not_rounded_to_bfloat16(case):
    x, kernel, dy, how = case
    x16, dy16 = (jnp.asarray(a, jnp.bfloat16) for a in (x, dy))
    function = by(how)
    y, dx, d_kernel = jax.jit(functools.partial(all_of, function))(x16, jnp.asarray(kernel, jnp.float32), dy16)
    assert (y.dtype, dx.dtype, d_kernel.dtype) == (jnp.bfloat16, jnp.bfloat16, jnp.float32)
    exact = defined(np.asarray(x16, float), kernel, np.asarray(dy16, float), *how)[2]
    np.testing.assert_allclose(d_kernel, exact, rtol=1e-5, atol=1e-5)


def test_a_second_derivative_is_that_of_the_plain_convolution(case):
    x, kernel, dy, how = case

    def of(function):
        def penalty(kernel):
            return (jax.grad(lambda x: (jnp.tanh(function(x, kernel)) * dy).sum())(x) ** 2).sum()

        return jax.jit(jax.grad(penalty))(kernel)

    plain = functools.partial(module._anywhere, **elsewhere(x, kernel, *how))
    with jax.enable_x64(True):
        here = of(by(how))
        np.testing.assert_allclose(here, of(plain), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("of", [lambda f: f, lambda f: jax.grad(f, 1)], ids=["forward", "gradient"])
def test_what_made_the_input_is_computed_once_on_a_cpu(of):
    def loss(x, kernel):
        return convolution(jax.nn.relu(2 * x + 1), kernel).sum()

    jitted = jax.jit(of(loss), compiler_options=KEEP_BARRIERS)
    assert "opt-barrier" in jitted.lower(jnp.ones((4, 8, 8, 4)), jnp.ones((3, 3, 4, 4))).compile().as_text()


def test_the_gradient_of_a_kernel_may_be_narrower_than_its_images(case):
    x, kernel, dy, how = case
    x, dy = jnp.float32(x), jnp.float32(dy)
    function = by(how)
    narrow = jnp.asarray(kernel, jnp.bfloat16)
    found = jax.jit(functools.partial(all_of, function))(x, narrow, dy)[2]
    assert found.dtype == jnp.bfloat16
    expected = defined(*map(np.float64, (x, np.asarray(narrow, np.float32), dy)), *how)[2]
    np.testing.assert_allclose(np.float64(found), expected, atol=2e-2 * np.abs(expected).max())


@pytest.mark.parametrize("name", ["3x3", "1x1", "depthwise of many images", "groups", "same 3x3 of stride 2"])
def test_on_two_devices_no_gradient_gathers_the_batch(name):
    x_shape, kernel_shape, *how = CASES[name]
    mesh = sharding.mesh()
    split, whole = sharding.split(mesh), sharding.replicated(mesh)
    assert mesh.size == 2
    images = jax.ShapeDtypeStruct((16, *x_shape[1:]), jnp.float32, sharding=split)
    kernel = jax.ShapeDtypeStruct(kernel_shape, jnp.float32, sharding=whole)
    gradients = jax.grad(lambda x, kernel: jnp.square(convolution(x, kernel, *how)).sum(), (0, 1))
    text = jax.jit(gradients, out_shardings=(split, whole)).lower(images, kernel).compile().as_text()
    assert "all-gather" not in text
    assert "all-reduce" in text


EXPORTED = ("3x3 of stride 2, odd", "1x1 of stride 2", "depthwise of stride 2", "groups of stride 2")
SAME = ("same 3x3 of stride 2", "same 1x1 of stride 2", "same depthwise 3x3 of stride 2", "same groups of stride 2")


@pytest.mark.parametrize("name", EXPORTED + SAME)
def test_is_exported_for_any_number_and_size_of_images_and_its_gradient_for_any_number(name):
    x_shape, kernel_shape, *how = CASES[name]
    rng = np.random.default_rng(0)
    given = rng.normal(size=x_shape).astype(np.float32), rng.normal(size=kernel_shape).astype(np.float32)
    function = by(how)
    gradients = jax.grad(lambda x, kernel: jnp.square(function(x, kernel)).sum(), (0, 1))
    _, height, width, channels = x_shape
    for one, size in ((function, "h, w"), (gradients, f"{height}, {width}")):
        any_shape = jax.export.symbolic_shape(f"b, {size}, {channels}")
        arguments = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in (any_shape, kernel_shape))
        found = jax.export.export(jax.jit(one))(*arguments).call(*given)
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(one(*given)), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
