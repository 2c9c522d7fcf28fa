"""Where a run's numbers go: metrics.jsonl, TensorBoard and the log (through CLU), W&B, and a progress line for people.

The only importer of clu.metric_writers, and so of TensorFlow. Where these are missing the rest still works.
"""

import contextlib
import json
import math
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

import numpy as np

from kd_jax.mirror import Mirror
from kd_jax.quiet_tensorflow import import_tensorflow


class Writer:
    """Writes scalars by step. After a restart the lines behind the restored step are cut off and written again."""

    def __init__(self, folder: str, step: int, saved: Mapping[str, Any] | None = None):
        """Opens the files of a run that goes on from `step`; `saved`: its config and hash, as in config.json."""
        path = os.path.join(folder, "metrics.jsonl")
        kept = [line for line in read(folder) if line["step"] <= step]
        self.seconds = kept[-1]["seconds"] if kept else 0.0  # that earlier processes spent on this run
        self._start = time.monotonic()
        with open(path + ".tmp", "w") as file:
            file.writelines(json.dumps(line) + "\n" for line in kept)
        os.replace(path + ".tmp", path)
        self._file = open(path, "a")  # noqa: SIM115
        self._mirror = Mirror(folder, saved)
        self._clu = _clu_writer(folder, "metrics go to metrics.jsonl and the terminal")

    def elapsed(self) -> float:
        """Seconds spent on this run, those before a restart included."""
        return self.seconds + time.monotonic() - self._start

    def write(self, step: int, scalars: Mapping[str, float | None]) -> None:
        """Adds a line to metrics.jsonl and the scalars that are numbers to TensorBoard and W&B."""
        numbers = {name: value for name, value in scalars.items() if value is not None}
        line = {"step": step, "seconds": round(self.elapsed(), 3), **scalars}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        if self._clu:
            self._clu.write_scalars(step, numbers)
        self._mirror.write(step, numbers)

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Mirrors a run's result to W&B; the file is the loop's."""
        self._mirror.write_result(result)

    def close(self) -> None:
        self._file.close()
        self._mirror.close()
        if self._clu:
            self._clu.close()


def read(folder: str, most: int | None = None) -> list[dict]:
    """The lines of a run's metrics.jsonl, up to one that a killed process or a power cut left unreadable.

    With `most`, of a longer file only about so many lines of training and so many of validation, evenly spaced, and the
    last of each.
    """
    path = os.path.join(folder, "metrics.jsonl")
    lines: list[dict] = []
    if not os.path.exists(path):
        return lines
    with open(path, errors="replace") as file, contextlib.suppress(json.JSONDecodeError, RecursionError):
        for line in file if most is None else _thinned(file.readlines(), most):
            lines.append(json.loads(line))
    return lines


def write_image(folder: str, step: int, name: str, image: np.ndarray) -> None:
    """Adds an image [H, W, 3] uint8 to TensorBoard."""
    if clu := _clu_writer(folder, f"the image {name} goes to its file"):
        clu.write_images(step, {name: image[None]})
        clu.close()


def _thinned(lines: list[str], most: int) -> list[str]:
    kinds: dict[bool, list[int]] = {True: [], False: []}
    for index, line in enumerate(lines):
        kinds['"validation/' in line].append(index)
    kept = {index for kind in kinds.values() for index in kind[:: math.ceil(len(kind) / most) or 1] + kind[-1:]}
    return [lines[index] for index in sorted(kept)]


def _clu_writer(folder: str, instead: str):
    try:
        import_tensorflow()
        from clu import metric_writers
    except ImportError as error:
        name = error.name or "TensorFlow"
        print(f"{name} is not installed: {instead}, not to TensorBoard", flush=True)
        return None
    return metric_writers.MultiWriter([metric_writers.SummaryWriter(folder), metric_writers.LoggingWriter()])


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
    """The line of a training run."""

    def __init__(self, total: int, batch_size: int):
        """`total`: steps of the run."""
        self._total, self._batch_size = total, batch_size
        self._line = _Line()
        self._mark: tuple[int, float] | None = None  # none before the first line: that time is compilation
        self._steps, self._seconds = 0, 0.0

    def pause(self, step: int) -> None:
        """Work other than training ends here: the time before does not count."""
        self._mark = (step, time.monotonic())

    def images_per_second(self) -> float | None:
        """Of training alone, without compilation and evaluation; None before two lines."""
        return round(self._steps * self._batch_size / self._seconds, 1) if self._steps else None

    def show(self, step: int, epoch: int, scalars: Mapping[str, float]) -> None:
        """Prints step, loss and its terms, images per second and the time left."""
        now = time.monotonic()
        speed = ""
        if self._mark and step > self._mark[0]:
            steps, seconds = step - self._mark[0], now - self._mark[1]
            self._steps, self._seconds = self._steps + steps, self._seconds + seconds
            left = (self._total - step) * seconds / steps
            speed = f"  {steps * self._batch_size / seconds:,.0f} images/s  {duration(left)} left"
        self._mark = (step, now)
        terms = ", ".join(f"{n.removeprefix('loss/')} {v:.4g}" for n, v in scalars.items() if n.startswith("loss/"))
        text = f"step {step}/{self._total}  epoch {epoch}  loss {scalars['loss']:.4g} ({terms}){speed}"
        self._line.show(text, now, last=step >= self._total)

    def close(self) -> None:
        self._line.close()


def duration(seconds: float) -> str:
    """Seconds for a person: "9s", "2m05s", "1h02m"."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds}s"
    minutes, seconds = divmod(seconds, 60)
    return f"{minutes}m{seconds:02}s" if minutes < 60 else f"{minutes // 60}h{minutes % 60:02}m"
