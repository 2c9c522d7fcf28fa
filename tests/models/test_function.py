"""Plain functions as networks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax import models
from kd_jax.errors import InputError
from kd_jax.types import Outputs
from tests import tiny

IMAGES = np.random.default_rng(0).normal(size=(3, 8, 8, 1)).astype(np.float32)


def init(key, images):
    return {"kernel": jax.random.normal(key, (images[0].size, 10))}


def apply(params, images):
    return images.reshape(len(images), -1) @ params["kernel"]


def test_a_function_of_logits_is_a_network():
    network = models.from_function(init, apply)
    variables = network.init(jax.random.key(0), IMAGES)
    half = models.from_function(init, lambda params, images: apply(params, images).astype(jnp.bfloat16))
    for own, tolerance in ((network, 1e-5), (half, 0.1)):
        out, stats = own.apply(variables, IMAGES, train=True, rng=jax.random.key(1))
        assert (out.logits.dtype, stats) == (jnp.float32, {})
        expected = np.float64(IMAGES).reshape(3, -1) @ np.float64(variables["params"]["kernel"])
        np.testing.assert_allclose(out.logits, expected, rtol=tolerance, atol=tolerance)


def test_a_function_may_report_more():
    network = models.from_function(init, lambda params, images: Outputs(apply(params, images), embedding=images))
    out, _ = network.apply(network.init(jax.random.key(0), IMAGES), IMAGES, train=False)
    assert out.embedding is not None


def test_it_learns(tmp_path, monkeypatch):
    monkeypatch.setattr(models, "NETWORKS", dict(models.NETWORKS))
    models.register("function", lambda num_classes: models.from_function(init, apply))
    config = tiny.config(**{"model.name": "function", "model.width": None, "train.steps": 4})
    state, _ = tiny.train(config, tmp_path)
    start = init(jax.random.key(0), IMAGES)["kernel"]
    assert state.params["student"]["kernel"].shape == start.shape


@pytest.mark.parametrize(
    ("functions", "said"),
    [
        ((None, apply), "the initialization of a network is of type NoneType"),
        ((init, 7), "the function of a network is of type int"),
        ((lambda key, images: jnp.zeros(3), apply), "a network's parameters are a .*; expected a dict"),
    ],
)
def test_what_is_no_network_is_refused(functions, said):
    with pytest.raises(InputError, match=said):
        models.from_function(*functions).init(jax.random.key(0), IMAGES)
