"""The networks of distillation benchmarks against PyTorch's, recorded by record_zoo.py."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax import models
from kd_jax.models import shufflenet
from tests.models import fixed, parity

RECORDED = np.load(Path(__file__).parent / "zoo.npz")
SIZES = {"mobilenetv1": 224}
OPTIONS = {"resnet50": {"stem": "cifar"}}
# (parameters, running statistics) of 100 classes; of mobilenetv1 of 1000.
COUNTS = {
    "resnet8x4": (1_233_540, 2_752),
    "resnet20": (278_324, 1_568),
    "resnet50": (23_705_252, 53_120),
    "wrn_16_1": (180_916, 928),
    "wrn_16_2": (703_284, 1_824),
    "wrn_40_1": (569_780, 2_720),
    "wrn_40_2": (2_255_156, 5_408),
    "vgg8": (3_965_028, 2_944),
    "vgg11": (9_277_284, 5_504),
    "vgg13": (9_462_180, 5_888),
    "vgg16": (14_774_436, 8_448),
    "vgg19": (20_086_692, 11_008),
    "mobilenetv2_half": (812_836, 18_368),
    "shufflenetv1": (949_258, 23_736),
    "shufflenetv2": (1_355_528, 16_180),
    "mobilenetv1": (4_231_976, 21_888),
}
# Deeper than another of their family, and no otherwise: they take long to compile.
DEEP = ("wrn_40_1", "wrn_40_2", "vgg13", "vgg16", "vgg19", "resnet50")
NAMES = [pytest.param(name, marks=pytest.mark.slow if name in DEEP else ()) for name in COUNTS]


def create(name, num_classes=fixed.CLASSES):
    return models.create(name, num_classes, **OPTIONS.get(name, {}))


@pytest.mark.parametrize("name", COUNTS)
def test_it_has_as_many_parameters_and_statistics_as_the_original(name):
    counts = parity.parameters(create(name, 1000 if name == "mobilenetv1" else 100), SIZES.get(name, 32))
    assert counts == COUNTS[name]


@pytest.mark.parametrize("name", NAMES)
def test_logits_embedding_maps_and_preactivations_are_pytorchs(name):
    recorded, network, size = parity.Recorded(RECORDED, name), create(name), SIZES.get(name, 32)
    variables = parity.variables_of(network, recorded, size)
    out, _ = parity.outputs_of(network, variables, "evaluation", 1, size, train=False)
    parity.close(out.logits, recorded["logits"])
    parity.close(out.embedding, recorded["embedding"])
    skipped = len(out.features) - len(recorded["maps"])  # of MobileNetV1 the original gives no stem
    parity.close_maps(out.features[skipped:], recorded["maps"])
    own = list(out.preactivations[skipped:])
    if name == "shufflenetv2":  # theirs are in the order before the shuffle
        own[1:] = [shufflenet.shuffle(x, x.shape[-1] // 2) for x in own[1:]]
    if name != "mobilenetv1":  # what the original calls preactivation of the stem is its map
        own[0] = out.features[0]
    parity.close_maps(own, recorded["preactivations"])


@pytest.mark.parametrize("name", NAMES)
def test_in_training_mode_logits_and_running_statistics_are_pytorchs(name):
    recorded, network, size = parity.Recorded(RECORDED, name), create(name), SIZES.get(name, 32)
    variables = parity.variables_of(network, recorded, size)
    rng = jax.random.key(0)
    out, stats = parity.outputs_of(network, variables, "training", fixed.BATCH, size, train=True, rng=rng)
    parity.close(out.logits, recorded["training logits"])
    parity.close(parity.statistics(network, variables, stats, recorded), recorded["statistics"])


TINY = {
    "wrn_16_1": {"width": 1 / 4},
    "vgg8": {"width": 1 / 16},
    "mobilenetv1": {"width": 1 / 16},
    "mobilenetv2_half": {"width": 1 / 4},
    "shufflenetv1": {"width": 1 / 5},
    "shufflenetv2": {"width": 1 / 10},
}
IMAGES = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)


@pytest.fixture(scope="module", params=TINY)
def tiny(request):
    """A network of each family, its variables, and what it reports."""
    network = models.create(request.param, 5, **TINY[request.param])
    variables = jax.jit(network.init)(jax.random.key(0), IMAGES)
    return network, variables, jax.jit(lambda v: network.apply(v, IMAGES, train=False)[0])(variables)


def test_a_map_is_the_preactivation_behind_a_relu_or_itself(tiny):
    network, _, out = tiny
    assert len(out.features) == len(out.preactivations) >= 4
    if network.name.startswith("wrn"):
        return  # whose preactivations are those of the next stage
    for x, before in zip(out.features, out.preactivations, strict=True):
        if np.asarray(x).min() < 0:
            np.testing.assert_array_equal(x, before)
        else:
            np.testing.assert_allclose(x, np.maximum(before, 0), rtol=1e-6)


def test_norms_are_those_of_the_maps_channels(tiny):
    network, _, out = tiny
    shapes = [norm.scale.shape for norm in out.norms]
    assert shapes == ([] if network.name == "shufflenetv2" else [x.shape[-1:] for x in out.preactivations])


def test_logits_are_the_head_of_the_embedding(tiny):
    network, variables, out = tiny
    embedding, kernel = np.asarray(out.embedding, np.float64), np.asarray(out.head.kernel, np.float64)
    np.testing.assert_allclose(out.logits, embedding @ kernel + out.head.bias, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(out.head.kernel, variables["params"][network.head[-1]]["kernel"])


def test_every_map_moves_the_logits(tiny):
    network, variables, out = tiny
    zeros = tuple(jnp.zeros_like(x) for x in out.features)

    @jax.jit
    def gradients(perturbations):
        def loss(p):
            return network.apply(variables, IMAGES, train=False, perturbations=p)[0].logits[:, 0].sum()

        return jax.grad(loss)(perturbations)

    assert all(np.abs(g).max() > 0 for g in gradients(zeros))


def test_a_frozen_backbone_keeps_its_statistics(tiny):
    network, variables, out = tiny
    frozen = models.create(network.name, 5, frozen_backbone=True, **TINY[network.name])
    trained, stats = jax.jit(lambda v: frozen.apply(v, IMAGES, train=True, rng=jax.random.key(0)))(variables)
    np.testing.assert_allclose(trained.logits, out.logits, rtol=1e-5, atol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, stats, variables["batch_stats"])


def test_bfloat16_keeps_parameters_logits_and_embedding_in_float32(tiny):
    network, variables, out = tiny
    half = models.create(network.name, 5, dtype=jnp.bfloat16, **TINY[network.name])
    shapes = jax.eval_shape(half.init, jax.random.key(0), IMAGES)
    assert shapes == jax.eval_shape(lambda: variables)
    reported = jax.jit(lambda v: half.apply(v, IMAGES, train=False)[0])(variables)
    assert (reported.logits.dtype, reported.embedding.dtype) == (jnp.float32, jnp.float32)
    assert {x.dtype for x in reported.features} == {jnp.dtype(jnp.bfloat16)}
    np.testing.assert_allclose(reported.logits, out.logits, atol=0.1)


def test_dropout_of_a_wide_network_is_for_training():
    network = models.create("wrn_16_1", 5, width=1 / 4, dropout=0.5)
    variables = jax.jit(network.init)(jax.random.key(0), IMAGES)
    for train in (True, False):
        apply = jax.jit(lambda key, train=train: network.apply(variables, IMAGES, train=train, rng=key)[0].logits)
        assert np.array_equal(apply(jax.random.key(0)), apply(jax.random.key(1))) is not train


@pytest.mark.parametrize(("size", "maps"), [(32, [32, 16, 8, 4, 4]), (64, [64, 32, 16, 8, 4])])
def test_vgg_pools_once_more_from_64_pixels_on(size, maps):
    network = models.create("vgg8", 5, width=1 / 16)
    images = jnp.zeros((1, size, size, 3))
    out = jax.eval_shape(lambda: network.apply(network.init(jax.random.key(0), images), images, train=False)[0])
    assert [x.shape[1] for x in out.features] == maps
