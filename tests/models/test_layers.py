"""Layers against their formulas, in float64 numpy."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax.models import layers
from tests.methods.numeric import grad

RNG = np.random.default_rng(0)
X, DY = RNG.normal(size=(2, 4, 3, 3, 5))
SCALE, BIAS = RNG.normal(1.0, 0.2, 5), RNG.normal(size=5)
GUESS = np.zeros(5)


def normalized(x, scale, bias):
    """Batch normalization by the batch's statistics, as PyTorch defines it."""
    mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2))
    return (x - mean) / np.sqrt(variance + 1e-5) * scale + bias


def test_batch_norm_in_training_normalizes_by_the_batch():
    with jax.enable_x64(True):
        y, mean, variance = jax.jit(layers.normalize_batch)(X, SCALE, BIAS, GUESS)
    np.testing.assert_allclose(y, normalized(X, SCALE, BIAS), rtol=1e-10)
    np.testing.assert_allclose(mean, X.mean((0, 1, 2)), rtol=1e-10)
    np.testing.assert_allclose(variance, X.var((0, 1, 2)), rtol=1e-10)


@pytest.mark.parametrize("argument", [0, 1, 2], ids=["x", "scale", "bias"])
def test_batch_norms_gradient_is_that_of_finite_differences(argument):
    values = [X, SCALE, BIAS]
    expected = np.zeros_like(values[argument])
    for index in np.ndindex(expected.shape):
        ends = []
        for step in (1e-5, -1e-5):
            moved = [v.copy() for v in values]
            moved[argument][index] += step
            ends.append((normalized(*moved) * DY).sum())
        expected[index] = (ends[0] - ends[1]) / 2e-5
    with jax.enable_x64(True):
        gradient = grad(lambda *v: (layers.normalize_batch(*v, GUESS)[0] * DY).sum(), argument)(*values)
    np.testing.assert_allclose(gradient, expected, rtol=1e-6, atol=1e-8)


