"""The form of a record of `published.py`, and how its terms fit a run of other length."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from kd_jax.errors import InputError

Terms = dict[str, dict[str, Any]]  # the section `method` of a config


class Published(NamedTuple):
    """What a method was published with."""

    title: str  # as tables call it
    paper: str  # authors and title
    venue: str  # and year
    cifar100: Terms  # for ResNet-32x4 to ResNet-8x4, unless `pairs` says otherwise
    imagenet: Terms | None = None  # for ResNet-34 to ResNet-18; None where none was found
    pairs: str = ""  # of other pairs of networks what `of_pairs` does not say, and what else a number depends on
    differs: str = ""  # where the authors' code, or the one that published the numbers, differs from the paper
    here: str = ""  # what kd_jax does about it
    teacher: bool = True  # whether there is one
    others: Mapping[str, Any] = {}  # keys of the config outside of `method` without which it is another method
    smaller: Mapping[str, Terms] = {}  # by scale: options in the place of those that it is too small for
    epochs: int = 240  # of the run on CIFAR-100; a window of epochs keeps its share
    imagenet_epochs: int = 100
    of_pairs: Mapping[str, Terms] = {}  # {name of `pairs.PAIRS`: options that have other values there, by term}

    def terms(self, pair: str, *, imagenet: bool = False) -> tuple[Terms, int]:
        """The terms for a pair, and the epochs for which they are given.

        Raises:
          InputError: where none for ImageNet were found.
        """
        if imagenet and self.imagenet is None:
            raise InputError("no terms of the method for ImageNet were published; expected another method")
        given = (self.imagenet if imagenet else self.cifar100) or {}
        own = self.of_pairs.get(pair, {})
        terms = {term: {**options, **own.get(term, {})} for term, options in given.items()}
        return terms, self.imagenet_epochs if imagenet else self.epochs


def fitted(given: Terms, epochs: int, share: float) -> Terms:
    """Terms for a run of another length.

    A window of epochs keeps its share of the run, as every option that counts epochs does. A warm-up keeps its epochs,
    or its share where they would be more than a third of the run.

    Args:
      given: the terms.
      epochs: of the run.
      share: of the epochs for which they are given.

    >>> fitted({"ft": {"paraphraser_epochs": 30, "epochs": [30, None], "warmup_epochs": 20}}, epochs=24, share=0.1)
    {'ft': {'paraphraser_epochs': 3, 'epochs': [3, None], 'warmup_epochs': 2}}
    """

    def least_one(epoch: float | None) -> Any:
        return epoch and max(1, round(epoch * share))

    def fit(key: str, value: Any) -> Any:
        if not key.endswith("epochs") or (key == "warmup_epochs" and value <= epochs / 3):
            return value
        if not isinstance(value, list):
            return least_one(value)
        first, last = map(least_one, value)
        return [first, last if last is None else max(last, first + 1)]

    return {term: {key: fit(key, value) for key, value in options.items()} for term, options in given.items()}
