"""PyTorch's key names and layouts, both ways."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax import models
from kd_jax.errors import InputError
from kd_jax.models import torch_names
from tests import tiny

CASES = {
    "resnet18": {},
    "resnet50": {"width": 1 / 16},
    "resnet8": {"shortcut": "pad"},
    "resnet8 with convolutions": {},
    "resnet8 with the head": {"head": "mlp"},
}


@functools.cache
def variables(case):
    """(what builds the network, it, its variables)."""
    build = functools.partial(models.create, case.split()[0], **{"width": 1 / 4} | CASES[case])
    network = build(7)
    return build, network, jax.jit(network.init)(jax.random.key(1), jnp.zeros((1, 64, 64, 3)))


def state_dict_of(case):
    _, network, there = variables(case)
    return torch_names.to_state_dict(there, network)


@pytest.mark.parametrize("case", CASES)
def test_there_and_back_is_the_same_bit_for_bit(case):
    build, _, there = variables(case)
    back = torch_names.to_variables(state_dict_of(case), build)
    assert jax.tree.structure(back) == jax.tree.structure(dict(there))
    assert tiny.identical(back, there)


def test_names_are_torchvisions():
    names = state_dict_of("resnet18")
    assert {"conv1.weight", "bn1.running_mean", "layer2.0.downsample.0.weight", "layer4.1.bn2.bias"} <= names.keys()
    assert {"layer2.0.downsample.1.running_var", "fc.weight", "fc.bias"} <= names.keys()
    assert names["conv1.weight"].shape == (16, 3, 7, 7)
    assert names["fc.weight"].shape == (7, 128)


def test_the_last_layer_of_a_cifar_resnet_is_called_linear():
    assert {"linear.weight", "linear.bias"} <= state_dict_of("resnet8").keys()


def test_the_original_head_is_a_sequence():
    names = state_dict_of("resnet8 with the head")
    shapes = {key: value.shape for key, value in names.items() if key.startswith("fc.")}
    assert shapes["fc.0.weight"] == (1000, 16)
    assert shapes["fc.2.running_mean"] == (1000,)
    assert shapes["fc.4.weight"] == (7, 1000)


def damaged(change):
    state_dict = state_dict_of("resnet8")
    change(state_dict)
    return state_dict


def load(state_dict):
    return torch_names.to_variables(state_dict, variables("resnet8")[0])


def test_a_prefix_of_data_parallel_training_and_its_counters_are_understood():
    state_dict = damaged(lambda d: d.update({"bn1.num_batches_tracked": np.int64(7)}))
    assert tiny.identical(load({f"module.{key}": value for key, value in state_dict.items()}), variables("resnet8")[2])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda d: d.pop("layer1.0.conv1.weight"), "the file lacks layer1.0.conv1.weight"),
        (lambda d: d.update({"layer9.weight": np.zeros(3)}), "the file holds unknown layer9.weight"),
        (
            lambda d: d.update({"bn1.weight": np.zeros(5)}),
            r"the weights are not those of resnet8: bn1.weight is \(5,\), not \(4,\)",
        ),
        (lambda d: d.pop("linear.bias"), "the file lacks linear.bias"),
        (lambda d: [d.pop(key) for key in list(d) if "bn" in key], r"lacks bn1.bias, .* and \d+ more"),
    ],
)
def test_every_key_and_shape_is_accounted_for(change, said):
    with pytest.raises(InputError, match=said):
        load(damaged(change))


def test_weights_of_another_architecture_are_refused():
    with pytest.raises(InputError, match="the weights are not those of resnet14: the file lacks"):
        torch_names.to_variables(
            damaged(lambda d: None), functools.partial(models.create, "resnet14", width=1 / 4, shortcut="pad")
        )


class Tokens(nn.Module):
    """A network with an embedding of three axes that is no kernel, and a head of another name."""

    num_classes: int

    @nn.compact
    def __call__(self, images):
        tokens = images.reshape(len(images), -1, images.shape[-1])
        tokens = tokens + self.param("pos_embed", nn.initializers.normal(), (1, *tokens.shape[1:]))
        return nn.Dense(self.num_classes, name="classifier")(tokens.mean(1))


def test_what_is_no_kernel_is_not_turned():
    network = models.from_linen(
        Tokens(5),
        head=("classifier",),
        torch_key=lambda path: ".".join(path[1:]).replace("kernel", "weight"),
    )
    there = jax.jit(network.init)(jax.random.key(0), jnp.zeros((1, 2, 3, 4)))
    names = torch_names.to_state_dict(there, network)
    assert {key: x.shape for key, x in names.items()} == {
        "pos_embed": (1, 6, 4),
        "classifier.weight": (5, 4),
        "classifier.bias": (5,),
    }
    assert tiny.identical(torch_names.match(names, there, network), there)


def test_a_network_without_pytorch_names_cannot_be_loaded_under_them():
    network = models.from_linen(Tokens(5))
    shapes = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 2, 3, 4)))
    with pytest.raises(InputError, match="the network has no PyTorch names; expected a network whose family"):
        torch_names.match({}, shapes, network)
