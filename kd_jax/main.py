"""Trains a network as a config says, its teacher first when that is missing.

usage: python -m kd_jax.main [--config=rkd[:small|:smoke]] [--workdir=FOLDER] [--config.KEY=VALUE ...]

--config is a Python file, or the name of an experiment that comes with kd_jax, for example rkd or configs/rkd.py.
Without it, a small network is distilled on handwritten digits (quickstart). The run's folder is by default
<runs>/<name>-<hash of the config>. The same command continues a run that was stopped. kd_jax/keys.py lists every
key of a config.
"""

import ast
import glob
import os
import re
import sys
from typing import Any

from absl import flags

from kd_jax import cli
from kd_jax.config import experiment, shipped
from kd_jax.errors import InputError, choose

try:
    from ml_collections import config_flags
except ModuleNotFoundError:
    print(
        "error: ml_collections is not installed; expected it for --config (pip install ml_collections)", file=sys.stderr
    )
    sys.exit(2)

DEFAULT = "quickstart"
OPTIONS = r"(?:[\w.]+\.)?optimizer\.(?:schedule_)?options"  # sections whose keys no config has from the start
CONFIG = config_flags.DEFINE_config_file("config", None, f"The run's configuration; by default {DEFAULT}.")
TERM = flags.DEFINE_multi_string(
    "term", [], "As in soft:method=kd,weight=0.5: changes or adds a loss term; may be given more than once."
)
EXTEND = cli.define_path(
    "extend", None, "Goes on from the end of this finished run, which differs in its length and schedule alone."
)
COORDINATOR = flags.DEFINE_string("coordinator", None, "Of many processes: HOST:PORT of the first; see docs/scale.md.")
PROCESSES = flags.DEFINE_integer("processes", None, "How many processes train this run.", lower_bound=1)
PROCESS_ID = flags.DEFINE_integer("process_id", None, "Which of them this is, from 0.", lower_bound=0)
DISTRIBUTED = flags.DEFINE_bool("distributed", False, "Join the processes that JAX finds, as on a TPU pod.")
for flag in ("workdir", "runs", "import"):
    flags.declare_key_flag(flag)


def main(arguments: list[str]) -> None:
    tree = given(arguments)
    from kd_jax import distributed, training  # after the flags: JAX and Orbax are slow to import

    with distributed.group(COORDINATOR.value, PROCESSES.value, PROCESS_ID.value, DISTRIBUTED.value):
        training.train(tree, cli.WORKDIR.value, runs_folder=cli.RUNS.value, extend=EXTEND.value)


def given(arguments: list[str]) -> dict[str, Any]:
    """The config that the flags describe, of a command that takes flags alone."""
    if arguments:
        raise InputError(f"the argument {arguments[0]!r} is not known; expected flags only, see --help")
    tree: dict[str, Any] = CONFIG.value.to_dict()
    for term in TERM.value:
        add_term(tree["method"], term)
    return tree


def with_config(arguments: list[str]) -> list[str]:
    """Replaces the names of experiments by the paths of their files; without --config, the quickstart's.

    Options of optimizers and schedules, one by one, become the sections that ml_collections can set.

    Raises:
      InputError: --config names neither an experiment nor an existing file.
    """
    flag = re.compile("--?config(=|$)")
    if not any(flag.match(argument) for argument in arguments):
        arguments = [f"--config={DEFAULT}", *arguments]
    completed: list[str] = []
    options: dict[str, dict[str, Any]] = {}
    rest = iter(arguments)
    for argument in rest:
        if re.fullmatch(rf"--?config\.{OPTIONS}\.\w+", argument):
            argument = f"{argument}={next(rest, '')}"
        if found := re.fullmatch(rf"--?config\.({OPTIONS})\.(\w+)=(.*)", argument):
            section, option, text = found.groups()
            options.setdefault(section, {})[option] = cli.parsed(text)
            continue
        if completed and completed[-1] in ("--config", "-config"):
            argument = _find(argument)
        elif flag.match(argument) and "=" in argument:
            name, _, value = argument.partition("=")
            argument = f"{name}={_find(value)}"
        completed.append(argument)
    # At the end: ml_collections wants the config first.
    return completed + [f"--config.{section}={_section(section, completed) | own}" for section, own in options.items()]


def _section(section: str, arguments: list[str]) -> dict[str, Any]:
    """What stands in a section beside the options that are given one by one: by a flag of its own, or by the config.

    `arguments`: with the path of the config's file.
    """
    whole = {key: value for key, _, value in (argument.lstrip("-").partition("=") for argument in arguments)}
    try:
        if text := whole.get(f"config.{section}"):
            return dict(ast.literal_eval(text))
        path = whole.get("config") or arguments[arguments.index("--config") + 1]
        file, colon, argument = path.partition(":")
        tree = experiment(file).get_config(*([argument] if colon else []))
        for name in section.split("."):
            tree = tree[name]
        return dict(tree)
    except Exception:  # the section is not there, or what ml_collections says of the flag or the file
        return {}


def _find(value: str) -> str:
    """The path, with its argument, of an experiment's file that is given by PATH[:ARGUMENT] or NAME[:ARGUMENT]."""
    path, colon, argument = value.partition(":")
    if os.path.isfile(path):
        return value
    name = re.sub(r"^configs/(.*)\.py$", r"\1", path)
    files = shipped()
    if name not in files:
        names = files if name == path else [f"configs/{name}.py" for name in files]
        beside = glob.glob(os.path.join(os.path.dirname(path), "[!_]*.py"))
        choose("--config", path, {*names, *beside})
    print(f"--config={path} is {files[name]}", flush=True)
    return f"{files[name]}{colon}{argument}"


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
    term |= {key: cli.parsed(value) for key, _, value in pairs}


if __name__ == "__main__":
    cli.run(main, __doc__, with_config)
