"""A table of experiments over seeds: runs what is missing, teachers first, and picks up where it stopped.

usage: python -m kd_jax.table --rows=original [--seeds=3] [--scale=laptop] [--preset=faithful] [--jobs=2]
           [KEY=VALUE ...]

The rows are those of a file of configs/, or of one of your own, --rows=FILE.py: a config with `get_config(row)`, that
also has ROWS, the names of its rows, and, where it likes, what `Table` reads beside them. KEY=VALUE changes a key of
every row's config and of its teacher's, as in dataset.path=cifar10; but a teacher sees every label, whatever
dataset.labeled says. With --pretrain_on=FOLDER all networks start from ones that are first trained on that folder of
images, as configs/pretrain.py says, in the place of ImageNet weights. A run that fails is named at its row, and the
others go on; the same command tries it again.

Every result is added to a file of JSON lines (--results), from which the table is made: runs whose results stand there
are not run again, on whatever machine they were made. --jobs=N runs N at a time, each on its share of the cores; --on
gives them to other machines, see docs/guide.md. --rows=cifar100, cifar10 and imagenet are the benchmark of
configs/benchmark.py, whose table is a page, CSV and LaTeX too.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from absl import flags

from kd_jax import cli, config, intervals, jobs, many, runs
from kd_jax.config import recipes
from kd_jax.config.pairs import PAIRS
from kd_jax.errors import InputError, TrainingError, choose, one_line
from kd_jax.jobs import Failure, Job

BENCHMARKS = tuple(dict.fromkeys(pair.data for pair in PAIRS.values()))  # of configs/benchmark.py
TABLES = ("original", *BENCHMARKS)
# What may be changed without making another recipe.
HARMLESS = (
    "dataset.source=",
    "dataset.path=",
    "dataset.stream=",
    "dataset.workers=",
    "teacher.cache=",
    "checkpoint.",
    "log.",
)
AGAIN = 1000  # what the seeds of a second training are higher by
ONLY = flags.DEFINE_list("only", [], "Of its rows, only these.")
SCALE = flags.DEFINE_enum("scale", "", list(recipes.SCALES), "Of kd_jax/config/recipes.py.")
PRESET = flags.DEFINE_string("preset", "", "One of the table's: corrected or faithful, honest or published.")
PAIR_NAMES = flags.DEFINE_list("pairs", [], "Of a benchmark, only these pairs of networks.")
METHOD_NAMES = flags.DEFINE_list("methods", [], "Of a benchmark, only these methods, in this order.")
NOTE = flags.DEFINE_string("note", "", "Of a benchmark, what its table says of all numbers.")
PRETRAIN_ON = cli.define_path("pretrain_on", None, "A folder of images to pretrain the networks on.")
for flag in ("rows", "seeds", "runs", *many.FLAGS):
    flags.declare_key_flag(flag)


class Table(NamedTuple):
    """What a table's module says; the names are those of its globals, in small letters."""

    name: str
    path: str  # of its config
    get_config: Callable[[str], Any]  # ROW[,preset][,scale] -> config
    rows: Sequence[str]
    presets: Sequence[str] = ("",)  # that get_config takes; the first is not said to it
    labels: Mapping[str, Sequence[str]] = {}  # {row: what the table says of it, under each of the headings}
    headings: Sequence[str] = ()
    baselines: Mapping[str, str] = {}  # {row: the one that it is compared with}
    against: str = ""  # what those are
    published: Mapping[str, float] = {}  # {row: its accuracy elsewhere, in per cent}
    source: str = ""  # of the published numbers
    # Whether it is the benchmark, whose table says more, and whose get_config fits all to a number of epochs.
    is_benchmark: bool = False


