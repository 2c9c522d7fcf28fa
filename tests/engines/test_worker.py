"""What runs a job on another machine: in the folder of the table, one at a time, and it waits for what it stops."""

import json
import os
import subprocess
import sys
import threading
import time

import pytest

from kd_jax import jobs, runs, stopping
from kd_jax.engines import worker
from tests.engines.programs import FAIL, job, writes
from tests.reporting import made_up


@pytest.fixture
def here():
    """The folder is afterwards what it was."""
    before = os.getcwd()
    yield
    os.chdir(before)


def test_paths_are_those_of_the_folder_of_the_table(here, tmp_path):
    assert worker.run(job("runs/a", writes(0.5)), jobs.Setting("runs"), str(tmp_path))["test"] == {"accuracy": 0.5}
    assert (tmp_path / "runs" / "a" / "result.json").exists()


def test_a_folder_that_is_not_there_is_a_failure(tmp_path):
    outcome = worker.run(job("runs/a", FAIL), jobs.Setting("runs"), str(tmp_path / "elsewhere"))
    assert outcome.reason == f"{tmp_path / 'elsewhere'}: No such file or directory"


def test_a_run_that_still_saves_its_state_is_waited_for(here, tmp_path):
    made_up.write_run(tmp_path / "a")
    result = (tmp_path / "a" / "result.json").rename(tmp_path / "kept")
    held = threading.Event()

    def save():
        with runs.locked(str(tmp_path / "a"), wait=False):
            held.set()
            time.sleep(0.3)
            result.rename(tmp_path / "a" / "result.json")

    thread = threading.Thread(target=save)
    thread.start()
    held.wait()
    assert worker.run(job("a", FAIL), jobs.Setting("."), str(tmp_path))["name"] == "student"
    thread.join()


def test_a_worker_that_is_stopped_waits_for_its_run(tmp_path):
    """As the first process of a pod, whose end is the end of all others."""
    waits = (
        "import signal, sys, time; folder = sys.argv[-1].partition('=')[2]\n"
        "def stop(*_): time.sleep(0.5); open(folder + '.saved', 'w').close(); sys.exit(143)\n"
        "signal.signal(signal.SIGTERM, stop); print('ready', flush=True); time.sleep(20)"
    )
    one = job(tmp_path / "a", waits)
    path = tmp_path / "jobs.json"
    path.write_text(json.dumps(worker.to_json([one], jobs.Setting("runs"), str(tmp_path))))
    command = [sys.executable, "-m", "kd_jax.engines.worker", str(path)]
    environment = os.environ | {"JOB_COMPLETION_INDEX": "0"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE)
    while not (tmp_path / "a.log").exists() or "ready" not in (tmp_path / "a.log").read_text():
        assert process.poll() is None
    process.terminate()
    process.communicate()
    assert process.returncode == stopping.CODES[15]
    assert (tmp_path / "a.saved").exists()
