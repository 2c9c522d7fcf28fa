"""EfficientNets, MobileNets and RegNets against timm's, recorded by record_efficientnet.py."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from kd_jax import models, weights
from kd_jax.models import efficientnet, torch_names
from tests.models import fixed, parity

RECORDED = np.load(Path(__file__).parent / "efficientnet.npz")
SIZE = 72
COUNTS = {  # parameters and running statistics, of 1000 classes
    "mobilenetv2_100": (3_504_872, 34_112),
    "mobilenetv3_small_100": (2_542_856, 12_112),
    "mobilenetv3_large_100": (5_483_032, 24_400),
    "efficientnet_b0": (5_288_548, 42_016),
    "efficientnet_lite0": (4_652_008, 42_016),
    "efficientnet_lite1": (5_416_680, 53_664),
    "efficientnet_lite2": (6_092_072, 58_096),
    "tf_efficientnet_lite0": (4_652_008, 42_016),
    "tf_efficientnet_lite1": (5_416_680, 53_664),
    "tf_efficientnet_lite2": (6_092_072, 58_096),
    "regnety_002": (3_162_996, 20_848),
    "regnety_004": (4_344_144, 27_152),
    "regnety_008": (6_263_168, 29_888),
    "regnety_016": (11_202_430, 52_672),
    "regnety_032": (19_436_338, 66_160),
    "regnety_160": (83_590_140, 122_816),
}
QUICK = ("mobilenetv3_small_100", "tf_efficientnet_lite0", "regnety_002")  # the others take long to compile
PRECISE = ("regnety_016",)  # whose 17 blocks of one stage make 1e-4 of float32's rounding: it is compared in float64
NAMES = [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in COUNTS]


@pytest.fixture(params=NAMES)
def compared(request):
    """(what was recorded of a network, the network, its variables)."""
    name, precise = request.param, request.param in PRECISE
    with jax.enable_x64(precise):
        network = models.create(name, fixed.CLASSES, dtype=jnp.float64 if precise else jnp.float32)
        recorded = parity.Recorded(RECORDED, name)
        yield recorded, network, parity.variables_of(network, recorded, SIZE)


@pytest.mark.parametrize("name", COUNTS)
def test_it_has_as_many_parameters_and_statistics_as_timms(name):
    assert parity.parameters(models.create(name, 1000)) == COUNTS[name]


def test_logits_embedding_maps_and_preactivations_are_timms(compared):
    recorded, network, variables = compared
    out, _ = parity.outputs_of(network, variables, "evaluation", 1, SIZE, train=False)
    parity.close(out.logits, recorded["logits"])
    embedding = fixed.fingerprint("embedding", np.asarray(out.embedding, np.float64))
    parity.close(embedding, recorded["embedding"], scale=recorded["embedding"][1])
    parity.close_maps(out.features, recorded["maps"])
    parity.close_maps(out.preactivations, recorded["preactivations"])


def test_in_training_mode_logits_and_running_statistics_are_timms(compared):
    recorded, network, variables = compared
    rng = jax.random.key(0)
    out, stats = parity.outputs_of(network, variables, "training", fixed.BATCH, SIZE, train=True, rng=rng)
    parity.close(out.logits, recorded["training logits"])
    parity.close(parity.statistics(network, variables, stats, recorded), recorded["statistics"])


# One with each kind of a head and of squeezing, and one with groups.
TINY = {name: {"width": 1 / 8} for name in ("mobilenetv3_small_100", "efficientnet_lite0", "regnety_002")}
IMAGES = np.random.default_rng(0).normal(size=(2, 40, 40, 3)).astype(np.float32)


@pytest.fixture(scope="module", params=TINY)
def tiny(request):
    """A network of each kind, its variables, and what it reports."""
    network = models.create(request.param, 5, **TINY[request.param])
    variables = jax.jit(network.init)(jax.random.key(0), IMAGES)
    return network, variables, jax.jit(lambda v: network.apply(v, IMAGES, train=False)[0])(variables)


def test_each_map_halves_that_of_the_stage_before(tiny):
    _, _, out = tiny
    assert [x.shape[1] for x in out.features] == [20, 10, 5, 3, 2]
    assert [x.shape for x in out.features] == [x.shape for x in out.preactivations]
    assert [norm.scale.shape for norm in out.norms] == [x.shape[-1:] for x in out.features]


def test_float64_is_kept():
    network = models.create("mobilenetv3_small_100", 5, dtype=jnp.float64, **TINY["mobilenetv3_small_100"])
    with jax.enable_x64(True):
        out = jax.eval_shape(lambda: network.apply(network.init(jax.random.key(0), IMAGES), IMAGES, train=True)[0])
    assert {x.dtype for x in (out.logits, out.embedding, *out.features)} == {jnp.dtype(jnp.float64)}


@pytest.mark.parametrize("option", ["dropout", "drop_path"])
@pytest.mark.parametrize("name", ["mobilenetv3_small_100", "regnety_002"])
def test_what_is_dropped_is_for_training(name, option):
    network = models.create(name, 5, **{option: 0.9}, **TINY[name])
    variables = jax.jit(network.init)(jax.random.key(0), IMAGES)
    variables["params"] = jax.tree.map(lambda x: x + 0.1, variables["params"])  # no last norm of a block is zero
    for train in (True, False):
        apply = jax.jit(lambda key, train=train: network.apply(variables, IMAGES, train=train, rng=key)[0].logits)
        assert np.array_equal(apply(jax.random.key(0)), apply(jax.random.key(1))) is not train


def other_layout(name):
    """The keys of published EfficientNets-Lite, which count their blocks through all stages."""
    depths = [len(stage.expansions) for stage in efficientnet.FAMILY[name].stages]
    modules = ["_conv_stem", "_bn0", "_conv_head", "_bn1", "_fc"]
    for i in range(sum(depths)):
        own = ("_depthwise_conv", "_bn1", "_project_conv", "_bn2", *(("_expand_conv", "_bn0") if i else ()))
        modules += [f"_blocks.{i}.{module}" for module in own]
    leaves = {".weight": "_", ".bias": ("_fc", "_bn"), ".running_mean": "_bn", ".running_var": "_bn"}
    return [m + leaf for leaf, of in leaves.items() for m in modules if m.split(".")[-1].startswith(of)]


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "tf_efficientnet_lite2"])
def test_a_file_of_the_other_layout_is_loaded(name, tmp_path):
    network = models.create(name, 5, **TINY["efficientnet_lite0"])
    shapes = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    rng = np.random.default_rng(0)
    expected = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), shapes)
    theirs = {network.other_key(key): key for key in other_layout(name)}
    state = {theirs[key]: array for key, array in torch_names.to_state_dict(expected, network).items()}
    save_file({key: np.ascontiguousarray(array) for key, array in state.items()}, tmp_path / "model.safetensors")
    loaded = weights.load(tmp_path / "model.safetensors", shapes, network, strict=True)
    jax.tree.map(np.testing.assert_array_equal, dict(loaded.variables), dict(expected))


def test_keys_that_no_block_has_are_left_as_they_are():
    network = models.create("tf_efficientnet_lite0", 5)
    keys = ["_blocks.16._bn0.weight", "_blocks.3._se_reduce.weight", "_blocks.3.weight", "_swish"]  # blocks 0 to 15
    assert list(map(network.other_key, keys)) == keys


def test_timms_own_keys_are_no_other_layout():
    network = models.create("tf_efficientnet_lite0", 5)
    keys = ["conv_stem.weight", "blocks.1.0.bn3.running_var", "classifier.bias"]
    assert list(map(network.other_key, keys)) == keys


def test_a_head_of_few_classes_begins_with_small_logits():
    network = models.create("tf_efficientnet_lite0", 10, width=0.25)
    images = jnp.zeros((1, 32, 32, 3))
    kernel = jax.jit(network.init)(jax.random.key(0), images)["params"]["classifier"]["kernel"]
    assert np.abs(kernel).max() < 1 / np.sqrt(len(kernel))
