"""A longer run that goes on from the end of a shorter one, where that is what it would have been so far."""

import glob
import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np

from kd_jax import checkpoint, components, remote, runs
from kd_jax.errors import InputError
from kd_jax.experiment import Experiment, length

CHECKPOINTS = "checkpoints"


def check(experiment: Experiment, source: str, folder: str) -> None:
    """Raises InputError unless a run goes on, to the last bit, from the last checkpoint of a shorter one in `source`.

    One that has begun in `folder` goes on from its own.
    """
    if _checkpoints(folder):
        return
    result = runs.read_json(source, "result.json")  # it has finished
    saved = runs.read_config(source)
    changed = runs.changed_keys(saved["identity"], experiment.identity)
    if others := [key for key in changed if not runs.is_of_length(key)]:
        differences = runs.differences(saved["identity"], experiment.identity, only=others)
        raise InputError(
            f"--extend is {source!r}, a run of another config ({'; '.join(differences)}); expected one that differs in"
            " its length and schedule alone"
        )
    images, devices = len(experiment.dataset.train.labels), experiment.mesh.size
    steps, epoch = length(saved["config"]["train"], images, devices)
    if steps >= experiment.steps:
        raise InputError(
            f"--extend is {source!r}, a run of {steps} steps; expected one of fewer than the {experiment.steps} of this"
            " config, see train.epochs and train.steps"
        )
    if not _checkpoints(source):
        raise InputError(f"--extend is {source!r}, which has no checkpoints; expected the folder of a whole run")
    checkpoint.check_whole(os.path.join(source, CHECKPOINTS))  # before anything is copied
    rated_every = epoch.steps * experiment.config["evaluate"]["every_epochs"]
    best = result.get("best") or {}  # beside what it tested
    by_validation = experiment.config["evaluate"]["select"] == "best-validation"
    if steps in ((by_validation and result["checkpoint"]), best.get("step")) and steps % rated_every:
        raise InputError(
            f"--extend is {source!r}, whose best checkpoint is its last, of step {steps}; a longer run is rated every"
            f" {rated_every} steps, and would not have seen it. Expected a run of a multiple of these"
        )
    before = components.create_optimizer(
        saved["config"],
        experiment.components.student,
        experiment.components.method,
        steps=steps,
        steps_per_epoch=epoch.steps,
    )
    after, every = experiment.components.optimizer, jnp.arange(steps)
    for group, factor in before.factors.items():
        old, new = (np.asarray(jax.vmap(f)(every)) for f in (factor, after.factors[group]))
        if (old != new).any():
            step = int(np.argmax(old != new))
            shown = [np.format_float_positional(x[step], trim="-") for x in (old, new)]  # as many digits as differ
            raise InputError(
                f"--extend is {source!r}, whose learning rate was another: at step {step} its factor is {shown[0]}"
                f" of {steps} steps and {shown[1]} of {experiment.steps}, by optimizer.schedule"
                f" {saved['config']['optimizer']['schedule']!r} there and"
                f" {experiment.config['optimizer']['schedule']!r} here; expected a schedule that does not depend on the"
                " length, such as 'constant', 'step' or 'exponential', and a warmup that is at most half of the shorter"
                f" run. model.pretrained={source} starts a new run from"
                " its weights"
            )


def copy(source: str, folder: str) -> None:
    """Copies what a run goes on from into its locked folder, unless it has begun there.

    Where that is cut off, the run begins at the start, or at what there is, and ends the same.
    """
    own = remote.local(folder)
    if _checkpoints(folder):
        return
    there = remote.local(source)
    logged = [os.path.join(there, "metrics.jsonl"), *glob.glob(os.path.join(glob.escape(there), "events.out.*"))]
    for path in filter(os.path.exists, logged):
        shutil.copy(path, own)
    steps = _checkpoints(source)
    os.makedirs(os.path.join(own, CHECKPOINTS), exist_ok=True)
    for step in steps:  # the last one last: what it needs is then there
        partial = os.path.join(own, CHECKPOINTS, f".{step}.tmp")
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(os.path.join(there, CHECKPOINTS, str(step)), partial)
        os.rename(partial, os.path.join(own, CHECKPOINTS, str(step)))
    print(
        f"extends {source} from step {steps[-1]}, whose test set was read: choose a length by the validation split",
        flush=True,
    )


def _checkpoints(folder: str) -> list[int]:
    """The steps of a run's checkpoints, in order."""
    path = os.path.join(remote.local(folder), CHECKPOINTS)
    return sorted(int(name) for name in (os.listdir(path) if os.path.isdir(path) else ()) if name.isdecimal())
