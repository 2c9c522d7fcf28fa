"""Trains a network as a config says, its teacher first when that is missing.

usage: python -m kd_jax.main [--config=configs/rkd.py[:small|:smoke]] [--workdir=FOLDER] [--config.KEY=VALUE ...]

The run's folder is by default <runs>/<name>-<hash of the config>. Without --config it trains a small network on
handwritten digits (configs/quickstart.py). The same command again goes on with a run that was stopped. Every key of a
config stands in kd_jax/config/base.py.
"""

import glob
import json
import os
import re
from typing import Any

from absl import flags
from ml_collections import config_flags

from kd_jax import cli
from kd_jax.errors import InputError, choose

DEFAULT = "configs/quickstart.py"
CONFIG = config_flags.DEFINE_config_file("config", None, f"The run's configuration; by default {DEFAULT}.")
TERM = flags.DEFINE_multi_string("term", [], "Changes or adds a loss term, as in soft:loss=kd,weight=0.5.")
flags.declare_key_flag("workdir")
flags.declare_key_flag("runs")


def main(arguments: list[str]) -> None:
    if arguments:
        raise InputError(f"the argument {arguments[0]!r} is not known; expected flags only, see --help")
    config = CONFIG.value.to_dict()
    for term in TERM.value:
        add_term(config["method"], term)
    from kd_jax import training  # after the flags: JAX and Orbax are slow to import, and --help needs neither

    training.train_and_evaluate(config, cli.WORKDIR.value, runs_folder=cli.RUNS.value)


def with_config(arguments: list[str]) -> list[str]:
    """The command line with the default config where none is given. Refuses a file that is missing."""
    flag = re.compile("--?config(=|$)")
    given = [i for i, argument in enumerate(arguments) if flag.match(argument)]
    path = DEFAULT
    if given:
        _, equals, value = arguments[given[-1]].partition("=")
        path = (value if equals else (*arguments, "")[given[-1] + 1]).partition(":")[0]
    if not os.path.isfile(path):
        choose("--config", path, glob.glob("configs/*.py") or ["a Python file, such as one in the project's configs/"])
    return arguments if given else [f"--config={DEFAULT}", *arguments]


def add_term(terms: dict[str, dict[str, Any]], text: str) -> None:
    """Sets options of a loss term, from "TERM:KEY=VALUE,KEY=VALUE"."""
    name, _, options = text.partition(":")
    # Commas inside a list do not separate.
    pairs = [pair.partition("=") for pair in re.split(r",(?![^\[]*\])", options) if pair]
    if not name or not all(key and equals for key, equals, _ in pairs):
        raise InputError(f"--term is {text!r}; expected TERM:KEY=VALUE,KEY=VALUE, for example soft:loss=kd,weight=0.5")
    term = terms.setdefault(name, {})
    for key, _, value in pairs:
        try:
            term[key] = json.loads(value)
        except json.JSONDecodeError:
            term[key] = value


if __name__ == "__main__":
    cli.run(main, __doc__, with_config)
