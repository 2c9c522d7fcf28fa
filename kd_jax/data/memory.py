"""Images that a program has already, as numpy arrays."""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from kd_jax.data.split import Source, with_test
from kd_jax.errors import InputError
from kd_jax.types import Split

Arrays = tuple[Any, Any]  # images [N, H, W, C] or [N, H, W] uint8; labels [N], integers from 0


def from_arrays(train: Arrays, test: Arrays | None = None, class_names: Sequence[str] | None = None) -> Source:
    """Makes a data set of arrays.

    Args:
      train: (images [N, H, W, C] or [N, H, W] uint8, labels [N] of integers from 0); C is 1 or 3.
      test: the same; None to take a fixed, class-balanced fifth of `train`.
      class_names: one for each label; by default "0", "1", ...
    Raises:
      InputError: for arrays of another kind, or labels without a name.

    >>> images, labels = np.zeros((12, 8, 8), np.uint8), np.arange(12) % 2
    >>> source = from_arrays((images, labels), class_names=["cat", "dog"])
    >>> source.train.images.shape, source.class_names
    ((10, 8, 8, 1), ('cat', 'dog'))
    """
    splits = [_split(name, part) for name, part in (("train", train), ("test", test)) if part is not None]
    if len({split.images.shape[1:] for split in splits}) > 1:
        raise InputError(f"the test images are {splits[1].images.shape[1:]}; expected {splits[0].images.shape[1:]}")
    classes = 1 + max(int(split.labels.max()) for split in splits)
    names = tuple(map(str, range(classes) if class_names is None else class_names))
    if not 2 <= classes <= len(names) or len(set(names)) < len(names):
        raise InputError(
            f"class_names has {len(set(names))} names and the labels go to {classes - 1}; expected one each"
        )
    digest = hashlib.sha256()
    for split in splits:
        digest.update(repr(split.images.shape).encode() + split.images.tobytes() + split.labels.astype("<i4").tobytes())
    both = (splits[0], splits[1]) if test is not None else with_test(splits[0])
    return Source(*both, names, digest.hexdigest(), skipped=0, name="arrays")


def _split(name: str, arrays: Arrays) -> Split:
    images, labels = (np.asarray(array) for array in arrays)
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[-1] not in (1, 3)):
        raise InputError(
            f"the {name} images are {images.dtype} {list(images.shape)}; expected uint8 [N, H, W] or [N, H, W, 1 or 3]"
        )
    if not np.issubdtype(labels.dtype, np.integer) or labels.shape != images.shape[:1] or not len(labels):
        raise InputError(
            f"the {name} labels are {labels.dtype} {list(labels.shape)}; expected integers, one for each image"
        )
    if labels.min() < 0:
        raise InputError(f"the {name} labels go down to {labels.min()}; expected integers from 0")
    return Split(images if images.ndim == 4 else images[..., None], labels.astype(np.int32))
