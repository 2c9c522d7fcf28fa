"""A teacher that is a run: one that has finished, or one that is trained when it is missing."""

import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from kd_jax import methods, networks, runs, steps, tracing, weights
from kd_jax.config import checks
from kd_jax.errors import InputError, first_few
from kd_jax.teachers.network import network_teacher
from kd_jax.types import MethodVariables, Teacher, Variables, student_logits

if TYPE_CHECKING:
    from kd_jax.teachers import Setting

OWN_CHOICE = ("labeled", "unlabeled", "augment", "extra_views")  # in which a teacher may differ from its student


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
                " (a teacher of other data is given as a run)"
            )
    try:
        experiment = setting.create_experiment(section["config"])
    except InputError as error:
        raise InputError(f"in the teacher's config, {error}") from error
    folder = folder_of(experiment.digest, setting.runs_folder)

    def method_shapes() -> MethodVariables:
        state = tracing.state_shapes(experiment.components, experiment.options, experiment.dataset.train)
        return steps.method_variables(state.params, state.stats)

    return _teacher(setting, folder, experiment.config, method_shapes)._replace(
        config_hash=experiment.digest, untrained=experiment
    )


def finished(setting: "Setting") -> Teacher:
    """The finished run in the folder `teacher.path`."""
    folder, dataset = os.path.expanduser(setting.config["teacher"]["path"]), setting.dataset
    if not folder:
        raise InputError("teacher.path is empty; expected the folder of a finished run")
    saved = runs.read_config(folder)
    if not runs.has_result(folder):
        raise InputError(f"teacher.path is {folder!r}, a run without result.json; expected a finished run")
    class_names = tuple(saved["data"]["class_names"])
    if class_names != dataset.class_names:
        theirs, own = (f"{len(names)} classes ({first_few(names)})" for names in (class_names, dataset.class_names))
        raise InputError(f"the teacher {folder!r} knows {theirs}; expected the student's {own}")
    image_size = setting.config["dataset"]["image_size"]
    for what, there, here in (
        ("image_size", saved["config"]["dataset"]["image_size"], image_size),
        ("mean", saved["data"]["mean"], dataset.mean),
        ("std", saved["data"]["std"], dataset.std),
    ):
        if not np.allclose(there, here, atol=1e-4):
            raise InputError(
                f"the teacher {folder!r} reads images of {what} {there}; expected the student's {here}"
                " (see dataset.image_size and dataset.normalize)"
            )
    teacher = _teacher(setting, folder, saved["config"], lambda: jax.eval_shape(lambda: weights.read_run(folder)[1]))
    return teacher._replace(config_hash=saved["hash"])


def folder_of(digest: str, runs_folder: str) -> str:
    """Where the run of a teacher lies that a config describes."""
    return os.path.join(runs_folder, "teachers", digest[:8])


def section_of_finished(section: Mapping[str, Any], teacher_hash: str | None, runs_folder: str) -> dict[str, Any]:
    """See `teachers.finished`."""
    if section["kind"] not in ("config", "run"):
        return dict(section)
    path = (
        folder_of(teacher_hash or "", runs_folder)
        if section["kind"] == "config"
        else os.path.expanduser(section["path"])
    )
    return {**section, "path": path, "kind": "run" if runs.has_result(path) else "none"}


def _teacher(
    setting: "Setting", folder: str, config: Mapping[str, Any], method_shapes: Callable[[], MethodVariables]
) -> Teacher:
    """The run in a folder as a teacher: it predicts as the run does, in the student's precision."""
    method = methods.create(config["method"])
    network = networks.create({**config, "precision": setting.config["precision"]}, len(setting.dataset.class_names))
    size, channels = setting.config["dataset"]["image_size"], setting.dataset.train.images.shape[-1]
    image = jax.ShapeDtypeStruct((2, size, size, channels), jnp.float32)

    def load() -> tuple[Variables, dict[str, Any] | None]:
        variables = networks.predicting_variables(method, *weights.read_run(folder))
        return variables, runs.read_json(folder, "result.json")

    shapes = jax.eval_shape(network.init, jax.random.key(0), image)
    if method.predict is not student_logits:
        shapes = networks.predicting_variables(method, shapes, method_shapes())
    network = networks.predicting(network, method)
    return Teacher(
        apply=network_teacher(network, setting.config["teacher"]["mode"]),
        load=load,
        shapes=shapes,
        name=f"{config['name']}, seed {config['seed']}",
        source=folder,
        network=network,
    )
