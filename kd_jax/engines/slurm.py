"""Runs as a job array of Slurm, through submitit.

A run whose time is over, or whose node is taken, saves its state and is queued again.
"""

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from kd_jax.engines import polling, worker
from kd_jax.errors import InputError, one_line
from kd_jax.jobs import Failure, Job, Result, Setting

# Of any cluster that submitit knows; all others are those of `sbatch`, with `_` for `-`.
GENERAL = ("name", "timeout_min", "mem_gb", "nodes", "cpus_per_task", "gpus_per_node", "tasks_per_node")
DAY = 24 * 60  # minutes: submitit's own limit is five of them


class Work:
    """What submitit calls."""

    def __call__(self, *arguments: Any) -> Result | Failure:
        return worker.run(*arguments)

    def checkpoint(self, *arguments: Any) -> Any:
        """Slurm is about to end this process: its run saves, and this is what is queued again."""
        from submitit.helpers import DelayedSubmission

        worker.stop()
        return DelayedSubmission(self, *arguments)


def run_all(jobs: Sequence[Job], setting: Setting) -> Iterator[tuple[Job, Result | Failure]]:
    """Runs jobs, and yields each with its outcome as soon as it has one."""
    try:
        import submitit
    except ModuleNotFoundError as error:
        raise InputError(
            f"--on is 'slurm' and {error.name} is not installed; expected pip install 'kd_jax[slurm]'"
        ) from None
    executor = _executor(submitit, setting)

    def start(new: Sequence[Job]) -> dict[Job, Any]:
        with executor.batch():
            return {job: executor.submit(Work(), job, setting, os.getcwd()) for job in new}

    def ended(running: Mapping[Job, Any]) -> dict[Job, Result | Failure]:
        time.sleep(1)
        return {job: outcome(job, handle) for job, handle in running.items() if handle.done()}

    def outcome(job: Job, handle: Any) -> Result | Failure:
        try:
            return handle.result()
        except Exception as error:  # whatever it was in the other process
            where = handle.paths.stderr
            return Failure(job.row, job.seed, f"{one_line(error, 300)} (see {where})")

    def stop(running: Mapping[Job, Any]) -> None:
        for handle in running.values():
            handle.cancel()

    # An array has its own limit of how many run at a time.
    at_a_time = None if executor.cluster == "slurm" else setting.at_a_time
    yield from polling.until_done(jobs, at_a_time, start, ended, stop)


def _executor(submitit: Any, setting: Setting) -> Any:
    options = dict(setting.options)
    cluster = options.pop("cluster", "slurm")  # "local" tries it without one
    known = {"timeout_min": DAY, "name": f"kd_jax-{setting.name}", "slurm_array_parallelism": setting.at_a_time}
    given = {key if key in GENERAL else f"slurm_{key}": value for key, value in options.items()}
    try:
        executor = submitit.AutoExecutor(os.path.join(setting.runs_folder, "submitit"), cluster=cluster)
        executor.update_parameters(**known | given)
    except (NameError, AssertionError, ValueError) as error:
        raise InputError(f"--engine_options do not fit: {one_line(error, 500)}") from None
    except RuntimeError as error:
        raise InputError(f"--on is 'slurm', and there is none here: {one_line(error)}") from None
    return executor
