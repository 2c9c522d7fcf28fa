"""A network that a program registers is as good as one of the library's: one of other names, without Grad-CAM."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from kd_jax import experiment, models, optim, weights
from kd_jax.errors import InputError
from kd_jax.models import torch_names
from tests import tiny


class Own(nn.Module):
    """Convolutions and a linear layer, which says no more than its logits."""

    num_classes: int
    depth: int = 2

    @nn.compact
    def __call__(self, images, *, train):
        x = images
        for i in range(self.depth):
            x = nn.Conv(4, (3, 3), strides=2, name=f"conv{i}")(x)
            x = nn.relu(nn.BatchNorm(use_running_average=not train, name=f"norm{i}")(x))
        return nn.Dense(self.num_classes, name="classifier")(x.mean((1, 2)))


def torch_key(path):
    leaves = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
    return f"{path[1]}.{leaves.get(path[2], path[2])}"


@pytest.fixture(autouse=True)
def _registered(monkeypatch):
    monkeypatch.setattr(models, "NETWORKS", dict(models.NETWORKS))
    models.register("own", Own, head=("classifier",), torch_key=torch_key)


def config(**options):
    return tiny.config() | {"model": {"name": "own", "pretrained": "", "freeze": "none"} | options}


def initial(num_classes):
    network = models.create("own", num_classes)
    return network, jax.jit(network.init)(jax.random.key(0), jnp.zeros((2, 8, 8, 1)))


def test_it_can_be_trained():
    experiment.create(config(depth=1))  # which traces a step


def test_an_option_that_it_lacks_is_refused_with_the_near_name():
    with pytest.raises(InputError, match="an option of model own is 'dept'; expected one of: depth; did you mean 'de"):
        experiment.create(config(dept=1))


def test_an_option_of_another_kind_is_refused():
    with pytest.raises(InputError, match=r"model\.depth is 'deep'; expected a whole number"):
        experiment.create(config(depth="deep"))


def test_freezing_its_backbone_leaves_its_head_to_train():
    network, variables = initial(5)
    trained, frozen = optim.split_frozen(variables["params"], "backbone_and_norms", network.head)
    assert {path[0] for path in trained} == {"classifier"}
    assert {path[0] for path in frozen} == {"conv0", "norm0", "conv1", "norm1"}


def test_weights_of_other_classes_keep_the_backbone_and_drop_the_head(tmp_path):
    network, variables = initial(5)
    arrays = torch_names.to_state_dict(variables, network)
    save_file({key: np.array(x, order="C") for key, x in arrays.items()}, tmp_path / "own.safetensors")
    loaded = weights.load(tmp_path / "own.safetensors", initial(3)[1], models.create("own", 3))
    kept = {name: tree for name, tree in variables["params"].items() if name != "classifier"}
    assert not loaded.head
    assert tiny.identical(loaded.variables, {"params": kept, "batch_stats": variables["batch_stats"]})
    assert "classifier" not in loaded.variables["params"]
