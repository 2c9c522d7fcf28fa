"""The network that a config describes, and how images become what it reads."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kd_jax import augment, models
from kd_jax.errors import InputError, choose
from kd_jax.types import Array, Method, MethodVariables, Network, Outputs, Variables, student_logits

# float64 is for checks of numbers, and needs JAX_ENABLE_X64.
PRECISIONS = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float64": jnp.float64}
NOT_OPTIONS = ("name", "freeze", "pretrained")  # of the section `model`; the others are options of the network


def create(config: Mapping[str, Any], num_classes: int) -> Network:
    """The network of a config's `model` section, in its precision.

    Raises:
      InputError: for an unknown network, option or precision.
    """
    model = config["model"]
    return models.create(
        model["name"],
        num_classes,
        dtype=_precision(config),
        frozen_backbone=model["freeze"] == "backbone_and_norms",
        **{key: value for key, value in model.items() if key not in NOT_OPTIONS},
    )


def described(config: Mapping[str, Any]) -> dict[str, Any]:
    """What of a config `create` and `preprocessor` read."""
    return {
        "model": {**config["model"], "pretrained": ""},
        "precision": config["precision"],
        "dataset": {"image_size": config["dataset"]["image_size"]},
    }


def predicting(network: Network, method: Method) -> Network:
    """The network as a run of the method predicts; `predicting_variables` are its variables.

    Where the method replaces the prediction, the logits are the method's, and there is no linear head that makes them.
    """
    if method.predict is student_logits:
        return network

    def init(rng: Array, images: Array) -> Variables:
        raise InputError(f"{network.name} predicts by its method's head; expected the variables of its run")

    def apply(variables: Variables, images: Array, **options: Any) -> tuple[Outputs, Any]:
        own = {name: tree for name, tree in variables.items() if name != "method"}
        outputs, batch_stats = network.apply(own, images, **options)
        return outputs._replace(logits=method.predict(variables["method"], outputs), head=None), batch_stats

    return Network(init, apply, name=network.name)


def predicting_variables(method: Method, variables: Variables, method_variables: MethodVariables) -> Variables:
    """The variables of `predicting`, made of the student's and the method's."""
    return variables if method.predict is student_logits else {**variables, "method": method_variables}


def preprocessor(config: Mapping[str, Any], mean: Any, std: Any) -> Callable[[Array], Array]:
    """uint8 images [B, h, w, C] -> what the network of a config reads, [B, H, W, C].

    Args:
      config: of the run.
      mean, std: [C], of pixels in [0, 1], as the run's data has them.
    """
    return functools.partial(augment.prepare, **pixels(config, mean, std))


def pixels(config: Mapping[str, Any], mean: Any, std: Any) -> dict[str, Any]:
    """The arguments of `augment.prepare`, and of `augment.create`, that say how images are normalized."""
    return {
        "size": config["dataset"]["image_size"],
        "mean": np.asarray(mean, np.float32),
        "std": np.asarray(std, np.float32),
        "dtype": _precision(config),
    }


def _precision(config: Mapping[str, Any]) -> Any:
    dtype = choose("precision", config["precision"], PRECISIONS)
    if dtype == jnp.float64 and not jax.config.read("jax_enable_x64"):
        raise InputError("precision is 'float64', which needs JAX_ENABLE_X64=1; expected that, or 'float32'")
    return dtype
