"""A search for the values of a config's keys, by Optuna: a trial that falls behind is stopped.

usage: python -m kd_jax.tune --config=NAME[:ARGUMENT] --search=KEY=LOW..HIGH[:log] [--search=KEY=A,B,C ...]
           [--trials=20] [--jobs=1] [KEY=VALUE ...]

KEY is a key of the config, as optimizer.learning_rate, or an option of one of its loss terms, as kd.temperature. A
range is of whole numbers, unless one of its ends has a point or an exponent; with :log it is searched on a log scale.
KEY=VALUE without --search changes a key of every trial. Needs Optuna: pip install "kd_jax[tune]".

A trial is one run of one seed, rated by evaluate.metric, the accuracy, on the validation split. One whose best so far
is below the median of the others at that epoch is stopped. The same command goes on where it was stopped, tries again
what failed, and with more --trials makes more; several processes may work on one search. The runs lie beside those of
a `kd_jax sweep` of the config, and neither trains again what the other has trained.
"""

import concurrent.futures
import contextlib
import dataclasses
import fcntl
import json
import math
import os
import re
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from absl import flags
from ml_collections import config_flags

from kd_jax import cli, jobs, many, runs, stopping, sweep
from kd_jax.engines import local
from kd_jax.errors import InputError, TrainingError
from kd_jax.jobs import Failure, Job, Result, Setting
from kd_jax.logging import progress
from kd_jax.main import with_config
from kd_jax.study import import_optuna, lock, opened, trials

SEARCH = flags.DEFINE_multi_string("search", [], "What is searched: the values of a key; may be given more than once.")
TRIALS = flags.DEFINE_integer("trials", 20, "How many, those of earlier starts included.", lower_bound=1)
PRUNE = flags.DEFINE_enum("prune", "median", ["median", "none"], "Which trials are stopped early.")
PRUNE_TRIALS = flags.DEFINE_integer("prune_trials", 5, "How many end before one is stopped.", lower_bound=1)
PRUNE_EPOCHS = flags.DEFINE_integer(
    "prune_epochs", None, "The first epoch at which one is stopped; by default after a quarter of all.", lower_bound=1
)
for flag in ("config", "term", "runs", "import", "jobs", "restart"):
    flags.declare_key_flag(flag)

NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
RANGE = re.compile(rf"({NUMBER})\.\.({NUMBER})(:log)?")
DIGITS = 4  # of a number that was drawn
SEED = 0  # of every trial
STATES = {  # in the order of the table's rows
    "COMPLETE": "done",
    "PRUNED": "pruned",
    "FAIL": "failed",
    "RUNNING": "running in another process",
    "WAITING": "waiting",
}

Begin = Callable[[Mapping[str, Any]], Job]  # the job of a trial's parameters


class Range(NamedTuple):
    """Numbers from `low` to `high`, whole ones where both are."""

    low: float
    high: float
    log: bool


Space = Range | tuple[str, ...]  # or one of these, as they were written


@dataclasses.dataclass
class Running:
    """A trial that has begun."""

    trial: Any
    job: Job
    metric: str  # of the validation split, by which it is rated
    epochs: int = 0  # of its curve that the study knows
    behind: int | None = None  # the epoch at which it was found so


def main(arguments: list[str]) -> None:
    many.check()
    changes = dict(sweep.pair("the argument", text) for text in arguments)
    spaces = searched(SEARCH.value)
    import_optuna()
    lowest = check(spaces, changes)
    tree = sweep.config({**changes, **lowest}, SEED)
    metric = tree["evaluate"]["metric"]
    run = sweep.job("", lowest, changes, SEED).key
    path = config_flags.get_config_filename(flags.FLAGS["config"])
    name = re.sub(r"[^\w.]+", "-", os.path.basename(path).replace(".py", ""))
    key = runs.digest({"lowest": run, "search": {key: list(map(str, space)) for key, space in spaces.items()}})
    folder = os.path.join(cli.RUNS.value, f"tune-{name}-{key[:8]}")

    def begin(params: Mapping[str, Any]) -> Job:
        return sweep.job(f"sweep-{name}", values(spaces, params), changes, SEED)

    with opened(folder, pruner(tree)) as study:
        search(study, spaces, begin, folder, metric)
        rows = summary(study, spaces)
        best = _best(study, spaces, begin, changes, metric)
        many.write(os.path.basename(folder), table(rows, best, metric), {"trials": rows, "best": best})
    if failed := [row for row in rows if row["state"] == "failed"]:
        raise TrainingError(f"{len(failed)} of {len(rows)} trials failed; the same command tries them again")


