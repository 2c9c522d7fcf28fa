"""PyTorch's key names and layouts, both ways."""

import functools

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
    name = case.split()[0]
    network = models.create(name, 7, **{"width": 1 / 4} | CASES[case])
    return name, jax.jit(network.init)(jax.random.key(1), jnp.zeros((1, 64, 64, 3)))


@pytest.mark.parametrize("case", CASES)
def test_there_and_back_is_the_same_bit_for_bit(case):
    name, there = variables(case)
    back = torch_names.to_variables(torch_names.to_state_dict(there, name), name, **{"width": 1 / 4} | CASES[case])
    assert jax.tree.structure(back) == jax.tree.structure(dict(there))
    assert tiny.identical(back, there)


def test_names_are_torchvisions():
    names = torch_names.to_state_dict(*reversed(variables("resnet18")))
    assert {"conv1.weight", "bn1.running_mean", "layer2.0.downsample.0.weight", "layer4.1.bn2.bias"} <= names.keys()
    assert {"layer2.0.downsample.1.running_var", "fc.weight", "fc.bias"} <= names.keys()
    assert names["conv1.weight"].shape == (16, 3, 7, 7)
    assert names["fc.weight"].shape == (7, 128)


def test_the_last_layer_of_a_cifar_resnet_is_called_linear():
    assert {"linear.weight", "linear.bias"} <= torch_names.to_state_dict(*reversed(variables("resnet8"))).keys()


def test_the_original_head_is_a_sequence():
    names = torch_names.to_state_dict(*reversed(variables("resnet8 with the head")))
    shapes = {key: value.shape for key, value in names.items() if key.startswith("fc.")}
    assert shapes["fc.0.weight"] == (1000, 16)
    assert shapes["fc.2.running_mean"] == (1000,)
    assert shapes["fc.4.weight"] == (7, 1000)


def damaged(change):
    name, there = variables("resnet8")
    state_dict = torch_names.to_state_dict(there, name)
    change(state_dict)
    return state_dict


def load(state_dict):
    return torch_names.to_variables(state_dict, "resnet8", width=1 / 4, shortcut="pad")


def test_a_prefix_of_data_parallel_training_and_its_counters_are_understood():
    state_dict = damaged(lambda d: d.update({"bn1.num_batches_tracked": np.int64(7)}))
    assert tiny.identical(load({f"module.{key}": value for key, value in state_dict.items()}), variables("resnet8")[1])


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
        torch_names.to_variables(damaged(lambda d: None), "resnet14", width=1 / 4, shortcut="pad")
