"""Runs through submitit: here by its executor of one machine, which takes the place of Slurm."""

import os
import signal
import subprocess
import sys
import time

import pytest

from kd_jax import jobs
from kd_jax.engines import slurm
from kd_jax.errors import InputError
from tests.engines.programs import TABLE, children, job, rows_of, writes


def setting(folder, **options):
    return jobs.Setting(str(folder), options=options, at_a_time=2)


@pytest.fixture
def submitit():
    return pytest.importorskip("submitit", reason="needs the extra `slurm`")


def test_without_slurm_it_is_one_line(submitit, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="--on is 'slurm', and there is none here"):
        next(slurm.run_all([job(tmp_path / "a", "")], setting(tmp_path)))


def test_an_option_that_sbatch_does_not_have_is_one_line(submitit, tmp_path):
    with pytest.raises(InputError, match="--engine_options do not fit: Unknown argument 'gpus'"):
        next(slurm.run_all([job(tmp_path / "a", "")], setting(tmp_path, cluster="local", gpus=1)))


@pytest.mark.slow
def test_a_run_that_is_preempted_saves_and_is_queued_again(submitit, tmp_path):
    """The first time it waits to be stopped, and says when it was; the second time it has a result."""
    waits = (
        "import os, signal, sys, time; folder = sys.argv[-1].partition('=')[2]\n"
        "def stop(*_): open(folder + '.saved', 'w').close(); sys.exit(143)\n"
        "signal.signal(signal.SIGTERM, stop); signal.signal(signal.SIGUSR2, signal.SIG_IGN)\n"
        "if not os.path.exists(folder + '.saved'): open(folder + '.ready', 'w').close(); time.sleep(60)\n"
    )
    one = job(tmp_path / "a", waits + writes(0.5))
    executor = slurm._executor(submitit, setting(tmp_path, cluster="local"))
    handle = executor.submit(slurm.Work(), one, setting(tmp_path), os.getcwd())
    end = time.monotonic() + 60
    while not (tmp_path / "a.ready").exists() and time.monotonic() < end:
        time.sleep(0.1)
    for pid in children(handle._process.pid):  # as Slurm does
        os.kill(pid, signal.SIGUSR2)
    assert handle.result()["test"] == {"accuracy": 0.5}
    assert (tmp_path / "a.saved").exists()


@pytest.mark.slow
def test_a_table_is_made_through_submitit(submitit, tmp_path, no_tensorflow):
    path = os.pathsep.join([no_tensorflow, *filter(None, [os.environ.get("PYTHONPATH")])])
    results = tmp_path / "results.jsonl"
    own = ["--on=slurm", "--engine_options=cluster=local", "--jobs=2", f"--runs={tmp_path}", f"--results={results}"]
    done = subprocess.run(
        [sys.executable, *TABLE, *own], env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True
    )
    print(done.stdout, done.stderr)
    assert done.returncode == 0
    assert rows_of(results) == 12