def searched(texts: Sequence[str]) -> dict[str, Space]:
    """What --search says.

    >>> searched(["kd.weight=0.1..1:log", "optimizer.name=sgd,adamw"])
    {'kd.weight': Range(low=0.1, high=1.0, log=True), 'optimizer.name': ('sgd', 'adamw')}
    """
    if not texts:
        raise InputError("--search is not given; expected KEY=LOW..HIGH or KEY=A,B,C, as in kd.temperature=1..8")
    spaces: dict[str, Space] = {}
    for text in texts:
        key, given = sweep.pair("--search", text)
        if key in spaces:
            raise InputError(f"--search is {text!r}; expected every key once")
        spaces[key] = _space(text, given)
    return spaces


def _space(text: str, given: str) -> Space:
    if not (found := RANGE.fullmatch(given)):
        choices = tuple(sweep.COMMA.split(given))
        if len(set(choices)) < max(2, len(choices)):
            raise InputError(f"--search is {text!r}; expected KEY=LOW..HIGH[:log], or KEY=A,B,C with every value once")
        return choices
    *ends, log = found.groups()
    number = int if all(re.fullmatch(r"[-+]?\d+", end) for end in ends) else float
    low, high = map(number, ends)
    if not low < high or not math.isfinite(high - low) or (log and low <= 0):
        raise InputError(f"--search is {text!r}; expected LOW below HIGH, and above 0 with :log")
    return Range(low, high, bool(log))


def check(spaces: Mapping[str, Space], changes: sweep.Values) -> dict[str, str]:
    """The first value of every key, or the lowest.

    Raises:
      InputError: for what is wrong with a config at either end of a range or with any choice, the others being so.
    """
    ends = {
        key: [str(end) for end in (space[:2] if isinstance(space, Range) else space)] for key, space in spaces.items()
    }
    lowest = {key: own[0] for key, own in ends.items()}
    for key, own in ends.items():
        for end in own:
            tree = sweep.config({**changes, **lowest, key: end}, SEED)
            sweep.check(tree)
            _check_validation(tree)
        if len({sweep.job("", {**lowest, key: end}, changes, SEED).key for end in own}) < len(own):
            raise InputError(
                f"--search has {key}, of which two values are one run; expected one that makes a difference"
            )
    return lowest


def _check_validation(tree: Mapping[str, Any]) -> None:
    """Raises InputError where there are no images to choose by."""
    from kd_jax import data

    if not tree["dataset"]["holdout"] and data.load(tree["dataset"]).validation is None:
        raise InputError("dataset.holdout is 0, so there is no validation split to choose by; expected more")


def values(spaces: Mapping[str, Space], params: Mapping[str, Any]) -> dict[str, str]:
    """What a trial's parameters are in its config."""
    return {key: _text(space, params[key]) for key, space in spaces.items() if key in params}


def _text(space: Space, value: Any) -> str:
    if isinstance(value, float) and isinstance(space, Range):
        value = min(max(float(f"{value:.{DIGITS}g}"), space.low), space.high)
    return str(value)


