"""Variables and PyTorch state dicts, both ways: key names and the layout of arrays. Pure.

Which name a variable has is the network's own matter, see `Network.torch_key`.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from kd_jax.errors import InputError, first_few
from kd_jax.types import Network, Variables

StateDict = Mapping[str, np.ndarray]
Path = tuple[str, ...]

COUNTER = "num_batches_tracked"  # of a batch norm, which nothing here reads


def keys(variables: Variables, network: Network) -> dict[Path, str]:
    """{path in the variables: PyTorch's key}; raises InputError for a network without such names."""
    if network.torch_key is None:
        raise InputError(f"{network.name} has no PyTorch names; expected a network whose family gives them (torch_key)")
    return {path: network.torch_key(path) for path in flatten_dict(dict(variables))}


def to_state_dict(variables: Variables, network: Network) -> dict[str, np.ndarray]:
    """The state dict that PyTorch's network loads; of a network without such names, its own arrays under its own names.

    Convolutions are [out, in, height, width] and linear layers [out, in] there. The counters of batch norms, which
    PyTorch fills in by itself, are left out.
    """
    flat = flatten_dict(dict(variables))
    if network.torch_key is None:
        return {".".join(path): np.asarray(x) for path, x in flat.items()}
    return {key: _to_torch(path, np.asarray(flat[path])) for path, key in keys(variables, network).items()}


def to_variables(state_dict: StateDict, build: Callable[[int], Network], *, image_size: int = 96) -> Variables:
    """The variables of a network from PyTorch's arrays.

    Args:
      state_dict: {key: array}; a prefix `module.` of all keys is understood.
      build: from the number of classes, which is that of the arrays, to the network.
      image_size: in pixels, that the network takes.
    Raises:
      InputError: when a key is missing or unknown, or an array has another shape; the keys are listed.
    """
    state_dict = without_prefix(state_dict)
    network = build(num_classes(state_dict, build(2)))
    channels = np.shape(state_dict.get("conv1.weight", np.zeros((1, 3))))[1]
    image = jax.ShapeDtypeStruct((1, image_size, image_size, channels), jnp.float32)
    return match(state_dict, jax.eval_shape(network.init, jax.random.key(0), image), network)


def match(state_dict: StateDict, shapes: Variables, network: Network) -> Variables:
    """The arrays of `state_dict` in the structure of `shapes`, each accounted for; see `to_variables`."""
    flat, names = flatten_dict(dict(shapes)), keys(shapes, network)
    counted = {key for key in state_dict if not key.endswith(COUNTER)}
    for problem, bad in (
        ("lacks", sorted(set(names.values()) - counted)),
        ("holds unknown", sorted(counted - set(names.values()))),
    ):
        if bad:
            raise InputError(f"the weights are not those of {network.name}: the file {problem} {first_few(bad)}")
    arrays = {path: np.asarray(state_dict[key]) for path, key in names.items()}
    expected = {path: torch_shape(path, flat[path].shape) for path in names}
    wrong = [f"{names[p]} is {a.shape}, not {expected[p]}" for p, a in arrays.items() if a.shape != expected[p]]
    if wrong:
        raise InputError(f"the weights are not those of {network.name}: {first_few(wrong)}")
    return unflatten_dict({path: _to_flax(path, array).astype(flat[path].dtype) for path, array in arrays.items()})


def without_prefix(state_dict: StateDict) -> dict[str, np.ndarray]:
    """The same without the `module.` that PyTorch's data parallelism puts before every key."""
    prefixed = bool(state_dict) and all(key.startswith("module.") for key in state_dict)
    return {key.removeprefix("module.") if prefixed else key: value for key, value in state_dict.items()}


def num_classes(state_dict: StateDict, network: Network) -> int:
    """K, from the bias of the last layer of the network's head."""
    assert network.torch_key is not None
    key = network.torch_key(("params", network.head[-1], "bias"))
    if key not in state_dict:
        raise InputError(f"the weights are not those of {network.name}: the file lacks {key}")
    return len(state_dict[key])


# A kernel's axes are turned; everything else, a token's embedding for example, has the same in both.
def _to_flax(path: Path, x: np.ndarray) -> np.ndarray:
    if path[-1] != "kernel":
        return x
    return x.transpose(2, 3, 1, 0) if x.ndim == 4 else x.T


def _to_torch(path: Path, x: np.ndarray) -> np.ndarray:
    if path[-1] != "kernel":
        return x
    return x.transpose(3, 2, 0, 1) if x.ndim == 4 else x.T


def torch_shape(path: Path, shape: Any) -> tuple[int, ...]:
    """The shape of PyTorch's array for a variable of this shape."""
    return _to_torch(path, np.broadcast_to(0, shape)).shape