def read(name: str) -> Table:
    """The table of an experiment that comes with kd_jax, or of a file.

    Raises:
      InputError: there is none, it has no rows, or its labels do not fit its headings.
    """
    if name in BENCHMARKS:
        return _benchmark(name)
    if PAIR_NAMES.value or METHOD_NAMES.value:
        raise InputError(f"--pairs or --methods is given with --rows={name}; expected one of {', '.join(BENCHMARKS)}")
    is_file = name.endswith(".py")
    module = config.experiment(name if is_file else choose("--rows", name, TABLES))
    rows, headings = getattr(module, "ROWS", ()), getattr(module, "HEADINGS", ("row",))
    is_list = isinstance(rows, list | tuple) and all(isinstance(row, str) and row and "," not in row for row in rows)
    if not is_list or not rows or len(set(rows)) < len(rows):
        raise InputError(f"--rows is {name!r}, where ROWS is {rows!r}; expected a list of names, each once, no commas")
    labels = {row: (row,) for row in rows} | getattr(module, "LABELS", {})
    for row in rows:
        if isinstance(labels[row], str) or len(labels[row]) != len(headings):
            said = f"the label of {row!r} is {labels[row]!r}"
            raise InputError(f"--rows is {name!r}, where {said}; expected one text for each of {list(headings)}")
    return Table(
        name=os.path.basename(name).removesuffix(".py"),
        path=os.path.abspath(name) if is_file else f"configs/{name}.py",
        get_config=module.get_config,
        rows=list(rows),
        labels=labels,
        headings=headings,
        baselines=getattr(module, "BASELINES", dict.fromkeys(rows[1:], rows[0])),
        against=getattr(module, "AGAINST", rows[0]),
        published=getattr(module, "PUBLISHED", {}),
        source=getattr(module, "SOURCE", ""),
        presets=getattr(module, "PRESETS", ("",)),
    )


def _benchmark(data: str) -> Table:
    """The benchmark on a data set: the pairs of a method stand beside one another."""
    module = config.experiment("benchmark")
    if ONLY.value:
        raise InputError(f"--only is given with --rows={data}; expected --pairs and --methods")
    known = tuple(name for name, pair in PAIRS.items() if pair.data == data)
    pairs = [choose("--pairs", name, known) for name in PAIR_NAMES.value] or known
    methods = [choose("--methods", name, (*module.METHODS,)) for name in METHOD_NAMES.value] or module.methods(data)
    return Table(
        name=data,
        path="configs/benchmark.py",
        get_config=module.get_config,
        rows=[f"{pair},{method}" for method in methods for pair in pairs],
        presets=module.PRESETS,
        is_benchmark=True,
    )


def main(arguments: list[str]) -> None:
    many.check()
    own = read(",".join(cli.ROWS.value or TABLES[:1]))
    choose("--preset", PRESET.value or own.presets[0], own.presets)
    rows = [choose("--only", row, own.rows) for row in ONLY.value] or list(own.rows)
    # Teachers first, and every row once before any a second time, so that an unfinished table is of use.
    ordered = sorted(rows, key=lambda row: not _is_teacher(row))
    wanted = [job(own, row, number, arguments) for number in range(cli.SEEDS.value or 3) for row in ordered]
    done, failures = many.run(wanted, name(own), before=_pretrain)
    results = {row: {one.seed: done[one.key] for one in wanted if one.row == row and one.key in done} for row in rows}
    if own.is_benchmark:
        many.write(name(own), *benchmark(own, results, failures, arguments))
    else:
        many.write(name(own), table(own, results, failures), summary(own, results, failures))
    many.fail(failures, wanted)


def benchmark(
    own: Table,
    results: Mapping[str, Mapping[int, Mapping[str, Any]]],
    failures: Sequence[Failure] = (),
    changes: Sequence[str] = (),
) -> tuple[str, dict[str, Any], dict[str, str]]:
    """The table of a benchmark as Markdown, as numbers, and as {name of a file: text}."""
    from kd_jax.config import numbers
    from kd_jax.reporting import benchmark_page  # after the flags: JAX is slow to import
    from kd_jax.reporting.benchmark import Given

    module = config.experiment("benchmark")
    given = Given(
        own.name,
        results,
        range(cli.SEEDS.value or 3),
        titles=module.METHODS,
        controls=module.CONTROLS,
        preset=PRESET.value or own.presets[0],
        failed={row: {one.seed: one.reason for one in failures if one.row == row} for row in results},
        changes=[*filter(None, [SCALE.value]), *(change for change in changes if not change.startswith(HARMLESS))],
        published=numbers.of,
        note=NOTE.value,
    )
    return benchmark_page.files(given)


