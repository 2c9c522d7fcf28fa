"""Data sets in memory, and what is left out of them. `load` reads one; `epoch_order` shuffles it."""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from kd_jax.data import digits, folder, tfds
from kd_jax.data.images import read_image
from kd_jax.data.split import Source, Split, divide, take
from kd_jax.errors import InputError, choose

__all__ = ["AUGMENT", "NORMALIZE", "SOURCES", "Dataset", "Source", "Split", "epoch_order", "load", "read_image"]

SOURCES = ("digits", "folder", "tfds")
NORMALIZE = ("dataset", "imagenet")
LARGEST = 4096  # pixels of an image's side
AUGMENT = ("none", "crop", "crop_flip")
IMAGENET_MEAN = np.array([0.485, 0.456, 0.406], np.float32)
IMAGENET_STD = np.array([0.229, 0.224, 0.225], np.float32)


class Dataset(NamedTuple):
    """All that training and evaluation read. Training images are in class-balanced order, the labelled ones first."""

    train: Split
    validation: Split | None  # None where nothing is held out
    test: Split
    class_names: tuple[str, ...]
    mean: np.ndarray  # [C] float32, of pixels in [0, 1]
    std: np.ndarray  # [C] float32
    fingerprint: str  # SHA-256 of the whole data set, whatever is left out of it
    skipped: int  # unreadable images that were left out


def load(config: Mapping[str, Any]) -> Dataset:
    """Reads a data set and chooses the images to train on. The choice depends on the data alone, never on a seed.

    Args:
      config: the section `dataset` of a run's configuration; `kd_jax/config/base.py` explains its keys.

    Returns:
      The data set. With fewer `train_images` or `labelled` come the first of the same order, so smaller choices are
      part of larger ones, and neither changes the validation images.

    Raises:
      InputError: for a wrong value, for data that cannot be read, and for more images than there are.
    """
    _check(config)
    source = _read(*(config[key] for key in ("source", "name", "path", "image_size", "skip_unreadable")))
    classes = len(source.class_names)
    held, rest = divide(source.train.labels, config["holdout"])
    _check_holdout(config["holdout"], held, source.train.labels[rest], source.class_names)
    train = take(source.train, rest[: _amount("train_images", config["train_images"], len(rest), classes)])
    mean, std = _normalisation(config["normalize"], train.images)
    labelled = _amount("labelled", config["labelled"], len(train.labels), classes)
    train.labels[labelled:] = -1
    if not config["unlabelled"]:
        train = Split(train.images[:labelled], train.labels[:labelled])
    validation = take(source.train, held) if len(held) else None
    return Dataset(train, validation, source.test, source.class_names, mean, std, source.fingerprint, source.skipped)


@functools.lru_cache(maxsize=1)  # a teacher and its student read the same images
def _read(source: str, name: str, path: str, image_size: int, skip_unreadable: bool) -> Source:
    if source == "digits":
        return digits.load(image_size=image_size)
    if source == "folder":
        return folder.load(path, image_size=image_size, skip_unreadable=skip_unreadable)
    return tfds.load(name, image_size=image_size, data_dir=path)


def epoch_order(seed: int, epoch: int, images: int) -> np.ndarray:
    """The order [images] int32 in which an epoch visits the training images: a function of its arguments only."""
    return np.random.default_rng((seed, epoch)).permutation(images).astype(np.int32)


def _check(config: Mapping[str, Any]) -> None:
    choose("dataset.source", config["source"], SOURCES)
    choose("dataset.normalize", config["normalize"], NORMALIZE)
    choose("dataset.augment", config["augment"], AUGMENT)
    if type(config["image_size"]) is int and config["image_size"] > LARGEST:
        raise InputError(f"dataset.image_size is {config['image_size']}; expected at most {LARGEST}")
    for key, least in (("image_size", 1), ("train_images", 0), ("labelled", 0)):
        if type(config[key]) is not int or config[key] < least:
            raise InputError(f"dataset.{key} is {config[key]!r}; expected an integer of at least {least}")
    if not isinstance(config["holdout"], int | float) or not 0 <= config["holdout"] < 1:
        raise InputError(f"dataset.holdout is {config['holdout']!r}; expected a fraction of at least 0 and below 1")


def _check_holdout(holdout: float, held: np.ndarray, labels: np.ndarray, class_names: tuple[str, ...]) -> None:
    if holdout and not len(held):
        raise InputError(f"dataset.holdout is {holdout}, less than one image per class; expected more, or 0 for none")
    without = np.bincount(labels, minlength=len(class_names)) == 0
    if without.any():
        name = class_names[without.argmax()]
        raise InputError(
            f"dataset.holdout is {holdout}, which leaves no training image of class {name!r}; expected less"
        )


def _amount(key: str, value: int, available: int, classes: int) -> int:
    """How many images to keep, where 0 stands for all."""
    if value and not classes <= value <= available:
        raise InputError(
            f"dataset.{key} is {value}; expected {classes} (one per class) to {available} (all there are), or 0 for all"
        )
    return value or available


def _normalisation(kind: str, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation [C] of pixels in [0, 1]."""
    channels = images.shape[-1]
    if kind == "imagenet":
        if channels != 3:
            raise InputError(f'dataset.normalize is "imagenet"; expected "dataset" for images of {channels} channel')
        return IMAGENET_MEAN, IMAGENET_STD
    # Counted, not summed: exact, and without a copy of the images in floating point.
    counts = np.zeros((channels, 256))
    for start in range(0, len(images), 1024):
        block = images[start : start + 1024]
        for channel in range(channels):
            counts[channel] += np.bincount(block[..., channel].ravel(), minlength=256)
    share = counts / counts.sum(axis=1, keepdims=True)
    mean = share @ np.arange(256)
    variance = (share * (np.arange(256) - mean[:, None]) ** 2).sum(axis=1)
    std = np.maximum(np.sqrt(variance), 1)  # at least one grey level, so that a constant channel can be divided by it
    return (mean / 255).astype(np.float32), (std / 255).astype(np.float32)
