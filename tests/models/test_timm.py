"""ConvNeXts, ViTs and DeiTs against timm's, recorded by record_timm.py, and what is their own."""

from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import save_file

from kd_jax import gradcam, methods, models, weights
from kd_jax.errors import InputError
from kd_jax.models import convnext, torch_names
from kd_jax.types import Batch, Context, Outputs, View
from tests.models import fixed, parity

RECORDED = np.load(Path(__file__).parent / "timm.npz")
SIZE = 224
SIZES = ("tiny", "small", "base")
COUNTS = {  # parameters of 1000 classes
    "convnext_atto": 3_695_520,
    "convnext_tiny": 28_589_128,
    **dict(zip((f"vit_{size}_patch16_224" for size in SIZES), (5_717_416, 22_050_664, 86_567_656), strict=True)),
    **dict(zip((f"deit_{size}_patch16_224" for size in SIZES), (5_717_416, 22_050_664, 86_567_656), strict=True)),
    **dict(
        zip((f"deit_{size}_distilled_patch16_224" for size in SIZES), (5_910_800, 22_436_432, 87_338_192), strict=True)
    ),
}
QUICK = ("convnext_atto", "vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224")
NAMES = [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in COUNTS]


def torch_shapes(shapes, network):
    """{PyTorch's key: the shape of its array}."""
    leaves = flatten_dict(dict(shapes))
    return {
        key: torch_names.torch_shape(path, leaves[path].shape)
        for path, key in torch_names.keys(shapes, network).items()
    }


@pytest.mark.parametrize("classes", [1000, fixed.CLASSES])
@pytest.mark.parametrize("index", range(len(COUNTS)), ids=COUNTS)
def test_it_has_as_many_parameters_as_timms(index, classes):
    name = list(COUNTS)[index]
    count, statistics = parity.parameters(models.create(name, classes), SIZE)
    assert (count, statistics) == (RECORDED["counts"][index][int(classes == fixed.CLASSES)], 0)
    assert classes != 1000 or count == COUNTS[name]


@pytest.mark.parametrize("name", NAMES)
def test_logits_embedding_and_maps_are_timms(name):
    recorded, network = parity.Recorded(RECORDED, name), models.create(name, fixed.CLASSES)
    variables = parity.variables_of(network, recorded, SIZE)
    out, _ = parity.outputs_of(network, variables, "evaluation", 1, SIZE, train=False)
    parity.close(out.logits, recorded["logits"])
    parity.close(out.embedding, recorded["embedding"])
    parity.close_maps(out.features, recorded["maps"])


# Without a distillation token, and without stochastic depth, the program is that of inference.
@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n == QUICK[-1] else pytest.mark.slow) for n in COUNTS])
def test_in_training_mode_the_logits_of_every_head_are_timms(name):
    recorded, network = parity.Recorded(RECORDED, name), models.create(name, fixed.CLASSES)
    variables = parity.variables_of(network, recorded, SIZE)
    out, _ = parity.outputs_of(network, variables, "training", fixed.BATCH, SIZE, train=True, rng=jax.random.key(0))
    heads = [out.logits, *([out.members["dist"].logits] if out.members else [])]
    parity.close(np.stack(heads), recorded["training logits"])


def test_a_convnext_of_images_that_no_stride_divides_is_timms():
    recorded, network = parity.Recorded(RECORDED, "convnext_atto"), models.create("convnext_atto", fixed.CLASSES)
    variables = parity.variables_of(network, recorded, 75)
    out, _ = parity.outputs_of(network, variables, "evaluation", 1, 75, train=False)
    assert [x.shape[1:3] for x in out.features] == [(n, n) for n in (18, 18, 9, 4, 2)]
    parity.close(out.logits, recorded["logits 75"])


def test_a_vit_of_small_images_and_patches_is_timms():
    name = "vit_tiny_patch16_224"
    recorded, network = parity.Recorded(RECORDED, name), models.create(name, fixed.CLASSES, patch=4)
    shapes = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    assert recorded["positions 32"].tolist() == [1, 65, 192] == list(shapes["params"]["pos_embed"].shape)
    out, _ = parity.outputs_of(network, drawn(network), "evaluation", 1, 32, train=False)
    parity.close(out.logits, recorded["logits 32"])


