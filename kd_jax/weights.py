"""Weights from elsewhere: safetensors, PyTorch files, the Hugging Face hub, finished runs. Strict; no code is run."""

import functools
import logging
import os
import pickle
import re
import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from kd_jax import hub, methods, registry, remote, runs
from kd_jax.errors import InputError, one_line
from kd_jax.models import torch_names
from kd_jax.models.quantize import RANGE, is_range
from kd_jax.steps import method_variables
from kd_jax.types import MethodVariables, Network, Variables, student_logits

PathLike = str | os.PathLike[str]

HUB = re.compile(r"(?P<repository>[\w.-]+/[\w.-]+)(@(?P<revision>[\w.-]+))?")
FILE = "model.safetensors"  # of a repository of the hub
RANGE_KEY = re.compile(rf"\.({'|'.join(RANGE)})( |$)")  # see `_run_key`


class Loaded(NamedTuple):
    """The variables of a source."""

    variables: Variables  # all of them, or those of the backbone
    head: bool  # whether the head is among them
    why: str = ""  # it is not: "is of another shape", for a line that begins with the head


def load(source: PathLike, variables: Variables, network: Network, *, strict: bool = False) -> Loaded:
    """Loads the variables of a network from a source.

    Args:
      source: a file (of safetensors or of PyTorch, whatever its name), the folder of a finished run, or a hub id
        OWNER/NAME[@REVISION].
      variables: of the network, or their shapes.
      network: of the variables. For a file or a hub id it needs PyTorch names.
      strict: refuse a source with another head, instead of leaving the head out.
    Returns:
      All variables, or only those of the backbone where the source has a head of another shape or kind, or none, or is
      a run that predicts by its method alone and so never trained it. The ranges of a quantized network's inputs are
      among them where the source has some too.
    Raises:
      InputError: when the source cannot be read, or is not of this network.
    """
    source = os.path.expanduser(source)
    trained = True
    if os.path.isdir(remote.local(source)):
        network = network._replace(torch_key=_run_key)
        state_dict = torch_names.to_state_dict(read_run(source)[0], network)
        trained = _trains_head(source)
    else:
        state_dict = torch_names.without_prefix(read(source))
    state_dict, variables = _with_ranges_of_both(state_dict, variables)
    names = torch_names.keys(variables, network)
    state_dict = torch_names.renamed(state_dict, names.values(), network)
    flat = flatten_dict(dict(variables))
    head = {path for path in flat if path[1] in network.head}
    if not trained:
        if strict:
            raise InputError(f"the run in {source} predicts by its method's head; expected teacher.kind 'run'")
        if not head:
            raise InputError(f"the head of {source} was not trained, and {network.name} does not say what its head is")
        state_dict = {key: array for key, array in state_dict.items() if key not in {names[path] for path in head}}
    shapes = {key: np.shape(array) for key, array in state_dict.items()}
    no_classes = network.num_classes == 0
    same = all(shapes.get(names[path]) == torch_names.torch_shape(path, flat[path].shape) for path in head)
    if strict or (same and not no_classes):
        return Loaded(torch_names.match(state_dict, variables, network), head=True)
    # What the source has outside of the backbone's modules is its own head.
    backbone = {path: leaf for path, leaf in flat.items() if path not in head}
    modules = {_module(names[path]) for path in backbone}
    others = {names[path] for path in head}
    rest = {key: array for key, array in state_dict.items() if _module(key) in modules and key not in others}
    if no_classes:
        why = "is left out"
    elif not trained:
        why = "was not trained"
    elif all(names[path] in shapes for path in head):
        why = "is of another shape"
    else:
        why = "is of another kind" if any(_module(key) not in modules for key in state_dict) else "is not there"
    shapes_of_backbone = {name: unflatten_dict(backbone).get(name, {}) for name in variables}
    return Loaded(torch_names.match(rest, shapes_of_backbone, network), False, why)


def _with_ranges_of_both(
    state_dict: dict[str, np.ndarray], variables: Variables
) -> tuple[dict[str, np.ndarray], Variables]:
    """Both without the ranges of a quantized network's inputs, unless both have them."""
    flat = flatten_dict(dict(variables))
    theirs, own = {key for key in state_dict if RANGE_KEY.search(key)}, {path for path in flat if is_range(path)}
    if bool(theirs) == bool(own):
        return state_dict, variables
    left = unflatten_dict({path: leaf for path, leaf in flat.items() if path not in own})
    return (
        {key: array for key, array in state_dict.items() if key not in theirs},
        {name: left.get(name, {}) for name in variables},
    )


def _trains_head(folder: str) -> bool:
    """Whether any term of a run can have trained its network's own head; without running what registered its parts."""
    for term, options in runs.read_json(folder, "config.json")["config"]["method"].items():
        if options.get("method", term) not in methods.METHODS:
            return True
        if methods.create({term: options}).predict is student_logits:
            return True
    return False


def _run_key(path: tuple[str, ...]) -> str:
    """The name of a run's variable, which needs none of PyTorch's: the module first, as in PyTorch."""
    collection, *names = path
    return f"{'.'.join(names)} ({collection})"


def _module(key: str) -> str:
    return key.split(".")[0]


def read(source: PathLike) -> dict[str, np.ndarray]:
    """The state dict of a file or a hub id; see `load`."""
    return read_state_dict(_file(os.path.expanduser(source)))


def fingerprint(source: PathLike) -> str:
    """The SHA-256 of a source's content: of its file, or of the config of its run."""
    source = os.path.expanduser(source)
    if os.path.isdir(remote.local(source)):
        return runs.read_json(source, "config.json")["hash"]
    return registry.digest(_file(source))


