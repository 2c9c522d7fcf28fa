"""Variables and PyTorch state dicts, both ways: key names and the layout of arrays. Pure.

Torchvision's names for the ResNets, and those of the common CIFAR ResNets in PyTorch, whose last layer is `linear`.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from kd_jax import models
from kd_jax.errors import InputError
from kd_jax.models import cifar_resnet
from kd_jax.types import Variables

StateDict = Mapping[str, np.ndarray]

LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
# The seed project's head is a sequence of linear, dropout, batch norm, ReLU, linear.
MLP = {("mlp", "fc"): "fc.0", ("mlp", "bn"): "fc.2", ("fc",): "fc.4"}
COUNTER = "num_batches_tracked"  # of a batch norm, which nothing here reads
SHOWN = 5  # keys that an error lists


def keys(variables: Variables, name: str) -> dict[tuple[str, ...], str]:
    """{path in the variables: PyTorch's key} for the network of that name."""
    paths = flatten_dict(dict(variables))
    has_mlp = any("mlp" in path for path in paths)

    def key(path):
        modules, leaf = path[1:-1], LEAVES[path[-1]]
        if modules[0] in ("mlp", "fc") and has_mlp:
            return f"{MLP[modules]}.{leaf}"
        if modules == ("fc",) and name in cifar_resnet.FAMILY:
            return f"linear.{leaf}"
        return ".".join((*(part.replace("_", ".") for part in modules), leaf))

    return {path: key(path) for path in paths}


def to_state_dict(variables: Variables, name: str) -> dict[str, np.ndarray]:
    """The state dict that PyTorch's network of that name loads.

    Convolutions are [out, in, height, width] and linear layers [out, in] there. The counters of batch norms, which
    PyTorch fills in by itself, are left out.
    """
    flat = flatten_dict(dict(variables))
    return {key: _to_torch(np.asarray(flat[path])) for path, key in keys(variables, name).items()}


def to_variables(state_dict: StateDict, name: str, **options: Any) -> Variables:
    """The variables of `models.create(name, ...)` from PyTorch's arrays.

    Args:
      state_dict: {key: array}; a prefix `module.` of all keys is understood.
      name: of the network. options: those of `models.create`; the number of classes is that of the arrays.
    Raises:
      InputError: when a key is missing or unknown, or an array has another shape; the keys are listed.
    """
    state_dict = without_prefix(state_dict)
    network = models.create(name, num_classes(state_dict, name), **options)
    channels = np.shape(state_dict.get("conv1.weight", np.zeros((1, 3))))[1]
    image = jax.ShapeDtypeStruct((1, 96, 96, channels), jnp.float32)  # a size that no stem warns of
    return match(state_dict, jax.eval_shape(network.init, jax.random.key(0), image), name)


def match(state_dict: StateDict, shapes: Variables, name: str) -> Variables:
    """The arrays of `state_dict` in the structure of `shapes`, each accounted for; see `to_variables`."""
    flat, names = flatten_dict(dict(shapes)), keys(shapes, name)
    counted = {key for key in state_dict if not key.endswith(COUNTER)}
    for problem, bad in (
        ("lacks", sorted(set(names.values()) - counted)),
        ("holds unknown", sorted(counted - set(names.values()))),
    ):
        if bad:
            raise InputError(f"the weights are not those of {name}: the file {problem} {_some(bad)}")
    arrays = {path: np.asarray(state_dict[key]) for path, key in names.items()}
    expected = {path: _torch_shape(flat[path].shape) for path in names}
    wrong = [f"{names[p]} is {a.shape}, not {expected[p]}" for p, a in arrays.items() if a.shape != expected[p]]
    if wrong:
        raise InputError(f"the weights are not those of {name}: {_some(wrong)}")
    return unflatten_dict({path: _to_flax(array).astype(flat[path].dtype) for path, array in arrays.items()})


def without_prefix(state_dict: StateDict) -> dict[str, np.ndarray]:
    """The same without the `module.` that PyTorch's data parallelism puts before every key."""
    prefixed = bool(state_dict) and all(key.startswith("module.") for key in state_dict)
    return {key.removeprefix("module.") if prefixed else key: value for key, value in state_dict.items()}


def num_classes(state_dict: StateDict, name: str) -> int:
    """K, from the bias of the last layer."""
    for key in ("fc.4.bias", "linear.bias" if name in cifar_resnet.FAMILY else "fc.bias"):
        if key in state_dict:
            return len(state_dict[key])
    raise InputError(f"the weights are not those of {name}: the file lacks {key}")


def _to_flax(x: np.ndarray) -> np.ndarray:
    return x.transpose(2, 3, 1, 0) if x.ndim == 4 else x.T


def _to_torch(x: np.ndarray) -> np.ndarray:
    return x.transpose(3, 2, 0, 1) if x.ndim == 4 else x.T


def _torch_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    return _to_torch(np.broadcast_to(0, shape)).shape


def _some(items: list[str]) -> str:
    return ", ".join(items[:SHOWN]) + (f" and {len(items) - SHOWN} more" if len(items) > SHOWN else "")
