"""NNX modules as networks: as student and as teacher."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

from kd_jax import gradcam, models
from kd_jax.errors import InputError
from kd_jax.models import Taps
from tests import tiny

RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(6, 8, 8, 1)).astype(np.float32)


class Net(nnx.Module):
    """A convolution, batch norm, dropout and two linear layers, one of them in a list."""

    def __init__(self, num_classes, rngs):
        self.conv = nnx.Conv(1, 6, (3, 3), rngs=rngs)
        self.bn = nnx.BatchNorm(6, momentum=0.9, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.hidden = nnx.List([nnx.Linear(6, 6, rngs=rngs)])
        self.fc = nnx.Linear(6, num_classes, rngs=rngs)

    def __call__(self, images, perturbations=None):
        taps = Taps(perturbations)
        x = taps(nnx.relu(self.bn(self.conv(images))))
        embedding = self.hidden[0](self.dropout(x.mean((1, 2))))
        return taps.outputs(self.fc(embedding), embedding=embedding)


class Linen(nn.Module):
    """The same of Linen's layers."""

    @nn.compact
    def __call__(self, images, *, train):
        x = nn.Conv(6, (3, 3), name="conv")(images)
        x = nn.relu(nn.BatchNorm(momentum=0.9, use_running_average=not train, name="bn")(x))
        return nn.Dense(5, name="fc")(nn.Dense(6, name="hidden")(x.mean((1, 2))))


def network(num_classes=5):
    return models.from_nnx(lambda rngs: Net(num_classes, rngs), head=("fc",))


@pytest.fixture(scope="module")
def variables():
    found = jax.jit(network().init)(jax.random.key(0), IMAGES)
    return {**found, "batch_stats": jax.tree.map(lambda x: x + 0.5, found["batch_stats"])}


def apply(variables, **options):
    return jax.jit(lambda v: network().apply(v, IMAGES, **options))(variables)


def test_it_computes_what_linens_layers_do_of_the_same_parameters(variables):
    params = {**variables["params"], "hidden": variables["params"]["hidden"]["0"]}
    expected = Linen().apply({**variables, "params": params}, IMAGES, train=False)
    out, stats = apply(variables, train=False)
    np.testing.assert_allclose(out.logits, expected, rtol=1e-5, atol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, stats, variables["batch_stats"])


def test_in_training_batch_statistics_move_and_dropout_draws(variables):
    (first, stats), (other, _) = (apply(variables, train=True, rng=jax.random.key(seed)) for seed in (0, 1))
    same, _ = apply(variables, train=True, rng=jax.random.key(0))
    np.testing.assert_array_equal(first.logits, same.logits)
    assert not np.array_equal(first.logits, other.logits)
    conv = variables["params"]["conv"]
    x = jax.lax.conv_general_dilated(IMAGES, conv["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    mean = np.asarray(x + conv["bias"], np.float64).mean((0, 1, 2))
    np.testing.assert_allclose(stats["bn"]["mean"], 0.9 * 0.5 + 0.1 * mean, rtol=1e-4, atol=1e-6)


def test_grad_cam_runs_it(variables):
    maps = jax.jit(lambda v: gradcam.gradcam(network(), v, IMAGES, jnp.zeros(6, jnp.int32)))(variables)
    assert maps.shape == (6, 8, 8)
    assert maps.max() > 0


@pytest.fixture
def registered(monkeypatch):
    monkeypatch.setattr(models, "NETWORKS", dict(models.NETWORKS))
    models.register("net", lambda num_classes: network(num_classes))


@pytest.mark.usefixtures("registered")
def test_it_learns_and_teaches(tmp_path):
    own = {"model.name": "net", "model.width": None, "train.steps": 4}
    config = tiny.config(**own) | {"method": tiny.METHODS["kd"]}
    config["teacher"] |= {"kind": "config", "config": tiny.config(**own, seed=1)}
    state, result = tiny.train(config, tmp_path)
    assert result["steps"] == 4
    assert result["teacher"]["accuracy"] >= 0
    start = jax.jit(network(10).init)(jax.random.key(0), IMAGES)["params"]
    assert jax.tree.structure(state.params["student"]) == jax.tree.structure(start)


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda rngs: "module", "the builder of a network returns a str; expected an NNX module"),
        (lambda rngs: Counts(rngs), "the network's calls is a Variable; expected Param and BatchStat"),
    ],
)
def test_what_is_no_network_is_refused(build, said):
    with pytest.raises(InputError, match=said):
        models.from_nnx(build).init(jax.random.key(0), IMAGES)


class Counts(nnx.Module):
    def __init__(self, rngs):
        self.calls = nnx.Variable(jnp.zeros(()))


def test_a_head_that_does_not_exist_is_named():
    with pytest.raises(
        InputError, match="a module of the network's head is 'last'; expected one of: bn, conv, fc, hidden"
    ):
        models.from_nnx(lambda rngs: Net(5, rngs), head=("last",)).init(jax.random.key(0), IMAGES)