def summary(
    own: Table, results: Mapping[str, Mapping[int, Mapping[str, Any]]], failures: Sequence[Failure] = ()
) -> dict[str, dict[str, Any]]:
    """What the table says of each row, as numbers; accuracies and differences are in per cent."""
    rows = {}
    for row, by_seed in results.items():
        accuracy = {number: 100 * result["test"]["accuracy"] for number, result in sorted(by_seed.items())}
        base = own.baselines.get(row, row)
        paired = {n: 100 * results[base][n]["test"]["accuracy"] for n in results.get(base, {}) if n in accuracy}
        mean, deviation = intervals.mean_and_deviation(list(accuracy.values())) if accuracy else (None, None)
        difference = interval = None
        if base != row and paired:
            difference, half = intervals.paired_difference([accuracy[n] for n in paired], list(paired.values()))
            interval = half if len(paired) > 1 else None
        rows[row] = {
            "accuracy": accuracy,
            "mean": mean,
            "deviation": deviation if len(accuracy) > 1 else None,
            "difference": difference,
            "interval": interval,
            "published": own.published.get(row),
            "failed": {failure.seed: failure.reason for failure in failures if failure.row == row},
        }
    return rows


def table(own: Table, results: Mapping[str, Mapping[int, Mapping[str, Any]]], failures: Sequence[Failure] = ()) -> str:
    """The Markdown table of {row: {seed: result}}."""
    headings = (
        "network",
        *own.headings,
        "test accuracy, %",
        f"against {own.against}, points",
        *(("published, %",) if own.published else ()),
        "seeds",
    )
    lines = ["| " + " | ".join(headings) + " |", "| " + " | ".join("---" for _ in headings) + " |"]
    for row, numbers in summary(own, results, failures).items():
        network = next(
            (result["model"] for result in results[row].values()), "teacher" if _is_teacher(row) else "student"
        )
        failed = "".join(f"; seed {number} failed: {reason}" for number, reason in numbers["failed"].items())
        cells = (
            network,
            *own.labels[row],
            _pm("{:.2f}", numbers["mean"], numbers["deviation"]),
            _pm("{:+.2f}", numbers["difference"], numbers["interval"]),
            *(("" if numbers["published"] is None else f"{numbers['published']:.2f}",) if own.published else ()),
            f"{len(numbers['accuracy'])}{failed}".replace("|", "\\|"),
        )
        lines.append("| " + " | ".join(cells) + " |")
    said = "Mean and standard deviation over seeds; differences are paired by seed, with a 95% interval."
    return "\n".join([*lines, "", said + (f" Published: {own.source}." if own.source else "")])


def _pm(form: str, value: float | None, plus_minus: float | None) -> str:
    if value is None:
        return ""
    return form.format(value) + (f" ± {plus_minus:.2f}" if plus_minus is not None else "")


def name(own: Table) -> str:
    """What the table's files are called."""
    return "-".join(part for part in (own.name, SCALE.value, _preset(own)) if part)


def _preset(own: Table) -> str:
    return "" if PRESET.value == own.presets[0] else PRESET.value


def _is_teacher(row: str) -> bool:
    return row.rpartition(",")[2].startswith("teacher")


