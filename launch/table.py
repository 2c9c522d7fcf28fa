"""A table of experiments over seeds: runs what is missing, teachers first, and picks up where it stopped.

usage: python -m launch.table --rows=original [--seeds=3] [--scale=laptop] [--preset=faithful] [--jobs=2]
           [KEY=VALUE ...]

The rows are those of configs/original.py. KEY=VALUE changes a key of every row's config and of its teacher's, as in
dataset.path=cifar10; but a teacher sees every label, whatever dataset.labelled says. With --pretrain_on=FOLDER all
networks start from ones that are first trained on that folder of images, as configs/pretrain.py says, in the place of
ImageNet weights. A run that fails is named at its row, and the others go on; the same command tries it again.

Every result is added to a file of JSON lines (--results), from which the table is made: runs whose results stand there
are not run again, on whatever machine they were made. --jobs=N runs N at a time, each on its share of the cores.
"""

import concurrent.futures
import datetime
import functools
import json
import os
import platform
import queue
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from absl import flags

from configs import original
from kd_jax import cli, intervals, runs
from kd_jax.config import recipes
from kd_jax.errors import InputError, TrainingError, choose
from kd_jax.logging import progress

TABLES = {"original": original}
TABLE = flags.DEFINE_enum("rows", "original", list(TABLES), "Which table.")
ONLY = flags.DEFINE_list("only", [], "Of its rows, only these.")
SEEDS = flags.DEFINE_integer("seeds", 3, "Seeds 0, 1, ... of every row.", lower_bound=1)
SCALE = flags.DEFINE_enum("scale", "", list(recipes.SCALES), "Of kd_jax/config/recipes.py.")
PRESET = flags.DEFINE_enum("preset", "corrected", ["corrected", "faithful"], "Of configs/original.py.")
JOBS = flags.DEFINE_integer("jobs", 1, "Runs at a time.", lower_bound=1)
PRETRAIN_ON = flags.DEFINE_string("pretrain_on", None, "A folder of images to pretrain the networks on.")
RESULTS = flags.DEFINE_string("results", None, "JSON lines; by default launch/results/TABLE[-SCALE][-PRESET].jsonl.")
flags.declare_key_flag("runs")

METHODS = {
    "student": "cross entropy",
    "teacher": "cross entropy",
    "kd": "KD",
    "rkd_distance": "RKD distance",
    "rkd_angle": "RKD angle",
    "adversarial": "logits discriminator",
}


class Job(NamedTuple):
    """One run of the table."""

    row: str
    seed: int
    config: dict[str, Any]
    key: str  # hash of all that affects the result, but for the content of the data and of the pretrained weights
    command: tuple[str, ...]  # without --workdir


class Failure(NamedTuple):
    """Why a run has no result."""

    row: str
    seed: int
    reason: str


def main(arguments: list[str]) -> None:
    rows = [choose("--only", row, original.ROWS) for row in ONLY.value] or list(original.ROWS)
    path = RESULTS.value or os.path.join("launch", "results", f"{_name()}.jsonl")
    # Teachers first, and every row once before any a second time, so that an unfinished table is of use.
    ordered = sorted(rows, key=lambda row: not row.startswith("teacher"))
    jobs = [_job(row, number, arguments) for number in range(SEEDS.value) for row in ordered]
    done = read(path)
    missing = [job for job in jobs if job.key not in done]
    print(f"{len(jobs) - len(missing)} of {len(jobs)} runs are in {path}", flush=True)
    failures = []
    for job, outcome in _run_all(missing) if missing else ():
        if isinstance(outcome, Failure):
            failures.append(outcome)
            continue
        done[job.key] = outcome
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        with open(path, "a") as file:
            file.write(json.dumps(_line(job, outcome)) + "\n")
    results = {row: {job.seed: done[job.key] for job in jobs if job.row == row and job.key in done} for row in rows}
    text, folder = table(results, failures), os.path.join(cli.RUNS.value, _name())
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, "table.md"), "w") as file:
        file.write(text + "\n")
    runs.write_json(os.path.join(folder, "table.json"), summary(results, failures))
    print(f"\n{text}\n\n{folder} holds table.md and table.json")
    if failures:
        raise TrainingError(f"{len(failures)} of {len(jobs)} runs failed; the same command tries them again")


