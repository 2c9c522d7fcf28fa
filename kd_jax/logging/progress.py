"""Progress for people: a line that overwrites itself on a terminal, a bar with curves in a notebook."""

import contextlib
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from kd_jax import terminal
from kd_jax.batches import Epoch
from kd_jax.logging import notebook

Part = tuple[str, str]  # a text, and its style in `terminal.STYLES` or ""


class Display(Protocol):
    """What shows progress: parts of a line, the most important first, and the share that is done, in [0, 1]."""

    def live(self, parts: Sequence[Part], done: float, note: str = "") -> None:
        """Shows what can be shown in place; `note` is what a file is told of it, if anything."""

    def line(self, parts: Sequence[Part], done: float, now: float) -> None:
        """Shows numbers that are worth a line of a file now and then, and in the end."""

    def close(self) -> None:
        """Leaves what is shown as it is."""


class _Terminal:
    """One line that overwrites itself, cut to the terminal's width at that moment."""

    def live(self, parts: Sequence[Part], done: float, note: str = "") -> None:
        kept = fitting(parts, terminal.width(sys.stderr) - 1)  # some terminals wrap a line that fills the last column
        text = "  ".join(terminal.style(text, name, sys.stderr) if name else text for text, name in kept)
        terminal.overwrite(text, sys.stderr)

    def line(self, parts: Sequence[Part], done: float, now: float) -> None:
        self.live(parts, done)

    def close(self) -> None:
        terminal.leave()


class _File:
    """A line now and then."""

    INTERVAL = 10.0  # seconds between lines
    WIDTH = 120
    _printed = float("-inf")

    def live(self, parts: Sequence[Part], done: float, note: str = "") -> None:
        if note:
            print(note, file=sys.stderr, flush=True)

    def line(self, parts: Sequence[Part], done: float, now: float) -> None:
        if now - self._printed >= self.INTERVAL or done >= 1:
            self._printed = now
            print("  ".join(text for text, _ in fitting(parts, self.WIDTH)), file=sys.stderr, flush=True)

    def close(self) -> None:
        pass


def _display(folder: str = "") -> Display:
    """What there is to show progress on; `folder`: of the run whose curves are drawn, where they can be."""
    if notebook.is_running():
        return notebook.Bar(folder)
    return _Terminal() if terminal.is_terminal(sys.stderr) else _File()


def fitting(parts: Sequence[Part], most: int) -> list[Part]:
    """The first parts, as many as fit into so many columns with two between them; the first is cut where it must be.

    >>> fitting([("3s left", ""), ("step 1/2", ""), ("loss 0.5", "")], 20)
    [('3s left', ''), ('step 1/2', '')]
    """
    kept, room = [(terminal.cut(parts[0][0], most), parts[0][1])], most - terminal.columns(parts[0][0])
    for part in parts[1:]:
        room -= 2 + terminal.columns(part[0])
        if room < 0:
            break
        kept.append(part)
    return kept


T = TypeVar("T")


def counted(batches: Iterable[T], size: int, total: int, what: str = "images") -> Iterator[T]:
    """Yields batches of `size` images, and shows the time left, how many of `total` are done, images per second.

    `what`: the images, and what is done with them.
    """
    display, begin = _display(), 0.0
    with contextlib.closing(display):
        display.live([("compiling ...", "bold"), (f"{what} 0/{total}", "")], 0.0)
        for count, batch in enumerate(batches, start=1):
            yield batch
            now, done = time.monotonic(), min(count * size, total)
            parts = [(f"{what} {done}/{total}", "")]
            if count == 1:  # the time before is compilation
                begin = now
            else:
                rate = (count - 1) * size / max(now - begin, 1e-9)
                parts.append((f"{rate:,.0f} images/s", ""))
                if done < total:
                    parts.insert(0, (f"{duration((total - done) / rate)} left", "bold"))
            display.line(parts, done / total, now)


@contextlib.contextmanager
def working(text: str) -> Iterator[None]:
    """Shows on a terminal what takes a while, as long as it does."""
    shown = terminal.is_terminal(sys.stderr) and not notebook.is_running()
    if shown:
        terminal.overwrite(terminal.cut(text, terminal.width(sys.stderr) - 1), sys.stderr)
    try:
        yield
    finally:
        if shown:
            terminal.overwrite("", sys.stderr)


