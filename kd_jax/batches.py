"""How an epoch of training is divided into batches."""

from collections.abc import Mapping
from typing import Any, NamedTuple

LAST_BATCH = ("drop", "keep")  # what becomes of the images that are no whole batch: `train.last_batch`


class Epoch(NamedTuple):
    """The batches of an epoch: whole ones, and behind them a smaller one where it is kept."""

    batch_size: int
    whole: int  # batches of that size
    rest: int = 0  # images of the smaller one; 0: there is none

    @property
    def steps(self) -> int:
        return self.whole + bool(self.rest)

    @property
    def sizes(self) -> tuple[int, ...]:
        """How many images a batch may have."""
        return (self.batch_size, self.rest) if self.rest else (self.batch_size,)

    @property
    def images(self) -> int:
        """That an epoch sees."""
        return self.whole * self.batch_size + self.rest

    def images_before(self, step: int) -> int:
        """How many images, with those that came again, all steps of a run before this one have seen.

        >>> [Epoch(batch_size=4, whole=2, rest=1).images_before(step) for step in range(5)]
        [0, 4, 8, 9, 13]
        """
        epochs, within = divmod(step, self.steps)
        return epochs * self.images + within * self.batch_size

    def end_of_call(self, step: int, per_call: int, total: int) -> int:
        """The step after the last one of a call that begins with `step`.

        Calls end at multiples of `per_call` in an epoch and with it, so they are the same wherever a run restarted. A
        smaller batch has a call of its own, as the batches of a call are one array.

        Args:
          step: from 0.
          per_call: how many steps a call takes at most.
          total: steps of the run.
        """
        within = step % self.steps
        border = self.whole if within < self.whole else self.steps
        return min(step - within + min(within - within % per_call + per_call, border), total)


def of_images(train: Mapping[str, Any], images: int) -> Epoch:
    """The epoch of so many images, by the section `train` of a config."""
    whole, rest = divmod(images, train["batch_size"])
    return Epoch(train["batch_size"], whole, rest if train.get("last_batch", "drop") == "keep" else 0)
