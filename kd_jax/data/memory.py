"""Images that a program has already, as numpy arrays."""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from kd_jax.data.split import Source, with_test
from kd_jax.errors import InputError, one_line
from kd_jax.types import Split

Arrays = tuple[Any, Any]  # images [N, H, W, C] or [N, H, W] uint8; labels [N], integers from 0
Data = Source | tuple[Arrays, Arrays]  # to train and to test on


def from_arrays(
    train: Arrays,
    test: Arrays | None = None,
    class_names: Sequence[str] | None = None,
    *,
    validation: Arrays | None = None,
) -> Source:
    """Makes a data set of arrays.

    Args:
      train: (images [N, H, W, C] or [N, H, W] uint8, labels [N] of integers from 0); C is 1 or 3.
      test: the same; None to take a fixed, class-balanced fifth of `train`.
      class_names: one for each label; by default "0", "1", ...
      validation: as `test`; None to hold a part of `train` out (`dataset.holdout`).
    Raises:
      InputError: for arrays of another kind, or labels without a name.

    >>> images, labels = np.zeros((12, 8, 8), np.uint8), np.arange(12) % 2
    >>> source = from_arrays((images, labels), class_names=["cat", "dog"])
    >>> source.train.images.shape, source.class_names
    ((10, 8, 8, 1), ('cat', 'dog'))
    """
    given = {"train": train, "test": test, "validation": validation}
    splits = {name: _split(name, part) for name, part in given.items() if part is not None}
    shape = splits["train"].images.shape[1:]
    for name, split in splits.items():
        if split.images.shape[1:] != shape:
            raise InputError(f"the {name} images are {split.images.shape[1:]}; expected {shape}")
    present = np.unique(splits["train"].labels)
    everywhere = np.unique(np.concatenate([split.labels for split in splits.values()]))
    names = tuple(map(str, range(len(present)) if class_names is None else class_names))
    if len(set(names)) < max(len(names), 2) or everywhere[-1] >= len(names) or len(present) < len(names):
        raise InputError(
            f"class_names has {len(set(names))} names, and the train labels are {len(present)} different ones, with"
            f" the test labels from {everywhere[0]} to {everywhere[-1]}; expected at least two classes, numbered from"
            " 0, with a name and a training image each"
        )
    digest = hashlib.sha256()
    for name, split in splits.items():
        if name == "validation":  # which is not a test set of the same arrays
            digest.update(b"validation")
        digest.update(repr(split.images.shape).encode())
        for image in split.images:  # one after another: no copy of them all
            digest.update(image.tobytes())
        digest.update(split.labels.astype("<i4").tobytes())
    both = (splits["train"], splits["test"]) if test is not None else with_test(splits["train"])
    if not len(both[1].labels):
        raise InputError("no class has 3 images, of which one could be for the test; expected more, or test images")
    return Source(*both, names, digest.hexdigest(), skipped=0, name="arrays", validation=splits.get("validation"))


def source_of(data: Data | None) -> Source | None:
    """The data set that a program gives; None for none. Raises InputError for anything else."""
    if data is None or isinstance(data, Source):
        return data
    if not isinstance(data, tuple | list) or len(data) != 2:
        raise InputError(
            f"data is a {type(data).__name__}; expected ((images, labels), (images, labels)) to train and to test on,"
            " or a Source, see kd_jax.data.memory.from_arrays"
        )
    return from_arrays(*data)


def _split(name: str, arrays: Arrays) -> Split:
    if not isinstance(arrays, tuple | list) or len(arrays) != 2:
        raise InputError(f"the {name} data is a {type(arrays).__name__}; expected a pair, (images, labels)")
    try:
        images, labels = (np.asarray(array) for array in arrays)
    except ValueError as error:
        raise InputError(f"the {name} data is no pair of arrays: {one_line(error)}") from error
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[-1] not in (1, 3)):
        raise InputError(
            f"the {name} images are {images.dtype} {list(images.shape)}; expected uint8 [N, H, W] or [N, H, W, 1 or 3]"
        )
    if not images.size:
        raise InputError(f"the {name} images are {list(images.shape)}; expected at least one pixel")
    if not np.issubdtype(labels.dtype, np.integer) or labels.shape != images.shape[:1]:
        raise InputError(
            f"the {name} labels are {labels.dtype} {list(labels.shape)}; expected integers, one for each image"
        )
    if labels.min() < 0 or labels.max() > np.iinfo(np.int32).max:
        raise InputError(f"the {name} labels go from {labels.min()} to {labels.max()}; expected integers from 0")
    return Split(images if images.ndim == 4 else images[..., None], labels.astype(np.int32))
