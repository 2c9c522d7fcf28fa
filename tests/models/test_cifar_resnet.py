"""The CIFAR ResNets have the sizes that papers compare."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax import models


def parameters(name, num_classes, **options):
    shapes = jax.eval_shape(
        models.create(name, num_classes, **options).init, jax.random.key(0), jnp.zeros((1, 32, 32, 3))
    )
    return sum(x.size for x in jax.tree.leaves(shapes["params"]))


def counted(depth, widths, num_classes, conv_shortcuts):
    """The number of parameters, summed over the layers as He et al. describe them."""
    total = 9 * 3 * widths[0] + 2 * widths[0]
    before = widths[0]
    for width in widths[1:]:
        for _ in range((depth - 2) // 6):
            total += 9 * before * width + 9 * width * width + 4 * width
            if before != width and conv_shortcuts:
                total += before * width + 2 * width
            before = width
    return total + (widths[-1] + 1) * num_classes


@pytest.mark.parametrize("depth", [8, 14, 20, 32, 44, 56, 110])
def test_parameters_add_up_over_the_layers(depth):
    assert parameters(f"resnet{depth}", 100) == counted(depth, (16, 16, 32, 64), 100, True)


@pytest.mark.parametrize("depth", [8, 32])
def test_the_wide_pair_is_four_times_as_wide_after_a_stem_of_32(depth):
    assert parameters(f"resnet{depth}x4", 100) == counted(depth, (32, 64, 128, 256), 100, True)


@pytest.mark.parametrize(
    ("name", "millions"), [("resnet20", 0.27), ("resnet32", 0.46), ("resnet56", 0.85), ("resnet110", 1.7)]
)
def test_padded_shortcuts_give_the_counts_of_the_paper(name, millions):
    # He et al., CVPR 2016, table 6.
    assert parameters(name, 10, shortcut="pad") == pytest.approx(1e6 * millions, rel=0.03)


def test_resnet20_with_padded_shortcuts_has_269722_parameters():
    assert parameters("resnet20", 10, shortcut="pad") == 269_722


def test_a_width_factor_multiplies_every_number_of_channels():
    assert parameters("resnet8", 10, width=2.0) == counted(8, (32, 32, 64, 128), 10, True)


def test_a_padded_shortcut_halves_the_map_and_adds_empty_channels():
    network = models.create("resnet8", 10, width=1 / 4, shortcut="pad")
    images = np.random.default_rng(0).normal(size=(1, 8, 8, 3)).astype(np.float32)
    variables = jax.jit(network.init)(jax.random.key(0), images)
    # With the second batch norm of a block at zero only the shortcut is left.
    params = dict(variables["params"])
    params["layer2_0"] = {**params["layer2_0"], "bn2": {"scale": jnp.zeros(8), "bias": jnp.zeros(8)}}
    out, _ = jax.jit(lambda v: network.apply(v, images, train=False))({**variables, "params": params})
    halved = np.asarray(out.features[1])[:, ::2, ::2]
    np.testing.assert_array_equal(out.features[2][..., 2:6], halved)
    assert not np.any(out.features[2][..., [0, 1, 6, 7]])