def read(path: str) -> dict[str, dict]:
    """{key: result} of a file of results; none where there is no such file."""
    if not os.path.exists(path):
        return {}
    with open(path) as file:
        lines = [json.loads(line) for line in file]
    return {line["key"]: line["result"] for line in lines}


def summary(results: Mapping[str, Mapping[int, Mapping]], failures: Sequence[Failure] = ()) -> dict[str, dict]:
    """What the table says of each row, as numbers; accuracies and differences are in per cent."""
    rows = {}
    for row, by_seed in results.items():
        accuracy = {number: 100 * result["test"]["accuracy"] for number, result in sorted(by_seed.items())}
        base = _baseline(row)
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
            "published": original.PUBLISHED.get(row),
            "failed": {failure.seed: failure.reason for failure in failures if failure.row == row},
        }
    return rows


def table(results: Mapping[str, Mapping[int, Mapping]], failures: Sequence[Failure] = ()) -> str:
    """The Markdown table of {row: {seed: result}}."""
    lines = [
        "| network | method | convolutions | test accuracy, % | against cross entropy, points | original, % | seeds |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row, numbers in summary(results, failures).items():
        network = next(
            (result["model"] for result in results[row].values()), "teacher" if "teacher" in row else "student"
        )
        accuracy = _pm("{:.2f}", numbers["mean"], numbers["deviation"])
        difference = _pm("{:+.2f}", numbers["difference"], numbers["interval"])
        failed = "".join(f"; seed {number} failed: {reason}" for number, reason in numbers["failed"].items())
        cells = (
            network,
            METHODS[row.removesuffix("_frozen")],
            "frozen" if row.endswith("_frozen") else "trained",
            accuracy,
            difference,
            "" if numbers["published"] is None else f"{numbers['published']:.2f}",
            f"{len(numbers['accuracy'])}{failed}".replace("|", "\\|"),
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(
        [
            *lines,
            "",
            "Mean and standard deviation over seeds; differences are paired by seed, with a 95% interval. Original: "
            "maximzubkov/cnn-distillation, ResNet-50 to ResNet-18, one seed, chosen on the test set.",
        ]
    )


def _pm(form: str, value: float | None, plus_minus: float | None) -> str:
    if value is None:
        return ""
    return form.format(value) + (f" ± {plus_minus:.2f}" if plus_minus is not None else "")


def _baseline(row: str) -> str:
    """The same network with the same frozen parts, trained by cross entropy."""
    if row.startswith("teacher"):
        return row
    return "student_frozen" if row.endswith("_frozen") else "student"


def _name() -> str:
    preset = "" if PRESET.value == "corrected" else PRESET.value
    return "-".join(part for part in (TABLE.value, SCALE.value, preset) if part)


def _job(row: str, number: int, changes: Sequence[str]) -> Job:
    """The run of a row and a seed, with the flags that make it."""
    preset = "" if PRESET.value == "corrected" else PRESET.value
    arg = ",".join(part for part in (row, preset, SCALE.value) if part)
    config = original.get_config(arg)
    flat = {"seed": number}
    if PRETRAIN_ON.value:
        role = "teacher" if row.startswith("teacher") else "student"
        flat["model.pretrained"] = _pretrained(role)
        if config.teacher.kind == "config":
            flat["teacher.config.model.pretrained"] = _pretrained("teacher")
    for change in changes:
        key, equals, value = change.partition("=")
        if not key or not equals or key.startswith("-"):
            raise InputError(f"the argument is {change!r}; expected KEY=VALUE, for example dataset.path=cifar10")
        if key == "dataset.labelled" and row.startswith("teacher"):
            continue  # a teacher sees every label
        flat[key] = _parse(value)
        own = key.partition(".")[0]
        if config.teacher.kind == "config" and own not in ("method", "teacher", "dataset", "precision"):
            flat[f"teacher.config.{key}"] = flat[key]  # data and precision are one for both already
    try:
        config.update_from_flattened_dict(flat)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"the arguments {' '.join(changes)} do not fit: {' '.join(str(error).split())}") from None
    config = config.to_dict()
    command = ("-m", "kd_jax.main", f"--config=configs/original.py:{arg}")
    overrides = (f"--config.{key}={value}" for key, value in flat.items())
    return Job(row, number, config, _key(config), (*command, *overrides))


def _parse(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _key(config: Mapping[str, Any]) -> str:
    """The hash of a config and its teacher's, wherever the data and the weights lie."""
    nested = config["teacher"]["config"]
    weights = os.path.basename(config["model"]["pretrained"])
    config = {**config, "model": {**config["model"], "pretrained": weights}}
    return runs.digest(runs.identity(config, "", {"key": _key(nested)} if nested else None))


def _pretrained(role: str) -> str:
    return os.path.join(cli.RUNS.value, "-".join(part for part in ("pretrained", role, SCALE.value) if part))


def _run_all(jobs: Sequence[Job]) -> Iterator[tuple[Job, dict | Failure]]:
    """Runs jobs, some at a time, and yields each with its outcome as soon as it has one."""
    images = PRETRAIN_ON.value
    for role in ("student", "teacher") if images else ():
        arg = ",".join(part for part in (role, SCALE.value) if part)
        command = ("-m", "kd_jax.main", f"--config=configs/pretrain.py:{arg}", f"--config.dataset.path={images}")
        outcome = _run(command, _pretrained(role), f"pretrained {role}", 0, None)
        if isinstance(outcome, Failure):
            raise TrainingError(f"the {role} could not be pretrained: {outcome.reason}")
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    shares: queue.SimpleQueue = queue.SimpleQueue()
    for share in range(JOBS.value):
        shares.put(cores[share :: JOBS.value] or None if JOBS.value > 1 else None)

    def run(job: Job) -> dict | Failure:
        share = shares.get()
        try:
            return _run(job.command, _folder(job), job.row, job.seed, share)
        finally:
            shares.put(share)

    start = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(JOBS.value) as pool:
        futures = {pool.submit(run, job): job for job in jobs}
        for count, future in enumerate(concurrent.futures.as_completed(futures), start=1):
            job, outcome = futures[future], future.result()
            what = (
                f"failed: {outcome.reason}"
                if isinstance(outcome, Failure)
                else f"{100 * outcome['test']['accuracy']:.2f}% in {progress.duration(outcome['seconds'])}"
            )
            left = (time.monotonic() - start) / count * (len(jobs) - count)
            print(
                f"{count}/{len(jobs)}  {job.row}, seed {job.seed}: {what}  {progress.duration(left)} left", flush=True
            )
            yield job, outcome


def _folder(job: Job) -> str:
    """Where the run lies. The teacher of the others lies where they look for it."""
    if job.row.startswith("teacher") and job.seed == 0:
        from kd_jax import experiment

        return os.path.join(cli.RUNS.value, "teachers", experiment.create(job.config).digest[:8])
    return os.path.join(cli.RUNS.value, _name(), f"{job.row}-{job.seed}-{job.key[:8]}")


def _run(command: Sequence[str], folder: str, row: str, number: int, cores: Sequence[int] | None) -> dict | Failure:
    """The result of a run, which a process of its own makes unless it is there."""
    if not runs.has_result(folder):
        log = f"{folder}.log"
        os.makedirs(os.path.dirname(log), exist_ok=True)
        with open(log, "w") as file:
            code = subprocess.run(
                [sys.executable, *command, f"--workdir={folder}", f"--runs={cli.RUNS.value}"],
                stdout=file,
                stderr=subprocess.STDOUT,
                preexec_fn=functools.partial(os.sched_setaffinity, 0, cores) if cores else None,
            ).returncode
        if code:
            with open(log) as file:
                last = next((line.strip() for line in reversed(file.readlines()) if line.strip()), "no message")
            return Failure(row, number, f"{last.removeprefix('error: ')} (exit status {code}, see {log})")
    return runs.read_json(folder, "result.json")


def _line(job: Job, result: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "row": job.row,
        "seed": job.seed,
        "key": job.key,
        "date": datetime.date.today().isoformat(),
        "hardware": f"{result['device']}, {os.cpu_count()} {platform.machine()} cores",
        "command": shlex.join(["python", *job.command]),
        "result": result,
    }


if __name__ == "__main__":
    cli.run(main, __doc__)