def job(own: Table, row: str, number: int, changes: Sequence[str]) -> Job:
    """The run of a row and a seed, with the flags that make it."""
    given = dict(map(_pair, changes))
    length = str(given.pop("train.epochs", "")) if own.is_benchmark else ""
    if own.is_benchmark and "train.steps" in given:
        raise InputError(f"the argument is 'train.steps={given['train.steps']}'; expected train.epochs in a benchmark")
    arg = ",".join(part for part in (row, _preset(own), SCALE.value, length) if part)
    try:
        tree = own.get_config(arg)
    except Exception as error:  # of a file of one's own
        said = one_line(error) if isinstance(error, InputError) else f"{type(error).__name__}: {one_line(error)}"
        raise InputError(f"{own.path}:{arg}: {said}") from error
    flat: dict[str, Any] = {"seed": number + AGAIN * row.endswith(",again")}
    if PRETRAIN_ON.value:
        flat["model.pretrained"] = _pretrained("teacher" if _is_teacher(row) else "student")
        if tree.teacher.kind == "config":
            flat["teacher.config.model.pretrained"] = _pretrained("teacher")
    flat |= _of_row(row, tree.teacher.kind, given)
    try:
        tree.update_from_flattened_dict(flat)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"the arguments {' '.join(changes)} do not fit: {' '.join(str(error).split())}") from None
    overrides = (f"--config.{key}={value}" for key, value in flat.items())
    command = ("-m", "kd_jax.main", f"--config={own.path}:{arg}", *overrides)
    identity = _identity(tree.to_dict())
    key = runs.digest(identity)
    teachers_run = _is_teacher(row) and number == 0  # of the other rows, which look for it there
    folder = ("teachers", key[:8]) if teachers_run else (name(own), f"{row.replace(',', '-')}-{number}-{key[:8]}")
    return Job(row, number, key, command, os.path.join(cli.RUNS.value, *folder), many.untrained(tree, identity))


def _pair(change: str) -> tuple[str, Any]:
    """The key and the value of KEY=VALUE."""
    key, equals, value = change.partition("=")
    if not key or not equals or key.startswith("-"):
        raise InputError(f"the argument is {change!r}; expected KEY=VALUE, for example dataset.path=cifar10")
    if key in ("seed", "name"):
        raise InputError(f"the argument is {change!r}; expected another key, as every run of a table has its own")
    return key, cli.parsed(value)


def _of_row(row: str, teacher: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """What changes of all rows are for one, whose teacher is of a kind: a teacher's own are those of its row too."""
    prefix, shared = "teacher.config.", ("method", "teacher", "dataset", "precision")  # the last two by reference
    if _is_teacher(row):
        own = {key.removeprefix(prefix): value for key, value in given.items() if key.startswith(prefix)}
        rest = {key: value for key, value in given.items() if not key.startswith("teacher.")}
        return {key: value for key, value in (rest | own).items() if key != "dataset.labeled"}  # it sees every label
    left_out = {"none": ("",), "untrained": ("kind", "path", "mode", "epoch")}.get(teacher, ())
    kept = {k: v for k, v in given.items() if not any(k.startswith(f"teacher.{name}") for name in left_out)}
    mirrored = {}
    if teacher in ("config", "untrained"):
        mirrored = {f"{prefix}{key}": value for key, value in kept.items() if key.partition(".")[0] not in shared}
    return mirrored | kept


def _identity(tree: Mapping[str, Any]) -> dict[str, Any]:
    """A run's identity: all that affects its result, the content of data and weights included."""
    from kd_jax.config.checks import plain

    pretrained = {}
    for role in ("student", "teacher") if PRETRAIN_ON.value else ():
        own = plain(config.experiment("pretrain").get_config(_pretrain_arg(role)))
        own["dataset"]["path"] = PRETRAIN_ON.value
        pretrained[_pretrained(role)] = runs.digest(many.identity(own))
    return many.identity(plain(tree), pretrained)


def _pretrain_arg(role: str) -> str:
    return ",".join(part for part in (role, SCALE.value) if part)


def _pretrained(role: str) -> str:
    """The folder of a pretrained network's run."""
    return os.path.join(cli.RUNS.value, "-".join(part for part in ("pretrained", role, SCALE.value) if part))


def _pretrain() -> None:
    """Trains the networks that the others start from, where they are asked for and missing."""
    for role in ("student", "teacher") if PRETRAIN_ON.value else ():
        config_flag = f"--config=configs/pretrain.py:{_pretrain_arg(role)}"
        command = ("-m", "kd_jax.main", config_flag, f"--config.dataset.path={PRETRAIN_ON.value}")
        pretraining = Job(f"pretrained {role}", 0, "", command, _pretrained(role))
        outcome = jobs.run(pretraining, cli.RUNS.value)
        if isinstance(outcome, Failure):
            raise TrainingError(f"the {role} could not be pretrained: {outcome.reason}")


if __name__ == "__main__":
    cli.run(main, __doc__)
