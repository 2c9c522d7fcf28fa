"""Runs as an Indexed Job of Kubernetes, whose pods see the folder of runs at the same path as this machine.

A pod that is lost is made again, and its run goes on from its last checkpoint.
"""

import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from kd_jax import jobs, keys, runs
from kd_jax.engines import polling, worker
from kd_jax.engines.options import check
from kd_jax.errors import InputError, TrainingError, one_line
from kd_jax.jobs import Failure, Job, Result, Setting

OPTIONS = {
    "image": keys.text(),  # with kd_jax in it
    "claim": keys.text(),  # the volume that holds the folder of runs
    "mount": keys.text(),  # where it lies, here as there; by default the folder of runs
    "namespace": keys.text(),
    "cpus": keys.ABOVE_0,
    "gpus": keys.whole(0),
    "memory": keys.text(),  # as in 16Gi
}
RETRIES = 3  # of a pod that is lost
SAVES = 120  # seconds that a run has to save its state
SECONDS = 5.0  # between two looks


def run_all(wanted: Sequence[Job], setting: Setting) -> Iterator[tuple[Job, Result | Failure]]:
    """Runs jobs, and yields each with its outcome as soon as it has one."""
    check(setting.options, OPTIONS)
    for key in ("image", "claim"):
        if key not in setting.options:
            raise InputError(f"--engine_options lacks {key}; expected image=NAME,claim=NAME for --on=kubernetes")
    described = manifest(wanted, setting)
    name = described["metadata"]["name"]
    folder = os.path.join(setting.runs_folder, "kubernetes", name)
    files = {"jobs.json": _with_whole_paths(wanted, setting), "manifest.json": described}
    runs.write_files(folder, {file: (json.dumps(value, indent=1) + "\n").encode() for file, value in files.items()})
    path = os.path.join(folder, "manifest.json")
    if not shutil.which("kubectl"):
        raise InputError(f"--on is 'kubernetes' and there is no kubectl; expected it, to apply {path}")
    own = ["kubectl", *(f"--namespace={space}" for space in [setting.options.get("namespace")] if space)]

    def start(new: Sequence[Job]) -> dict[Job, int]:
        _call([*own, "delete", "job", name, "--ignore-not-found"])  # of an earlier try
        _call([*own, "apply", f"--filename={path}"])
        return {job: index for index, job in enumerate(new)}

    def ended(running: Mapping[Job, int]) -> dict[Job, Result | Failure]:
        time.sleep(SECONDS)
        status = json.loads(_call([*own, "get", "job", name, "--output=json"])).get("status", {})
        over = any(c["type"] in ("Complete", "Failed") and c["status"] == "True" for c in status.get("conditions", ()))
        failed = indexes(status.get("failedIndexes", ""))
        found: dict[Job, Result | Failure] = {}
        for job, index in running.items():
            if runs.has_result(job.folder):
                found[job] = runs.read_json(job.folder, "result.json")
            elif over or index in failed:
                found[job] = Failure(
                    job.row, job.seed, f"{jobs.last_line(job)} (pod {index} of {name}, see {job.folder}.log)"
                )
        return found

    def stop(running: Mapping[Job, int]) -> None:
        _call([*own, "delete", "job", name, "--ignore-not-found"])  # waits until the pods have ended

    yield from polling.until_done(wanted, None, start, ended, stop)


def _with_whole_paths(wanted: Sequence[Job], setting: Setting) -> dict[str, Any]:
    """What the worker reads; it starts in this folder where that is in the volume, and in that of runs otherwise."""
    mount = setting.options.get("mount", os.path.abspath(setting.runs_folder))
    whole = [job._replace(folder=os.path.abspath(job.folder)) for job in wanted]
    folder = os.getcwd() if os.path.commonpath([mount, os.getcwd()]) == mount else mount
    return worker.to_json(whole, setting._replace(runs_folder=os.path.abspath(setting.runs_folder)), folder)


def manifest(wanted: Sequence[Job], setting: Setting) -> dict[str, Any]:
    """The Indexed Job of these runs."""
    options = setting.options
    name = re.sub("[^a-z0-9]+", "-", f"kd-jax-{setting.name}".lower())[:50].strip("-")
    name = f"{name}-{runs.digest({job.folder: job.key for job in wanted})[:8]}"
    runs_folder = os.path.abspath(setting.runs_folder)
    limits = {"cpu": options.get("cpus"), "memory": options.get("memory"), "nvidia.com/gpu": options.get("gpus")}
    container = {
        "name": "run",
        "image": options["image"],
        "command": [
            "python",
            "-m",
            "kd_jax.engines.worker",
            os.path.join(runs_folder, "kubernetes", name, "jobs.json"),
        ],
        "volumeMounts": [{"name": "runs", "mountPath": options.get("mount", runs_folder)}],
        "resources": {"limits": {key: str(value) for key, value in limits.items() if value}},
    }
    # A run that failed has had its restarts, and a pod that its node lost costs no try.
    rules = [
        {"action": "FailIndex", "onExitCodes": {"operator": "In", "values": [worker.FAILED]}},
        {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
    ]
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name},
        "spec": {
            "completionMode": "Indexed",
            "completions": len(wanted),
            "parallelism": min(setting.at_a_time or len(wanted), len(wanted)),
            "backoffLimitPerIndex": RETRIES,
            "podFailurePolicy": {"rules": rules},
            "ttlSecondsAfterFinished": 24 * 3600,
            "template": {
                "spec": {
                    "restartPolicy": "Never",
                    "terminationGracePeriodSeconds": SAVES,
                    "containers": [container],
                    "volumes": [{"name": "runs", "persistentVolumeClaim": {"claimName": options["claim"]}}],
                }
            },
        },
    }


def indexes(text: str) -> set[int]:
    """The numbers of a list of Kubernetes.

    >>> sorted(indexes("1,3-5,7"))
    [1, 3, 4, 5, 7]
    """
    pairs = (part.partition("-")[::2] for part in text.split(",") if part)
    return {number for first, last in pairs for number in range(int(first), int(last or first) + 1)}


def _call(command: Sequence[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise TrainingError(f"`{' '.join(command)}` failed: {one_line(RuntimeError(done.stderr), 300)}")
    return done.stdout
