"""Measures embeddings by a linear probe: of a finished run's student and its teacher. Prints accuracies as JSON.

usage: python -m kd_jax.probe --workdir=FOLDER [--of=student,teacher,initial] [dataset.KEY=VALUE ...]

Images of classes are embedded by the network, which stays as it is, and a linear classifier (logistic regression, whose
penalty is chosen on validation images) is fitted to them. dataset.KEY=VALUE says which images, where the run's own have
no labels or others are meant: dataset.source=folder dataset.path=flowers. `initial` is the student before training.
"""

import contextlib
import json
import sys

from absl import flags

from kd_jax import cli, remote
from kd_jax.errors import InputError

OF_WHOM = flags.DEFINE_list("of", ["student", "teacher"], "Who is probed: student, teacher, initial.")
for name in ("workdir", "runs", "import"):
    flags.declare_key_flag(name)


def main(arguments: list[str]) -> None:
    if not cli.WORKDIR.value:
        raise InputError("expected --workdir=FOLDER, the folder of a finished run")
    changes = {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not (key.startswith("dataset.") and equals):
            raise InputError(f"the argument {argument!r} is not known; expected dataset.KEY=VALUE, see kd_jax/keys.py")
        changes[key.removeprefix("dataset.")] = cli.parsed(value)
    from kd_jax import probing

    with contextlib.redirect_stdout(sys.stderr):  # what is said of the data is no part of the JSON
        found = probing.probe_run(cli.WORKDIR.value, changes, of=OF_WHOM.value, runs_folder=cli.RUNS.value)
    print(json.dumps({"workdir": remote.normal(cli.WORKDIR.value), **found}, indent=1))


if __name__ == "__main__":
    cli.run(main, __doc__)
