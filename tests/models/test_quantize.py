"""Simulated 8-bit arithmetic: the rounding beside TensorFlow's, a layer beside whole numbers, and runs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax.traverse_util import flatten_dict

import kd_jax
from kd_jax import experiment, export, models, networks, training
from kd_jax.errors import InputError
from kd_jax.exporting import program
from kd_jax.models import from_function, from_linen
from kd_jax.models.quantize import fake_quant, fake_quant_kernel, quantized
from tests import tiny

X = np.array([-2.0, -1.0, -0.9961, -0.3, -0.004, 0.0, 0.004, 0.5, 0.7345, 1.4999, 1.52, 3.0], np.float32)
# tf.quantization.fake_quant_with_min_max_vars(X, low, high), and whether its gradient passes; TensorFlow 2.21.
RECORDED = {
    (-1.0, 1.5): (
        [-1.0, -1.0, -1.0, -0.30392158, 0.0, 0.0, 0.0, 0.5, 0.73529416, 1.5, 1.5, 1.5],
        [0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0],
    ),
    (0.0, 3.0): (
        [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.50588238, 0.72941178, 1.49411762, 1.51764715, 3.0],
        [0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1],
    ),
    (-0.7, 0.0): (
        [-0.7, -0.7, -0.7, -0.29921567, -0.0027451, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
        [0, 0, 0, 1, 1, 1, 0, 0, 0, 0, 0, 0],
    ),
}


class Linear(nn.Module):
    """One linear layer over the pixels."""

    num_classes: int

    @nn.compact
    def __call__(self, images):
        return nn.Dense(self.num_classes, name="fc")(images.reshape(len(images), -1))


LINEAR = quantized(from_linen(Linear(3), head=("fc",), torch_key=".".join))
IMAGES = np.random.default_rng(0).normal(size=(4, 2, 2, 1)).astype(np.float32)


@pytest.mark.parametrize("limits", RECORDED)
def test_values_are_rounded_as_by_tensorflow(limits):
    assert np.allclose(fake_quant(X, *map(jnp.float32, limits)), RECORDED[limits][0], rtol=0, atol=1e-7)


@pytest.mark.parametrize("limits", RECORDED)
def test_gradients_pass_where_nothing_is_cut_off_as_by_tensorflow(limits):
    gradient = jax.grad(lambda x: fake_quant(x, *map(jnp.float32, limits)).sum())(X)
    assert np.array_equal(gradient, RECORDED[limits][1])


def test_an_unknown_range_leaves_values_as_they_are():
    assert np.array_equal(fake_quant(X, jnp.float32(0), jnp.float32(0)), X)


def test_a_kernel_has_255_values_for_each_channel_that_leaves_it():
    kernel = np.random.default_rng(1).normal(size=(3, 3, 2, 4)).astype(np.float32) * [1, 10, 0.1, 0]
    scale = np.abs(np.float64(kernel)).max((0, 1, 2)) / 127
    expected = np.rint(kernel / np.where(scale == 0, 1, scale)) * scale
    assert np.allclose(fake_quant_kernel(jnp.float32(kernel)), expected, rtol=1e-6, atol=0)


def test_the_gradient_of_a_kernel_passes_its_rounding():
    assert np.array_equal(jax.grad(lambda x: fake_quant_kernel(x).sum())(jnp.ones((2, 3)) / 3), np.ones((2, 3)))


def test_a_layer_computes_what_whole_numbers_of_8_bits_do():
    variables = LINEAR.init(jax.random.key(0), IMAGES)
    low, high = -1.25, 2.0
    stats = {"fc": {"input_low": jnp.float32(low), "input_high": jnp.float32(high)}}
    logits = LINEAR.apply({**variables, "batch_stats": stats}, IMAGES, train=False)[0].logits
    kernel, x = np.float64(variables["params"]["fc"]["kernel"]), np.float64(IMAGES.reshape(4, -1))
    of_input, of_kernel = (high - low) / 255, np.abs(kernel).max(0) / 127
    zero = round(-low / of_input)
    inputs = np.clip(np.rint(x / of_input) + zero, 0, 255).astype(int) - zero
    expected = inputs @ np.rint(kernel / of_kernel).astype(int) * (of_input * of_kernel)
    assert np.allclose(logits, expected, rtol=0, atol=1e-5)


def test_training_averages_the_ranges_that_it_rounds_by():
    variables = LINEAR.init(jax.random.key(0), IMAGES)
    _, stats = LINEAR.apply(variables, IMAGES, train=True)
    _, stats = LINEAR.apply({**variables, "batch_stats": stats}, 2 * IMAGES, train=True)
    low, high = IMAGES.min(), IMAGES.max()
    expected = {"input_low": 0.9 * 0.1 * low + 0.1 * 2 * low, "input_high": 0.9 * 0.1 * high + 0.1 * 2 * high}
    assert all(np.allclose(stats["fc"][name], value, rtol=1e-6) for name, value in expected.items())


@pytest.mark.parametrize(("name", "size"), [("resnet8", 32), ("vit_tiny_patch16_224", 224)])
def test_every_kernel_of_a_network_has_the_range_of_what_it_reads(name, size):
    network = quantized(models.create(name, 10))
    shapes = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, size, size, 3)))
    kernels = {path[1:-1] for path in flatten_dict(shapes) if path[-1] == "kernel"}
    assert kernels == {path[1:-1] for path in flatten_dict(shapes) if path[-1] == "input_high"}


class Scaled(nn.Module):
    """A linear layer behind a kernel of no layer that is quantized."""

    @nn.compact
    def __call__(self, images):
        return nn.Dense(3, name="fc")(nn.DenseGeneral(2, name="general")(images.reshape(len(images), -1)))


def test_a_kernel_is_rounded_only_where_its_layer_reads_rounded_inputs():
    network = quantized(from_linen(Scaled(), head=("fc",)))
    variables = network.init(jax.random.key(0), IMAGES)
    general, fc = variables["params"]["general"], variables["params"]["fc"]
    hidden = np.float64(IMAGES.reshape(4, -1)) @ np.float64(general["kernel"])
    expected = hidden @ np.float64(fake_quant_kernel(fc["kernel"]))
    logits = network.apply(variables, IMAGES, train=False)[0].logits
    assert np.allclose(logits, expected, rtol=0, atol=1e-6)


def test_a_network_without_layers_of_flax_is_refused():
    network = from_function(lambda rng, images: {}, lambda params, images: images.mean((1, 2)))
    with pytest.raises(InputError, match="has no convolution or linear layer of Flax; expected ''"):
        quantized(network).init(jax.random.key(0), IMAGES)


def test_an_unknown_quantization_is_refused():
    with pytest.raises(InputError, match=r"model\.quantize is 'int4'; expected one of: , int8"):
        networks.create(tiny.config(**{"model.quantize": "int4"}), 10)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folders of a run in float32, and of one with 8 bits that starts from it."""
    folder = tmp_path_factory.mktemp("quantized")
    training.train(tiny.config(), folder / "float")
    config = tiny.config(**{"model.quantize": "int8", "model.pretrained": str(folder / "float"), "train.epochs": 1})
    training.train(config, folder / "int8")
    return folder / "float", folder / "int8"


