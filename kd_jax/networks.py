"""The network that a config describes, and how images become what it reads."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kd_jax import augment, models
from kd_jax.errors import InputError, choose
from kd_jax.models.quantize import quantized
from kd_jax.types import (
    Array,
    Method,
    MethodVariables,
    Network,
    Outputs,
    Preprocessing,
    Variables,
    student_logits,
)

# float64 is for checks of numbers, and needs JAX_ENABLE_X64.
PRECISIONS = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float64": jnp.float64}
# Of the section `model`; the others are options of the network.
NOT_OPTIONS = ("name", "image_size", "normalize", "quantize", "freeze", "pretrained")
NORMALIZE = ("imagenet", "half", "published")
QUANTIZE = ("", "int8")


def create(config: Mapping[str, Any], num_classes: int) -> Network:
    """The network of a config's `model` section, in its precision.

    Raises:
      InputError: for an unknown network, option, quantization or precision.
    """
    model = config["model"]
    kind = choose("model.quantize", model.get("quantize", ""), QUANTIZE)
    network = models.create(
        model["name"],
        num_classes,
        dtype=precision(config),
        frozen_backbone=model["freeze"] == "backbone_and_norms",
        **{key: value for key, value in model.items() if key not in NOT_OPTIONS},
    )
    return quantized(network) if kind else network


def described(config: Mapping[str, Any]) -> dict[str, Any]:
    """What of a config `create` and `preprocessor` read."""
    return {
        "model": {**config["model"], "pretrained": ""},
        "precision": config["precision"],
        "dataset": {"image_size": image_size(config)},
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


def preprocessor(config: Mapping[str, Any], network: Network, mean: Any, std: Any) -> Callable[[Array], Array]:
    """Pixels [B, h, w, C], from 0 to 255 -> what a network reads, [B, H, W, C].

    Args:
      config: that describes the network.
      network: what it describes.
      mean, std: [C], of pixels in [0, 1], as the data has them; for a config that leaves it to that.
    Raises:
      InputError: see `normalization`.
    """
    mean, std = normalization(config, network, mean, std)
    return functools.partial(augment.prepare, size=image_size(config), mean=mean, std=std, dtype=precision(config))


def image_size(config: Mapping[str, Any]) -> int:
    """Pixels of the images that the network of a config reads."""
    return config["model"].get("image_size") or config["dataset"]["image_size"]


def normalization(config: Mapping[str, Any], network: Network, mean: Any, std: Any) -> tuple[np.ndarray, np.ndarray]:
    """The mean and the deviation [C] that a network's images are normalized by; see `preprocessor`.

    Raises:
      InputError: for an unknown one, for that of published weights where there are none, and for one of color images
        where they are gray.
    """
    kind = config["model"].get("normalize", "")
    if kind:
        choose("model.normalize", kind, NORMALIZE)
    if kind == "half":
        mean, std = np.full((2, len(mean)), 0.5)
    elif kind:
        found = Preprocessing() if kind == "imagenet" else network.published
        if found is None:
            raise InputError(f"model.normalize is 'published', and {network.name} has no published weights")
        if len(found.mean) != len(mean):
            raise InputError(f"model.normalize is {kind!r}, of color images; expected 'half', or '' for gray ones")
        mean, std = found.mean, found.std
    return np.asarray(mean, np.float32), np.asarray(std, np.float32)


def precision(config: Mapping[str, Any]) -> Any:
    """The type that a config computes in; raises InputError for an unknown one, and for float64 without JAX's x64."""
    dtype = choose("precision", config["precision"], PRECISIONS)
    if dtype == jnp.float64 and not jax.config.read("jax_enable_x64"):
        raise InputError("precision is 'float64', which needs JAX_ENABLE_X64=1; expected that, or 'float32'")
    return dtype
