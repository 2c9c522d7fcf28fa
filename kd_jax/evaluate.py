"""Evaluates a finished run on its test set, and prints the metrics as JSON.

usage: python -m kd_jax.evaluate --workdir=FOLDER [--per_class] [--path=DATA]
"""

import contextlib
import json
import sys

from absl import flags

from kd_jax import cli, remote
from kd_jax.errors import InputError

PER_CLASS = flags.DEFINE_bool("per_class", False, "Also images, recall, precision and F1 of every class.")
for name in ("workdir", "runs", "path", "import"):
    flags.declare_key_flag(name)


def main(arguments: list[str]) -> None:
    if arguments or not cli.WORKDIR.value:
        raise InputError("expected --workdir=FOLDER, the folder of a finished run, and nothing else")
    from kd_jax import evaluation

    with contextlib.redirect_stdout(sys.stderr):  # what is said of the data is no part of the JSON
        metrics = evaluation.evaluate_run(
            cli.WORKDIR.value, path=cli.PATH.value, runs_folder=cli.RUNS.value, per_class=PER_CLASS.value
        )
    print(json.dumps({"workdir": remote.normal(cli.WORKDIR.value), **metrics}, indent=1))


if __name__ == "__main__":
    cli.run(main, __doc__)
