"""Runs as processes: what has a result is not run, what fails says why, what is interrupted stops."""

import os
import time

import pytest

from kd_jax import jobs
from tests.reporting import made_up

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


def test_a_run_returns_the_result_that_its_process_wrote(tmp_path):
    assert jobs.run(job(tmp_path / "runs" / "a", writes(0.5)), "runs")["test"] == {"accuracy": 0.5}


def test_a_run_that_has_a_result_is_not_run_again(tmp_path):
    made_up.write_run(tmp_path / "a", "kd")
    assert jobs.run(job(tmp_path / "a", FAIL), "runs")["name"] == "kd"


def test_a_failure_is_the_last_line_of_the_log_and_the_status(tmp_path, monkeypatch):
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    assert jobs.run(job(tmp_path / "a", FAIL), "runs").reason == f"no memory (exit status 3, see {tmp_path / 'a.log'})"


def test_a_process_that_dies_silently_is_a_failure_too(tmp_path):
    assert jobs.run(job(tmp_path / "a", "import os; os._exit(9)"), "runs").reason.startswith(
        "no message (exit status 9"
    )


def test_a_failure_does_not_stop_the_others(tmp_path, capsys):
    both = [job(tmp_path / "a", FAIL, "first"), job(tmp_path / "b", writes(0.5), "second")]
    outcomes = {job.row: outcome for job, outcome in jobs.run_all(both, "runs", 1)}
    assert isinstance(outcomes["first"], jobs.Failure)
    assert outcomes["second"]["seconds"] == 65
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("1/2  first, seed 0: failed: no memory")
    assert lines[1].startswith("2/2  second, seed 0: 50.00% in 1m05s")


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="the system cannot say which cores a process has")
def test_the_cores_are_shared_out(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3, 4})
    assert jobs._shares(2) == [[0, 2, 4], [1, 3]]
    assert jobs._shares(1) == [[]]


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system cannot set which cores a process has")
def test_a_process_runs_on_its_share_of_the_cores(tmp_path):
    core = min(os.sched_getaffinity(0))
    # It is set just after the process has started.
    program = (
        "import os, sys, time; end = time.monotonic() + 20\n"
        "while len(os.sched_getaffinity(0)) > 1 and time.monotonic() < end: pass\n"
        "sys.exit(str(os.sched_getaffinity(0)))"
    )
    assert jobs.run(job(tmp_path / "a", program), "runs", [core]).reason.startswith(f"{{{core}}} (exit status 1")


def test_an_interruption_asks_the_runs_that_go_on_to_stop(tmp_path):
    waits = (
        "import pathlib, signal, sys; folder = pathlib.Path(sys.argv[-1].partition('=')[2]); folder.mkdir()\n"
        "def stop(*_): (folder / 'stopped').touch(); sys.exit(143)\n"
        "signal.signal(signal.SIGTERM, stop); (folder / 'ready').touch(); signal.alarm(20); signal.pause()"
    )
    outcomes = jobs.run_all([job(tmp_path / "a", waits), job(tmp_path / "b", writes(0.5))], "runs", 2)
    next(outcomes)
    while not (tmp_path / "a" / "ready").exists():
        time.sleep(0.01)
    outcomes.close()
    assert (tmp_path / "a" / "stopped").exists()


def test_after_an_interruption_no_further_run_starts(tmp_path):
    outcomes = jobs.run_all([job(tmp_path / str(n), writes(0.5)) for n in range(20)], "runs", 1)
    next(outcomes)
    outcomes.close()
    assert len(list(tmp_path.glob("*.log"))) < 20  # the pool has ended
