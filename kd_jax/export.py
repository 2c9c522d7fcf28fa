"""Writes the student of a finished run as safetensors, under PyTorch's key names.

usage: python -m kd_jax.export --workdir=FOLDER --to=model.safetensors

An existing file is never replaced. A network without PyTorch names keeps its own, joined by dots.
"""

import errno
import json
import os

from absl import flags

from kd_jax import cli
from kd_jax.errors import InputError, one_line

for name in ("workdir", "to", "import"):
    flags.declare_key_flag(name)


def main(arguments: list[str]) -> None:
    if arguments or not cli.WORKDIR.value or not cli.TO.value:
        raise InputError("expected --workdir=FOLDER, the folder of a finished run, and --to=FILE")
    export(cli.WORKDIR.value, cli.TO.value)
    print(f"wrote {cli.TO.value}")


def export(run: str, path: str) -> None:
    """Writes the student's weights, and beside them, as metadata, the network's name, the classes, mean and deviation.

    Raises:
      InputError: when the folder holds no finished run, or the file exists or cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    from kd_jax import methods, networks, runs, weights
    from kd_jax.models import torch_names
    from kd_jax.types import student_logits

    saved = runs.read_config(run)
    network = networks.create(saved["config"], len(saved["data"]["class_names"]))
    state_dict = torch_names.to_state_dict(weights.read_run(run)[0], network)
    if os.path.exists(path):
        raise InputError(f"--to is {path!r}, which already exists; expected a new file")
    if not os.path.isdir(os.path.dirname(path) or "."):
        raise InputError(f"--to is {path!r}; expected a file in an existing folder")
    if network.torch_key is None:
        print(f"{network.name} has no PyTorch names; the keys are its own")
    if methods.create(saved["config"]["method"]).predict is not student_logits:
        print(f"the run predicts through its method ({', '.join(saved['config']['method'])}), which the file lacks")
    about = {key: json.dumps(saved["data"][key]) for key in ("class_names", "mean", "std")}
    partial = f"{path}.{os.getpid()}.tmp"
    try:
        save_file({key: value.copy() for key, value in state_dict.items()}, partial, {"model": network.name, **about})
        os.replace(partial, path)
    except (OSError, SafetensorError) as error:
        if os.strerror(errno.ENOSPC) in str(error):
            raise
        raise InputError(f"--to is {path!r}, which cannot be written: {one_line(error)}") from None


if __name__ == "__main__":
    cli.run(main, __doc__)
