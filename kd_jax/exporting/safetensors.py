"""The weights of a run as safetensors, under PyTorch's key names, of which `kd_jax.load` builds the network again."""

import json
import os

import numpy as np
from flax.traverse_util import flatten_dict
from safetensors import SafetensorError
from safetensors.numpy import save_file

import kd_jax
from kd_jax import exporting, methods, networks, runs, stopping, weights
from kd_jax.errors import InputError, one_line
from kd_jax.models import torch_names
from kd_jax.types import student_logits


def write(run: str, path: str) -> bool:
    """Writes the student's weights, with all that `kd_jax.load` needs to build the network again as metadata.

    Args:
      run: the folder of a finished run.
      path: of a new .safetensors file.
    Returns:
      Whether the keys and layouts are PyTorch's. Those of a network without such names are Flax's: the path in the
      variables, joined by ".".
    Raises:
      InputError: when the folder holds no finished run, or the file already exists or cannot be written.
    """
    saved = runs.read_config(run)
    network = networks.create(saved["config"], len(saved["data"]["class_names"]))
    variables = weights.read_run(run)[0]
    exporting.check_new(path)
    if methods.create(saved["config"]["method"]).predict is not student_logits:
        print(f"the run predicts through its method ({', '.join(saved['config']['method'])}), which the file lacks")
    if network.torch_key:
        tensors = torch_names.to_state_dict(variables, network)
    else:
        tensors = {key: np.asarray(array) for key, array in flatten_dict(dict(variables), sep=".").items()}
    mean, std = networks.normalization(saved["config"], network, saved["data"]["mean"], saved["data"]["std"])
    described = {**saved["data"], "mean": mean.tolist(), "std": std.tolist()}
    metadata = {key: json.dumps(described[key]) for key in ("class_names", "mean", "std", "image_shape")}
    metadata |= {
        "model": saved["config"]["model"]["name"],
        "config": json.dumps(networks.described(saved["config"])),
        "names": "torch" if network.torch_key else "flax",
        "hash": saved["hash"],
        "kd_jax": kd_jax.__version__,
    }
    partial = f"{path}.{os.getpid()}.tmp"
    exporting.claim(path, path)
    try:
        with stopping.unfinished(partial, path):
            # Copies, as safetensors takes no account of transposed axes.
            save_file({key: array.copy() for key, array in tensors.items()}, partial, metadata)
            os.replace(partial, path)
    except (OSError, SafetensorError) as error:
        if any(os.strerror(number) in str(error) for number in runs.DISK_ERRORS):
            raise
        raise InputError(f"--to is {path!r}, which cannot be written: {one_line(error)}") from None
    return network.torch_key is not None