def read_state_dict(path: PathLike) -> dict[str, np.ndarray]:
    """{PyTorch's key: array} of a file of safetensors or of PyTorch, told by its content; the latter needs PyTorch.

    Raises:
      InputError: when the file cannot be read as one, or is not finite; code in a pickle is refused, not run.
    """
    path = os.path.expanduser(path)
    try:
        tensors = _read_torch(path) if _is_torch(path) else _read_safetensors(path)
    except ImportError as error:
        raise InputError(
            f"{path} needs PyTorch, which is not installed; expected that, or a .safetensors file"
        ) from error
    except InputError:
        raise
    except Exception as error:  # each library has its own for a file that is cut short or is something else
        text = one_line(error, 160)
        raise InputError(f"{path} cannot be read as weights; expected a whole file of tensors: {text}") from error
    _check_finite(path, tensors)
    return tensors


def _is_torch(path: str) -> bool:
    """Whether a file is a zip or a pickle, as PyTorch writes them; safetensors begin with a length and `{`."""
    with open(path, "rb") as file:
        first = file.read(9)
    return first[8:9] != b"{" and (first.startswith(b"PK\x03\x04") or first[:1] == b"\x80")


def _check_finite(source: str, tensors: Mapping[str, Any]) -> None:
    """Raises InputError for an array that holds NaN or infinity."""
    bad = (key for key, array in tensors.items() if not np.isfinite(np.asarray(array, np.float32)).all())
    if first := next(bad, ""):
        raise InputError(f"the weights of {source} are not finite, first in {first}; expected finite numbers")


def read_metadata(path: str) -> dict[str, str]:
    """The metadata of a .safetensors file; raises InputError when it is none."""
    from safetensors import safe_open

    try:
        with safe_open(path, "numpy") as file:
            return dict(file.metadata() or {})
    except Exception as error:  # a file that is cut short or is something else
        raise InputError(f"{path} cannot be read as safetensors; expected a file of `kd_jax export`") from error


def read_exported(path: str, metadata: Mapping[str, str], shapes: Variables, network: Network) -> Variables:
    """The variables of a file of `kd_jax export`, whose metadata says whose names its keys are."""
    tensors = read(path)
    if metadata.get("names") == "flax":
        network = network._replace(torch_key=".".join)
        variables = unflatten_dict({tuple(key.split(".")): array for key, array in tensors.items()})
        tensors = torch_names.to_state_dict(variables, network)
    return torch_names.match(tensors, shapes, network)


def _read_safetensors(path: str) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    return load_file(path)


def _read_torch(path: str) -> dict[str, np.ndarray]:
    import torch

    try:
        with warnings.catch_warnings(action="ignore"):  # of other pickle protocols
            loaded: Any = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path} is refused: it is damaged, or a pickle with more than tensors in it, which could run code;"
            " expected a state dict that torch.load(weights_only=True) reads"
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
    if not isinstance(loaded, Mapping) or not all(
        isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in loaded.items()
    ):
        raise InputError(f"{path} holds no state dict; expected tensors by name, or those under the key state_dict")
    return {key: value.detach().float().numpy() for key, value in loaded.items()}


def _file(source: str) -> str:
    """The path of a source's file, from the hub where it is not one here."""
    if os.path.isfile(source):
        return source
    found = HUB.fullmatch(source)
    if not found or source.endswith((".pth", ".pt", ".th", ".tar", ".safetensors")):
        raise InputError(
            f"no weights found at {source!r}; expected a file of safetensors or of PyTorch,"
            " the folder of a finished run, or a hub id OWNER/NAME@REVISION"
        )
    try:
        import huggingface_hub
    except ImportError as error:
        raise InputError(
            f"{source!r} needs huggingface_hub, which is not installed; expected that, or a file"
        ) from error
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it logs every attempt before the error
    ask = functools.partial(huggingface_hub.hf_hub_download, found["repository"], FILE, revision=found["revision"])
    try:
        return ask(local_files_only=True)
    except Exception:  # each version of the library has its own
        reason = hub.unreachable()
        if not reason:
            try:
                return ask(etag_timeout=hub.SECONDS)
            except Exception as error:  # of the connection, or an unknown repository
                reason = one_line(error).split(". ")[0].rstrip(".")
        raise InputError(
            f"the weights {source!r} are not in the hub's cache and cannot be fetched: {reason}. Download {FILE} of"
            " it where there is a network and give its path, or fill the cache there and set HF_HUB_OFFLINE=1"
        ) from None


def read_run(folder: PathLike, step: int = 0) -> tuple[Variables, MethodVariables]:
    """The student's variables (averaged, where the run averages them) and the method's, of a finished run.

    Args:
      folder: of the run.
      step: of the checkpoint; 0 for the one that the run tested.
    """
    from kd_jax import checkpoint  # Orbax is slow to import, and a config is checked without it

    folder = os.path.expanduser(folder)
    step = step or runs.read_json(folder, "result.json")["checkpoint"]
    tree = checkpoint.load_tree(os.path.join(folder, "checkpoints"), step)
    params, stats = tree["params"], tree["stats"]
    variables = tree["ema"] or {"params": params["student"], "batch_stats": stats["student"]}
    if runs.read_json(folder, "config.json")["format"] == 1:  # whose states had one group for all terms
        of_method = MethodVariables(params["method"], stats["method"])
    else:
        of_method = method_variables(params, stats)
    _check_finite(folder, flatten_dict(dict(variables), sep="."))
    return variables, of_method
