"""The program of a run, and the images of its data set that it is checked and calibrated by."""

import functools
import os
from typing import NamedTuple

import jax
import numpy as np
from flax.traverse_util import flatten_dict

import kd_jax
from kd_jax import data, loaded, remote, runs
from kd_jax.errors import InputError, choose, one_line
from kd_jax.exporting import CALIBRATED, CHECKED, PREPROCESS, Program
from kd_jax.models.quantize import is_range
from kd_jax.types import Array


class Source(NamedTuple):
    """What is exported, with images [N, h, w, C] of the program's type."""

    program: Program
    test: np.ndarray
    labels: np.ndarray | None  # [N] of `test`; None where its images are random
    training: np.ndarray | None  # None where the data set cannot be read
    images: str  # what `test` is, for people


def read(source: str, preprocess: str = "inside", path: str | None = None, count: int = CHECKED) -> Source:
    """The program of a finished run, or of a file of `kd_jax export`; it computes in float32 whatever the run did.

    That of a run that was trained with 8 bits computes without them, as a runtime rounds in its own way.

    Args:
      source: what `kd_jax.load` takes.
      preprocess: "inside": the program reads pixels, as the run's data has them; "beside": it reads what the network
        does, normalized and of its size.
      path: of the data, if it has moved.
      count: of test images.
    Returns:
      Its images are of the run's data set, or random where that cannot be read.
    Raises:
      InputError: when there is no such run or file, or the data is not at `path`.
    """
    choose("--preprocess", preprocess, PREPROCESS)
    trained = loaded.load(source, precision="float32")
    with_8_bits = any(map(is_range, flatten_dict(dict(trained.variables))))
    found = loaded.load(source, precision="float32", rounded=False) if with_8_bits else trained
    test, labels, training, what = _images(source, path, count, found.image_shape)
    about = {
        "preprocess": preprocess,
        "class_names": found.class_names,
        "image_shape": found.image_shape,
        "size": found.preprocessing.size,
        "mean": found.preprocessing.mean,
        "std": found.preprocessing.std,
        "hash": found.hash,
        "kd_jax": kd_jax.__version__,
    }
    inside = preprocess == "inside"
    if not inside:
        prepare = jax.jit(found.preprocess)
        test = np.asarray(prepare(test))
        training = None if training is None else np.asarray(prepare(training))
    rounded = functools.partial(_say, trained, inside) if with_8_bits else None
    apply, returns = functools.partial(_say, found, inside), "logits" if found.class_names else "embedding"
    program = Program(apply, test.shape[1:], str(test.dtype), about, returns, rounded)
    return Source(program, test, labels, training, what)


def _say(run: loaded.LoadedRun, inside: bool, images: Array) -> Array:
    """The logits [B, K] of images, which are prepared `inside` or are already; without classes the embedding [B, D]."""
    outputs = run.network.apply(run.variables, run.preprocess(images) if inside else images, train=False)[0]
    if run.class_names:
        return outputs.logits
    assert outputs.embedding is not None, "a run without labels trained it"
    return outputs.embedding


def _images(
    source: str, path: str | None, count: int, shape: tuple[int, int, int]
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None, str]:
    """Test images, their labels, training images of all classes; and what the first are."""
    try:
        if not os.path.isdir(remote.local(source)):
            raise InputError("a file has no data set")
        section = runs.read_config(source)["config"]["dataset"]
        dataset = data.load({**section, "path": path} if path else section)
    except InputError as error:
        if path:
            raise
        random = np.random.default_rng(0).integers(0, 256, (count, *shape), np.uint8)
        return random, None, None, f"{count} random images ({one_line(error, 160)})"
    chosen = np.random.default_rng(0).permutation(len(dataset.test.labels))[:count]
    training = np.asarray(dataset.train.images[:CALIBRATED])  # they are in class-balanced order
    return np.asarray(dataset.test.images[chosen]), dataset.test.labels[chosen], training, f"{len(chosen)} test images"
