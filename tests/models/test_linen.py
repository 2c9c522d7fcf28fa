"""Flax modules that say less than the library's own are networks all the same."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax.errors import InputError
from kd_jax.models import from_linen

IMAGES = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)


class Logits(nn.Module):
    """The least that a classifier can be."""

    dtype: str = "float32"

    @nn.compact
    def __call__(self, images):
        return nn.Dense(5, dtype=self.dtype, name="classifier")(images.mean((1, 2)))


class Trained(nn.Module):
    """Says whether it trains, in its logits."""

    @nn.compact
    def __call__(self, images, train):
        bias = self.param("bias", nn.initializers.zeros, (5,))
        return bias + jnp.full((len(images), 5), 1.0 if train else 0.0)


def test_logits_alone_become_outputs():
    network = from_linen(Logits())
    variables = network.init(jax.random.key(0), IMAGES)
    outputs, stats = network.apply(variables, IMAGES, train=True, perturbations=None)
    dense = variables["params"]["classifier"]
    expected = np.asarray(IMAGES, np.float64).mean((1, 2)) @ np.asarray(dense["kernel"], np.float64) + dense["bias"]
    np.testing.assert_allclose(outputs.logits, expected, rtol=1e-4, atol=1e-6)
    assert (outputs.features, outputs.embedding, stats) == ((), None, {})


def test_logits_alone_are_at_least_float32():
    network = from_linen(Logits("bfloat16"))
    variables = network.init(jax.random.key(0), IMAGES)
    assert network.apply(variables, IMAGES, train=False)[0].logits.dtype == jnp.float32


@pytest.mark.parametrize("train", [False, True])
def test_a_module_without_perturbations_is_told_whether_it_trains(train):
    network = from_linen(Trained())
    variables = network.init(jax.random.key(0), IMAGES)
    assert float(network.apply(variables, IMAGES, train=train)[0].logits.max()) == train


def test_a_head_that_is_no_module_is_refused_with_the_near_name():
    network = from_linen(Logits(), head=("clasifier",))
    with pytest.raises(InputError, match="'clasifier'; expected one of: classifier; did you mean 'classifier'"):
        network.init(jax.random.key(0), IMAGES)


class Brightness(nn.Module):
    """Without parameters; it may keep a memory."""

    remembers: bool = False

    @nn.compact
    def __call__(self, images):
        if self.remembers:
            self.variable("memory", "mean", jnp.zeros, ())
        return images.mean((1, 2))


def test_a_module_without_parameters_is_a_network():
    assert from_linen(Brightness()).init(jax.random.key(0), IMAGES) == {"params": {}, "batch_stats": {}}


def test_a_collection_that_a_step_does_not_carry_is_refused():
    with pytest.raises(InputError, match="the network reads the collection 'memory'; expected 'params' and 'ba"):
        from_linen(Brightness(remembers=True)).init(jax.random.key(0), IMAGES)


def test_what_a_module_only_sows_is_left_out():
    class Sows(nn.Module):
        @nn.compact
        def __call__(self, images):
            self.sow("metrics", "mean", images.mean())
            return nn.Dense(3)(self.perturb("pooled", images.mean((1, 2))))

    network = from_linen(Sows())
    variables = network.init(jax.random.key(0), IMAGES)
    assert network.apply(variables, IMAGES, train=True)[0].logits.shape == (len(IMAGES), 3)