def test_a_run_with_8_bits_starts_from_one_without(runs):
    whole = experiment.create(tiny.config(**{"model.quantize": "int8", "model.pretrained": str(runs[0])}), traced=False)
    assert tiny.identical(whole.pretrained, kd_jax.load(runs[0]).variables)


def test_a_run_without_starts_from_one_with_8_bits(runs):
    whole = experiment.create(tiny.config(**{"model.pretrained": str(runs[1])}), traced=False)
    left = flatten_dict(whole.pretrained["batch_stats"])
    assert {path[-1] for path in left} == {"mean", "var"}


def test_a_run_with_8_bits_goes_on_from_one_with_its_ranges(runs):
    whole = experiment.create(tiny.config(**{"model.quantize": "int8", "model.pretrained": str(runs[1])}), traced=False)
    assert tiny.identical(whole.pretrained, kd_jax.load(runs[1]).variables)


def test_what_is_loaded_of_an_exported_run_with_8_bits_is_that_run(runs, tmp_path):
    export.export(runs[1], tmp_path / "model.safetensors")
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 1), dtype=np.uint8)
    run, file = kd_jax.load(runs[1]), kd_jax.load(tmp_path / "model.safetensors")
    assert np.array_equal(jax.jit(run.logits)(images), jax.jit(file.logits)(images))


def test_a_run_with_8_bits_predicts_otherwise_than_the_same_weights_without(runs):
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 1), dtype=np.uint8)
    run = kd_jax.load(runs[1])
    plain = networks.create(tiny.config(), 10)
    without = jax.jit(lambda x: plain.apply(run.variables, run.preprocess(x), train=False)[0].logits)(images)
    assert 0 < np.abs(jax.jit(run.logits)(images) - without).max() < 0.5


def test_an_exported_program_of_a_run_with_8_bits_computes_without_and_is_compared_with(runs):
    made = program.read(str(runs[1]), count=4)
    run = kd_jax.load(runs[1])
    plain = networks.create(tiny.config(), 10)
    without = jax.jit(lambda x: plain.apply(run.variables, run.preprocess(x), train=False)[0].logits)(made.test)
    assert np.array_equal(jax.jit(made.program.apply)(made.test), without)
    assert np.array_equal(jax.jit(made.program.rounded)(made.test), jax.jit(run.logits)(made.test))


def test_an_exported_file_is_loaded_without_its_8_bits_where_that_is_asked(runs, tmp_path):
    export.export(runs[1], tmp_path / "model.safetensors")
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 1), dtype=np.uint8)
    run, file = kd_jax.load(runs[1], rounded=False), kd_jax.load(tmp_path / "model.safetensors", rounded=False)
    assert np.array_equal(jax.jit(run.logits)(images), jax.jit(file.logits)(images))
