"""Progress for people: one line on a terminal that overwrites itself."""

import contextlib
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import TypeVar


class _Line:
    """One line on a terminal that overwrites itself; in a file, a line now and then."""

    INTERVAL = 10.0  # seconds between lines of a file

    def __init__(self) -> None:
        self._interactive = sys.stderr.isatty()
        self._printed = 0.0

    def show(self, text: str, now: float, *, last: bool) -> None:
        """Shows the text, unless it goes to a file, a line was written just before, and it is not the last."""
        if not self._interactive and now - self._printed < self.INTERVAL and not last:
            return
        self._printed = now
        end = "" if self._interactive else "\n"
        print(("\r\033[K" if self._interactive else "") + text, end=end, file=sys.stderr, flush=True)

    def close(self) -> None:
        if self._interactive and self._printed:
            print(file=sys.stderr, flush=True)


T = TypeVar("T")


def counted(batches: Iterable[T], size: int, total: int) -> Iterator[T]:
    """Yields batches of `size` images, and shows how many of `total` are done, images per second and the time left."""
    line, begin = _Line(), 0.0
    with contextlib.closing(line):
        for count, batch in enumerate(batches, start=1):
            yield batch
            now, done = time.monotonic(), min(count * size, total)
            speed = ""
            if count == 1:  # the time before is compilation
                begin = now
            else:
                rate = (count - 1) * size / max(now - begin, 1e-9)
                speed = f"  {rate:,.0f} images/s  {duration((total - done) / rate)} left"
            line.show(f"{done}/{total} images{speed}", now, last=done == total)


class Progress:
    """The line of a training run.

    From one line to the next all time is that of the steps, but for what `pause` ends: evaluation and saving, while
    which no step runs. Where the host takes longer to start steps than the devices to run them, that counts as theirs.
    """

    WIDTH = 120  # of a line; terms of the loss that do not fit are left out

    def __init__(self, total: int, batch_size: int):
        """`total`: steps of the run."""
        self._total, self._batch_size = total, batch_size
        self._line = _Line()
        self._mark: tuple[int, float] | None = None  # none before the first line: that time is compilation
        self._steps, self._seconds = 0, 0.0
        self._outside, self._pause = 0.0, 0.0  # seconds not spent in steps: of the run, and since the last line

    def pause(self, step: int) -> None:
        """Work other than training ends here, which began with the last line."""
        now = time.monotonic()
        if self._mark:
            self._pause += now - self._mark[1]
            self._outside += now - self._mark[1]
        self._mark = (step, now)

    def images_per_second(self) -> float | None:
        """Of training alone, without compilation and evaluation; None before two lines."""
        return round(self._steps * self._batch_size / self._seconds, 1) if self._steps else None

    def share_in_steps(self) -> float | None:
        """The part of the time since the first line that was spent in steps, in [0, 1]; None before two lines."""
        return round(self._seconds / (self._seconds + self._outside), 4) if self._steps and self._seconds else None

    def show(self, step: int, epoch: int, scalars: Mapping[str, float]) -> None:
        """Prints step, loss and its terms, images per second, the share of time in steps, and the time left."""
        now = time.monotonic()
        speed = ""
        if self._mark and step > self._mark[0]:
            steps, seconds = step - self._mark[0], now - self._mark[1]
            self._steps, self._seconds = self._steps + steps, self._seconds + seconds
            per_step = (self._seconds + self._outside) / self._steps
            share, self._pause = seconds / max(seconds + self._pause, 1e-9), 0.0
            speed = f"  {steps * self._batch_size / max(seconds, 1e-9):,.0f} images/s  {share:.0%} in steps"
            speed += f"  {duration((self._total - step) * per_step)} left"
        self._mark = (step, now)
        begin = f"step {step}/{self._total}  epoch {epoch}  loss {scalars['loss']:.4g} ("
        terms = ", ".join(f"{n.removeprefix('loss/')} {v:.4g}" for n, v in scalars.items() if n.startswith("loss/"))
        room = max(self.WIDTH - len(begin) - len(speed) - 1, 0)
        terms = terms if len(terms) <= room else terms[: room - 3] + "..."
        self._line.show(f"{begin}{terms}){speed}", now, last=step >= self._total)

    def close(self) -> None:
        self._line.close()


def duration(seconds: float) -> str:
    """Seconds for a person: "9s", "2m05s", "1h02m"."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds}s"
    minutes, seconds = divmod(seconds, 60)
    return f"{minutes}m{seconds:02}s" if minutes < 60 else f"{minutes // 60}h{minutes % 60:02}m"
