"""The network of `teacher.config.model` as a teacher, without a run: with weights of a file, or never trained."""

import os
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from kd_jax import networks, steps, weights
from kd_jax.errors import InputError, one_line
from kd_jax.teachers.network import network_teacher
from kd_jax.types import Network, Teacher, Variables

if TYPE_CHECKING:
    from kd_jax.teachers import Setting


def from_weights(setting: "Setting") -> Teacher:
    """Weights of the network that `teacher.config.model` names."""
    source = source_of(setting.config["teacher"])
    teacher, network, _ = _of_model(setting)
    classes = bool(setting.dataset.class_names)  # without, its final layer is left out
    variables = weights.load(source, teacher.shapes, network, strict=classes).variables
    return teacher._replace(load=lambda: (variables, None), name=os.path.basename(source), source=source)


def source_of(section: Mapping[str, Any]) -> str:
    """Where the weights of a section `teacher` lie."""
    if not section["path"]:
        raise InputError("teacher.path is empty; expected the weights of teacher.config.model")
    return os.path.expanduser(section["path"])


def untrained(setting: "Setting") -> Teacher:
    """The network of `teacher.config.model` as training would begin with it, by the seed of `teacher.config`."""
    if path := setting.config["teacher"]["path"]:
        raise InputError(f"teacher.path is {path!r} and teacher.kind 'untrained'; expected no path")
    teacher, network, image = _of_model(setting)
    own = setting.config["teacher"]["config"]

    def load() -> tuple[Variables, None]:
        rng = steps.stream(jax.random.key(np.uint32(own["seed"])), "student")  # as in `steps.init_state`
        return jax.jit(network.init)(rng, jnp.zeros(image.shape)), None

    return teacher._replace(load=load, name=f"{own['model']['name']}, untrained")


def _of_model(setting: "Setting") -> tuple[Teacher, Network, jax.ShapeDtypeStruct]:
    """The network of `teacher.config.model` as a teacher that has nothing to load, itself, and what it reads."""
    section = setting.config["teacher"]
    if not section["config"]:
        raise InputError("teacher.config is empty; expected a whole config, of whose model the teacher is")
    config = {**section["config"], **{key: setting.config[key] for key in ("precision", "dataset")}}
    network = networks.create(config, len(setting.dataset.class_names))
    size, channels = networks.image_size(config), setting.dataset.train.images.shape[-1]
    image = jax.ShapeDtypeStruct((2, size, size, channels), jnp.float32)
    teacher = Teacher(
        apply=network_teacher(network, section["mode"]),
        load=lambda: ({}, None),
        shapes=jax.eval_shape(network.init, jax.random.key(0), image),
        name="",
        source="",
        network=network,
        prepare=networks.preprocessor(config, network, setting.dataset.mean, setting.dataset.std),
    )
    return teacher, network, image


def is_there(saved: Mapping[str, Any]) -> bool:
    """Whether the weights that taught a finished run are where they were, and the same; where not, a line says so."""
    source = saved["config"]["teacher"]["path"]
    try:
        if weights.fingerprint(source) == saved["identity"]["teacher"]["run"]["weights"]:
            return True
        why = f"the weights {source!r} are not those that taught the run any more"
    except (InputError, OSError) as error:
        why = f"the teacher's weights are gone ({one_line(error)})"
    print(f"{why}: what compares with the teacher is left out", file=sys.stderr, flush=True)
    return False
