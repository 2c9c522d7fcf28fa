"""A teacher that is a run: one that has finished, or one that is trained when it is missing."""

import functools
import math
import os
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from kd_jax import methods, networks, remote, runs, steps, weights
from kd_jax.config import checks
from kd_jax.data import fingerprints
from kd_jax.errors import InputError, first_few
from kd_jax.teachers.network import network_teacher
from kd_jax.types import MethodVariables, Teacher, Variables, student_logits

if TYPE_CHECKING:
    from kd_jax.teachers import Setting

# In which a teacher may differ from its student.
OWN_CHOICE = (
    *("labeled", "unlabeled", "label_free", "normalize", "augment", "least_area", "cutout", "extra_views"),
    *("sampling", "stream", "workers"),
)


def from_config(setting: "Setting") -> Teacher:
    """The run that `teacher.config` describes, in <runs>/teachers."""
    section = setting.config["teacher"]
    if not section["config"]:
        raise InputError("teacher.config is empty; expected a whole config, or teacher.kind 'none' or 'run'")
    try:
        checks.check(section["config"])
    except InputError as error:
        raise InputError(f"in the teacher's config, {error}") from error
    theirs = section["config"]["dataset"]
    for key, value in setting.config["dataset"].items():
        if key not in (*OWN_CHOICE, "skip_unreadable") and theirs[key] != value:
            raise InputError(
                f"teacher.config.dataset.{key} is {theirs[key]!r}; expected the student's {value!r}"
                " (a teacher of other data is given as weights; for images of another size see model.image_size)"
            )
    try:
        experiment = setting.create_experiment(section["config"])
        folder = folder_of(experiment.digest, setting.runs_folder)
        if not runs.has_result(folder):
            experiment.trace()
    except InputError as error:
        raise InputError(f"in the teacher's config, {error}") from error
    if epoch := section["epoch"]:
        # Where the run has finished without keeping that epoch, another one of the same config does.
        if runs.has_result(folder) and epoch not in _epochs_saved(folder):
            folder += f"-epoch{epoch}"
        if not runs.has_result(folder):
            _check_will_be_saved(experiment, epoch)

    def method_shapes() -> MethodVariables:
        state = experiment.state_shapes()
        return steps.method_variables(state.params, state.stats)

    pixels = experiment.dataset.mean, experiment.dataset.std
    classes = len(experiment.dataset.class_names)
    return _teacher(setting, folder, experiment.config, pixels, method_shapes, classes)._replace(
        config_hash=experiment.digest, untrained=experiment
    )


def _check_will_be_saved(experiment: Any, epoch: int) -> None:
    """Raises InputError for an epoch after which a run that is still to be trained will keep no checkpoint."""
    saving, epochs = experiment.config["checkpoint"], experiment.steps / experiment.options.steps_per_epoch
    every = saving["every_epochs"]
    kept = [*range(every, math.ceil(epochs), every), epochs][-saving["keep"] :]
    if epoch not in kept:
        raise InputError(
            f"teacher.epoch is {epoch}; expected one of {first_few([f'{x:g}' for x in kept])}, after which the teacher"
            " keeps a checkpoint: see checkpoint.every_epochs and checkpoint.keep of teacher.config"
        )


def _epochs_saved(folder: str) -> dict[float, int]:
    """{epoch: step} of the checkpoints that a finished run has."""
    from kd_jax.checkpoint import Checkpoints  # Orbax is slow to import

    result = runs.read_json(folder, "result.json")
    steps_saved = Checkpoints(os.path.join(folder, "checkpoints")).steps()
    return {step * result["epochs"] / result["steps"]: step for step in steps_saved}


def finished(setting: "Setting") -> Teacher:
    """The finished run in the folder `teacher.path`."""
    folder = os.path.expanduser(setting.config["teacher"]["path"])
    if not folder:
        raise InputError("teacher.path is empty; expected the folder of a finished run")
    saved = runs.read_config(folder)
    if not runs.has_result(folder):
        raise InputError(f"teacher.path is {folder!r}, a run without result.json; expected a finished run")
    _check_data(folder, saved, setting)
    pixels = saved["data"]["mean"], saved["data"]["std"]
    shapes = functools.partial(jax.eval_shape, lambda: weights.read_run(folder)[1])
    teacher = _teacher(setting, folder, saved["config"], pixels, shapes, len(saved["data"]["class_names"]))
    return teacher._replace(config_hash=saved["hash"])