def pruner(tree: Mapping[str, Any]) -> Any:
    """What says which trials of a config are behind."""
    from optuna import pruners

    if PRUNE.value == "none":
        return pruners.NopPruner()
    train = tree["train"]  # how many epochs its steps are, if it has these, the data says
    return pruners.MedianPruner(
        PRUNE_TRIALS.value, PRUNE_EPOCHS.value or (1 if train["steps"] else train["epochs"] // 4)
    )


def search(study: Any, spaces: Mapping[str, Space], begin: Begin, folder: str, metric: str) -> None:
    """Makes trials until there are as many as --trials says."""
    found = [trial.state.is_finished() for trial in trials(study)]
    print(f"{sum(found)} of {max(TRIALS.value, len(found))} trials are in {folder}", flush=True)
    at_a_time = many.JOBS.value or 1
    setting = Setting(cli.RUNS.value, at_a_time=at_a_time, restarts=many.RESTART.value)
    waiting: list[Running] = []
    running: dict[local.Outcome, Running] = {}
    with stopping.listening() as request, request.deferred(), local.pool(setting) as submit:
        while True:
            if request:
                request.stop(f"stopped; the same command goes on with {folder}")
            while len(waiting) + len(running) < at_a_time and (new := _ask(study, spaces, begin, folder, metric)):
                waiting.append(new)
            if not waiting and not running:
                break
            for one in [one for one in waiting if not _has_twin(study, one)]:
                waiting.remove(one)
                follow(one)  # what an earlier process wrote
                if one.behind is None or runs.has_result(one.job.folder):
                    running[submit(one.job)] = one
                else:
                    _end(study, one, Failure(one.job.row, one.job.seed, ""))
            if waiting and not running:  # for another process
                time.sleep(1)
            done, _ = concurrent.futures.wait(running, 1, concurrent.futures.FIRST_COMPLETED)
            for future, one in list(running.items()):
                stopped = one.behind is not None
                follow(one)
                if future in done:
                    _end(study, running.pop(future), future.result())
                elif one.behind is not None and not stopped:
                    jobs.stop(one.job)


def _ask(study: Any, spaces: Mapping[str, Space], begin: Begin, folder: str, metric: str) -> Running | None:
    """The next trial, those that are queued first; None where there are enough."""
    import optuna

    with open(os.path.join(folder, ".asking"), "w") as file:
        lock(file, fcntl.LOCK_EX)
        known = trials(study)
        if len(known) >= TRIALS.value and not any(trial.state.name == "WAITING" for trial in known):
            return None
        # A search that was stopped draws what it would have drawn.
        study.sampler = optuna.samplers.TPESampler(seed=len(known))
        trial = study.ask({key: _distribution(space) for key, space in spaces.items()})
        job = begin(trial.params)
        trial.set_user_attr("run", job.key)
    return Running(trial, job, metric)


def _distribution(space: Space) -> Any:
    from optuna import distributions

    if isinstance(space, tuple) and not isinstance(space, Range):
        return distributions.CategoricalDistribution(space)
    whole = isinstance(space.low, int) and isinstance(space.high, int)
    kind = distributions.IntDistribution if whole else distributions.FloatDistribution
    return kind(space.low, space.high, log=space.log)


def _has_twin(study: Any, one: Running) -> bool:
    """Whether an earlier trial, of any process, is the same run and goes on."""
    others = (trial for trial in study.get_trials(deepcopy=False) if trial.state.name == "RUNNING")
    return any(trial.number < one.trial.number and trial.user_attrs.get("run") == one.job.key for trial in others)


def follow(one: Running) -> None:
    """Tells the study how far a trial is, epoch by epoch, and asks whether it is behind."""
    for epoch, value in curve(one.job.folder, one.metric).items():
        if epoch > one.epochs:
            one.trial.report(value, epoch)
            one.epochs = epoch
            if one.behind is None and one.trial.should_prune():
                one.behind = epoch


def curve(folder: str, metric: str) -> dict[int, float]:
    """{epoch: what a metric of the validation split was} of a run that may be writing it."""
    found = {}
    with contextlib.suppress(FileNotFoundError), open(os.path.join(folder, "metrics.jsonl"), errors="replace") as file:
        for text in file:
            with contextlib.suppress(ValueError, KeyError, TypeError):  # cut short, or not of the split
                line = json.loads(text)
                found[math.ceil(line["epoch"])] = float(line[f"validation/{metric}"])
    return found


def _end(study: Any, one: Running, outcome: Result | Failure) -> None:
    """Tells the study, and people, how a trial has ended."""
    from optuna.trial import TrialState

    if not isinstance(outcome, Failure):
        value = outcome["validation"][one.metric]
        study.tell(one.trial, value)
        said = f"{100 * value:.2f}% in {progress.duration(outcome['seconds'])}"
    elif one.behind is not None:
        said = f"pruned at epoch {one.behind}, where its best was below the median"
        one.trial.set_user_attr("reason", said)
        study.tell(one.trial, state=TrialState.PRUNED)
    else:
        said = f"failed: {outcome.reason}"
        one.trial.set_user_attr("reason", outcome.reason)
        study.tell(one.trial, state=TrialState.FAIL)
    known = trials(study)
    ended = sum(trial.state.is_finished() for trial in known)
    print(f"{ended}/{max(TRIALS.value, len(known))}  {one.job.row}: {said}", flush=True)


def summary(study: Any, spaces: Mapping[str, Space]) -> list[dict[str, Any]]:
    """What the table says of each trial, the best first; the metric of the validation split in per cent."""
    rows = []
    for number, trial in enumerate(trials(study), start=1):
        known = trial.intermediate_values
        value = trial.value if trial.value is not None else known[max(known)] if known else None
        rows.append(
            {
                "trial": number,
                "values": values(spaces, trial.params),
                "validation": None if value is None else 100 * value,
                "epochs": max(known, default=None),
                "state": STATES[trial.state.name],
                "reason": trial.user_attrs.get("reason", ""),
            }
        )
    order = list(STATES.values())
    return sorted(rows, key=lambda row: (order.index(row["state"]), -(row["validation"] or 0)))


def table(rows: Sequence[Mapping[str, Any]], best: Mapping[str, Any] | None, metric: str) -> str:
    """The Markdown table of trials, and what the best of them is to be followed by."""
    rating = metric.replace("_", " ")
    headings = ("trial", *rows[0]["values"], f"validation {rating}, %", "epochs", "")
    lines = ["| " + " | ".join(headings) + " |", "| " + " | ".join("---" for _ in headings) + " |"]
    for row in rows:
        value = "" if row["validation"] is None else f"{row['validation']:.2f}"
        state = row["reason"] if row["state"] == "pruned" else ": ".join(filter(None, (row["state"], row["reason"])))
        cells = (row["trial"], *row["values"].values(), value, row["epochs"] or "", state)
        lines.append("| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |")
    if best:
        said = f"Trial {best['trial']} is the best on the validation split, by one seed."
        if best["test"] is not None:
            said += f" Its test {rating} is {best['test']:.2f}%. Over seeds:"
        lines += ["", said, "", f"    {best['command']}"]
    return "\n".join(lines)


def _best(
    study: Any, spaces: Mapping[str, Space], begin: Begin, changes: sweep.Values, metric: str
) -> dict[str, Any] | None:
    """The best trial of those that have ended, with the metric of its test set in per cent, and what is to follow."""
    done = {n: trial for n, trial in enumerate(trials(study), start=1) if trial.state.name == "COMPLETE"}
    if not done:
        return None
    number = max(done, key=lambda number: done[number].value)
    params, folder = done[number].params, begin(done[number].params).folder
    test = 100 * runs.read_json(folder, "result.json")["test"][metric] if runs.has_result(folder) else None
    command = over_seeds(values(spaces, params), changes)
    return {"trial": number, "folder": folder, "test": test, "command": command}


def over_seeds(values: sweep.Values, changes: sweep.Values) -> str:
    """The command that trains a trial's setting over seeds."""
    same = [part for part in sweep.job("", {}, changes, SEED).command[2:] if not part.startswith("--config.seed=")]
    own = [f"--sweep={key}={value}" for key, value in values.items()]
    runs_folder = [] if flags.FLAGS["runs"].using_default_value else [f"--runs={cli.RUNS.value}"]
    return shlex.join(["kd_jax", "sweep", *same, *own, *runs_folder, "--seeds=3"])


if __name__ == "__main__":
    cli.run(main, __doc__ or "", with_config)
