"""Programs that stand in for runs."""

import json
from pathlib import Path

from kd_jax import jobs


def stand_in(monkeypatch, outcome):
    """Takes the place of the processes of runs: (what was run, which of it fails); `outcome(row, seed)` is a result."""
    ran, fails = [], set()

    def run(job, runs_folder, cores=(), restarts=0):
        ran.append((job.row, job.seed))
        if (job.row, job.seed) in fails:
            return jobs.Failure(job.row, job.seed, "it broke")
        return outcome(job.row, job.seed)

    monkeypatch.setattr(jobs, "run", run)
    return ran, fails


FAIL = "import sys; print('epoch 1'); print('error: no memory', file=sys.stderr); sys.exit(3)"


def job(folder, program, name="a run"):
    return jobs.Job(name, 0, "key", ("-c", program), str(folder))


def writes(accuracy):
    """A program that writes the result of a run into the folder of its last argument."""
    result = {"name": "x", "test": {"accuracy": accuracy}, "checkpoint": 1, "seconds": 65}
    return (
        "import json, os, sys; folder = sys.argv[-1].partition('=')[2]; os.makedirs(folder);"
        f" json.dump({result!r}, open(os.path.join(folder, 'result.json'), 'w'))"
    )


# The twelve rows of the table of digits, without --on and where the results go.
TABLE = ("-m", "kd_jax.table", "--rows=original", "--scale=smoke", "--seeds=1")


def rows_of(path) -> int:
    """How many rows of a file of results are there once each."""
    rows = [json.loads(line)["row"] for line in path.read_text().splitlines()]
    assert len(set(rows)) == len(rows)
    return len(rows)


def children(pid) -> list[int]:
    """The processes that one has started, and theirs, the nearest first."""
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    own = [int(child) for path in tasks for child in path.read_text().split()]
    return own + [pid for child in own for pid in children(child)]
