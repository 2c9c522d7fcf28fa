"""A config over seeds, or a grid of values of its keys: runs what is missing, and picks up where it stopped.

usage: python -m kd_jax.sweep --config=NAME[:ARGUMENT] [--sweep=KEY=A,B,C ...] [--seeds=3] [--jobs=2]
           [--on=local|slurm|ray|kubernetes] [KEY=VALUE ...]

KEY is a key of the config, as optimizer.learning_rate, or an option of one of its loss terms, as kd.temperature or
method.kd.temperature. KEY=VALUE without --sweep changes a key of every run. The teacher's config is its own:
teacher.config.optimizer.learning_rate.

The table is sorted by accuracy on the validation split, by which a setting is to be chosen; that of the test set stands
beside it. Results are kept as those of `kd_jax table`, and a run that fails is named at its row.
"""

import copy
import itertools
import os
import re
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags
from ml_collections import config_flags

from kd_jax import cli, many, runs
from kd_jax.config import shipped
from kd_jax.errors import InputError, one_line
from kd_jax.jobs import Failure, Job, Result
from kd_jax.main import CONFIG, OPTIONS, TERM, add_term, with_config
from kd_jax.reporting.seeds import difference, spread

Values = Mapping[str, str]  # of keys, as they were written
COMMA = re.compile(r",(?![^\[]*\])")  # but for those inside of a list
SWEEP = flags.DEFINE_multi_string("sweep", [], "KEY=A,B,C: the values of a key; may be given more than once.")
for flag in ("config", "term", "seeds", "runs", "import", *many.FLAGS):
    flags.declare_key_flag(flag)


def main(arguments: list[str]) -> None:
    many.check()
    changes = dict(pair("the argument", text) for text in arguments)
    points = grid(SWEEP.value)
    seeds = range(cli.SEEDS.value or 3)
    name = re.sub(r"[^\w.]+", "-", f"sweep-{os.path.basename(_path()).replace('.py', '')}")
    for point in points:  # a mistake is said before anything runs
        check(config({**changes, **point}, seed=0))
    # Every point once before any a second time, so that an unfinished sweep is of use.
    wanted = [job(name, point, changes, seed) for seed in seeds for point in points]
    if len({one.key for one in wanted}) < len(wanted):
        raise InputError("--sweep has two settings that are one run; expected keys and values that make a difference")
    done, failures = many.run(wanted, name)
    rows = {row(point): point for point in points}
    results = {key: {one.seed: done[one.key] for one in wanted if one.row == key and one.key in done} for key in rows}
    many.write(name, table(rows, results, failures), summary(rows, results, failures))
    many.fail(failures, wanted)


def grid(sweeps: Sequence[str]) -> list[Values]:
    """Every combination of the values of KEY=A,B,C; without any the config as it is.

    >>> grid(["kd.temperature=2,4", "model.width=0.5"])
    [{'kd.temperature': '2', 'model.width': '0.5'}, {'kd.temperature': '4', 'model.width': '0.5'}]
    """
    keys = {}
    for text in sweeps:
        key, given = pair("--sweep", text)
        values = COMMA.split(given)
        if key in keys or len(set(values)) < len(values):
            raise InputError(f"--sweep is {text!r}; expected every key, and every value of a key, once")
        keys[key] = values
    return [dict(zip(keys, values, strict=True)) for values in itertools.product(*keys.values())]


def pair(what: str, text: str) -> tuple[str, str]:
    """The key and the value of KEY=VALUE, which `what` is."""
    key, _, value = text.partition("=")
    if not key or not value or key.startswith("-"):
        raise InputError(f"{what} is {text!r}; expected KEY=VALUE, for example optimizer.learning_rate=0.1")
    if key in ("seed", "name"):
        raise InputError(f"{what} is {text!r}; expected another key, as every run of a sweep has its own")
    return key, value


def row(point: Values) -> str:
    """What the row of a setting is called."""
    return ", ".join(f"{key}={value}" for key, value in point.items()) or "as it is"


def config(values: Values, seed: int) -> dict[str, Any]:
    """The plain config of a run.

    Raises:
      InputError: for a key that the config does not have, and a value of another type.
    """
    from kd_jax.config.checks import plain

    tree = copy.deepcopy(CONFIG.value)
    terms = _terms(values)
    flat = {key: cli.parsed(value) for key, value in values.items() if key not in terms}
    options = {key: value for key, value in flat.items() if re.fullmatch(rf"{OPTIONS}\.\w+", key)}
    try:
        tree.update_from_flattened_dict({"seed": seed, **{key: flat[key] for key in flat.keys() - options.keys()}})
        with tree.unlocked():  # sections whose keys no config has from the start
            tree.update_from_flattened_dict(options)
    except (KeyError, TypeError, ValueError) as error:
        said = one_line(error).partition(" Other fields")[0]
        raise InputError(f"the keys {row(values)} do not fit: {said}") from None
    made = tree.to_dict()
    for term in (*TERM.value, *terms.values()):
        add_term(made["method"], term)
    return plain(made)


