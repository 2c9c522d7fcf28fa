"""Data sets in memory, and what is left out of them. `load` reads one."""

import functools
import importlib
import json
import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from kd_jax import augment, balance, keys, registry
from kd_jax.data import digits, npz
from kd_jax.data.lazy import Images
from kd_jax.data.names import printable, read_class_names
from kd_jax.data.split import Source, cut, select, stratified_split
from kd_jax.errors import InputError, check_callable, choose, first_few
from kd_jax.types import Split

__all__ = ["SOURCES", "Dataset", "Kind", "Source", "fingerprint", "fingerprints", "load", "register"]

Section = Mapping[str, Any]  # `dataset` of a config

STREAM = ("auto", "always", "never")
NORMALIZE = ("dataset", "imagenet")
IMAGENET_MEAN = np.array([0.485, 0.456, 0.406], np.float32)
IMAGENET_STD = np.array([0.229, 0.224, 0.225], np.float32)
# What of the section chooses among the images, and what happens to them later, and so not what is read.
CHOICE = (
    *("holdout", "train_images", "labeled", "unlabeled", "normalize", "class_names"),
    *("sampling", "augment", "least_area", "cutout", "extra_views", "workers"),
)


class Kind(NamedTuple):
    """A kind of source."""

    read: Callable[[Section], Source]
    fingerprint: Callable[[Section], str] | None = None  # `Source.fingerprint` where it is had without reading
    reads_path: bool = True  # whether `path` means anything to it
    owned: bool = False  # whether what it returns is nobody else's, so that no copy has to be made
    former_fingerprint: Callable[[Section], str | None] | None = None  # by which runs of earlier versions know the data
    streams: bool = False  # whether its images may be read when they are asked for, by `stream`


def _module(name: str) -> Any:
    """A module of this package, imported late: it needs Pillow, TensorFlow or `datasets`, which not all have."""
    return importlib.import_module(f"kd_jax.data.{name}")


def _of_files(section: Section) -> dict[str, Any]:
    """How the images of files are read."""
    return {key: section[key] for key in ("image_size", "skip_unreadable", "label_free")}


def _memory(section: Section) -> Source:
    raise InputError(
        "dataset.source is 'memory', whose arrays only a program has; expected kd_jax.train, kd_jax.evaluate_run or"
        f" kd_jax.explain_run with data=..., or another source: {', '.join(sorted(set(SOURCES) - {'memory'}))}"
    )