@pytest.mark.parametrize("name", COUNTS)
def test_its_weights_carry_timms_keys_and_shapes(name):
    recorded, network = parity.Recorded(RECORDED, name), models.create(name, fixed.CLASSES)
    shapes = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, SIZE, SIZE, 3)))
    found = {key: [*shape, *(0,) * (4 - len(shape))] for key, shape in torch_shapes(shapes, network).items()}
    assert found == dict(zip(recorded["keys"].tolist(), recorded["shapes"].tolist(), strict=True))


def test_how_images_were_prepared_is_that_of_the_published_weights():
    published = {name: models.create(name, 5).published for name in COUNTS}
    assert {name: (p.crop, p.mean[0], p.std[0]) for name, p in published.items() if name in QUICK} == {
        "convnext_atto": (0.875, 0.485, 0.229),
        "vit_tiny_patch16_224": (0.9, 0.5, 0.5),
        "deit_tiny_distilled_patch16_224": (0.9, 0.485, 0.229),
    }
    assert {(p.size, p.interpolation) for p in published.values()} == {(224, "bicubic")}


TRANSFORMER = {"width": 1 / 12, "depth": 5, "patch": 8}
TINY = {
    "convnext_atto": {"width": 1 / 10},
    "convnext_tiny": {"width": 1 / 24},
    "vit_tiny_patch16_224": TRANSFORMER,
    "deit_tiny_distilled_patch16_224": TRANSFORMER,
}
DISTILLED = "deit_tiny_distilled_patch16_224"
IMAGES = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)


def create(name, **options):
    """A small network; of a ConvNeXt with fewer blocks, which compile for long."""
    short = {key: ((1, 1, 2, 1), *others) for key, (_, *others) in convnext.FAMILY.items()}
    with mock.patch.dict(convnext.FAMILY, short):
        return models.create(name, 5, **TINY[name] | options)


def drawn(network, images=IMAGES):
    """Variables far from those of the start, at which blocks of a ConvNeXt add next to nothing."""
    shapes = jax.eval_shape(network.init, jax.random.key(0), images)
    state = {key: np.float32(fixed.weight(key, shape)) for key, shape in torch_shapes(shapes, network).items()}
    return torch_names.match(state, shapes, network)


@pytest.fixture(scope="module", params=TINY)
def tiny(request):
    """A network of each kind, its variables, and what it reports."""
    network = create(request.param)
    variables = drawn(network)
    return network, variables, parity.jit(lambda v: network.apply(v, IMAGES, train=False)[0])(variables)


