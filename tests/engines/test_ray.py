"""Runs on a Ray cluster: a machine that is lost costs no row, and what is wrong is one line."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kd_jax import jobs
from kd_jax.engines import ray
from kd_jax.errors import InputError
from tests.engines.programs import TABLE, children, job, rows_of

STORE = 80 * 2**20


def test_an_option_that_it_does_not_have_is_one_line(tmp_path):
    setting = jobs.Setting("runs", options={"num_gpu": 1})
    with pytest.raises(InputError, match=r"a key of --engine_options is 'num_gpu'; expected one of: .* 'num_gpus'"):
        next(ray.run_all([job(tmp_path / "a", "")], setting))


def test_a_cluster_that_does_not_answer_is_one_line():
    with pytest.raises(InputError, match="where no cluster answers: Connection refused"):
        ray._check("127.0.0.1:1")


@pytest.fixture
def cluster():
    """A cluster of two workers, each of one core."""
    pytest.importorskip("ray", reason="needs the extra `ray`")
    from ray.cluster_utils import Cluster

    made = Cluster(True, head_node_args={"num_cpus": 0, "object_store_memory": STORE, "include_dashboard": False})
    yield made, [made.add_node(num_cpus=1, object_store_memory=STORE) for _ in range(2)]
    made.shutdown()


def lines(path):
    return path.read_text().splitlines() if path.exists() else []


@pytest.fixture
def table(cluster, tmp_path, no_tensorflow):
    """Starts a table on the cluster, and returns its process when some rows are done."""
    path = os.pathsep.join([no_tensorflow, *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"RAY_ADDRESS": cluster[0].address, "PYTHONPATH": path}
    command = [sys.executable, *TABLE, "--on=ray", f"--runs={tmp_path}", f"--results={tmp_path / 'results.jsonl'}"]

    def start(rows):
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        process = subprocess.Popen(command, env=environment, **pipes)
        end = time.monotonic() + 200
        while len(lines(tmp_path / "results.jsonl")) < rows and process.poll() is None and time.monotonic() < end:
            time.sleep(0.1)
        return process

    return start


def processes(node):
    """{process: its run's folder, or none} of a machine of the cluster."""
    found = {}
    for pid in children(node.all_processes["raylet"][0].process.pid):
        command = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
        found[pid] = next((part.partition("=")[2] for part in command if part.startswith("--workdir=")), None)
    return found


def has_checkpoint(node):
    """Whether a run on a machine of the cluster is in the middle of its steps."""
    folders = [Path(folder) for folder in processes(node).values() if folder]
    return any(list(folder.glob("checkpoints/[24]0/commit_success.txt")) for folder in folders)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # Ray's own
def test_a_worker_that_is_killed_costs_no_row_and_its_run_goes_on(cluster, table, tmp_path):
    made, (node, _) = cluster
    process = table(5)
    while not has_checkpoint(node) and process.poll() is None:
        time.sleep(0.02)
    for pid in processes(node):
        os.kill(pid, signal.SIGKILL)
    made.remove_node(node, allow_graceful=False)
    before = len(lines(tmp_path / "results.jsonl"))
    said, _ = process.communicate(timeout=300)
    print(said)
    assert process.returncode == 0
    assert before < 12
    assert rows_of(tmp_path / "results.jsonl") == 12
    again = [line for path in tmp_path.rglob("*.log") for line in lines(path) if line.startswith("going on with")]
    assert len(again) == 1


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_an_interruption_asks_the_runs_to_save_and_stop(table, tmp_path):
    process = table(1)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=120)
    assert (process.returncode, said.splitlines()[-1]) == (143, "stopped; the same command starts again")
    logs = [path.read_text().splitlines()[-1] for path in tmp_path.rglob("*.log")]
    assert [line for line in logs if line.startswith("stopped")]
