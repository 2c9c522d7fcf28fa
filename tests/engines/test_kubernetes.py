"""Runs as an Indexed Job: the manifest is one that Kubernetes takes, and a stand-in for kubectl runs its pods."""

import json
import os
import stat
import sys

import pytest

from kd_jax import engines, jobs
from kd_jax.engines import kubernetes
from kd_jax.errors import InputError
from tests.engines.programs import FAIL, job, writes

# It keeps in a folder what `kubectl` was called with, and runs the pods of a job that is applied one after the other.
KUBECTL = """#!{python}
import json, os, subprocess, sys
words = [word for word in sys.argv[1:] if not word.startswith("-")]
given = dict(word[2:].partition("=")[::2] for word in sys.argv[1:] if word.startswith("--"))
with open("{folder}/calls", "a") as file:
    print(*sys.argv[1:], file=file)
if words[0] == "apply":
    spec = json.load(open(given["filename"]))["spec"]
    ended = {{"failed": [], "completed": []}}
    for index in range(spec["completions"]):
        command = [sys.executable, *spec["template"]["spec"]["containers"][0]["command"][1:]]
        code = subprocess.run(command, env=os.environ | {{"JOB_COMPLETION_INDEX": str(index)}}).returncode
        ended["failed" if code else "completed"].append(str(index))
    status = {{f"{{how}}Indexes": ",".join(which) for how, which in ended.items()}}
    status["conditions"] = [{{"type": "Failed" if ended["failed"] else "Complete", "status": "True"}}]
    json.dump({{"status": status}}, open("{folder}/status", "w"))
if words[0] == "get":
    print(open("{folder}/status").read())
"""


@pytest.fixture
def kubectl(tmp_path, monkeypatch):
    """A `kubectl` of no cluster; returns the file of its calls."""
    path = tmp_path / "bin" / "kubectl"
    path.parent.mkdir()
    path.write_text(KUBECTL.format(python=sys.executable, folder=tmp_path))
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{path.parent}:{os.environ['PATH']}")
    monkeypatch.setattr(kubernetes, "SECONDS", 0.0)
    return tmp_path / "calls"


def setting(folder, **options):
    own = {"image": "kd_jax:0.2", "claim": "runs"} | options
    return jobs.Setting(str(folder / "runs"), name="original-smoke", options=own)


def test_every_pod_runs_its_job_and_a_failure_is_named(kubectl, tmp_path):
    both = [job(tmp_path / "runs" / "a", FAIL, "first"), job(tmp_path / "runs" / "b", writes(0.5), "second")]
    outcomes = {one.row: outcome for one, outcome in engines.run_all(both, "kubernetes", setting(tmp_path))}
    assert outcomes["first"].reason.startswith("no memory (pod 0 of kd-jax-original-smoke-")
    assert outcomes["second"]["test"] == {"accuracy": 0.5}
    verbs = [line.split()[0] for line in kubectl.read_text().splitlines()]
    assert verbs == ["delete", "apply", "get"]


def test_the_namespace_is_that_of_every_call(kubectl, tmp_path):
    list(kubernetes.run_all([job(tmp_path / "a", writes(0.5))], setting(tmp_path, namespace="mine")))
    assert all(line.startswith("--namespace=mine ") for line in kubectl.read_text().splitlines())


def test_an_interruption_deletes_the_job(kubectl, tmp_path):
    outcomes = kubernetes.run_all([job(tmp_path / name, writes(0.5), name) for name in "ab"], setting(tmp_path))
    next(outcomes)
    (tmp_path / "status").write_text('{"status": {}}')
    outcomes.close()
    assert kubectl.read_text().splitlines()[-1].startswith("delete job kd-jax-original-smoke-")


def test_without_kubectl_a_line_says_where_the_manifest_is(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="there is no kubectl; expected it, to apply ") as raised:
        next(kubernetes.run_all([job(tmp_path / "a", FAIL)], setting(tmp_path)))
    with open(str(raised.value).rpartition(" ")[2]) as file:
        assert json.load(file)["spec"]["completions"] == 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"claim": "runs"}, "--engine_options lacks image; expected image=NAME,claim=NAME"),
        ({"images": "x"}, "a key of --engine_options is 'images'; expected one of"),
        ({"gpus": -1}, "gpus of --engine_options is -1; expected a whole number of at least 0"),
    ],
)
def test_a_wrong_option_is_one_line(tmp_path, options, said):
    with pytest.raises(InputError, match=said):
        next(kubernetes.run_all([job(tmp_path / "a", FAIL)], setting(tmp_path)._replace(options=options)))
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_the_manifest_is_one_that_kubernetes_takes(tmp_path):
    validate = pytest.importorskip("kubernetes_validate", reason="needs the extra `all`")
    described = kubernetes.manifest(
        [job(tmp_path / "a", FAIL)], setting(tmp_path, gpus=1, cpus=4, memory="16Gi")._replace(at_a_time=8)
    )
    validate.validate(described, "1.31", strict=True)
    limits = described["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert limits == {"cpu": "4", "memory": "16Gi", "nvidia.com/gpu": "1"}
