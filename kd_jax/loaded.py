"""A finished run, to classify images with."""

import os
from collections.abc import Callable
from typing import NamedTuple

from kd_jax import methods, networks, runs, weights
from kd_jax.types import Array, Network, Variables


class LoadedRun(NamedTuple):
    """A network with what it takes to use it."""

    network: Network  # as the run predicts, see `networks.predicting`
    variables: Variables
    preprocess: Callable[[Array], Array]  # uint8 images [B, h, w, C] -> what `network.apply` reads
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]  # (h, w, C) of the images that it was trained on
    logits: Callable[[Array], Array]  # uint8 images [B, h, w, C] -> [B, K]; jit it


def load(folder: str | os.PathLike[str]) -> LoadedRun:
    """Loads a finished run.

    Raises:
      InputError: when the folder holds no finished run.
    """
    folder = os.fspath(folder)
    saved = runs.read_config(folder)
    config, described = saved["config"], saved["data"]
    class_names = tuple(described["class_names"])
    method = methods.create(config["method"])
    network = networks.predicting(networks.create(config, len(class_names)), method)
    variables = networks.predicting_variables(method, *weights.read_run(folder))
    preprocess = networks.preprocessor(config, described["mean"], described["std"])

    def logits(images: Array) -> Array:
        return network.apply(variables, preprocess(images), train=False)[0].logits

    return LoadedRun(network, variables, preprocess, class_names, tuple(described["image_shape"]), logits)
