"""What an engine runs on another machine: one job, in the folder where the table was started.

usage: python -m kd_jax.engines.worker JOBS.json

The file holds the jobs of a table, of which JOB_COMPLETION_INDEX, that Kubernetes sets, is run. Exit status 1: it
failed, and its log says why; whatever else ends this process is worth another try.
"""

import contextlib
import json
import os
import sys
from typing import Any

from kd_jax import jobs, runs, stopping
from kd_jax.errors import InputError, Preempted, one_line
from kd_jax.jobs import Failure, Job, Result, Setting

FAILED = 1


def run(job: Job, setting: Setting, folder: str) -> Result | Failure:
    """The outcome of a job; `folder` is the one that its paths are relative to."""
    try:
        os.chdir(folder)
        if os.path.exists(os.path.join(job.folder, ".lock")):  # of a run whose worker died, and that saves its state
            with runs.locked(job.folder, wait=True):
                pass
        return jobs.run(job, setting.runs_folder, restarts=setting.restarts)
    except (OSError, InputError) as error:
        named = getattr(error, "filename", None)
        return Failure(job.row, job.seed, f"{named}: {one_line(error)}" if named else one_line(error))


def stop() -> None:
    """Asks the process of the job to save its state, and waits for it; also inside of a signal's handler."""
    for child in tuple(stopping.children):
        stopping.children.discard(child)
        child.terminate()
        with contextlib.suppress(ChildProcessError):
            os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # `wait` could wait for itself there


def to_json(wanted: list[Job], setting: Setting, folder: str) -> dict[str, Any]:
    """What JOBS.json holds."""
    own = setting._replace(options={})
    return {"jobs": [job._asdict() for job in wanted], "setting": own._asdict(), "folder": folder}


def main(path: str, index: int) -> int:
    """Runs a job of a file, and returns the exit status."""
    with open(path) as file:
        value = json.load(file)
    own = value["jobs"][index]
    job = Job(**(own | {"command": tuple(own["command"])}))
    try:
        with stopping.listening():
            outcome = run(job, Setting(**value["setting"]), value["folder"])
    except (KeyboardInterrupt, Preempted) as error:
        print(one_line(error))
        return 143
    print(f"{job.row}, seed {job.seed}: {outcome.reason if isinstance(outcome, Failure) else 'done'}")
    return FAILED if isinstance(outcome, Failure) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(os.environ["JOB_COMPLETION_INDEX"])))
