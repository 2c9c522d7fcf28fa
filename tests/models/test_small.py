"""What the convolutional networks have in common, each family small: what they report, and how they train."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax import models

SMALL = {
    "wrn_16_1": {"width": 1 / 4},
    "vgg8": {"width": 1 / 16},
    "mobilenetv1": {"width": 1 / 16},
    "mobilenetv2_half": {"width": 1 / 4},
    "shufflenetv1": {"width": 1 / 5},
    "shufflenetv2": {"width": 1 / 10},
    # One with each kind of a head and of squeezing, and one with groups.
    "mobilenetv3_small_100": {"width": 1 / 8},
    "efficientnet_lite0": {"width": 1 / 8},
    "regnety_002": {"width": 1 / 8},
}
DROPS = ("mobilenetv3_small_100", "efficientnet_lite0", "regnety_002")  # which have stochastic depth
IMAGES = np.random.default_rng(0).normal(size=(2, 40, 40, 3)).astype(np.float32)


@pytest.fixture(scope="module", params=SMALL)
def small(request):
    """A network of each family, its variables, and what it reports."""
    network = models.create(request.param, 5, **SMALL[request.param])
    variables = jax.jit(network.init)(jax.random.key(0), IMAGES)
    return network, variables, jax.jit(lambda v: network.apply(v, IMAGES, train=False)[0])(variables)


def test_a_map_is_the_preactivation_behind_its_activation_or_itself(small):
    network, _, out = small
    assert len(out.features) == len(out.preactivations) >= 4
    if network.name.startswith("wrn"):
        return  # whose preactivations are those of the next stage
    for x, before in zip(out.features, out.preactivations, strict=True):
        x, before = np.asarray(x), np.asarray(before)
        kinds = (before, np.maximum(before, 0), np.clip(before, 0, 6), before * np.clip(before + 3, 0, 6) / 6)
        assert any(np.allclose(x, own, rtol=1e-5, atol=1e-6) for own in kinds)


@pytest.mark.parametrize("small", ["wrn_16_1"], indirect=True)
def test_the_preactivation_of_a_wide_networks_stem_is_normalized_by_the_first_block(small):
    _, variables, out = small
    stats = variables["batch_stats"]["block1_layer_0"]["bn1"]
    expected = (np.float64(out.features[0]) - stats["mean"]) / np.sqrt(np.float64(stats["var"]) + 1e-5)
    np.testing.assert_allclose(out.preactivations[0], expected, rtol=1e-5, atol=1e-6)


def test_norms_are_those_of_the_maps_channels(small):
    network, _, out = small
    shapes = [norm.scale.shape for norm in out.norms]
    assert shapes == ([] if network.name == "shufflenetv2" else [x.shape[-1:] for x in out.preactivations])


def test_logits_are_the_head_of_the_embedding(small):
    network, variables, out = small
    embedding, kernel = np.asarray(out.embedding, np.float64), np.asarray(out.head.kernel, np.float64)
    np.testing.assert_allclose(out.logits, embedding @ kernel + out.head.bias, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(out.head.kernel, variables["params"][network.head[-1]]["kernel"])


def test_every_map_moves_the_logits(small):
    network, variables, out = small
    zeros = tuple(jnp.zeros_like(x) for x in out.features)

    @jax.jit
    def gradients(perturbations):
        def loss(p):
            return network.apply(variables, IMAGES, train=False, perturbations=p)[0].logits[:, 0].sum()

        return jax.grad(loss)(perturbations)

    assert all(np.abs(g).max() > 0 for g in gradients(zeros))


def test_a_frozen_backbone_keeps_its_statistics(small):
    network, variables, out = small
    options = SMALL[network.name] | ({"drop_path": 0.5} if network.name in DROPS else {})
    frozen = models.create(network.name, 5, frozen_backbone=True, **options)
    trained, stats = jax.jit(lambda v: frozen.apply(v, IMAGES, train=True, rng=jax.random.key(0)))(variables)
    np.testing.assert_allclose(trained.logits, out.logits, rtol=1e-5, atol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, stats, variables["batch_stats"])


def test_bfloat16_keeps_parameters_logits_and_embedding_in_float32(small):
    network, variables, out = small
    half = models.create(network.name, 5, dtype=jnp.bfloat16, **SMALL[network.name])
    shapes = jax.eval_shape(half.init, jax.random.key(0), IMAGES)
    assert shapes == jax.eval_shape(lambda: variables)
    reported = jax.jit(lambda v: half.apply(v, IMAGES, train=False)[0])(variables)
    assert (reported.logits.dtype, reported.embedding.dtype) == (jnp.float32, jnp.float32)
    assert {x.dtype for x in reported.features} == {jnp.dtype(jnp.bfloat16)}
    np.testing.assert_allclose(reported.logits, out.logits, rtol=0, atol=0.05 * np.abs(out.logits).max())
