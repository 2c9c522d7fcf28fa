"""Grad-CAM against the PyTorch package grad-cam and a derivation in numpy; agreement of maps against their formulas."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax import gradcam, models
from kd_jax.errors import InputError
from kd_jax.models import torch_names
from kd_jax.types import Head, Network, Outputs
from tests.models import fixed

RECORDED = np.load(Path(__file__).parent / "gradcam.npz")  # by record_gradcam.py
STAGES = (-1, -2)
RNG = np.random.default_rng(0)
MAPS = np.maximum(RNG.standard_normal((6, 5, 7)), 0)
OTHERS = np.maximum(RNG.standard_normal((6, 5, 7)), 0)


@functools.cache
def resnet_maps(name):
    """{(variant, stage): maps} of a ResNet with the fixed weights."""
    network = models.create(name, fixed.CLASSES)
    shapes = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 96, 96, 3)))
    zeros = jax.tree.map(lambda x: np.broadcast_to(np.float32(0), x.shape), shapes)
    state_dict = {key: fixed.weight(key, x.shape) for key, x in torch_names.to_state_dict(zeros, network).items()}
    labels = RECORDED[f"{name} labels"]
    images = fixed.images("gradcam", len(labels), 96).astype(np.float32)

    def every(variables, images):
        call = functools.partial(gradcam.gradcam, network, variables, images, labels)
        return [call(variant=variant, stage=stage) for variant in gradcam.VARIANTS for stage in STAGES]

    maps = jax.jit(every, compiler_options={"xla_backend_optimization_level": 2})(
        torch_names.match(state_dict, shapes, network), images
    )
    return dict(zip([(v, s) for v in gradcam.VARIANTS for s in STAGES], maps, strict=True))


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("variant", gradcam.VARIANTS)
@pytest.mark.parametrize("name", ["resnet18", pytest.param("resnet50", marks=pytest.mark.slow)])
def test_maps_are_those_of_the_package_grad_cam(name, variant, stage):
    expected = RECORDED[f"{name} {variant} {stage}"]
    difference = np.asarray(resnet_maps(name)[variant, stage], np.float64) - expected
    error = np.linalg.norm(difference, axis=(1, 2)) / np.linalg.norm(expected, axis=(1, 2))
    assert error.max() < 1e-4


# A network small enough to be written out twice: two stages of 1x1 convolutions, the second on half of the pixels.
WEIGHTS = {name: RNG.standard_normal(shape) for name, shape in {"a": (3, 4), "b": (4, 5), "c": (5, 6)}.items()}
IMAGES = RNG.standard_normal((3, 6, 4, 3))
LABELS = np.array([1, 4, 4])


def tiny_apply(variables, images, *, train=False, rng=None, perturbations=None):
    del train, rng
    first, second = perturbations or (None, None)
    w = variables["params"]
    low = jax.nn.relu(images @ w["a"])
    low = low if first is None else low + first
    high = jax.nn.relu(low[:, ::2] @ w["b"])
    high = high if second is None else high + second
    pooled = high.mean((1, 2))
    return Outputs(pooled @ w["c"], (low, high), (low, high), pooled, pooled, Head(w["c"], 0.0), ()), {}


TINY = Network(init=lambda rng, images: {"params": WEIGHTS}, apply=tiny_apply)


def numpy_logit(maps, stage, label):
    """The label's logit from one image's map of a stage, [h, w, c]."""
    high = np.maximum(maps[::2] @ WEIGHTS["b"], 0) if stage == 0 else maps
    return high.mean((0, 1)) @ WEIGHTS["c"][:, label]


def numpy_gradcam(image, label, stage, variant, step=1e-5):
    """The definition, with the gradient by finite differences."""
    maps = np.maximum(image @ WEIGHTS["a"], 0)
    maps = np.maximum(maps[::2] @ WEIGHTS["b"], 0) if stage == 1 else maps
    gradient = np.zeros_like(maps)
    for place in np.ndindex(maps.shape):
        moved = np.zeros_like(maps)
        moved[place] = step
        ends = numpy_logit(maps + moved, stage, label), numpy_logit(maps - moved, stage, label)
        gradient[place] = (ends[0] - ends[1]) / (2 * step)
    result = np.zeros(maps.shape[:2])
    for c in range(maps.shape[-1]):
        g, a = gradient[..., c], maps[..., c]
        alpha = np.zeros_like(g)
        moves = np.abs(g) > 1e-8
        alpha[moves] = g[moves] ** 2 / (2 * g[moves] ** 2 + a.sum() * g[moves] ** 3 + 1e-6)
        weight = g.mean() if variant == "gradcam" else (alpha * np.maximum(g, 0)).sum()
        result += weight * a
    return np.maximum(result, 0)


def eager_maps(weights, **options):
    return gradcam.gradcam(TINY, {"params": weights}, jnp.asarray(IMAGES), jnp.asarray(LABELS), **options)


def tiny_maps(weights, **options):
    return jax.jit(functools.partial(eager_maps, **options))(weights)


@pytest.mark.parametrize("stage", [0, 1])
@pytest.mark.parametrize("variant", gradcam.VARIANTS)
def test_maps_follow_the_papers_equations(variant, stage):
    with jax.enable_x64(True):
        maps = tiny_maps(WEIGHTS, stage=stage, variant=variant)
    expected = np.stack([numpy_gradcam(x, y, stage, variant) for x, y in zip(IMAGES, LABELS, strict=True)])
    assert expected.max() > 0.01
    np.testing.assert_allclose(maps, expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("variant", gradcam.VARIANTS)
def test_a_loss_on_the_maps_has_the_gradient_of_finite_differences(variant):
    @jax.jit
    def loss(weights):
        return jnp.square(tiny_maps(weights, stage=0, variant=variant)).sum()

    with jax.enable_x64(True):
        weights = jax.tree.map(jnp.asarray, WEIGHTS)
        gradient = jax.jit(jax.grad(loss))(weights)
        along = {name: RNG.standard_normal(x.shape) for name, x in WEIGHTS.items()}
        ends = [float(loss({n: WEIGHTS[n] + s * along[n] for n in WEIGHTS})) for s in (1e-6, -1e-6)]
        slope = sum(float((gradient[n] * along[n]).sum()) for n in WEIGHTS)
    assert slope == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-5)


@functools.cache
def small():
    """A ResNet-8 with two channels, its variables, and images."""
    network = models.create("resnet8", 4, width=1 / 8)
    images = jnp.asarray(RNG.standard_normal((3, 8, 8, 1)), jnp.float32)
    return network, jax.jit(network.init)(jax.random.key(0), images), images, jnp.array([0, 1, 3])


@pytest.mark.parametrize("variant", gradcam.VARIANTS)
def test_a_residual_networks_parameters_have_a_finite_nonzero_gradient(variant):
    network, variables, images, labels = small()

    @jax.jit
    @jax.grad
    def gradient(params):
        maps = gradcam.gradcam(network, {**variables, "params": params}, images, labels, stage=1, variant=variant)
        return (1 - gradcam.cosine(maps, jnp.ones_like(maps))).sum()

    leaves = jax.tree.leaves(gradient(variables["params"]))
    assert all(np.isfinite(x).all() for x in leaves)
    assert max(np.abs(x).max() for x in leaves) > 1e-4


@pytest.mark.parametrize("variant", gradcam.VARIANTS)
def test_where_no_gradient_arrives_the_map_is_zero(variant):
    assert not np.asarray(tiny_maps({**WEIGHTS, "c": 0 * WEIGHTS["c"]}, variant=variant)).any()


@pytest.mark.parametrize("variant", gradcam.VARIANTS)
def test_where_no_gradient_arrives_the_map_has_a_finite_gradient(variant):
    weights = {**WEIGHTS, "c": 0 * WEIGHTS["c"]}
    gradient = jax.jit(jax.grad(lambda w: tiny_maps(w, variant=variant).sum()))(jax.tree.map(jnp.asarray, weights))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(gradient))


def test_maps_that_are_negative_give_finite_values():
    def apply(variables, images, **options):
        _, high = options.get("perturbations") or (None, None)
        x = images if high is None else images + high
        return Outputs(x.sum((1, 2)) @ variables["w"], (images, x), (), None, None, None, ()), {}

    images = jnp.full((1, 2, 2, 1), -1.0)  # the sum times the gradient is -2: the paper's denominator is zero
    network = Network(lambda rng, images: {}, apply)
    call = jax.jit(functools.partial(gradcam.gradcam, network, variant="gradcam++"))
    assert np.isfinite(call({"w": jnp.array([[0.5]])}, images, jnp.array([0]))).all()


@pytest.mark.parametrize("variant", gradcam.VARIANTS)
def test_jit_changes_nothing(variant):
    maps, compiled = (call(WEIGHTS, stage=0, variant=variant) for call in (eager_maps, tiny_maps))
    np.testing.assert_allclose(compiled, maps, rtol=1e-5, atol=1e-6 * float(maps.max()))


@pytest.mark.parametrize("variant", gradcam.VARIANTS)
def test_no_image_influences_the_map_of_another(variant):
    network, variables, images, labels = small()
    call = jax.jit(functools.partial(gradcam.gradcam, network, stage=-2, variant=variant))
    together = call(variables, images, labels)
    images, labels = np.array(images), np.array(labels)
    images[1:], labels[1:] = 9.0, 2
    other = call(variables, images, labels)
    np.testing.assert_array_equal(other[0], together[0])


def test_an_image_alone_has_the_map_that_it_has_in_a_batch():
    network, variables, images, labels = small()
    call = jax.jit(functools.partial(gradcam.gradcam, network, stage=-2))
    together = call(variables, images, labels)
    images, labels, together = (np.asarray(x) for x in (images, labels, together))
    alone = np.concatenate([call(variables, images[i : i + 1], labels[i : i + 1]) for i in range(3)])
    np.testing.assert_allclose(alone, together, rtol=1e-5, atol=1e-6 * together.max())


def test_the_outputs_beside_the_maps_are_the_networks_own():
    network, variables, images, labels = small()
    outputs = jax.jit(functools.partial(gradcam.gradcam_and_outputs, network))(variables, images, labels)[1]
    own = jax.jit(lambda v, x: network.apply(v, x, train=False)[0])(variables, images)
    np.testing.assert_allclose(outputs.logits, own.logits, rtol=1e-6)


def test_maps_of_a_network_in_half_precision_are_float32():
    _, variables, images, labels = small()
    network = models.create("resnet8", 4, width=1 / 8, dtype=jnp.bfloat16)
    assert jax.eval_shape(functools.partial(gradcam.gradcam, network), variables, images, labels).dtype == jnp.float32


def test_a_stage_may_be_a_number_of_numpy():
    network, variables, images, labels = small()
    call = functools.partial(gradcam.gradcam, network)
    shapes = [
        jax.eval_shape(functools.partial(call, stage=s), variables, images, labels).shape for s in (1, np.int64(1))
    ]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("stage", [4, -5, 1.5])
def test_an_unknown_stage_is_refused_with_those_there_are(stage):
    network, variables, images, labels = small()
    with pytest.raises(InputError, match=f"stage is {stage}; expected 0 .the stem. to 3, or -4 to -1 .the last."):
        gradcam.gradcam(network, variables, images, labels, stage=stage)


def test_a_network_without_maps_is_refused():
    network, variables, images, labels = small()
    mute = network._replace(apply=lambda *a, **options: (network.apply(*a, **options)[0]._replace(features=()), None))
    with pytest.raises(InputError, match="the network reports no feature maps; expected one that does"):
        gradcam.gradcam(mute, variables, images, labels)


def test_an_unknown_variant_is_refused_with_those_there_are():
    network, variables, images, labels = small()
    with pytest.raises(InputError, match=r"variant is 'gradcam\+'; expected one of: gradcam, gradcam\+\+"):
        gradcam.gradcam(network, variables, images, labels, variant="gradcam+")


def test_a_network_that_ignores_perturbations_is_refused():
    network, variables, images, labels = small()
    deaf = network._replace(apply=lambda *a, perturbations=None, **options: network.apply(*a, **options))
    with pytest.raises(InputError, match="the network ignores `perturbations`"):
        gradcam.gradcam(deaf, variables, images, labels)


def test_normalize_and_upsample_give_what_the_package_makes_of_a_map():
    maps = RECORDED["resnet18 gradcam -2"]
    scaled = jax.jit(lambda x: gradcam.upsample(gradcam.normalize(x), (7, 12)))(maps)
    np.testing.assert_allclose(scaled, RECORDED["scaled"], atol=1e-5)


def test_upsample_takes_one_number_for_a_square():
    assert jax.eval_shape(lambda x: gradcam.upsample(x, 9), jnp.asarray(MAPS, jnp.float32)).shape == (6, 9, 9)


def test_a_constant_map_is_normalized_to_zeros():
    assert not np.any(jax.jit(gradcam.normalize)(np.full((1, 2, 2), 3, np.float32)))


def numpy_cosine(a, b):
    return (a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum())


def numpy_iou(a, b):
    tops = [set(np.argsort(x.ravel())[-7:]) for x in (a, b)]  # a fifth of the 35 pixels
    return len(tops[0] & tops[1]) / len(tops[0] | tops[1])


def numpy_center(x):
    return sum(x[p] * np.array(p) for p in np.ndindex(x.shape)) / x.sum()


@pytest.mark.parametrize(
    ("name", "formula"),
    [
        ("cosine", numpy_cosine),
        ("pearson", lambda a, b: np.corrcoef(a.ravel(), b.ravel())[0, 1]),
        ("iou", numpy_iou),
        ("center_distance", lambda a, b: np.linalg.norm(numpy_center(a) - numpy_center(b))),
    ],
)
def test_an_agreement_follows_its_formula(name, formula):
    expected = [formula(a, b) for a, b in zip(MAPS, OTHERS, strict=True)]
    got = jax.jit(gradcam.AGREEMENT[name])(MAPS, OTHERS)
    np.testing.assert_allclose(got, expected, rtol=1e-5)


ZERO = np.zeros((1, 4, 4), np.float32)
CORNER = np.where(np.arange(16).reshape(1, 4, 4) == 0, np.float32(2), ZERO)
CONSTANT = np.full((1, 4, 4), 0.1, np.float32)


@pytest.mark.parametrize(
    ("name", "a", "b", "expected"),
    [
        ("cosine", CORNER, CORNER * 1e-30, 1.0),  # whose square is zero in float32
        ("cosine", CORNER, ZERO, 0.0),
        ("cosine", ZERO, ZERO, 0.0),
        ("pearson", CORNER, CORNER + 1, 1.0),
        ("pearson", CORNER, CONSTANT, 0.0),
        ("pearson", CONSTANT, CONSTANT, 0.0),
        ("iou", CORNER, CORNER, 1.0),
        ("iou", CORNER, ZERO, 0.0),
        ("iou", ZERO, ZERO, 0.0),
        ("iou", CORNER, CONSTANT, 1 / 16),  # equal values count together
        ("center_distance", CORNER, CORNER, 0.0),
        ("center_distance", CORNER, ZERO, 1.5 * np.sqrt(2)),
        ("center_distance", CONSTANT, ZERO, 0.0),
    ],
)
def test_agreement_of_zero_and_constant_maps_is_as_documented(name, a, b, expected):
    np.testing.assert_allclose(jax.jit(gradcam.AGREEMENT[name])(a, b), [expected], atol=1e-6)


def test_a_constant_map_stays_one_when_it_is_enlarged():
    enlarged = jax.jit(lambda x: gradcam.upsample(x, 8))(np.full((1, 3, 3), 0.1, np.float32))
    assert np.ptp(enlarged) != 0  # rounding
    assert jax.jit(gradcam.pearson)(enlarged, RNG.random((1, 8, 8))) == 0


@pytest.mark.parametrize("maps", [ZERO, CONSTANT, CORNER], ids=["zero", "constant", "corner"])
@pytest.mark.parametrize("name", ["cosine", "pearson", "center_distance"])
def test_agreement_of_degenerate_maps_has_a_finite_gradient(name, maps):
    gradient = jax.jit(jax.grad(lambda a: gradcam.AGREEMENT[name](a, maps).sum()))(maps)
    assert np.isfinite(gradient).all()
