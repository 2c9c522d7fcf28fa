"""The mean teacher: the moving average of the student itself.

Tarvainen and Valpola, "Mean teachers are better role models", NeurIPS 2017.
"""

from typing import TYPE_CHECKING

from kd_jax import networks
from kd_jax.errors import InputError
from kd_jax.teachers.network import network_teacher
from kd_jax.types import Teacher

if TYPE_CHECKING:
    from kd_jax.teachers import Setting


def average(setting: "Setting") -> Teacher:
    """The student's network with the variables that `train.ema` averages, as they are before each step."""
    if not setting.config["train"]["ema"]:
        raise InputError("train.ema is 0 and teacher.kind 'mean'; expected the decay of the average, such as 0.999")
    network = networks.create(setting.config, len(setting.dataset.class_names))
    return Teacher(
        apply=network_teacher(network, setting.config["teacher"]["mode"]),
        load=lambda: ({}, None),
        shapes={},
        name="the student's average",
        source="",
        network=network,
        is_average=True,
    )
