"""Runs on this machine: what fails does not stop the others, what is interrupted stops."""

import os
import time

import pytest

from kd_jax import engines, jobs
from kd_jax.engines import local
from kd_jax.errors import InputError
from tests.engines.programs import FAIL, job, writes


def run_all(wanted, at_a_time, **setting):
    return engines.run_all(wanted, "local", jobs.Setting("runs", at_a_time=at_a_time, **setting))


def test_a_failure_does_not_stop_the_others(tmp_path, capsys):
    both = [job(tmp_path / "a", FAIL, "first"), job(tmp_path / "b", writes(0.5), "second")]
    outcomes = {job.row: outcome for job, outcome in run_all(both, 1)}
    assert isinstance(outcomes["first"], jobs.Failure)
    assert outcomes["second"]["seconds"] == 65
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("1/2  first, seed 0: failed: no memory")
    assert lines[1].startswith("2/2  second, seed 0: 50.00% in 1m05s")


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="the system cannot say which cores a process has")
def test_the_cores_are_shared_out(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3, 4})
    assert local._shares(2) == [[0, 2, 4], [1, 3]]
    assert local._shares(1) == [[]]


def test_an_interruption_asks_the_runs_that_go_on_to_stop(tmp_path):
    waits = (
        "import pathlib, signal, sys; folder = pathlib.Path(sys.argv[-1].partition('=')[2]); folder.mkdir()\n"
        "def stop(*_): (folder / 'stopped').touch(); sys.exit(143)\n"
        "signal.signal(signal.SIGTERM, stop); (folder / 'ready').touch(); signal.alarm(20); signal.pause()"
    )
    outcomes = run_all([job(tmp_path / "a", waits), job(tmp_path / "b", writes(0.5))], 2)
    next(outcomes)
    while not (tmp_path / "a" / "ready").exists():
        time.sleep(0.01)
    outcomes.close()
    assert (tmp_path / "a" / "stopped").exists()


def test_after_an_interruption_no_further_run_starts(tmp_path):
    outcomes = run_all([job(tmp_path / str(n), writes(0.5)) for n in range(20)], 1)
    next(outcomes)
    outcomes.close()
    assert len(list(tmp_path.glob("*.log"))) < 20  # the pool has ended


def test_a_run_that_was_asked_to_stop_is_not_started_again(tmp_path):
    waits = (
        "import os, sys, time; folder = sys.argv[-1].partition('=')[2];"
        " open(folder + '.starts', 'a').write('x'); time.sleep(20)"
    )
    outcomes = run_all([job(tmp_path / "a", waits), job(tmp_path / "b", writes(0.5))], 2, restarts=3)
    next(outcomes)
    while not (tmp_path / "a.starts").exists():
        time.sleep(0.01)
    outcomes.close()
    assert (tmp_path / "a.starts").read_text() == "x"


def test_it_has_no_options(tmp_path):
    with pytest.raises(InputError, match="--engine_options has partition; expected none"):
        list(run_all([job(tmp_path / "a", FAIL)], 1, options={"partition": "gpu"}))
