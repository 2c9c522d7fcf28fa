"""The map that a backbone ends with: there where the final layer reads its global average, and only there."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax import models

SMALL = {"resnet8": 1 / 4, "wrn_16_1": 1 / 4, "vgg8": 1 / 16, "mobilenetv2_half": 1 / 4, "shufflenetv2": 1 / 8}
SLOW = ("mobilenetv1", "shufflenetv1", "mobilenetv2_100", "efficientnet_lite0", "regnety_002")
IMAGES = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)


@pytest.mark.parametrize(
    "name",
    [
        *SMALL,
        *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW),
    ],
)
def test_logits_are_the_head_of_the_averaged_last_map(name):
    network = models.create(name, 5, width=SMALL.get(name, 1 / 8))
    variables = jax.jit(network.init)(jax.random.key(0), IMAGES)
    variables = jax.tree.map(lambda x: x + 0.1, variables)  # so that no map is zero
    out = jax.jit(lambda v: network.apply(v, IMAGES, train=False)[0])(variables)
    pooled = np.asarray(out.last, np.float64).mean((1, 2))
    expected = pooled @ np.asarray(out.head.kernel, np.float64) + out.head.bias
    np.testing.assert_allclose(out.logits, expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())
    np.testing.assert_allclose(out.pooled, pooled, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet8", {"head": "mlp"}),
        ("convnext_atto", {"width": 1 / 8}),
        ("vit_tiny_patch16_224", {"width": 1 / 3, "depth": 5}),
        ("mobilenetv3_small_100", {"width": 1 / 8}),
    ],
)
def test_a_head_that_reads_something_else_names_no_map(name, options):
    network = models.create(name, 5, **options)
    images = jnp.zeros((1, 32, 32, 3))
    out = jax.eval_shape(lambda: network.apply(network.init(jax.random.key(0), images), images, train=False)[0])
    assert out.last is None
