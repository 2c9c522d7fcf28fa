"""What every network reports, and what `create` refuses."""

import warnings

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax import models
from kd_jax.errors import InputError

IMAGES = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)


def build(name="resnet8", **options):
    """A small network, its variables and a function that applies it."""
    network = models.create(name, 5, **{"width": 1 / 4} | options)
    variables = jax.jit(network.init)(jax.random.key(0), IMAGES)
    return network, variables


def outputs(network, variables, **options):
    return jax.jit(lambda v, x: network.apply(v, x, **{"train": False} | options)[0])(variables, IMAGES)


@pytest.fixture(scope="module")
def small():
    network, variables = build()
    return network, variables, outputs(network, variables)


def test_a_network_reports_a_map_per_stage(small):
    _, _, out = small
    shapes = [(2, 8, 8, 4), (2, 8, 8, 4), (2, 4, 4, 8), (2, 2, 2, 16)]
    assert [x.shape for x in out.features] == shapes
    assert [x.shape for x in out.preactivations] == shapes
    assert [norm.scale.shape for norm in out.norms] == [(shape[-1],) for shape in shapes]


def test_features_are_the_rectified_preactivations(small):
    for feature, preactivation in zip(small[2].features, small[2].preactivations, strict=True):
        np.testing.assert_array_equal(feature, np.maximum(preactivation, 0))


def test_logits_are_the_head_of_the_pooled_last_map(small):
    _, _, out = small
    pooled = np.asarray(out.features[-1], np.float64).mean((1, 2))
    np.testing.assert_allclose(out.pooled, pooled, rtol=1e-5)
    np.testing.assert_array_equal(out.pooled, out.embedding)
    np.testing.assert_allclose(out.logits, pooled @ np.asarray(out.head.kernel, np.float64) + out.head.bias, rtol=1e-4)


def test_the_imagenet_stem_reports_its_map_after_pooling_and_before():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network, variables = build("resnet18", width=1 / 16)
        out = outputs(network, variables)
    assert (out.preactivations[0].shape, out.features[0].shape) == ((2, 4, 4, 4), (2, 2, 2, 4))
    assert [x.shape[1] for x in out.features] == [2, 2, 1, 1, 1]


def test_the_mlp_head_is_a_thousand_wide_with_dropout_in_training_only():
    network, variables = build(head="mlp")
    assert outputs(network, variables).embedding.shape == (2, 1000)
    first, second = (outputs(network, variables, train=True, rng=jax.random.key(i)).logits for i in (0, 1))
    assert not np.array_equal(first, second)
    first, second = (outputs(network, variables, rng=jax.random.key(i)).logits for i in (0, 1))
    np.testing.assert_array_equal(first, second)


def test_a_perturbation_is_added_to_what_the_next_stage_reads(small):
    network, variables, out = small
    zero = [None, None, None, jnp.zeros_like(out.features[-1])]

    def logit(perturbation):
        return (
            network.apply(variables, IMAGES, train=False, perturbations=[*zero[:3], perturbation])[0].logits[:, 2].sum()
        )

    gradient = jax.jit(jax.grad(logit))(zero[3])
    expected = np.broadcast_to(np.asarray(out.head.kernel)[:, 2] / 4, gradient.shape)  # a mean over 2x2 positions
    np.testing.assert_allclose(gradient, expected, rtol=1e-5)


def test_a_frozen_backbone_keeps_its_statistics_and_the_heads_move():
    network, variables = build(head="mlp", frozen_backbone=True)
    _, stats = jax.jit(lambda v: network.apply(v, IMAGES, train=True, rng=jax.random.key(0)))(variables)
    before = variables["batch_stats"]
    assert all(np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (stats["bn1"], before["bn1"])), strict=True))
    assert not np.array_equal(stats["mlp"]["bn"]["mean"], before["mlp"]["bn"]["mean"])


@pytest.fixture(scope="module")
def bfloat16():
    network, variables = build(dtype=jnp.bfloat16)
    return variables, outputs(network, variables)


def test_bfloat16_keeps_parameters_logits_and_embedding_in_float32(bfloat16):
    variables, out = bfloat16
    assert {x.dtype for x in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}
    assert (out.logits.dtype, out.embedding.dtype, out.features[0].dtype) == (jnp.float32, jnp.float32, jnp.bfloat16)


def test_bfloat16_stays_close_to_float32(small, bfloat16):
    np.testing.assert_allclose(bfloat16[1].logits, small[2].logits, atol=0.05)


@pytest.mark.parametrize(("stem", "size", "advice"), [("imagenet", 32, "cifar"), ("cifar", 128, "imagenet")])
def test_a_stem_that_does_not_suit_the_size_warns_with_the_better_one(stem, size, advice):
    network = models.create("resnet18", 10, stem=stem)
    with pytest.warns(UserWarning, match=f'use stem="{advice}"'):
        jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, size, size, 3)))


