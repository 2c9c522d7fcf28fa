"""Trains a network as a config says, its teacher first when that is missing.

usage: python -m kd_jax.main [--config=configs/rkd.py[:small|:smoke]] [--workdir=FOLDER] [--config.KEY=VALUE ...]

Without --config it trains a small network on handwritten digits (configs/quickstart.py). The same command again goes
on with a run that was stopped. Every key of a config stands in configs/base.py.
"""

import json
import re

from absl import flags
from ml_collections import ConfigDict, config_flags

from kd_jax import cli
from kd_jax.types import InputError

CONFIG = config_flags.DEFINE_config_file("config", "configs/quickstart.py", "The run's configuration.")
WORKDIR = flags.DEFINE_string("workdir", None, "The run's folder; by default <runs>/<name>-<hash of the config>.")
RUNS = flags.DEFINE_string("runs", "runs", "The folder of all runs; teachers lie in its folder `teachers`.")
TERM = flags.DEFINE_multi_string("term", [], "Changes or adds a loss term, as in soft:loss=kd,weight=0.5.")


def main(arguments: list[str]) -> None:
    if arguments:
        raise InputError(f"the argument {arguments[0]!r} is not known; expected flags only, see --help")
    config = CONFIG.value
    for term in TERM.value:
        add_term(config, term)
    from kd_jax import loop  # after the flags: JAX and Orbax are slow to import, and --help needs neither

    loop.train_and_evaluate(config, WORKDIR.value, runs_folder=RUNS.value)


def add_term(config: ConfigDict, text: str) -> None:
    """Sets options of a loss term, from "TERM:KEY=VALUE,KEY=VALUE"."""
    name, _, options = text.partition(":")
    # Commas inside a list do not separate.
    pairs = [pair.partition("=") for pair in re.split(r",(?![^\[]*\])", options) if pair]
    if not name or not all(key and equals for key, equals, _ in pairs):
        raise InputError(f"--term is {text!r}; expected TERM:KEY=VALUE,KEY=VALUE, for example soft:loss=kd,weight=0.5")
    with config.unlocked():
        term = config.method.setdefault(name, ConfigDict())
        for key, _, value in pairs:
            try:
                term[key] = json.loads(value)
            except json.JSONDecodeError:
                term[key] = value


if __name__ == "__main__":
    cli.run(main, __doc__)
