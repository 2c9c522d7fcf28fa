"""Writes the student of a finished run as safetensors, under PyTorch's key names.

usage: python -m kd_jax.export --workdir=FOLDER --to=model.safetensors

A file that is there is never replaced.
"""

import errno
import json
import os

from absl import flags

from kd_jax import cli
from kd_jax.errors import InputError

flags.declare_key_flag("workdir")
flags.declare_key_flag("to")


def main(arguments: list[str]) -> None:
    if arguments or not cli.WORKDIR.value or not cli.TO.value:
        raise InputError("expected --workdir=FOLDER, the folder of a finished run, and --to=FILE")
    export(cli.WORKDIR.value, cli.TO.value)
    print(f"wrote {cli.TO.value}")


def export(run: str, path: str) -> None:
    """Writes the student's weights, and beside them, as metadata, the network's name, the classes, mean and deviation.

    Raises:
      InputError: when the folder holds no finished run, or the file is there or cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    from kd_jax import runs, weights
    from kd_jax.models import torch_names

    saved = runs.read_json(run, "config.json")
    name = saved["config"]["model"]["name"]
    state_dict = torch_names.to_state_dict(weights.read_run(run)[0], name)
    if os.path.exists(path):
        raise InputError(f"--to is {path!r}, which is there; expected the name of a new file")
    if not os.path.isdir(os.path.dirname(path) or "."):
        raise InputError(f"--to is {path!r}; expected a file in a folder that is there")
    about = {key: json.dumps(saved["data"][key]) for key in ("class_names", "mean", "std")}
    partial = f"{path}.{os.getpid()}.tmp"
    try:
        save_file({key: value.copy() for key, value in state_dict.items()}, partial, {"model": name, **about})
        os.replace(partial, path)
    except (OSError, SafetensorError) as error:
        if os.strerror(errno.ENOSPC) in str(error):
            raise
        raise InputError(f"--to is {path!r}, which cannot be written: {' '.join(str(error).split())}") from None


if __name__ == "__main__":
    cli.run(main, __doc__)