@pytest.mark.parametrize(("stem", "size"), [("imagenet", 64), ("imagenet", 224), ("cifar", 32), ("cifar", 96)])
def test_a_stem_that_suits_the_size_does_not_warn(stem, size):
    jax.eval_shape(models.create("resnet18", 10, stem=stem).init, jax.random.key(0), jnp.zeros((1, size, size, 3)))


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("resnet19", {}, "is 'resnet19'; expected one of: convnext_atto, .*, resnet101, .*; did you mean 'resnet1"),
        ("resnet18", {"stem": "image"}, "model.stem is 'image'; expected one of: cifar, imagenet"),
        ("resnet18", {"head": "conv"}, "model.head is 'conv'; expected one of: linear, mlp"),
        ("resnet20", {"shortcut": "none"}, "model.shortcut is 'none'; expected one of: conv, pad"),
        ("resnet20", {"width": -1.0}, "model.width is -1.0; expected a factor above 0"),
        ("resnet20", {"width": "wide"}, "model.width is 'wide'; expected a factor above 0"),
        ("resnet20", {"widht": 0.5}, "an option of model resnet20 is 'widht'; .*; did you mean 'width'"),
    ],
)
def test_a_wrong_option_is_named_with_the_choices(name, options, said):
    with pytest.raises(InputError, match=said):
        models.create(name, 10, **options)


def test_fewer_than_two_classes_are_refused():
    with pytest.raises(InputError, match="num_classes is 1; expected a whole number of at least 2"):
        models.create("resnet20", 1)


def test_an_option_of_none_is_the_networks_default():
    shapes = [
        jax.eval_shape(models.create("resnet8", 5, **options).init, jax.random.key(0), IMAGES)
        for options in ({}, {"width": None, "stem": None, "head": None, "shortcut": None})
    ]
    assert shapes[0] == shapes[1]


class Plain(nn.Module):
    num_classes: int
    channels: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, images):
        x = nn.relu(nn.Dense(self.channels, dtype=self.dtype)(images))
        return nn.Dense(self.num_classes, name="classifier")(x.mean((1, 2)))


@pytest.fixture
def register(monkeypatch):
    """`models.register`, undone after the test."""
    monkeypatch.setattr(models, "NETWORKS", dict(models.NETWORKS))
    return models.register


def shapes_of(network):
    return jax.eval_shape(network.init, jax.random.key(0), IMAGES)["params"]


def test_a_registered_class_is_a_network_by_name(register):
    register("plain", Plain, head=("classifier",))
    network = models.create("plain", 5, channels=7)
    assert network.head == ("classifier",)
    assert shapes_of(network)["classifier"]["kernel"].shape == (7, 5)


def test_a_registered_function_may_return_a_module_or_a_network(register):
    register("module", lambda num_classes: Plain(num_classes, 3), head=("classifier",))
    register("network", lambda num_classes: models.from_linen(Plain(num_classes, 3), head=("Dense_0",)))
    assert [models.create(name, 5).head for name in ("module", "network")] == [("classifier",), ("Dense_0",)]


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (None, "the network 'own' is of type NoneType; expected a function, or a class"),
        (Plain(5, 3), "the network 'own' is an instance of Plain; expected the class itself"),
    ],
)
def test_what_builds_no_network_is_not_registered(register, build, said):
    with pytest.raises(InputError, match=said):
        register("own", build)


def test_a_head_is_a_tuple_of_names(register):
    with pytest.raises(InputError, match=r"head is 'classifier'; expected the names of modules, as in \('cl"):
        register("own", Plain, head="classifier")


def test_what_builds_something_else_is_refused(register):
    register("own", lambda num_classes: "a network")
    with pytest.raises(InputError, match="the network 'own' is built of type str; expected a Flax module"):
        models.create("own", 5)


def test_a_name_that_is_registered_again_is_replaced(register):
    register("resnet8", Plain)
    assert shapes_of(models.create("resnet8", 5, channels=7))["Dense_0"]["kernel"].shape == (3, 7)


def test_a_registered_network_knows_the_precision_if_it_takes_it(register):
    seen = {}

    def build(num_classes, dtype="unknown"):
        seen["dtype"] = dtype
        return Plain(num_classes, 3)

    register("plain", build)
    models.create("plain", 5, dtype=jnp.bfloat16)
    assert seen == {"dtype": jnp.bfloat16}


def test_an_option_without_a_default_is_required(register):
    register("plain", Plain)
    with pytest.raises(InputError, match=r"model\.channels is missing; expected a value, as it has no default"):
        models.create("plain", 5)


def test_the_options_are_the_parameters_that_the_config_gives(register):
    register("plain", Plain)
    with pytest.raises(InputError, match=r"expected one of: channels$"):
        models.create("plain", 5, channels=3, layers=2)


def test_a_network_that_cannot_freeze_its_backbone_says_so(register):
    register("plain", Plain)
    with pytest.raises(InputError, match="plain does not take frozen_backbone; expected 'none' or 'backbone'"):
        models.create("plain", 5, channels=3, frozen_backbone=True)