def test_running_statistics_move_by_a_tenth_and_the_variance_is_unbiased():
    module = layers.BatchNorm()

    @jax.jit
    def stats_after(x):
        variables = module.init(jax.random.key(0), x, train=False)
        return module.apply(variables, x, train=True, mutable=["batch_stats"])[1]["batch_stats"]

    stats = stats_after(jnp.asarray(X, jnp.float32))
    np.testing.assert_allclose(stats["mean"], 0.1 * X.mean((0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(stats["var"], 0.9 + 0.1 * X.var((0, 1, 2), ddof=1), rtol=1e-5)


def test_batch_norm_in_inference_uses_the_running_statistics():
    mean, variance = RNG.normal(size=5), RNG.uniform(0.5, 2.0, 5)
    variables = {"params": {"scale": SCALE, "bias": BIAS}, "batch_stats": {"mean": mean, "var": variance}}
    with jax.enable_x64(True):
        y = layers.BatchNorm().apply(variables, jnp.asarray(X), train=False)
    np.testing.assert_allclose(y, (X - mean) / np.sqrt(variance + 1e-5) * SCALE + BIAS, rtol=1e-10)


def layer_normalized(x, scale, bias, epsilon):
    """Layer normalization, as PyTorch defines it."""
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + epsilon) * scale + bias


@pytest.mark.parametrize("epsilon", [1e-6, 0.1])
def test_layer_norm_normalizes_the_channels_of_each_pixel(epsilon):
    variables = {"params": {"scale": SCALE, "bias": BIAS}}
    with jax.enable_x64(True):
        y = layers.LayerNorm(epsilon).apply(variables, jnp.asarray(X))
    np.testing.assert_allclose(y, layer_normalized(X, SCALE, BIAS, epsilon), rtol=1e-10)


@pytest.mark.parametrize("argument", [0, 1, 2], ids=["x", "scale", "bias"])
def test_layer_norms_gradient_is_that_of_finite_differences(argument):
    values = [X, SCALE, BIAS]

    def moved(step):
        return [v + step * (i == argument) for i, v in enumerate(values)]

    direction = RNG.normal(size=values[argument].shape)
    ends = [(layer_normalized(*moved(sign * 1e-5 * direction), 1e-6) * DY).sum() for sign in (1, -1)]
    with jax.enable_x64(True):
        gradient = grad(lambda *v: (layers.normalize_features(*v, 1e-6) * DY).sum(), argument)(*values)
    np.testing.assert_allclose((np.asarray(gradient) * direction).sum(), (ends[0] - ends[1]) / 2e-5, rtol=1e-6)


@pytest.mark.parametrize("train", [True, False])
def test_batch_norms_epsilon_may_be_another(train):
    module = layers.BatchNorm(epsilon=0.5)
    with jax.enable_x64(True):
        variables = module.init(jax.random.key(0), jnp.asarray(X), train=False)
        y = module.apply(variables, jnp.asarray(X), train=train, mutable=["batch_stats"])[0]
    mean, variance = (X.mean((0, 1, 2)), X.var((0, 1, 2))) if train else (0, 1)
    np.testing.assert_allclose(y, (X - mean) / np.sqrt(variance + 0.5), rtol=1e-10)


MANY = RNG.normal(size=(64, 8, 8, 5))


@pytest.mark.parametrize("mean", [0.0, 15.0, 1e4, -1e4], ids=str)
@pytest.mark.parametrize("steps", [0, 1, 100])
@pytest.mark.parametrize("passes", [layers._statistics_in_one_pass, layers._statistics_in_two_passes])
def test_statistics_are_exact_however_far_the_mean_and_old_the_running_one(mean, steps, passes):
    x = jnp.asarray(MANY + mean, jnp.float32)
    got = jax.jit(passes)(x, jnp.full(5, mean * (1 - 0.9**steps), jnp.float32))
    exact = np.asarray(x, np.float64)
    np.testing.assert_allclose(got[0], exact.mean((0, 1, 2)), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(got[1], exact.var((0, 1, 2)), rtol=1e-4)


def test_a_channel_that_is_constant_has_no_variance_in_one_pass():
    x = jnp.full((4, 3, 3, 5), 0.7)
    for guess in (0.0, 0.699, 0.7):
        mean, variance = jax.jit(layers._statistics_in_one_pass)(x, jnp.full(5, guess))
        np.testing.assert_allclose(mean, 0.7, rtol=1e-6)
        assert (variance >= 0).all()
        assert variance.max() < 1e-10


def test_statistics_in_one_pass_have_the_derivatives_of_those_in_two():
    def combined(passes, x):
        mean, variance = passes(x, jnp.full(5, 0.3))
        return (mean * SCALE).sum() + (variance * BIAS).sum()

    with jax.enable_x64(True):
        one, two = (
            grad(lambda x, passes=passes: combined(passes, x))(X)
            for passes in (layers._statistics_in_one_pass, layers._statistics_in_two_passes)
        )
    np.testing.assert_allclose(one, two, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("platform", "passes"), [("cpu", 2), ("cuda", 2), ("tpu", 1)])
def test_only_a_tpu_takes_its_statistics_in_one_pass(platform, passes):
    arguments = [jnp.float32(v) for v in (X, SCALE, BIAS, GUESS)]
    exported = jax.export.export(jax.jit(layers.normalize_batch), platforms=[platform])(*arguments)
    assert exported.mlir_module().count("stablehlo.reduce(") == (5 if passes == 1 else 2)  # of x, and what is far


FAR = jnp.asarray(100 + X, jnp.bfloat16)  # its variance is lost where it is computed in bfloat16


def test_batch_norm_of_bfloat16_takes_its_statistics_in_float32():
    y, mean, variance = jax.jit(layers.normalize_batch)(FAR, *map(jnp.float32, (SCALE, BIAS, GUESS)))
    exact = np.asarray(FAR, np.float64)
    np.testing.assert_allclose(mean, exact.mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(variance, exact.var((0, 1, 2)), rtol=1e-4)
    assert (y.dtype, mean.dtype, variance.dtype) == (jnp.bfloat16, jnp.float32, jnp.float32)
    np.testing.assert_allclose(np.float64(y), normalized(exact, SCALE, BIAS), atol=0.02)


def test_layer_norm_of_bfloat16_computes_in_float32():
    y = jax.jit(lambda x: layers.normalize_features(x, *map(jnp.float32, (SCALE, BIAS)), 1e-6))(FAR)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(
        np.float64(y), layer_normalized(np.asarray(FAR, np.float64), SCALE, BIAS, 1e-6), atol=0.02
    )


def test_batch_norms_gradient_in_bfloat16_is_computed_in_float32():
    given = jnp.asarray(DY, jnp.bfloat16)
    pulled = jax.jit(lambda *v: jax.vjp(layers.normalize_batch, *v)[1]((given, jnp.zeros(5), jnp.zeros(5))))
    _, d_scale, d_bias, _ = pulled(FAR, *map(jnp.float32, (SCALE, BIAS, GUESS)))
    exact, dy = np.asarray(FAR, np.float64), np.asarray(given, np.float64)
    np.testing.assert_allclose(d_bias, dy.sum((0, 1, 2)), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(d_scale, (dy * normalized(exact, 1, 0)).sum((0, 1, 2)), rtol=1e-3, atol=1e-3)


def test_batch_norm_of_bfloat16_in_inference_computes_in_float32():
    mean, variance = np.float32(X.mean((0, 1, 2)) + 100), np.float32(X.var((0, 1, 2)))
    variables = {"params": {"scale": SCALE, "bias": BIAS}, "batch_stats": {"mean": mean, "var": variance}}
    y = jax.jit(lambda v: layers.BatchNorm().apply(v, FAR, train=False))(jax.tree.map(jnp.float32, variables))
    exact = (np.asarray(FAR, np.float64) - mean) / np.sqrt(variance + 1e-5) * SCALE + BIAS
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.float64(y), exact, atol=0.02)


def test_the_mlp_head_is_linear_batch_norm_and_relu_in_inference():
    head = layers.MlpHead(width=6)
    x = jnp.asarray(X[:, 0, 0], jnp.float32)
    variables = jax.jit(lambda: head.init(jax.random.key(0), x, train=False))()
    stats = {"mean": RNG.normal(size=6), "var": RNG.uniform(0.5, 2.0, 6)}
    norm = {"scale": RNG.normal(1.0, 0.2, 6), "bias": RNG.normal(size=6)}
    variables = {"params": {**variables["params"], "bn": norm}, "batch_stats": {"bn": stats}}
    fc = {name: np.asarray(value, np.float64) for name, value in variables["params"]["fc"].items()}
    y = X[:, 0, 0] @ fc["kernel"] + fc["bias"]
    expected = np.maximum((y - stats["mean"]) / np.sqrt(stats["var"] + 1e-5) * norm["scale"] + norm["bias"], 0)
    got = jax.jit(lambda v: head.apply(v, x, train=False))(jax.tree.map(jnp.float32, variables))
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_the_mlp_head_drops_half_of_what_its_batch_norm_sees():
    head = layers.MlpHead(width=8)
    x = jnp.zeros((1000, 3))
    variables = jax.jit(lambda: head.init(jax.random.key(0), x, train=False))()
    fc = {"kernel": jnp.zeros((3, 8)), "bias": jnp.ones(8)}
    variables = {**variables, "params": {**variables["params"], "fc": fc}}
    rngs = {"dropout": jax.random.key(1)}
    apply = jax.jit(lambda v: head.apply(v, x, train=True, rngs=rngs, mutable=["batch_stats"])[1]["batch_stats"]["bn"])
    stats = apply(variables)
    # Ones become 0 or 2, half of them each: mean and variance are 1.
    np.testing.assert_allclose(10 * stats["mean"], 1, atol=5 / np.sqrt(1000))
    np.testing.assert_allclose(10 * (stats["var"] - 0.9), 1, atol=0.02)


def test_patches_are_a_convolution_whose_stride_is_its_size():
    x = jnp.asarray(RNG.normal(size=(2, 7, 9, 3)), jnp.float32)
    variables = layers.Patches(6, 4).init(jax.random.key(0), x)
    kernel, bias = (np.asarray(variables["params"][name], np.float64) for name in ("kernel", "bias"))
    pixels = np.asarray(x, np.float64)
    expected = np.zeros((2, 1, 2, 6))  # three rows and a column are left over
    for j in range(2):
        expected[:, 0, j] = np.einsum("bhwc,hwco->bo", pixels[:, :4, 4 * j : 4 * j + 4], kernel) + bias
    np.testing.assert_allclose(layers.Patches(6, 4).apply(variables, x), expected, rtol=1e-4, atol=1e-5)


def test_stochastic_depth_drops_whole_images_and_keeps_the_mean():
    x = jnp.ones((400, 2, 3))
    module = Dropping()
    y = np.asarray(module.apply({}, x, rngs={"dropout": jax.random.key(0)}))
    assert (y == y[:, :1, :1]).all()
    assert set(np.unique(y)) == {0, np.float32(4)}
    np.testing.assert_allclose(y.mean(), 1, atol=5 * np.sqrt(3 / 400))


class Dropping(nn.Module):
    @nn.compact
    def __call__(self, x):
        return layers.drop_path(x, 0.75, train=True)


def test_a_linear_layer_starts_uniform_as_pytorchs_does():
    params = layers.Linear(400).init(jax.random.key(0), jnp.zeros((1, 64)))["params"]
    for value in params.values():
        assert np.abs(value).max() <= 1 / 8
        np.testing.assert_allclose(np.std(value), 1 / 8 / np.sqrt(3), rtol=0.05)


def test_a_depthwise_convolution_starts_normal_with_variance_two_over_its_taps():
    kernel = layers.depthwise_init(jax.random.key(0), (3, 3, 1, 512))
    np.testing.assert_allclose(np.std(kernel), np.sqrt(2 / 9), rtol=0.05)


def test_a_convolution_starts_normal_with_variance_two_over_its_outputs():
    kernel = layers.conv_init(jax.random.key(0), (3, 3, 16, 64))
    np.testing.assert_allclose(np.std(kernel), np.sqrt(2 / (9 * 64)), rtol=0.05)


@pytest.mark.parametrize(("dtype", "wide"), [(jnp.bfloat16, jnp.float32), (jnp.float64, jnp.float64)])
def test_parameters_are_at_least_float32_and_as_wide_as_the_computation(dtype, wide):
    def init(layer, x):
        return layer.init(jax.random.key(0), x, **({"train": False} if isinstance(layer, layers.BatchNorm) else {}))

    with jax.enable_x64(True):
        maps, rows = jnp.zeros((2, 4, 4, 3), dtype), jnp.zeros((2, 3), dtype)
        conv = layers.Conv(5, 3, use_bias=True, dtype=dtype)
        each = (conv, maps), (layers.BatchNorm(), maps), (layers.Linear(5), rows)
        shapes = [jax.eval_shape(lambda layer=layer, x=x: init(layer, x)) for layer, x in each]
    assert {x.dtype for x in jax.tree.leaves(shapes)} == {jnp.dtype(wide)}
