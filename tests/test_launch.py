"""The scripts of launch/ that start a run elsewhere: what they refuse, what they call, what a checker of each says."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import pair

LAUNCH = pair.ROOT / "launch"
SCRIPTS = sorted(LAUNCH.glob("*.sh"))


def call(*command, path=None):
    """(exit status, stdout, stderr), with the programs of a folder in the place of others."""
    environment = pair.ENVIRONMENT | ({"PATH": f"{path}:{pair.ENVIRONMENT['PATH']}"} if path else {})
    done = subprocess.run([*map(str, command)], cwd=pair.ROOT, env=environment, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def programs(tmp_path):
    """Makes programs that write down how they are called, and end with an exit status: (folder, what was called)."""

    def make(**statuses):
        called = tmp_path / "called"
        for name, status in statuses.items():
            (tmp_path / name).write_text(f'#!/bin/sh\necho "{name} $*" >> {called}\nexit {status}\n')
            (tmp_path / name).chmod(0o755)
        return tmp_path, called

    return make


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "the number of processes is ''; expected bash launch/local.sh N COMMAND..."),
        (["0", "true"], "the number of processes is '0'"),
        (["two", "true"], "the number of processes is 'two'"),
        (["2"], "there is no command; expected for example python -m kd_jax.main"),
        (["2", "--restart=many", "true"], "--restart=many is no number of times; expected --restart=N"),
    ],
)
def test_local_refuses(arguments, said):
    status, out, err = call("bash", LAUNCH / "local.sh", *arguments)
    assert (status, out, len(err.splitlines())) == (2, "", 1)
    assert err.startswith(f"error: {said}")


@pytest.mark.parametrize(("status", "lines"), [(0, 2), (2, 2), (3, 4)])
def test_local_starts_what_failed_again_but_not_what_is_wrong(programs, status, lines):
    path, called = programs(train=status)
    assert call("bash", LAUNCH / "local.sh", 2, "--restart=1", "train", "--config=kd", path=path)[0] == status
    calls = called.read_text().splitlines()
    assert len(calls) == lines
    assert {line.split(" --coordinator")[0] for line in calls} == {"train --config=kd"}
    assert {line.split()[-2:][0] + line.split()[-1] for line in calls} == {
        f"--processes=2--process_id={number}" for number in (0, 1)
    }


def test_local_gives_each_process_its_gpu(programs):
    path, called = programs(**{"nvidia-smi": 0})
    (path / "nvidia-smi").write_text("#!/bin/sh\necho GPU 0\necho GPU 1\n")
    (path / "train").write_text(f"#!/bin/sh\necho $JAX_LOCAL_DEVICE_IDS >> {called}\n")
    (path / "train").chmod(0o755)
    assert call("bash", LAUNCH / "local.sh", 2, "train", path=path)[0] == 0
    assert sorted(called.read_text().split()) == ["0", "1"]


@pytest.mark.parametrize(("status", "requeued"), [(0, []), (1, []), (143, ["scontrol requeue 7"])])
def test_slurm_queues_a_job_again_that_has_saved(programs, status, requeued, monkeypatch):
    monkeypatch.setitem(pair.ENVIRONMENT, "SLURM_JOB_ID", "7")
    path, called = programs(srun=status, scontrol=0)
    assert call("bash", LAUNCH / "slurm.sh", "--config=kd", path=path)[0] == status
    first, *others = called.read_text().splitlines()
    assert first.endswith("-m kd_jax.main --config=kd")
    assert others == requeued


def test_tpu_vm_starts_the_same_command_on_all_hosts(programs):
    if not (pair.ROOT / ".git").exists():
        pytest.skip("this is no checkout, of which there would be an archive")
    path, called = programs(gcloud=0)
    assert call("bash", LAUNCH / "tpu_vm.sh", "pod", "zone", "--config=rkd", path=path)[0] == 0
    calls = called.read_text()
    assert calls.count("--zone=zone --worker=all") == 2
    assert "-m kd_jax.main --distributed --config=rkd" in calls


def test_the_job_starts_as_many_processes_as_it_tells_them():
    text = (LAUNCH / "job.yaml").read_text()
    counts = [
        line.split()[-1] for line in text.splitlines() if line.strip().startswith(("completions:", "parallelism:"))
    ]
    after = text[text.index("JAX_NUM_PROCESSES\n") :].splitlines()[1]
    assert [*counts, after.split()[-1].strip('"')] == ["2", "2", "2"]


def tool(name):
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if not found:
        pytest.skip(f"{name} is not installed")
    return found


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_finds_nothing(script):
    # Variables of one file that another reads; paths of sourced files that are computed.
    assert call(tool("shellcheck"), "--exclude=SC2034,SC1091", script) == (0, "", "")


@pytest.mark.slow
def test_hadolint_finds_nothing():
    assert call(tool("hadolint"), LAUNCH / "Dockerfile") == (0, "", "")


@pytest.mark.slow
def test_kubernetes_knows_every_field_of_the_job():
    status, out, err = call(tool("kubernetes-validate"), "--strict", LAUNCH / "job.yaml")
    assert (status, (out + err).count("passed for resource")) == (0, 2), out + err