class Progress:
    """The line of a training run.

    From one line to the next all time is that of the steps, but for what `pause` ends: evaluation and saving, while
    which no step runs. Where the host takes longer to start steps than the devices to run them, that counts as theirs.
    """

    INTERVAL = 0.2  # seconds between looks at which step has ended

    def __init__(self, total: int, epoch: Epoch, folder: str = "", step: int = 0):
        """Shows that the step is compiled, which goes on until `started`.

        Args:
          total: steps of the run. step: from which on.
          epoch: how it is divided into them.
          folder: of the run, whose curves a notebook shows.
        """
        self._total, self._epoch = total, epoch
        self._display = _display(folder)
        self._begin = self._looked = time.monotonic()
        self._mark: tuple[int, float] | None = None  # none before the first line: that time is compilation
        self._steps, self._images, self._seconds = 0, 0, 0.0
        self._outside, self._pause = 0.0, 0.0  # seconds not spent in steps: of the run, and since the last line
        self._compiled = False  # whether steps waited for another program since the last line
        self._started: tuple[int, Any] | None = None  # a step, and an array that is ready when it has ended
        self._first: tuple[int, float] | None = None  # a step that had ended, and when; of those before the first line
        self._step = step  # the last that is known to have ended
        # The loss and the speed; accuracies; what is less important.
        self._numbers: list[Part] = []
        self._accuracies: dict[str, Part] = {}  # by split
        self._rest: list[Part] = []
        self._doing = "compiling the training step ..."
        self._live(note=self._doing)

    def started(self, step: int, result: Any) -> None:
        """Steps up to this one were started; `result`: an array of them. Shows now and then which have ended."""
        now = time.monotonic()
        if self._started is None:
            self._started = (step, result)
        if self._doing:
            self._doing = ""
            self._live()
        if now - self._looked >= self.INTERVAL and self._started[1].is_ready():
            self._step, self._looked = self._started[0], now
            self._first = self._first or (self._step, now)
            self._started = (step, result)
            self._live()

    def compiled(self) -> None:
        """Steps waited for a program of their own: the time up to the next line is not measured."""
        self._compiled = True

    def pause(self, step: int) -> None:
        """Work other than training ends here, which began with the last line."""
        now = time.monotonic()
        if self._mark:
            self._pause += now - self._mark[1]
            self._outside += now - self._mark[1]
        self._mark = (step, now)

    def images_per_second(self) -> float | None:
        """Of training alone, without compilation and evaluation; None before two lines."""
        return round(self._images / self._seconds, 1) if self._steps else None

    def share_in_steps(self) -> float | None:
        """The part of the time since the first line that was spent in steps, in [0, 1]; None before two lines."""
        return round(self._seconds / (self._seconds + self._outside), 4) if self._steps and self._seconds else None

    def show(self, step: int, scalars: Mapping[str, float]) -> None:
        """Shows the time left, step, epoch, loss, images per second, the share of time in steps, terms of the loss."""
        now, speed = time.monotonic(), ""
        self._rest = []
        if self._mark and step > self._mark[0] and not self._compiled:
            seconds = now - self._mark[1]
            images = self._epoch.images_before(step) - self._epoch.images_before(self._mark[0])
            self._steps += step - self._mark[0]
            self._images += images
            self._seconds += seconds
            share, self._pause = seconds / max(seconds + self._pause, 1e-9), 0.0
            speed = f"{images / max(seconds, 1e-9):,.0f} images/s"
            self._rest = [(f"{share:.0%} in steps", "dim")]
        self._mark, self._step, self._started, self._doing, self._compiled = (step, now), step, None, "", False
        terms = {name: value for name, value in scalars.items() if name.startswith("loss/")}
        if list(terms.values()) != [scalars["loss"]]:  # else it is the loss, once more
            self._rest += [(f"{name.removeprefix('loss/')} {value:.4g}", "dim") for name, value in terms.items()]
        self._numbers = [(f"loss {scalars['loss']:.4g}", ""), *([(speed, "")] if speed else [])]
        self._display.line(self._parts(now), step / self._total, now)

    def stopped(self, step: int) -> None:
        """All steps up to this one have ended, and no other follows now."""
        self._step = step

    def evaluating(self, what: str) -> None:
        """Steps wait for work on the images `what`, until `started` or `measured` is called."""
        self._doing = f"evaluating {what} ..."
        self._live()

    def measured(self, accuracy: float | None, split: str = "val") -> None:
        """The evaluation of a split has ended, with this accuracy."""
        self._doing = ""
        self._accuracies |= {} if accuracy is None else {split: (f"{split} {100 * accuracy:.2f}%", "")}
        self._live()

    def close(self) -> None:
        self._doing = ""
        self._live()
        self._display.close()

    def _live(self, note: str = "") -> None:
        self._display.live(self._parts(time.monotonic()), self._step / self._total, note)

    def _parts(self, now: float) -> list[Part]:
        epoch, epochs = (-(-step // self._epoch.steps) for step in (self._step, self._total))
        where = [(f"step {self._step}/{self._total}", ""), (f"epoch {epoch}/{epochs}", "")]
        return [*self._head(now), *where, *self._numbers, *self._accuracies.values(), *self._rest]

    def _head(self, now: float) -> list[Part]:
        """What is done now where that is no step, or the time left, as far as it is known."""
        if self._doing:
            return [(self._doing, "bold")]
        if self._step >= self._total:
            return [(f"took {duration(now - self._begin)}", "bold")]
        if self._steps:
            per_step = (self._seconds + self._outside) / self._steps
        elif self._first and self._step > self._first[0]:
            per_step = (self._looked - self._first[1]) / (self._step - self._first[0])
        else:
            return []
        return [(f"{duration((self._total - self._step) * per_step)} left", "bold")]


def duration(seconds: float) -> str:
    """Seconds for a person: "9s", "2m05s", "1h02m"."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds}s"
    minutes, seconds = divmod(seconds, 60)
    return f"{minutes}m{seconds:02}s" if minutes < 60 else f"{minutes // 60}h{minutes % 60:02}m"
