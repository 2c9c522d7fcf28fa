"""From images that are listed, each with its label, to the splits of a data set: decoded in threads."""

import collections
import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from kd_jax.data import images
from kd_jax.data.lazy import THREADS, Images
from kd_jax.data.names import NEW_SUFFIXES, SUFFIXES
from kd_jax.data.split import TEST_SHARE, Source, cut, stratified_split
from kd_jax.errors import InputError, first_few
from kd_jax.types import Split

T = TypeVar("T")
Listed = list[tuple[T, int]]  # what an image is read of, with its label

ORDER = ("train", "test", "validation")
HOW_TO_SKIP = "remove it, or set dataset.skip_unreadable=true to skip such images"
BLOCK = 64  # images; a task for each would cost more


def suffixes() -> tuple[str, ...]:
    """How the names of images end that can be read here."""
    return (*SUFFIXES, *(suffix for suffix in NEW_SUFFIXES if suffix in Image.registered_extensions()))


def with_test_set(parts: Mapping[str, Listed]) -> dict[str, Listed]:
    """The splits in `ORDER`. The test set is, where there is none, the validation split, or else a fixed fifth.

    Raises:
      InputError: for too few images.
    """
    parts = dict(parts)
    if "test" not in parts and "validation" in parts:
        parts["test"] = parts.pop("validation")
    if "test" not in parts:
        listed = parts["train"]
        test, train = stratified_split(np.array([max(label, 0) for _, label in listed], int), TEST_SHARE)
        if not len(test):
            raise InputError("it holds too few images for a test set; expected at least three of each class")
        parts |= {"train": [listed[i] for i in sorted(train)], "test": [listed[i] for i in sorted(test)]}
    return {name: parts[name] for name in ORDER if name in parts}


def check_classes(parts: Mapping[str, Listed], class_names: Sequence[str]) -> None:
    """Raises InputError for less than two classes, or one without a training image."""
    without = sorted(set(range(len(class_names))) - {label for _, label in parts["train"]})
    if len(class_names) < 2 or without:
        missing = f", of which {first_few(class_names[i] for i in without)} has no training image" if without else ""
        raise InputError(f"it holds {len(class_names)} class(es){missing}; expected at least two, with images of each")


def decode(
    items: Iterable[T], count: int, read: Callable[[T], np.ndarray], *, size: int, skip: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Reads images in threads: Pillow decodes outside the interpreter's lock.

    Args:
      items: N of them, what `read` makes an image of.
      count: N.
      read: returns what `images.shrink_to` does, and raises InputError for what is no image.
      size: see `images.collect`.
      skip: leave out what is no image.

    Returns:
      The pixels [M, H, H, C] of those that are images, and which of the N these are, [N] bool.

    Raises:
      InputError: of `read`, unless that is skipped, and of `images.collect`.
    """
    readable = np.ones(count, bool)

    def try_read(item: T) -> np.ndarray | None:
        try:
            return read(item)
        except InputError as error:
            if skip:
                return None
            raise InputError(f"{error}; {HOW_TO_SKIP}") from None

    def decoded(pool: ThreadPoolExecutor) -> Iterator[np.ndarray]:
        for index, pixels in enumerate(_each(pool, try_read, items)):
            if pixels is None:
                readable[index] = False
            else:
                yield pixels

    with _threads() as pool:
        return images.collect(decoded(pool), count, size), readable


def lazy(
    items: Sequence[T],
    read: Callable[[int, T], np.ndarray],
    side: Callable[[Any], int],
    *,
    size: int,
    skip: bool,
    seen: Iterable[Any] | None = None,
) -> tuple[Images, np.ndarray]:
    """What `decode` returns, but that the images are read when they are asked for, and here their headers alone.

    Args:
      items: N of them.
      read: makes an image [h, h, C] of a side h and an item; both go to other processes.
      side: of a square image, 0 for another; raises InputError for what is no image.
      size, skip: see `decode`.
      seen: what `side` is given of each item; None for the items themselves.
    """

    def of(item: Any) -> int:
        try:
            return side(item)
        except InputError as error:
            if skip:
                return -1
            raise InputError(f"{error}; {HOW_TO_SKIP}") from None

    with _threads() as pool:
        found = images.counted(_each(pool, of, items if seen is None else seen), len(items))
        sides = np.fromiter(found, np.int64, len(items))
    readable = sides >= 0
    if not readable.any():
        raise InputError(f"none of the {len(items)} images can be read; expected at least one per class")
    own = images.common_side(sides[readable].tolist(), size)
    return Images(functools.partial(read, own), items, (own, own, 3))[np.flatnonzero(readable)], readable


@contextlib.contextmanager
def _threads() -> Iterator[ThreadPoolExecutor]:
    """Threads for `_each`, without Pillow's warnings; what they have not begun is dropped at the end."""
    with images.quiet(), ThreadPoolExecutor(THREADS) as pool:
        try:
            yield pool
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _each(pool: ThreadPoolExecutor, function: Callable[[Any], T], items: Iterable[Any]) -> Iterator[T]:
    """`function` of each item, in their order."""
    rest = iter(items)
    running: collections.deque[Future] = collections.deque()
    while True:
        # No more than this, which would take the memory of another copy.
        while len(running) < 2 * THREADS and (block := list(islice(rest, BLOCK))):
            running.append(pool.submit(lambda block: [function(item) for item in block], block))
        if not running:
            return
        yield from running.popleft().result()


def source(
    parts: Mapping[str, Listed],
    decoded: tuple[np.ndarray | Images, np.ndarray],
    class_names: tuple[str, ...],
    left_out: Mapping[str, int],
    *,
    fingerprint: str,
    name: str,
    where: str,
) -> Source:
    """The data set of what was listed.

    Args:
      parts: the splits, with N images.
      decoded: of these, see `decode` and `lazy`.
      class_names: of the labels; none where there are no labels.
      left_out: {why: how many}, beside the images that are not readable.
      fingerprint, name: see `Source`.
      where: the images lie, for errors.
    Raises:
      InputError: for a class that had images in a split and has none any more.
    """
    pixels, readable = decoded
    labels = [label for part in parts.values() for _, label in part]
    rest = Split(pixels, np.array(labels, np.int32)[readable])
    splits, start = {}, 0
    for split, part in parts.items():
        kept = readable[start : start + len(part)]
        start += len(part)
        splits[split], rest = cut(rest, int(np.count_nonzero(kept)))
        if lost := {label for _, label in part} - set(splits[split].labels.tolist()):
            kind = {"train": "training"}.get(split, split)
            of_class = f" of class {class_names[min(lost)]!r}" if class_names else ""
            raise InputError(f"no {kind} image{of_class} in {where} can be read")
    skipped = int(np.count_nonzero(~readable))
    each = collections.Counter(left_out) + collections.Counter({"unreadable images": skipped})  # without what is 0
    return Source(
        splits["train"],
        splits["test"],
        class_names,
        fingerprint,
        skipped=skipped,
        name=name,
        validation=splits.get("validation"),
        left_out=tuple(f"{why} ({count})" for why, count in sorted(each.items())),
    )