SOURCES: dict[str, Kind] = {
    "digits": Kind(lambda section: digits.load(image_size=section["image_size"]), reads_path=False),
    "folder": Kind(
        lambda section: _module("folder").load(section["path"], stream=section["stream"], **_of_files(section)),
        lambda section: _module("folder").fingerprint(section["path"], label_free=section["label_free"]),
        owned=True,
        former_fingerprint=lambda section: (
            None if section["label_free"] else _module("folder").former_fingerprint(section["path"])
        ),
        streams=True,
    ),
    "tar": Kind(
        lambda section: _module("tar").load(section["path"], **_of_files(section)),
        lambda section: _module("tar").fingerprint(section["path"]),
        owned=True,
    ),
    "hf": Kind(
        lambda section: _module("hf").load(
            section["name"], path=section["path"], stream=section["stream"], **_of_files(section)
        ),
        owned=True,
        streams=True,
    ),
    "tfds": Kind(
        lambda section: _module("tfds").load(
            section["name"], image_size=section["image_size"], data_dir=section["path"], stream=section["stream"]
        ),
        owned=True,
        former_fingerprint=lambda section: _module("tfds").former_fingerprint(
            section["name"], data_dir=section["path"]
        ),
        streams=True,
    ),
    "npz": Kind(lambda section: npz.load(section["path"])),
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
    _read.cache_clear()


class Dataset(NamedTuple):
    """All that training and evaluation read. Training images are in class-balanced order, the labeled ones first."""

    train: Split
    validation: Split | None  # None where nothing is held out
    test: Split
    class_names: tuple[str, ...]  # none where no image has a label
    mean: np.ndarray  # [C] float32, of pixels in [0, 1]
    std: np.ndarray  # [C] float32
    fingerprint: str  # SHA-256 of the whole data set, whatever is left out of it
    skipped: int  # unreadable images that were left out
    name: str  # for people


def load(section: Section, source: Source | None = None) -> Dataset:
    """Reads a data set and chooses the images to train on. The choice depends on the data alone, never on a seed.

    A line says what was read. What was read last is kept, and read again only where it has changed.

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
        source, held = _read_now(section)
    else:
        source = _named(_without_labels(source) if section["label_free"] else source, _names(section))
        source, held = _arranged(source, section["holdout"], owned=False)
        _say(_described(source, held))
    classes = len(source.class_names)
    validation, rest = cut(source.train, held)
    if source.validation is not None:
        validation = source.validation
    train, _ = cut(rest, _amount("train_images", section["train_images"], len(rest.labels), classes))
    mean, std = _normalization(section["normalize"], train.images)
    labeled = _amount("labeled", section["labeled"], len(train.labels), classes)
    labels = train.labels.copy()
    labels[labeled:] = -1
    train = Split(train.images, labels)
    if not section["unlabeled"]:
        train, _ = cut(train, labeled)
    return Dataset(
        train,
        validation if len(validation.labels) else None,
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
    _check(section)
    kind = SOURCES[section["source"]]
    return kind.fingerprint(section) if kind.fingerprint else _read_now(section)[0].fingerprint


def fingerprints(section: Section) -> tuple[str, ...]:
    """The same, and the one by which the runs of earlier versions know the data where that was another."""
    now, kind = fingerprint(section), SOURCES[section["source"]]
    former = kind.former_fingerprint(section) if kind.former_fingerprint else None
    return (now, former) if former else (now,)


def _read_now(section: Section) -> tuple[Source, int]:
    """What `_arranged` returns of the data as it is now: read again where it has changed."""
    kind = SOURCES[section["source"]]
    keys = {key: value for key, value in section.items() if key not in CHOICE}
    folder = os.path.abspath(os.path.expanduser(section["path"]))  # what a relative path means may change
    state = kind.fingerprint(section) if kind.fingerprint else ""
    return _read(
        section["source"], json.dumps(keys, sort_keys=True), section["holdout"], folder, state, _names(section)
    )


@functools.lru_cache(maxsize=1)  # a teacher and its student read the same images
def _read(
    name: str, section: str, holdout: float, folder: str, state: str, names: tuple[str, ...] | None
) -> tuple[Source, int]:
    source = SOURCES[name].read(json.loads(section))
    if not isinstance(source, Source):
        raise InputError(f"dataset.source {name!r} returns {type(source).__name__}; expected a Source")
    if json.loads(section)["label_free"]:
        source = _without_labels(source)
    source, held = _arranged(_named(source, names), holdout, owned=SOURCES[name].owned)
    print(_described(source, held), flush=True)
    return source, held


def _without_labels(source: Source) -> Source:
    """The same images, of no class."""

    def split(part: Split) -> Split:
        return Split(part.images, np.full(len(part.labels), -1, np.int32))

    validation = source.validation and split(source.validation)
    return source._replace(train=split(source.train), test=split(source.test), validation=validation, class_names=())


def _names(section: Section) -> tuple[str, ...] | None:
    """The names of the classes, where a file has them."""
    path = section["class_names"]
    return read_class_names("dataset.class_names", path) if path else None


def _named(source: Source, names: tuple[str, ...] | None) -> Source:
    if names is None:
        return source
    if len(names) != len(source.class_names):
        own = first_few(map(printable, source.class_names))
        raise InputError(
            f"dataset.class_names has {len(names)} names; expected {len(source.class_names)}, in the order of {own}"
        )
    return source._replace(class_names=names)


@functools.lru_cache(maxsize=1)  # a teacher and its student have the same arrays of a program
def _say(line: str) -> None:
    print(line, flush=True)


def _arranged(source: Source, holdout: float, *, owned: bool) -> tuple[Source, int]:
    """The source with its training images in the order of `stratified_split`, and how many of them are held out.

    Where the data has a validation split, that is none. The order is made once, and all choices are then slices.
    """
    labels = source.train.labels if source.class_names else np.zeros_like(source.train.labels)
    held, rest = stratified_split(labels, holdout if source.validation is None else 0.0)
    if source.validation is None:
        if source.class_names and (without := set(range(len(source.class_names))) - set(labels.tolist())):
            names = first_few(printable(source.class_names[label]) for label in sorted(without))
            raise InputError(f"the data {printable(source.name)} has no training image of {names}; expected some")
        _check_holdout(holdout, held, labels[rest], source.class_names)
    order = np.concatenate([held, rest])
    return source._replace(train=select(source.train, order, in_place=owned)), len(held)


def _described(source: Source, held: int) -> str:
    """What was read, on one line; the first `held` training images are those held out."""
    splits = {"train": source.train, "test": source.test, "validation": source.validation}
    counts = ", ".join(f"{len(split.labels)} {name}" for name, split in splits.items() if split is not None)
    images = f"{counts} images" + ("" if source.validation is None else " (dataset.holdout is not used)")
    left_out = [f"left out: {', '.join(source.left_out)}"] if source.left_out else []
    if not source.class_names:
        return "; ".join([f"data {printable(source.name)}: {images} without labels", *left_out])
    sizes = np.bincount(source.train.labels, minlength=len(source.class_names))
    small, large = sizes.argmin(), sizes.argmax()
    least, most = (f"{sizes[label]} ({printable(source.class_names[label])})" for label in (small, large))
    each = f"{sizes[small]} each" if sizes[small] == sizes[large] else f"{least} to {most}"
    said = [f"data {printable(source.name)}: {images}", f"{len(sizes)} classes of {each}"]
    if isinstance(source.train.images, Images):
        said.append("images are read at every step")
    validation = source.validation or (cut(source.train, held)[0] if held else None)
    for what, split in (("test", source.test), ("validation", validation)):
        if split and (without := set(range(len(sizes))) - set(np.asarray(split.labels).tolist())):
            names = first_few((printable(source.class_names[label]) for label in sorted(without)), 20)
            said.append(f"no {what} image of {names}")
    return "; ".join(said + left_out)


def _check(section: Section) -> None:
    keys.check_section("dataset", section)
    choose("dataset.source", section["source"], SOURCES)
    if section["path"] and not SOURCES[section["source"]].reads_path:
        raise InputError(
            f"dataset.path is {section['path']!r}, which the source {section['source']!r} does not read; expected"
            f" dataset.source {', '.join(repr(name) for name, kind in SOURCES.items() if kind.reads_path)}, or no path"
        )
    if section["label_free"] and (section["labeled"] or not section["unlabeled"] or section["class_names"]):
        raise InputError(
            "dataset.label_free is true, so no image has a label; expected dataset.labeled 0, dataset.unlabeled true"
            " and no dataset.class_names"
        )
    choose("dataset.normalize", section["normalize"], NORMALIZE)
    stream = choose("dataset.stream", section["stream"], STREAM)
    if stream == "always" and not SOURCES[section["source"]].streams:
        raise InputError(
            f"dataset.stream is 'always', and dataset.source {section['source']!r}, which is read into memory; expected"
            f" dataset.source {', '.join(repr(name) for name, kind in SOURCES.items() if kind.streams)}"
        )
    choose("dataset.sampling", section["sampling"], balance.SAMPLING)
    choose("dataset.augment", section["augment"], augment.KINDS)
    for kind in section["extra_views"]:
        choose("a kind of dataset.extra_views", kind, augment.KINDS)


def _check_holdout(holdout: float, held: np.ndarray, labels: np.ndarray, class_names: tuple[str, ...]) -> None:
    if holdout and not len(held):
        raise InputError(f"dataset.holdout is {holdout}, less than one image per class; expected more, or 0 for none")
    if not class_names and not len(labels):
        raise InputError(f"dataset.holdout is {holdout}, which leaves no training image; expected less")
    without = np.bincount(labels, minlength=len(class_names)) == 0
    if class_names and without.any():
        name = class_names[without.argmax()]
        raise InputError(
            f"dataset.holdout is {holdout}, which leaves no training image of class {name!r}; expected less"
        )


def _amount(key: str, value: int, available: int, classes: int) -> int:
    """How many images to keep, where 0 stands for all."""
    least = max(classes, 1)
    if value and not least <= value <= available:
        raise InputError(
            f"dataset.{key} is {value}; expected {least} (one per class) to {available} (all there are), or 0 for all"
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
        block = np.asarray(images[start : start + 1024])
        for channel in range(channels):
            counts[channel] += np.bincount(block[..., channel].ravel(), minlength=256)
    share = counts / counts.sum(axis=1, keepdims=True)
    mean = share @ np.arange(256)
    variance = (share * (np.arange(256) - mean[:, None]) ** 2).sum(axis=1)
    std = np.maximum(np.sqrt(variance), 1)  # at least one gray level, so that a constant channel can be divided by it
    return (mean / 255).astype(np.float32), (std / 255).astype(np.float32)
