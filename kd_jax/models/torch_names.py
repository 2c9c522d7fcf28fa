"""Variables and PyTorch state dicts, both ways: key names and the layout of arrays. Pure.

The name of each variable is the network's own matter, see `Network.torch_key`.
"""

import re
from collections.abc import Callable, Iterable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from kd_jax.errors import InputError, first_few
from kd_jax.types import Network, Variables

Path = tuple[str, ...]
StateDict = Mapping[str, np.ndarray]

LEAVES = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
SYNONYMS = (("fc", "linear"), ("downsample", "shortcut"))  # modules that implementations of one network call otherwise
COUNTER = "num_batches_tracked"  # of a batch norm, which nothing here reads
# The axes of a kernel in PyTorch's order, by their number: those of a linear layer, and of a convolution. Everything
# else, such as the embedding of a position, has one layout in both.
AXES = {2: (1, 0), 4: (3, 2, 0, 1)}


def dotted(path: Path) -> str:
    """PyTorch's key of a variable whose modules are named as in PyTorch, with `_` for a dot before or after a number.

    >>> dotted(("params", "layer1_0", "downsample_0", "kernel"))
    'layer1.0.downsample.0.weight'
    """
    _, *modules, leaf = path
    return ".".join([*(re.sub(r"_(?=\d)|(?<=\d)_", ".", module) for module in modules), LEAVES.get(leaf, leaf)])


def keys(variables: Variables, network: Network) -> dict[Path, str]:
    """{path in the variables: PyTorch's key}.

    Raises:
      InputError: for a network without such names.
    """
    return {path: _torch_key(network)(path) for path in flatten_dict(dict(variables))}


def to_state_dict(variables: Variables, network: Network) -> dict[str, np.ndarray]:
    """The state dict that PyTorch's version of the network loads.

    Convolutions are [out, in, height, width] and linear layers [out, in] there. The counters of batch norms, which
    PyTorch fills in by itself, are left out. The arrays lie in their own order, as safetensors writes what lies there.

    Raises:
      InputError: for a network without PyTorch names.
    """
    flat = flatten_dict(dict(variables))
    named = keys(variables, network).items()
    return {key: np.asarray(_to_torch(path, np.asarray(flat[path])), order="C") for path, key in named}


def to_variables(
    state_dict: StateDict, create: Callable[[int], Network], *, image_shape: tuple[int, int, int] = (96, 96, 3)
) -> Variables:
    """The variables of a network from PyTorch's arrays.

    Args:
      state_dict: {key: array}; a prefix `module.` of all keys is understood.
      create: the network, from the number of classes, which is that of the arrays.
      image_shape: (H, W, C) of the images that the network reads.
    Raises:
      InputError: when a key is missing or unknown, or an array has another shape; the keys are listed.
    """
    state_dict = without_prefix(state_dict)
    network = create(num_classes(state_dict, create(2)))
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    return match(state_dict, jax.eval_shape(network.init, jax.random.key(0), images), network)


def match(state_dict: StateDict, shapes: Variables, network: Network) -> Variables:
    """The arrays of `state_dict` in the structure of `shapes`, each accounted for; see `to_variables`."""
    flat, names = flatten_dict(dict(shapes)), keys(shapes, network)
    check_keys(state_dict, names.values(), network.name)
    arrays = {path: np.asarray(state_dict[key]) for path, key in names.items()}
    expected = {path: torch_shape(path, leaf.shape) for path, leaf in flat.items()}
    wrong = [f"{names[p]} is {a.shape}, not {expected[p]}" for p, a in arrays.items() if a.shape != expected[p]]
    if wrong:
        raise InputError(f"the weights are not those of {network.name}: {first_few(wrong)}")
    found = unflatten_dict({path: _to_flax(path, array).astype(flat[path].dtype) for path, array in arrays.items()})
    return {name: found.get(name, {}) for name in shapes}  # a network may have no statistics


def check_keys(state_dict: Iterable[str], names: Iterable[str], network: str) -> None:
    """Raises InputError unless the keys of a state dict are the names of a network's variables, counters aside."""
    given, own = ({key for key in keys if not key.endswith(COUNTER)} for keys in (state_dict, names))
    for problem, bad in (("lacks", sorted(own - given)), ("holds unknown", sorted(given - own))):
        if bad:
            raise InputError(f"the weights are not those of {network}: the file {problem} {first_few(bad)}")


def without_prefix(state_dict: StateDict) -> dict[str, np.ndarray]:
    """The same without the `module.` that PyTorch's data parallelism puts before every key."""
    prefixed = bool(state_dict) and all(key.startswith("module.") for key in state_dict)
    return {key.removeprefix("module.") if prefixed else key: value for key, value in state_dict.items()}


def num_classes(state_dict: StateDict, network: Network) -> int:
    """K, from the kernel of the network's final linear layer.

    Raises:
      InputError: when that is missing, or the network has no PyTorch names or does not name its head.
    """
    if not network.head:
        raise InputError(f"{network.name} does not name its head; expected one whose family does, see models.register")
    key = _torch_key(network)(("params", network.head[-1], "kernel"))
    if key not in state_dict:
        raise InputError(f"the weights are not those of {network.name}: the file lacks {key}")
    return len(state_dict[key])


def renamed(state_dict: StateDict, names: Iterable[str], network: Network | None = None) -> dict[str, np.ndarray]:
    """The same by the keys `names`, where it has those of the network's other layout, or modules by a synonym."""
    if network is not None and network.other_key is not None:
        state_dict = {network.other_key(key): array for key, array in state_dict.items()}
    own, theirs = ({part for key in keys for part in key.split(".")} for keys in (names, state_dict))
    new = {b: a for pair in SYNONYMS for a, b in (pair, pair[::-1]) if {a, b} & own == {a} and a not in theirs}
    return {".".join(new.get(part, part) for part in key.split(".")): array for key, array in state_dict.items()}


def torch_shape(path: Path, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of PyTorch's array for the variable of this path and shape."""
    return _to_torch(path, np.broadcast_to(0, shape)).shape


def _torch_key(network: Network) -> Callable[[Path], str]:
    if network.torch_key is None:
        raise InputError(
            f"{network.name} has no PyTorch names; expected one whose family gives them, see models.register"
        )
    return network.torch_key


def _to_torch(path: Path, x: np.ndarray) -> np.ndarray:
    return x.transpose(AXES[x.ndim]) if path[-1] == "kernel" and x.ndim in AXES else x


def _to_flax(path: Path, x: np.ndarray) -> np.ndarray:
    return x.transpose(np.argsort(AXES[x.ndim])) if path[-1] == "kernel" and x.ndim in AXES else x
