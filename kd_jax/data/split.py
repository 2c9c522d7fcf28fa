"""The class-balanced choice of images, which is the same for every seed and machine."""

from typing import NamedTuple

import numpy as np

from kd_jax.types import Split

TEST_SHARE = 0.2  # of a data set that comes without a test set


class Source(NamedTuple):
    """What a source holds, before anything is held out or left out."""

    train: Split
    test: Split
    class_names: tuple[str, ...]  # none where no image has a label
    fingerprint: str  # SHA-256, hexadecimal; the same data set has the same one wherever it lies
    skipped: int  # unreadable images that were left out
    name: str  # for people
    validation: Split | None = None  # of a data set that has one; else a part of `train` is held out for it
    left_out: tuple[str, ...] = ()  # what else was not read, and why: "hidden files or folders (3)"


def stratified_split(labels: np.ndarray, fraction: float) -> tuple[np.ndarray, np.ndarray]:
    """Divides images into a held-out part and the rest, with the same fraction of every class.

    Args:
      labels: [N] int32, none negative.
      fraction: of each class that is held out, in [0, 1), rounded to whole images.

    Returns:
      The positions of the held-out images [M], and those of the rest [N - M], both int64. Both are functions of
      `labels` and `fraction` only. The rest is ordered so that its first n hold n / K images of each of K classes, one
      more or less, as long as no class runs out.

    >>> held, rest = stratified_split(np.array([0, 0, 0, 1, 1, 1]), fraction=1 / 3)
    >>> len(held), len(rest)
    (2, 4)
    """
    place = _places(labels)
    held = np.floor(fraction * np.bincount(labels) + 0.5).astype(int)
    rank = place - held[labels]
    order = np.lexsort((labels, rank))
    count = np.count_nonzero(rank < 0)
    return order[:count], order[count:]


def with_test(split: Split, *, in_place: bool = False) -> tuple[Split, Split]:
    """Divides the images of a set that has no test set into (train, test), class-balanced and always the same."""
    test, train = (np.sort(part) for part in stratified_split(split.labels, TEST_SHARE))
    both = select(split, np.concatenate([train, test]), in_place=in_place)
    return cut(both, len(train))


def select(split: Split, index: np.ndarray, *, in_place: bool = False) -> Split:
    """The images at the positions `index`, in that order: a copy, or `split` itself, whose every image is in `index`.

    With `in_place` no second copy of the images is made.
    """
    images, labels = split.images, split.labels[index]
    if in_place and isinstance(images, np.ndarray):
        _reorder(images, index)
        return Split(images, labels)
    return Split(images[index], labels)


def cut(split: Split, count: int) -> tuple[Split, Split]:
    """The first `count` images and the others, not copied."""
    return Split(*(array[:count] for array in split)), Split(*(array[count:] for array in split))


def _reorder(array: np.ndarray, order: np.ndarray) -> None:
    """Makes an array what `array[order]` is, in place, along the cycles of the permutation `order`."""
    placed = np.zeros(len(order), bool)
    for start in range(len(order)):
        if placed[start]:
            continue
        first, here = array[start].copy(), start
        while (source := order[here]) != start:
            array[here] = array[source]
            placed[here], here = True, source
        array[here], placed[here] = first, True


def _places(labels: np.ndarray) -> np.ndarray:
    """The place [N] of each image in a fixed shuffle of its class."""
    random = np.random.RandomState(0)  # numpy promises that its stream never changes; not so for default_rng
    place = np.empty(len(labels), int)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        place[random.permutation(members)] = np.arange(len(members))
    return place
