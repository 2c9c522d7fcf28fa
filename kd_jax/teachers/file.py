"""A teacher whose weights lie in a file, without a run."""

import os
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from kd_jax import networks, weights
from kd_jax.errors import InputError, one_line
from kd_jax.teachers.network import network_teacher
from kd_jax.types import Teacher

if TYPE_CHECKING:
    from kd_jax.teachers import Setting


def from_weights(setting: "Setting") -> Teacher:
    """Weights of the network that `teacher.config.model` names."""
    section = setting.config["teacher"]
    if not section["config"]:
        raise InputError("teacher.config is empty; expected a whole config, whose model the weights are of")
    source = os.path.expanduser(section["path"])
    if not source:
        raise InputError("teacher.path is empty; expected the weights of teacher.config.model")
    config = {**section["config"], **{key: setting.config[key] for key in ("precision", "dataset")}}
    network = networks.create(config, len(setting.dataset.class_names))
    size, channels = networks.image_size(config), setting.dataset.train.images.shape[-1]
    image = jax.ShapeDtypeStruct((2, size, size, channels), jnp.float32)
    shapes = jax.eval_shape(network.init, jax.random.key(0), image)
    classes = bool(setting.dataset.class_names)  # without, its final layer is left out
    variables = weights.load(source, shapes, network, strict=classes).variables
    return Teacher(
        apply=network_teacher(network, section["mode"]),
        load=lambda: (variables, None),
        shapes=shapes,
        name=os.path.basename(source),
        source=source,
        network=network,
        prepare=networks.preprocessor(config, network, setting.dataset.mean, setting.dataset.std),
    )


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
