"""Many runs: what is missing is given to an engine, and every result is added to a file, from which tables are made."""

import functools
import json
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from absl import flags

from kd_jax import checksums, cli, engines, jobs, remote, runs
from kd_jax.engines import options
from kd_jax.errors import InputError, TrainingError
from kd_jax.jobs import Failure, Job, Result, Setting

FLAGS = ("jobs", "results", "on", "engine_options", "restart")  # of a command that runs many
JOBS = flags.DEFINE_integer(
    "jobs", None, "Runs at a time; by default one on this machine, and elsewhere all.", lower_bound=1
)
RESULTS = cli.define_path(
    "results", None, "JSON lines; by default launch/results/NAME.jsonl, or in the folder of runs."
)
ON = flags.DEFINE_enum("on", "local", list(engines.ENGINES), "What runs them.")
ENGINE_OPTIONS = flags.DEFINE_list("engine_options", [], "KEY=VALUE,... of --on, as in partition=gpu,gpus_per_node=1.")
RESTART = flags.DEFINE_integer(
    "restart", 0, "How often a run that fails, but for bad input, goes on from its last checkpoint.", lower_bound=0
)


def check() -> None:
    """Raises InputError for folders that the runs cannot share, before anything is read."""
    for flag, folder in (("--runs", cli.RUNS.value), ("--results", RESULTS.value or "")):
        if remote.is_remote(folder):
            raise InputError(f"{flag} is {folder!r}, in an object store; expected one here, which all runs share")


def run(
    wanted: Sequence[Job], name: str, before: Callable[[], None] = lambda: None
) -> tuple[dict[str, Result], list[Failure]]:
    """({key: result}, what failed) of these jobs and of all others in the file of results; runs those that are missing.

    Args:
      wanted: the jobs, in the order in which they are run.
      name: of the table.
      before: is called first where any is missing.
    """
    path = RESULTS.value or os.path.join(_results_folder(), f"{name}.jsonl")
    done = read(path)
    missing = [job for job in wanted if job.key not in done]
    print(f"{len(wanted) - len(missing)} of {len(wanted)} runs are in {path}", flush=True)
    given = options.read(ENGINE_OPTIONS.value)
    setting = Setting(cli.RUNS.value, name, JOBS.value, RESTART.value, given)
    if missing:
        before()
    failures = []
    for job, outcome in engines.run_all(missing, ON.value, setting):
        if isinstance(outcome, Failure):
            failures.append(outcome)
            continue
        done[job.key] = outcome
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        append(path, json.dumps(checksums.add(jobs.line(job, outcome, ON.value))))
    return done, failures


def write(name: str, text: str, numbers: Mapping[str, Any], more: Mapping[str, str] | None = None) -> None:
    """Prints a table, and writes it into its folder; `more` are other forms of it, {name of the file: text}."""
    folder = os.path.join(cli.RUNS.value, name)
    files = {"table.md": text + "\n", **(more or {}), "table.json": runs.json_text(numbers)}
    runs.write_files(folder, {file: content.encode(errors="replace") for file, content in files.items()})
    *others, last = files
    print(f"\n{text}\n\n{folder} holds {', '.join(others)} and {last}")


def fail(failures: Sequence[Failure], wanted: Sequence[Job]) -> None:
    """Raises TrainingError where any run failed."""
    if failures:
        raise TrainingError(f"{len(failures)} of {len(wanted)} runs failed; the same command tries them again")


def read(path: str) -> dict[str, Result]:
    """{key: result} of a file of results; none where there is no such file."""
    if not os.path.exists(path):
        return {}
    results = {}
    with open(path) as file:
        for number, text in enumerate(file, start=1):
            try:
                line = json.loads(text)
                if not checksums.take(line):
                    checksums.say_unchecked(path)
                results[line["key"]] = line["result"]
            except (ValueError, KeyError, TypeError, AttributeError):
                print(f"line {number} of {path} is no result, or is damaged, and is passed over", flush=True)
    return results


def append(path: str, line: str) -> None:
    """Adds a line to a file, whose last one may have been cut short."""
    with open(path, "a+") as file:
        file.seek(0)
        text = file.read()
        file.write(("\n" if text and not text.endswith("\n") else "") + line + "\n")


def identity(tree: Mapping[str, Any], pretrained: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The identity of the run of a plain config.

    Args:
      tree: the config.
      pretrained: {a value of model.pretrained: its fingerprint}, for weights that do not exist yet.
    """
    from kd_jax.identity import identify

    fingerprint = _fingerprint(json.dumps(tree["dataset"], sort_keys=True))
    return identify(tree, fingerprint=fingerprint, pretrained=pretrained)


@functools.cache
def _fingerprint(section: str) -> str:
    """The fingerprint of a config's data, which is taken once for all runs."""
    from kd_jax import data

    return data.fingerprint(json.loads(section))


def untrained(tree: Mapping[str, Any], identity: Mapping[str, Any]) -> str:
    """The digest of the teacher that a run has to wait for, or train; none where it has finished, or there is none."""
    if tree["teacher"]["kind"] not in ("config", "ensemble"):  # the others are there
        return ""
    digest = runs.digest(identity["teacher"]["run"])
    return "" if runs.has_result(os.path.join(cli.RUNS.value, "teachers", digest[:8])) else digest


def _results_folder() -> str:
    """Where results that others may use stand in a checkout; elsewhere a folder of the runs."""
    in_checkout = os.path.join("launch", "results")
    return in_checkout if os.path.isdir(in_checkout) else os.path.join(cli.RUNS.value, "results")
