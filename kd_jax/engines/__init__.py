"""What runs the jobs of a table: this machine, Slurm, Ray, or Kubernetes. They share the folder of runs."""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence

from kd_jax.engines import kubernetes, local, ray, slurm
from kd_jax.jobs import Failure, Job, Result, Setting, waves
from kd_jax.logging import progress

Engine = Callable[[Sequence[Job], Setting], Iterator[tuple[Job, Result | Failure]]]

# Each yields a job with its outcome as soon as it has one. One that is closed asks what still runs to save and stop.
ENGINES: dict[str, Engine] = {
    "local": local.run_all,
    "slurm": slurm.run_all,
    "ray": ray.run_all,
    "kubernetes": kubernetes.run_all,
}


def run_all(jobs: Sequence[Job], on: str, setting: Setting) -> Iterator[tuple[Job, Result | Failure]]:
    """Runs jobs, and yields each with its outcome as soon as it has one; a line says how far they are.

    Args:
      jobs: what to run, in this order.
      on: the name of an engine. Any other than "local" is given the runs that wait for a teacher when it is trained: a
        run that waits would hold a machine.
      setting: how.
    """
    start, count = time.monotonic(), 0
    for wave in [list(jobs)] if on == "local" else waves(jobs):
        with contextlib.closing(ENGINES[on](wave, setting)) as outcomes:  # type: ignore[type-var]
            for job, outcome in outcomes:
                count += 1
                left = progress.duration((time.monotonic() - start) / count * (len(jobs) - count))
                print(f"{count}/{len(jobs)}  {job.row}, seed {job.seed}: {_said(outcome)}  {left} left", flush=True)
                yield job, outcome


def _said(outcome: Result | Failure) -> str:
    if isinstance(outcome, Failure):
        return f"failed: {outcome.reason}"
    accuracy = outcome["test"]["accuracy"]
    return f"{'done' if accuracy is None else f'{100 * accuracy:.2f}%'} in {progress.duration(outcome['seconds'])}"