def _terms(values: Values) -> dict[str, str]:
    """{key: what --term says for it} of the keys that are options of loss terms."""
    terms = {}
    for key, value in values.items():
        term, dot, option = key.removeprefix("method.").partition(".")
        if dot and (key.startswith("method.") or term not in CONFIG.value):
            if term not in CONFIG.value.method:
                known = ", ".join(sorted(CONFIG.value.method))
                raise InputError(f"the key is {key!r}; expected a section of the config, or one of its terms: {known}")
            terms[key] = f"{term}:{option}={value}"
    return terms


def check(tree: Mapping[str, Any]) -> None:
    """Raises InputError for a config that cannot be, or whose runs have no accuracy to choose by."""
    from kd_jax import experiment

    experiment.check_without_data(tree)
    if tree["dataset"]["label_free"]:
        raise InputError("dataset.label_free is true, and without labels there is no accuracy to choose by")


def job(name: str, point: Values, changes: Values, seed: int) -> Job:
    """The run of a setting and a seed, with the flags that make it."""
    values = {**changes, **point}
    terms, tree = _terms(values), config(values, seed)
    overridden = {
        key: value.to_dict() if hasattr(value, "to_dict") else value
        for key, value in config_flags.get_override_values(flags.FLAGS["config"]).items()
    }
    own = {**overridden, "seed": seed, **{key: value for key, value in values.items() if key not in terms}}
    command = (
        "-m",
        "kd_jax.main",
        f"--config={_named()}",
        *(f"--import={path}" for path in cli.IMPORT.value),
        *(f"--config.{key}={value}" for key, value in own.items()),
        *(f"--term={term}" for term in (*TERM.value, *terms.values())),
    )
    identity = many.identity(tree)
    key = runs.digest(identity)
    folder = os.path.join(cli.RUNS.value, name, f"{seed}-{key[:8]}")
    return Job(row(point), seed, key, command, folder, many.untrained(tree, identity))


def _path() -> str:
    """The file of the config, with its argument."""
    return config_flags.get_config_filename(flags.FLAGS["config"])


def _named() -> str:
    """The config as a command of any machine names it: the path of one that comes with kd_jax is its name."""
    names = {path: name for name, path in shipped().items()}
    path, colon, argument = _path().partition(":")
    return f"{names.get(path, path)}{colon}{argument}"


def summary(
    points: Mapping[str, Values], results: Mapping[str, Mapping[int, Result]], failures: Sequence[Failure] = ()
) -> dict[str, dict[str, Any]]:
    """What the table says of each row, the best first: accuracies by seed, in per cent."""
    rows: dict[str, dict[str, Any]] = {}
    for key, by_seed in results.items():
        rows[key] = {
            "values": dict(points[key]),
            "validation": {
                n: 100 * result["validation"]["accuracy"] for n, result in by_seed.items() if result["validation"]
            },
            "test": {n: 100 * result["test"]["accuracy"] for n, result in by_seed.items()},
            "failed": {failure.seed: failure.reason for failure in failures if failure.row == key},
        }
    rated = sorted(rows, key=lambda key: -statistics.fmean(rows[key]["validation"].values() or [-1.0]))
    return {key: rows[key] for key in rated}


def table(
    points: Mapping[str, Values], results: Mapping[str, Mapping[int, Result]], failures: Sequence[Failure] = ()
) -> str:
    """The Markdown table of {row: {seed: result}}, the best on the validation split first."""
    rows = summary(points, results, failures)
    best = next(iter(rows.values()))
    headings = (*best["values"], "validation accuracy, %", "against the best, points", "test accuracy, %", "seeds")
    lines = ["| " + " | ".join(headings) + " |", "| " + " | ".join("---" for _ in headings) + " |"]
    for numbers in rows.values():
        rated = numbers["validation"] and numbers is not best
        failed = "".join(f"; seed {seed} failed: {reason}" for seed, reason in numbers["failed"].items())
        cells = (
            *numbers["values"].values(),
            spread(numbers["validation"], 2),
            difference(numbers["validation"], best["validation"], 2) if rated else "",
            spread(numbers["test"], 2),
            f"{len(numbers['test'])}{failed}".replace("|", "\\|"),
        )
        lines.append("| " + " | ".join(cells) + " |")
    said = "Mean and standard deviation over seeds; differences are of the validation split, paired by seed"
    return "\n".join([*lines, "", f"{said}, with a 95% interval."])


if __name__ == "__main__":
    cli.run(main, __doc__, with_config)
