"""Runs as processes of this machine, some at a time, each on its share of the cores."""

import concurrent.futures
import datetime
import os
import platform
import queue
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from kd_jax import runs, stopping
from kd_jax.logging import progress

Result = dict[str, Any]


class Job(NamedTuple):
    """One run of a table."""

    row: str
    seed: int
    key: str  # digest of the run's identity
    command: tuple[str, ...]  # arguments of Python, without --workdir and --runs
    folder: str  # of the run


class Failure(NamedTuple):
    """Why a run has no result."""

    row: str
    seed: int
    reason: str


def run_all(jobs: Sequence[Job], runs_folder: str, at_a_time: int) -> Iterator[tuple[Job, Result | Failure]]:
    """Runs jobs, and yields each with its outcome as soon as it has one; a line says how far they are."""
    shares: queue.SimpleQueue[list[int]] = queue.SimpleQueue()
    for share in _shares(at_a_time):
        shares.put(share)

    def on_its_share(job: Job) -> Result | Failure:
        share = shares.get()
        try:
            return run(job, runs_folder, share)
        finally:
            shares.put(share)

    start = time.monotonic()
    pool = concurrent.futures.ThreadPoolExecutor(at_a_time)
    try:
        futures = {pool.submit(on_its_share, job): job for job in jobs}
        for count, future in enumerate(concurrent.futures.as_completed(futures), start=1):
            job, outcome = futures[future], future.result()
            what = (
                f"failed: {outcome.reason}"
                if isinstance(outcome, Failure)
                else f"{100 * outcome['test']['accuracy']:.2f}% in {progress.duration(outcome['seconds'])}"
            )
            left = progress.duration((time.monotonic() - start) / count * (len(jobs) - count))
            print(f"{count}/{len(jobs)}  {job.row}, seed {job.seed}: {what}  {left} left", flush=True)
            yield job, outcome
    finally:
        pool.shutdown(wait=False, cancel_futures=True)  # an interrupted table starts no further run
        for process in tuple(stopping.children):
            process.terminate()  # it saves its state
        pool.shutdown()


def _shares(at_a_time: int) -> list[list[int]]:
    """The cores of each of the runs that go on at a time; empty for all of them."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") and at_a_time > 1 else []
    return [cores[share::at_a_time] for share in range(at_a_time)]


def run(job: Job, runs_folder: str, cores: Sequence[int] = ()) -> Result | Failure:
    """The result of a run, which a process of its own makes unless it is there; its log lies beside its folder."""
    if not runs.has_result(job.folder):
        log = f"{job.folder}.log"
        os.makedirs(os.path.dirname(log) or ".", exist_ok=True)
        with open(log, "w") as file:
            process = subprocess.Popen(
                [sys.executable, *job.command, f"--runs={runs_folder}", f"--workdir={job.folder}"],
                stdout=file,
                stderr=subprocess.STDOUT,
                env=os.environ | {"PYTHONUNBUFFERED": "1"},  # else the error is not the last line of the log
            )
            if cores:  # not between fork and exec, where JAX's threads make Python code unsafe
                os.sched_setaffinity(process.pid, cores)
            stopping.children.add(process)
            code = process.wait()
            stopping.children.remove(process)
        if code:
            with open(log) as file:
                last = next((line.strip() for line in reversed(file.readlines()) if line.strip()), "no message")
            return Failure(job.row, job.seed, f"{last.removeprefix('error: ')} (exit status {code}, see {log})")
    return runs.read_json(job.folder, "result.json")


def line(job: Job, result: Mapping[str, Any]) -> dict[str, Any]:
    """What a file of results says of a run."""
    return {
        "row": job.row,
        "seed": job.seed,
        "key": job.key,
        "date": datetime.date.today().isoformat(),
        "hardware": f"{result['device']}, {os.cpu_count()} {platform.machine()} cores",
        "command": shlex.join(["python", *job.command]),
        "result": dict(result),
    }
