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
    "resnet18": functools.partial(models.create, "resnet18", width=1 / 4),
    "resnet50": functools.partial(models.create, "resnet50", width=1 / 16),
    "resnet8": functools.partial(models.create, "resnet8", width=1 / 4, shortcut="pad"),
    "resnet8 with convolutions": functools.partial(models.create, "resnet8", width=1 / 4),
    "resnet8 with the mlp head": functools.partial(models.create, "resnet8", width=1 / 4, head="mlp"),
}


@functools.cache
def variables(case):
    return jax.jit(CASES[case](7).init)(jax.random.key(1), jnp.zeros((1, 64, 64, 3)))


def state_dict(case):
    return torch_names.to_state_dict(variables(case), CASES[case](7))


@pytest.mark.parametrize("case", CASES)
def test_there_and_back_is_the_same_bit_for_bit(case):
    back = torch_names.to_variables(state_dict(case), CASES[case])
    assert jax.tree.structure(back) == jax.tree.structure(dict(variables(case)))
    assert tiny.identical(back, variables(case))


def test_names_are_torchvisions():
    arrays = state_dict("resnet18")
    assert {"conv1.weight", "bn1.running_mean", "layer2.0.downsample.0.weight", "layer4.1.bn2.bias"} <= arrays.keys()
    assert {"layer2.0.downsample.1.running_var", "fc.weight", "fc.bias"} <= arrays.keys()
    assert arrays["conv1.weight"].shape == (16, 3, 7, 7)
    assert arrays["fc.weight"].shape == (7, 128)


def test_the_last_layer_of_a_cifar_resnet_is_called_linear():
    assert {"linear.weight", "linear.bias"} <= state_dict("resnet8").keys()


def test_the_mlp_head_is_a_sequence():
    shapes = {key: value.shape for key, value in state_dict("resnet8 with the mlp head").items()}
    assert shapes["fc.0.weight"] == (1000, 16)
    assert shapes["fc.2.running_mean"] == (1000,)
    assert shapes["fc.4.weight"] == (7, 1000)


class Patches(nn.Module):
    """A network whose parameters are not all kernels."""

    num_classes: int

    @nn.compact
    def __call__(self, images):
        x = nn.Conv(6, (2, 3), strides=(2, 2), name="patches")(images)
        x = x.reshape(len(x), -1, 6)
        x = x + self.param("positions", nn.initializers.normal(), (1, x.shape[1], 6))
        x = x * self.param("gates", nn.initializers.normal(), (x.shape[1], 6))
        return nn.Dense(self.num_classes, use_bias=False, name="classifier")(x.mean(1))


def patches_key(path):
    return ".".join(path[1:]).replace("kernel", "weight")


def patches(num_classes):
    return models.from_linen(Patches(num_classes), head=("classifier",), torch_key=patches_key)


PATCHES = patches(7).init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))


def test_kernels_are_transposed_and_nothing_else_is():
    params = PATCHES["params"]
    arrays = torch_names.to_state_dict(PATCHES, patches(7))
    np.testing.assert_array_equal(arrays["patches.weight"], np.einsum("yxio->oiyx", params["patches"]["kernel"]))
    np.testing.assert_array_equal(arrays["classifier.weight"], np.einsum("io->oi", params["classifier"]["kernel"]))
    np.testing.assert_array_equal(arrays["positions"], params["positions"])
    np.testing.assert_array_equal(arrays["gates"], params["gates"])


def test_arrays_lie_as_their_shapes_say():
    """As safetensors writes what lies there, transposed or not."""
    assert all(array.flags.c_contiguous for array in torch_names.to_state_dict(PATCHES, patches(7)).values())


def test_classes_are_counted_by_the_kernel_of_any_familys_head():
    arrays = torch_names.to_state_dict(PATCHES, patches(7))
    assert tiny.identical(torch_names.to_variables(arrays, patches, image_shape=(8, 8, 3)), PATCHES)


@pytest.mark.parametrize(
    "use",
    [
        lambda network: torch_names.to_state_dict(PATCHES, network),
        lambda network: torch_names.to_variables({}, lambda num_classes: network),
        lambda network: torch_names.match({}, PATCHES, network),
    ],
    ids=["to_state_dict", "to_variables", "match"],
)
def test_a_network_without_pytorch_names_says_so(use):
    with pytest.raises(InputError, match="the network has no PyTorch names"):
        use(models.from_linen(Patches(7), head=("classifier",)))


def test_a_network_without_a_head_has_no_number_of_classes():
    with pytest.raises(InputError, match="the network does not name its head"):
        torch_names.num_classes({}, models.from_linen(Patches(7), torch_key=patches_key))


def damaged(change):
    arrays = state_dict("resnet8")
    change(arrays)
    return arrays


def test_a_prefix_and_counters_of_data_parallel_training_are_understood():
    arrays = damaged(lambda d: d.update({"bn1.num_batches_tracked": np.int64(7)}))
    prefixed = {f"module.{key}": value for key, value in arrays.items()}
    assert tiny.identical(torch_names.to_variables(prefixed, CASES["resnet8"]), variables("resnet8"))


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
        (lambda d: d.pop("linear.weight"), "the file lacks linear.weight"),
        (lambda d: [d.pop(key) for key in list(d) if "bn" in key], r"lacks bn1.bias, .* and \d+ more"),
    ],
)
def test_every_key_and_shape_is_accounted_for(change, said):
    with pytest.raises(InputError, match=said):
        torch_names.to_variables(damaged(change), CASES["resnet8"])


def test_weights_of_another_architecture_are_refused():
    create = functools.partial(models.create, "resnet14", width=1 / 4, shortcut="pad")
    with pytest.raises(InputError, match="the weights are not those of resnet14: the file lacks"):
        torch_names.to_variables(state_dict("resnet8"), create)


def test_modules_that_other_implementations_call_otherwise_get_the_networks_names():
    names = ["layer2.0.downsample.0.weight", "fc.bias"]
    theirs = {"layer2.0.shortcut.0.weight": 1, "linear.bias": 2}
    assert torch_names.renamed(theirs, names) == dict(zip(names, (1, 2), strict=True))
    both = theirs | {"fc.bias": 3, "other.shortcuts": 4}
    assert torch_names.renamed(both, names) == {names[0]: 1, "linear.bias": 2, "fc.bias": 3, "other.shortcuts": 4}