def _check_data(folder: str, saved: Mapping[str, Any], setting: "Setting") -> None:
    """Raises InputError unless a teacher's run reads its student's images, and none that the student is measured on.

    Args:
      folder: of the teacher's run. saved: its config.json.
      setting: of the student; where a finished one is evaluated, what the teacher was trained on does not matter.
    """
    section, dataset = setting.config["dataset"], setting.dataset
    theirs, data = saved["config"]["dataset"], saved["data"]
    class_names = tuple(data["class_names"])
    if dataset.class_names and class_names and class_names != dataset.class_names:
        known, own = (f"{len(names)} classes ({first_few(names)})" for names in (class_names, dataset.class_names))
        raise InputError(f"the teacher {folder!r} knows {known}; expected the student's {own}")
    channels = dataset.train.images.shape[-1]
    if (there := data["image_shape"][-1]) != channels:
        raise InputError(f"the teacher {folder!r} reads images of {there} channels; expected the student's {channels}")
    if not (setting.training and dataset.class_names and class_names):  # without labels nobody is measured, or has seen
        return
    if data["fingerprint"] != dataset.fingerprint and (
        section["source"] == "memory" or data["fingerprint"] not in fingerprints(section)
    ):
        raise InputError(
            f"the teacher {folder!r} was trained on other data, so it may have seen what the student is measured on;"
            " expected a run on the same images, or teacher.kind 'weights' with its folder as teacher.path and its"
            " config as teacher.config"
        )
    if theirs["holdout"] < section["holdout"]:
        raise InputError(
            f"the teacher {folder!r} was trained with dataset.holdout {theirs['holdout']}, so it has seen validation"
            f" images of the student; expected at least the student's {section['holdout']}"
        )


def folder_of(digest: str, runs_folder: str) -> str:
    """Where the run of a teacher lies that a config describes."""
    return os.path.join(runs_folder, "teachers", digest[:8])


def find(saved: Mapping[str, Any], folder: str, runs_folder: str) -> str | None:
    """Where the teacher's run of a finished run lies; None, and a line says so, where it is gone. See `teachers`."""
    digest = saved["teacher_hash"] or ""
    places = [folder_of(digest, runs_folder), folder_of(digest, os.path.dirname(remote.absolute(folder)))]
    places += [os.path.expanduser(x) for x in (saved.get("teacher_source"), saved["config"]["teacher"]["path"]) if x]
    if saved["config"]["teacher"].get("epoch"):  # several runs of one config may have kept other epochs
        places.reverse()
    for path in places:
        if runs.has_result(path) and runs.read_json(path, "config.json")["hash"] == digest:
            return path
    print(
        f"the teacher's run of {folder} is not in {' or '.join(dict.fromkeys(places))}: what compares with the teacher"
        " is left out; see --runs",
        file=sys.stderr,
        flush=True,
    )
    return None


def _teacher(
    setting: "Setting",
    folder: str,
    config: Mapping[str, Any],
    pixels: tuple[Any, Any],  # mean and deviation of its data
    method_shapes: Callable[[], MethodVariables],
    num_classes: int,
) -> Teacher:
    """The run in a folder as a teacher: it reads images and predicts as the run does, in the student's precision."""
    method = methods.create(config["method"])
    config = {**config, "precision": setting.config["precision"]}
    network = networks.create(config, num_classes)
    prepare = networks.preprocessor(config, network, *pixels)
    size, channels = networks.image_size(config), setting.dataset.train.images.shape[-1]
    image = jax.ShapeDtypeStruct((2, size, size, channels), jnp.float32)

    epoch = setting.config["teacher"]["epoch"]

    def load() -> tuple[Variables, dict[str, Any] | None]:
        result, step = runs.read_json(folder, "result.json"), 0
        if epoch:
            saved = _epochs_saved(folder)
            if epoch not in saved:
                kept = first_few([f"{x:g}" for x in saved])
                raise InputError(f"teacher.epoch is {epoch}; expected one of {kept}, which {folder} has kept")
            step = saved[epoch]
        variables = networks.predicting_variables(method, *weights.read_run(folder, step))
        return variables, None if epoch else result

    shapes = jax.eval_shape(network.init, jax.random.key(0), image)
    if method.predict is not student_logits:
        shapes = networks.predicting_variables(method, shapes, method_shapes())
    network = networks.predicting(network, method)
    return Teacher(
        apply=network_teacher(network, setting.config["teacher"]["mode"]),
        load=load,
        shapes=shapes,
        name=f"{config['name']}, seed {config['seed']}" + (f", epoch {epoch}" if epoch else ""),
        source=folder,
        network=network,
        prepare=prepare,
    )
