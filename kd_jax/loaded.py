"""A finished run, or what was exported of one, to classify images with."""

import json
import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kd_jax import methods, networks, runs, weights
from kd_jax.errors import InputError, shown
from kd_jax.types import Array, Network, Preprocessing, Variables


class LoadedRun(NamedTuple):
    """A network with what it takes to use it."""

    network: Network  # as the run predicts, see `networks.predicting`
    variables: Variables
    preprocess: Callable[[Array], Array]  # uint8 images [B, h, w, C] -> what `network.apply` reads
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]  # (h, w, C) of the images that it was trained on
    logits: Callable[[Array], Array]  # uint8 images [B, h, w, C] -> [B, K]; jit it. Of a run without classes NO_LOGITS
    preprocessing: Preprocessing  # the numbers of `preprocess`
    hash: str  # of the run, see `runs.digest`

    def __repr__(self) -> str:
        """Without the arrays, which fill screens."""
        return f"LoadedRun(hash={self.hash!r}, image_shape={self.image_shape}, class_names={self.class_names})"


def load(source: str | os.PathLike[str], *, precision: str | None = None, rounded: bool = True) -> LoadedRun:
    """Loads a finished run, or the student that `kd_jax export` wrote.

    Args:
      source: the folder of a run, or a .safetensors file of `kd_jax export`. What registered a network of one's own is
        imported again for a run; for a file it has to be registered already.
      precision: to compute in, as the config's; by default the run's own.
      rounded: whether a network that was trained with 8 bits computes as with them, see `model.quantize`.
    Raises:
      InputError: when it is neither.
    """
    if not isinstance(source, str | os.PathLike):
        raise InputError(f"the run is {shown(source)}; expected its folder, or a file of `kd_jax export`")
    source = os.path.expanduser(source)
    if os.path.isfile(source):
        return _load_file(source, precision, rounded)
    saved = runs.read_config(source)
    config, described = _changed(saved["config"], precision, rounded), saved["data"]
    method = methods.create(config["method"])
    network = networks.predicting(networks.create(config, len(described["class_names"])), method)
    variables = networks.predicting_variables(method, *weights.read_run(source))
    return _loaded(network, variables, config, described, saved["hash"])


def _changed(config: Mapping[str, Any], precision: str | None, rounded: bool) -> Mapping[str, Any]:
    model = config["model"] if rounded else {**config["model"], "quantize": ""}
    return {**config, "model": model, "precision": precision or config["precision"]}


def _load_file(path: str, precision: str | None, rounded: bool) -> LoadedRun:
    metadata = weights.read_metadata(path)
    try:
        config = json.loads(metadata["config"])
        described = {key: json.loads(metadata[key]) for key in ("class_names", "mean", "std", "image_shape")}
        network = networks.create(config, len(described["class_names"]))
        size, (_, _, channels) = networks.image_size(config), described["image_shape"]
        for key in ("mean", "std"):
            if np.shape(described[key]) != (channels,) or not np.isfinite(described[key]).all():
                raise ValueError(f"{key} is {described[key]}")
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{path} does not say which network it holds; expected a file of `kd_jax export`, or the folder of a run"
        ) from error
    images = jax.ShapeDtypeStruct((2, size, size, channels), jnp.float32)
    shapes = jax.eval_shape(network.init, jax.random.key(0), images)
    variables = weights.read_exported(path, metadata, shapes, network)
    config = _changed(config, precision, rounded)
    network = networks.create(config, len(described["class_names"]))
    return _loaded(network, variables, config, described, metadata.get("hash", ""))


def _loaded(
    network: Network, variables: Variables, config: Mapping[str, Any], described: Mapping[str, Any], digest: str
) -> LoadedRun:
    preprocess = networks.preprocessor(config, network, described["mean"], described["std"])
    mean, std = networks.normalization(config, network, described["mean"], described["std"])

    def logits(images: Array) -> Array:
        return network.apply(variables, preprocess(images), train=False)[0].logits

    return LoadedRun(
        network,
        variables,
        preprocess,
        tuple(described["class_names"]),
        tuple(described["image_shape"]),
        logits,
        Preprocessing(networks.image_size(config), tuple(mean.tolist()), tuple(std.tolist())),
        digest,
    )