def test_logits_are_the_head_of_the_embedding(tiny):
    network, variables, out = tiny
    if network.name == DISTILLED:
        assert out.head is None  # the logits are the mean of two
    heads = out.members.values() if out.members else [out]
    for one, name in zip(heads, reversed(network.head), strict=True):
        embedding, kernel = np.asarray(one.embedding, np.float64), np.asarray(one.head.kernel, np.float64)
        np.testing.assert_allclose(one.logits, embedding @ kernel + one.head.bias, rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(one.head.kernel, variables["params"][name]["kernel"])


def test_pooled_is_the_average_of_the_last_map(tiny):
    _, _, out = tiny
    assert len(out.features) == 5
    np.testing.assert_allclose(out.pooled, np.asarray(out.features[-1], np.float64).mean((1, 2)), rtol=1e-4, atol=1e-5)


def test_every_map_moves_the_logits(tiny):
    network, variables, out = tiny
    zeros = tuple(jnp.zeros_like(x) for x in out.features)

    @parity.jit
    def gradients(perturbations):
        def loss(p):
            return network.apply(variables, IMAGES, train=False, perturbations=p)[0].logits[:, 0].sum()

        return jax.grad(loss)(perturbations)

    assert all(np.abs(g).max(-1).min() > 0 for g in gradients(zeros))


def test_a_perturbation_is_added_to_the_map_that_is_reported(tiny):
    network, variables, out = tiny
    one = jnp.zeros_like(out.features[-1]).at[..., 0].set(1)  # a layer norm takes away what all channels share
    added = (*(None for _ in out.features[1:]), one)
    moved = parity.jit(lambda v: network.apply(v, IMAGES, train=False, perturbations=added)[0])(variables)
    np.testing.assert_allclose(moved.features[-1], out.features[-1] + one, rtol=1e-4, atol=1e-4)
    assert np.abs(moved.logits - out.logits).max() > 1e-3


def test_bfloat16_keeps_parameters_logits_and_embedding_in_float32(tiny):
    network, variables, out = tiny
    half = create(network.name, dtype=jnp.bfloat16)
    shapes = jax.eval_shape(half.init, jax.random.key(0), IMAGES)
    assert shapes == jax.eval_shape(lambda: variables)
    reported = parity.jit(lambda v: half.apply(v, IMAGES, train=False)[0])(variables)
    assert (reported.logits.dtype, reported.embedding.dtype) == (jnp.float32, jnp.float32)
    assert {x.dtype for x in reported.features} == {jnp.dtype(jnp.bfloat16)}
    np.testing.assert_allclose(reported.logits, out.logits, atol=0.05 * np.abs(out.logits).max())


def test_in_float64_everything_is_float64(tiny):
    with jax.enable_x64(True):
        network = create(tiny[0].name, dtype=jnp.float64)
        images = IMAGES.astype(np.float64)
        shapes = jax.eval_shape(network.init, jax.random.key(0), images)
        out = jax.eval_shape(lambda v: network.apply(v, images, train=False)[0], shapes)
    assert {x.dtype for x in jax.tree.leaves((shapes, out))} == {np.dtype(np.float64)}


@pytest.mark.parametrize("name", ["convnext_atto", "vit_tiny_patch16_224"])
@pytest.mark.parametrize(
    ("options", "draws"),
    [({}, False), ({"drop_path": 0.9}, True), ({"drop_path": 0.9, "frozen_backbone": True}, False)],
)
def test_stochastic_depth_is_for_training_a_backbone(name, options, draws):
    network = create(name, **options)
    variables = drawn(network)
    apply = parity.jit(lambda v, key: network.apply(v, IMAGES, train=True, rng=key)[0].logits)
    assert np.array_equal(*(apply(variables, jax.random.key(i)) for i in range(2))) is not draws


def test_a_network_starts_as_timms_does():
    network = create("vit_tiny_patch16_224", width=1, depth=5)
    params = jax.jit(network.init)(jax.random.key(0), IMAGES)["params"]
    for x in (params["blocks_0"]["attn"]["qkv"]["kernel"], params["head"]["kernel"], params["pos_embed"]):
        np.testing.assert_allclose(np.std(x), 0.02, rtol=0.1)
    assert not np.any(params["blocks_0"]["attn"]["qkv"]["bias"])
    assert np.abs(params["cls_token"]).max() < 1e-5
    assert np.abs(params["patch_embed_proj"]["kernel"]).max() <= 1 / np.sqrt(3 * 8 * 8)


def test_a_convnext_starts_as_timms_does():
    network = models.create("convnext_atto", 5, width=1 / 2)
    params = jax.jit(network.init)(jax.random.key(0), IMAGES)["params"]
    for name in ("stages_1_downsample_1", "stem_0", "head_fc"):
        np.testing.assert_allclose(np.std(params[name]["kernel"]), 0.02, rtol=0.15)
        assert not np.any(params[name]["bias"])
    np.testing.assert_allclose(params["stages_0_blocks_0"]["gamma"], 1e-6)


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("vit_tiny_patch16_224", 36, "the images have 36x36 pixels; expected multiples of model.patch, which is 8"),
        ("convnext_atto", 31, "the images have 31x31 pixels; expected 32x32 at least"),
    ],
)
def test_images_of_a_size_that_it_cannot_take_are_refused(name, size, message):
    with pytest.raises(InputError, match=message):
        jax.eval_shape(create(name).init, jax.random.key(0), jnp.zeros((1, size, size, 3)))


def test_a_width_that_the_heads_do_not_divide_is_refused():
    with pytest.raises(
        InputError, match=r"model.width is 0.705, for 135 channels; expected a number that 2 heads divide"
    ):
        models.create("vit_tiny_patch16_224", 5, width=0.705)


