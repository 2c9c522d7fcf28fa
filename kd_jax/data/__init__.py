"""Data sets in memory, and what is left out of them. `load` reads one."""

import functools
import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from kd_jax import augment, keys, registry
from kd_jax.data import digits
from kd_jax.data.split import Source, select, stratified_split
from kd_jax.errors import InputError, check_callable, choose
from kd_jax.types import Split

__all__ = ["SOURCES", "Dataset", "Kind", "Source", "fingerprint", "load", "register"]

Section = Mapping[str, Any]  # `dataset` of a config

NORMALIZE = ("dataset", "imagenet")
IMAGENET_MEAN = np.array([0.485, 0.456, 0.406], np.float32)
IMAGENET_STD = np.array([0.229, 0.224, 0.225], np.float32)
# What of the section chooses among the images, and what happens to them later, and so not what is read.
CHOICE = ("holdout", "train_images", "labeled", "unlabeled", "normalize", "augment", "extra_views")


class Kind(NamedTuple):
    """A kind of source."""

    read: Callable[[Section], Source]
    fingerprint: Callable[[Section], str] | None = None  # `Source.fingerprint` where it is had without reading
    reads_path: bool = True  # whether `path` means anything to it


def _folder(section: Section) -> Source:
    from kd_jax.data import folder  # of Pillow, which a light installation lacks

    return folder.load(section["path"], image_size=section["image_size"], skip_unreadable=section["skip_unreadable"])


def _folder_fingerprint(section: Section) -> str:
    from kd_jax.data import folder

    return folder.fingerprint(section["path"])


def _tfds(section: Section) -> Source:
    from kd_jax.data import tfds

    return tfds.load(section["name"], image_size=section["image_size"], data_dir=section["path"])


def _memory(section: Section) -> Source:
    raise InputError(
        "dataset.source is 'memory', whose arrays only a program has; expected kd_jax.train, kd_jax.evaluate_run or"
        f" kd_jax.explain_run with data=..., or another source: {', '.join(sorted(set(SOURCES) - {'memory'}))}"
    )


SOURCES: dict[str, Kind] = {
    "digits": Kind(lambda section: digits.load(image_size=section["image_size"]), reads_path=False),
    "folder": Kind(_folder, _folder_fingerprint),
    "tfds": Kind(_tfds),
    "memory": Kind(_memory, reads_path=False),
}


def register(name: str, read: Callable[[Section], Source], fingerprint: Callable[[Section], str] | None = None) -> None:
    """Adds a source of your own, which `dataset.source` then knows by `name`, or replaces it.

    Args:
      name: of the source.
      read: takes the section `dataset` of a config (its `path` and `name` are free for you) and returns a `Source`.
      fingerprint: `Source.fingerprint` from the section, where it is had without reading all images.
    """
    check_callable(f"the reader of source {name!r}", read)
    if fingerprint is not None:
        check_callable(f"the fingerprint of source {name!r}", fingerprint)
    registry.add(SOURCES, name, Kind(read, fingerprint))
    for cached in (_read, _fingerprint):
        cached.cache_clear()


class Dataset(NamedTuple):
    """All that training and evaluation read. Training images are in class-balanced order, the labeled ones first."""

    train: Split
    validation: Split | None  # None where nothing is held out
    test: Split
    class_names: tuple[str, ...]
    mean: np.ndarray  # [C] float32, of pixels in [0, 1]
    std: np.ndarray  # [C] float32
    fingerprint: str  # SHA-256 of the whole data set, whatever is left out of it
    skipped: int  # unreadable images that were left out
    name: str  # for people


def load(section: Section, source: Source | None = None) -> Dataset:
    """Reads a data set and chooses the images to train on. The choice depends on the data alone, never on a seed.

    Args:
      section: `dataset` of a run's configuration; `kd_jax/keys.py` explains its keys.
      source: the images, where a program has them already.

    Returns:
      The data set. With fewer `train_images` or `labeled` come the first of the same order, so smaller choices are
      part of larger ones, and neither changes the validation images.

    Raises:
      InputError: for a wrong value, for data that cannot be read, and for more images than there are.
    """
    _check(section)
    if source is None:
        source = _read(section["source"], _read_keys(section))
    classes = len(source.class_names)
    held, rest = stratified_split(source.train.labels, section["holdout"])
    _check_holdout(section["holdout"], held, source.train.labels[rest], source.class_names)
    train = select(source.train, rest[: _amount("train_images", section["train_images"], len(rest), classes)])
    mean, std = _normalization(section["normalize"], train.images)
    labeled = _amount("labeled", section["labeled"], len(train.labels), classes)
    train.labels[labeled:] = -1
    if not section["unlabeled"]:
        train = Split(train.images[:labeled], train.labels[:labeled])
    validation = select(source.train, held) if len(held) else None
    return Dataset(
        train,
        validation,
        source.test,
        source.class_names,
        mean,
        std,
        source.fingerprint,
        source.skipped,
        source.name,
    )


def fingerprint(section: Section) -> str:
    """The `Dataset.fingerprint` of what `load` would read."""
    choose("dataset.source", section["source"], SOURCES)
    return _fingerprint(section["source"], _read_keys(section))


@functools.lru_cache(maxsize=8)  # of the runs of a table
def _fingerprint(name: str, section: str) -> str:
    kind, keys = SOURCES[name], json.loads(section)
    return kind.fingerprint(keys) if kind.fingerprint else _read(name, section).fingerprint


def _read_keys(section: Section) -> str:
    """The keys that say what is read, as JSON."""
    return json.dumps({key: value for key, value in section.items() if key not in CHOICE}, sort_keys=True)


@functools.lru_cache(maxsize=1)  # a teacher and its student read the same images
def _read(name: str, section: str) -> Source:
    source = SOURCES[name].read(json.loads(section))
    if not isinstance(source, Source):
        raise InputError(f"dataset.source {name!r} returns {type(source).__name__}; expected a Source")
    return source


def _check(section: Section) -> None:
    keys.check_section("dataset", section)
    choose("dataset.source", section["source"], SOURCES)
    if section["path"] and not SOURCES[section["source"]].reads_path:
        raise InputError(
            f"dataset.path is {section['path']!r}, which the source {section['source']!r} does not read; expected"
            " dataset.source 'folder' or 'tfds', or no path"
        )
    choose("dataset.normalize", section["normalize"], NORMALIZE)
    choose("dataset.augment", section["augment"], augment.KINDS)
    for kind in section["extra_views"]:
        choose("a kind of dataset.extra_views", kind, augment.KINDS)


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


def _normalization(kind: str, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
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
    std = np.maximum(np.sqrt(variance), 1)  # at least one gray level, so that a constant channel can be divided by it
    return (mean / 255).astype(np.float32), (std / 255).astype(np.float32)
