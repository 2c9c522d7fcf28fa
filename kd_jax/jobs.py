"""Runs as processes: one command each, which any machine can run that sees the same folders."""

import contextlib
import datetime
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from kd_jax import runs, stopping

Result = dict[str, Any]

_processes: "dict[str, subprocess.Popen[bytes]]" = {}  # that go on, by the folder of the run


class Job(NamedTuple):
    """One run of a table."""

    row: str
    seed: int
    key: str  # digest of the run's identity
    command: tuple[str, ...]  # arguments of Python, without --workdir and --runs
    folder: str  # of the run
    teacher: str = ""  # digest of the teacher that the first of its students trains; none where it has finished


class Failure(NamedTuple):
    """Why a run has no result."""

    row: str
    seed: int
    reason: str


class Setting(NamedTuple):
    """How runs are run, whatever runs them."""

    runs_folder: str
    name: str = "runs"  # of the table
    at_a_time: int | None = None  # None: one on this machine, all of them elsewhere
    restarts: int = 0  # of a run that fails by more than bad input
    options: Mapping[str, Any] = {}  # of the engine


def waves(jobs: Sequence[Job]) -> list[list[Job]]:
    """Jobs that need nobody, one of each teacher that has to be trained among them; then those that wait for these."""
    first: list[Job] = []
    rest: list[Job] = []
    trained = {job.key for job in jobs}
    for job in jobs:
        waits = job.teacher in trained
        (rest if waits else first).append(job)
        trained.add(job.teacher or job.key)
    return [wave for wave in (first, rest) if wave]


def run(job: Job, runs_folder: str, cores: Sequence[int] = (), restarts: int = 0) -> Result | Failure:
    """The result of a run, which a process of its own makes unless it is there; its log lies beside its folder.

    Args:
      job: the run.
      runs_folder: the folder of all runs.
      cores: that the process may use; empty for all.
      restarts: how often a process is followed by another one that fails by more than bad input; it goes on from the
        last checkpoint.
    """
    if not runs.has_result(job.folder):
        os.makedirs(os.path.dirname(job.folder) or ".", exist_ok=True)
        for attempt in range(1 + restarts):
            code, asked = _process(job, runs_folder, cores, "a" if attempt else "w")
            if code in (0, 2) or asked:
                break
        if code:
            return Failure(job.row, job.seed, f"{last_line(job)} (exit status {code}, see {job.folder}.log)")
    return runs.read_json(job.folder, "result.json")


def _process(job: Job, runs_folder: str, cores: Sequence[int], mode: str) -> tuple[int, bool]:
    """(exit status of the run's process, whether it was asked to stop)."""
    with open(f"{job.folder}.log", mode) as file:
        process = subprocess.Popen(
            [sys.executable, *job.command, f"--runs={runs_folder}", f"--workdir={job.folder}"],
            stdout=file,
            stderr=subprocess.STDOUT,
            # Without the first, the error is not the last line of the log.
            env=os.environ | {"PYTHONUNBUFFERED": "1", stopping.PARENT: str(os.getpid())},
        )
    if cores:  # not between fork and exec, where JAX's threads make Python code unsafe
        os.sched_setaffinity(process.pid, cores)
    stopping.children.add(process)
    _processes[job.folder] = process
    try:
        while (code := process.poll()) is None:
            # Not for ever: what Ray raises in this process to stop it comes between two calls of the system.
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(1)
        return code, process not in stopping.children
    except BaseException:
        process.terminate()  # it saves its state
        process.wait()
        raise
    finally:
        stopping.children.discard(process)
        del _processes[job.folder]


def stop(job: Job) -> None:
    """Asks the process of a run, where there is one, to save its state and stop; none follows it."""
    if process := _processes.get(job.folder):
        stopping.children.discard(process)
        process.terminate()


def last_line(job: Job) -> str:
    """What the log of a run says last."""
    try:
        with open(f"{job.folder}.log", errors="replace") as file:
            last = next((line.strip() for line in reversed(file.readlines()) if line.strip()), "no message")
    except OSError:
        return "no log"
    return last.removeprefix("error: ")


def line(job: Job, result: Mapping[str, Any], on: str = "local") -> dict[str, Any]:
    """What a file of results says of a run; `on` is what ran it."""
    machine = f"{os.cpu_count()} {platform.machine()} cores" if on == "local" else f"through {on}"
    return {
        "row": job.row,
        "seed": job.seed,
        "key": job.key,
        "date": datetime.date.today().isoformat(),
        "hardware": f"{result['device']}, {machine}",
        "command": shlex.join(["python", *job.command]),
        "result": dict(result),
    }