def test_too_few_blocks_for_four_maps_are_refused():
    with pytest.raises(InputError, match=r"model.depth is 4; expected a whole number from 5 to 1000"):
        models.create("vit_tiny_patch16_224", 5, depth=4)


def test_positions_of_images_of_another_size_are_refused():
    network = create("vit_tiny_patch16_224")
    shapes = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 48, 48, 3)))
    state = torch_names.to_state_dict(drawn(network), network)
    with pytest.raises(InputError, match=r"pos_embed is \(1, 17, 16\), not \(1, 37, 16\)"):
        torch_names.match(state, shapes, network)


def test_the_weights_of_a_distilled_network_start_one_of_other_classes(tmp_path):
    network, other = create(DISTILLED), models.create(DISTILLED, 7, **TRANSFORMER)
    save_file(torch_names.to_state_dict(drawn(network), network), tmp_path / "weights.safetensors")
    shapes = jax.eval_shape(other.init, jax.random.key(0), IMAGES)
    loaded = weights.load(str(tmp_path / "weights.safetensors"), shapes, other)
    assert not loaded.head
    assert shapes["params"].keys() - loaded.variables["params"].keys() == {"head", "head_dist"}
    assert loaded.variables["batch_stats"] == {}


def test_weights_make_the_round_trip_bit_for_bit(tiny):
    network, variables, _ = tiny
    state = torch_names.to_state_dict(variables, network)
    assert {key: x.ndim for key, x in state.items() if key.endswith("fc1.weight")} == {
        key: 4 if network.name == "convnext_atto" else 2 for key in state if key.endswith("fc1.weight")
    }
    back = torch_names.match(state, variables, network)
    assert jax.tree.structure(back) == jax.tree.structure(variables)
    jax.tree.map(np.testing.assert_array_equal, back, variables)


def test_grad_cam_explains_a_transformer_by_its_last_map():
    network = create("vit_tiny_patch16_224")
    labels = jnp.array([0, 1])
    maps = parity.jit(lambda v: gradcam.gradcam(network, v, IMAGES, labels))(drawn(network))
    assert maps.shape == (2, 4, 4)
    assert maps.max() > 0


@pytest.fixture(scope="module")
def hard():
    """(DeiT's hard distillation, a network with a token for it, its variables, their two terms)."""
    network = create(DISTILLED)
    method = methods.create({"cross_entropy": {}, "deit": {}})
    variables = drawn(network)
    labels, teacher = jnp.array([0, 1]), jnp.eye(5)[jnp.array([2, 3])]
    batch = Batch(IMAGES, labels, jax.nn.one_hot(labels, 5), jnp.arange(2), jnp.zeros(2, jnp.int32))

    def terms(variables, train):
        outputs, _ = network.apply(variables, IMAGES, train=train)
        context = Context((View(batch, outputs, Outputs(teacher)),), rng=jax.random.key(0))
        own = method.init(jax.random.key(0), context)
        return method.apply(own, context)[0], own.params, method.predict(own, outputs), outputs

    return method, variables, terms


def test_deit_teaches_the_heads_of_a_network_with_a_distillation_token(hard):
    _, variables, terms = hard
    found, params, _, out = parity.jit(lambda v: terms(v, True))(variables)
    of_class, of_dist = (np.asarray(jax.nn.log_softmax(out.members[token].logits)) for token in ("class", "dist"))
    np.testing.assert_allclose(found["cross_entropy"], -of_class[[0, 1], [0, 1]].mean(), rtol=1e-5)
    np.testing.assert_allclose(found["deit"], -of_dist[[0, 1], [2, 3]].mean(), rtol=1e-5)
    assert not jax.tree.leaves(params)  # it needs no head of its own


@pytest.mark.parametrize("train", [True, False])
def test_deit_predicts_the_mean_of_the_networks_two_heads(hard, train):
    _, variables, terms = hard
    _, _, predicted, out = parity.jit(lambda v: terms(v, train))(variables)
    expected = 0.5 * (out.members["class"].logits + out.members["dist"].logits)
    np.testing.assert_allclose(predicted, expected, rtol=1e-5, atol=1e-6)
    own = expected if not train else out.members["class"].logits
    np.testing.assert_allclose(out.logits, own, rtol=1e-5, atol=1e-6)
