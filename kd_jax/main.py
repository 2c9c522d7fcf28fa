"""Trains a network as a config says, its teacher first when that is missing.

usage: python -m kd_jax.main [--config=configs/rkd.py[:small|:smoke]] [--workdir=FOLDER] [--config.KEY=VALUE ...]

--config is a Python file, or the name of a shipped experiment, such as rkd:small. The run's folder is by default
<runs>/<name>-<hash of the config>. Without --config it trains a small network on handwritten digits. The same command
again goes on with a run that was stopped. Every key of a config stands in kd_jax/config/base.py.
"""

import glob
import json
import os
import re
from typing import Any

from absl import flags
from ml_collections import config_flags

from kd_jax import cli, config
from kd_jax.errors import InputError, choose

DEFAULT = "quickstart"
CONFIG = config_flags.DEFINE_config_file("config", None, f"The run's configuration; by default configs/{DEFAULT}.py.")
TERM = flags.DEFINE_multi_string("term", [], "Changes or adds a loss term, as in soft:method=kd,weight=0.5.")
for name in ("workdir", "runs", "import"):
    flags.declare_key_flag(name)


def main(arguments: list[str]) -> None:
    if arguments:
        raise InputError(f"the argument {arguments[0]!r} is not known; expected flags only, see --help")
    tree = CONFIG.value.to_dict()
    for term in TERM.value:
        add_term(tree["method"], term)
    from kd_jax import training  # after the flags: JAX and Orbax are slow to import, and --help needs neither

    training.train(tree, cli.WORKDIR.value, runs_folder=cli.RUNS.value)


def complete(arguments: list[str]) -> list[str]:
    """The command line with the path of its config: a file that exists, else a shipped experiment of that name.

    Raises:
      InputError: where it is neither.
    """
    flag = re.compile("--?config(=|$)")
    given = [i for i, argument in enumerate(arguments) if flag.match(argument)]
    if not given:
        return [f"--config={_find(DEFAULT)}", *arguments]
    name, equals, value = arguments[given[-1]].partition("=")
    if not equals:
        value = (*arguments, "")[given[-1] + 1]
    path, colon, argument = value.partition(":")
    found = f"{_find(path)}{colon}{argument}"
    done = list(arguments)
    done[given[-1] : given[-1] + (1 if equals else 2)] = [f"{name}={found}"]
    return done


def _find(name: str) -> str:
    """The file of a config."""
    if os.path.isfile(name):
        return name
    shipped = config.shipped()
    short = name.removeprefix("configs/").removesuffix(".py")
    if short not in shipped:
        local = glob.glob("configs/[!_]*.py")
        choose("--config", name, [*local, *shipped] if not name.startswith("configs/") or not local else local)
    path = str(shipped[short])
    if name != DEFAULT:
        print(f"--config={name} is {path}", flush=True)
    return path


def add_term(terms: dict[str, dict[str, Any]], text: str) -> None:
    """Sets options of a loss term, from "TERM:KEY=VALUE,KEY=VALUE"."""
    name, _, options = text.partition(":")
    # Commas inside a list do not separate.
    pairs = [pair.partition("=") for pair in re.split(r",(?![^\[]*\])", options) if pair]
    if not name or not all(key and equals for key, equals, _ in pairs):
        raise InputError(
            f"--term is {text!r}; expected TERM:KEY=VALUE,KEY=VALUE, for example soft:method=kd,weight=0.5"
        )
    term = terms.setdefault(name, {})
    for key, _, value in pairs:
        try:
            term[key] = json.loads(value)
        except json.JSONDecodeError:
            term[key] = value


if __name__ == "__main__":
    cli.run(main, __doc__, complete)
