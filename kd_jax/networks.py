"""The network that a config describes, and how images become what it reads."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kd_jax import augment, models
from kd_jax.errors import InputError, choose
from kd_jax.types import Array, Network

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
