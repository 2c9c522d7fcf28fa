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
    "resnet8": (83_892, 672),
    "resnet14": (181_108, 1_120),
    "resnet20": (278_324, 1_568),
    "resnet32": (472_756, 2_464),
    "resnet44": (667_188, 3_360),
    "resnet56": (861_620, 4_256),
    "resnet110": (1_736_564, 8_288),
    "resnet8x4": (1_233_540, 2_752),
    "resnet32x4": (7_433_860, 9_920),
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
# Of the others the recorded shapes of all weights are compared.
ALL = (*COUNTS, "wrn_16_8", "wrn_28_10", "wrn_40_4")
# The others are deeper or wider than one of these, and no otherwise: they take long to compile.
QUICK = (
    *("resnet8x4", "resnet20", "wrn_16_1", "wrn_16_2", "vgg8", "vgg11"),
    *("mobilenetv2_half", "shufflenetv1", "shufflenetv2", "mobilenetv1"),
)
NAMES = [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in ALL]


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


IMAGES = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)


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
