"""Where a run's numbers go: metrics.jsonl, TensorBoard and the log (through CLU), the mirrors.

The only importer of clu.metric_writers, and so of TensorFlow. Where these are missing the rest still works.
"""

import collections
import glob
import io
import json
import math
import os
import sys
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from kd_jax import checksums, remote, runs, terminal
from kd_jax.errors import first_few
from kd_jax.logging.mirrors import Mirrors
from kd_jax.quiet_tensorflow import import_tensorflow


class Writer:
    """Writes scalars by step. After a restart the lines behind the restored step are cut off and written again."""

    def __init__(self, folder: str, step: int, saved: Mapping[str, Any] | None = None, written: int = 0):
        """Opens the files of a run that goes on from `step`.

        Args:
          folder: of the run.
          step: behind which lines are cut off.
          saved: the run's config and hash, as in config.json.
          written: how many lines there were at that step.
        """
        folder = remote.local(folder)
        path = os.path.join(folder, "metrics.jsonl")
        kept = [line for line in read(folder, written=written) if line["step"] <= step]
        self.lines = len(kept)  # of metrics.jsonl
        self.seconds = kept[-1]["seconds"] if kept else 0.0  # that earlier processes spent on this run
        self._start = time.monotonic()
        runs.write_files(folder, {"metrics.jsonl": "".join(map(_text, kept)).encode()})
        self._file = open(path, "a")  # noqa: SIM115
        self._mirrors = Mirrors(folder, saved)
        self._clu: Any = None
        self._opened = False  # whether TensorBoard's file is
        self._done = False  # whether there is a result
        self._folder, self._step, self._saved = folder, step, saved

    def elapsed(self) -> float:
        """Seconds spent on this run, those before a restart included."""
        return self.seconds + time.monotonic() - self._start

    def write(self, step: int, scalars: Mapping[str, float | None]) -> None:
        """Adds a line to metrics.jsonl and the scalars that are numbers to TensorBoard and the mirrors."""
        numbers = {name: value for name, value in scalars.items() if value is not None}
        line = {"step": step, "seconds": round(self.elapsed(), 3), **scalars}
        self._file.write(_text(line))
        self._file.flush()
        self.lines += 1
        self._write_events(step, numbers)
        self._mirrors.write(step, numbers)

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Adds the metrics of the test set to TensorBoard, and the result to the mirrors; its file is the loop's."""
        numbers = {f"test/{name}": value for name, value in result["test"].items() if value is not None}
        self._write_events(result["checkpoint"], numbers)
        self._mirrors.write_result(result, numbers)
        self._done = True

    def close(self) -> None:
        self._file.close()
        self._mirrors.close(failed=not self._done)
        if self._clu:
            self._clu.close()

    def _write_events(self, step: int, numbers: Mapping[str, float]) -> None:
        if not self._opened:  # TensorFlow is slow to import, and the first steps do not wait for it
            self._opened = True
            self._clu = _clu_writer(self._folder, "metrics go to metrics.jsonl and the terminal", self._step)
            if self._clu and self._saved and not self._step:
                _write_config(self._clu, self._saved)
        if self._clu:
            self._clu.write_scalars(step, numbers)


class Nowhere:
    """In the place of a `Writer`, for a process that does not write."""

    lines = 0

    def elapsed(self) -> float:
        return 0.0

    def write(self, step: int, scalars: Mapping[str, float | None]) -> None:
        pass

    def write_result(self, result: Mapping[str, Any]) -> None:
        pass

    def close(self) -> None:
        pass


def read(folder: str, most: int | None = None, written: int = 0) -> list[dict]:
    """The lines of a run's metrics.jsonl. Each that is damaged is named and left out.

    Args:
      folder: of the run.
      most: of a longer file only about so many lines of training and so many of each split that was evaluated, evenly
        spaced, and the last of each.
      written: how many lines there were; a line says where some are missing.
    """
    path, texts = os.path.join(folder, "metrics.jsonl"), []
    place = os.path.join(remote.local(folder), "metrics.jsonl")
    if os.path.exists(place):
        with open(place, errors="replace") as file:
            texts = list(enumerate(file, start=1))
    if len(texts) < written:
        print(f"{path} holds {len(texts)} of the {written} lines that were written", file=sys.stderr, flush=True)
    lines, bad = [], []
    for number, text in texts if most is None else _thinned(texts, most):
        try:
            line = json.loads(text, parse_constant=_refuse)
            if not checksums.take(line):
                checksums.say_unchecked(folder)
            lines.append({"seconds": 0.0, **line, "step": int(line["step"])})
        except (ValueError, OverflowError, RecursionError, KeyError, TypeError, AttributeError):
            bad.append(str(number))
    if bad:
        print(f"{path}: line {first_few(bad)} is damaged and is left out", file=sys.stderr, flush=True)
    return lines


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number")


def _text(line: Mapping[str, Any]) -> str:
    return json.dumps(checksums.add(line), allow_nan=False) + "\n"


def write_image(folder: str, step: int, name: str, image: np.ndarray) -> None:
    """Adds an image [H, W, 3] uint8 to TensorBoard."""
    place = remote.local(folder)
    if clu := _clu_writer(place, f"the image {name} goes to its file"):
        clu.write_images(step, {name: image[None]})
        clu.close()
        for events in glob.glob("events.out.tfevents.*", root_dir=place):
            remote.changed(os.path.join(folder, events))


def _thinned(lines: list[tuple[int, str]], most: int) -> list[tuple[int, str]]:
    kinds: dict[tuple[bool, ...], list[int]] = collections.defaultdict(list)
    for index, (_, line) in enumerate(lines):
        kinds[tuple(f'"{split}/' in line for split in ("validation", "test"))].append(index)
    kept = {index for kind in kinds.values() for index in kind[:: math.ceil(len(kind) / most) or 1] + kind[-1:]}
    return [lines[index] for index in sorted(kept)]


def _clu_writer(folder: str, instead: str, step: int | None = None) -> Any:
    """CLU's writer into a folder, where events behind `step` are removed: a run that goes on writes them again."""
    try:
        import_tensorflow()
        from clu import metric_writers
    except ImportError as error:
        name = error.name or "TensorFlow"
        terminal.say(f"{name} is not installed: {instead}, not to TensorBoard")
        return None
    if step is not None:
        _remove_events(folder, step)
    return metric_writers.MultiWriter([metric_writers.SummaryWriter(folder), metric_writers.LoggingWriter()])


def _write_config(clu: Any, saved: Mapping[str, Any]) -> None:
    """A run's config, as a text and for the table of the HParams plugin."""
    config = runs.flat(saved["config"])
    rows = "".join(f"| {key} | {json.dumps(value)} |\n" for key, value in config.items())
    clu.write_texts(0, {"config": f"run {saved['hash']}\n\n| key | value |\n| --- | --- |\n{rows}"})
    clu.write_hparams(
        {key: value if isinstance(value, str | int | float) else json.dumps(value) for key, value in config.items()}
    )


def _remove_events(folder: str, step: int) -> None:
    """Removes what lies behind a step from TensorBoard's files; of a run that starts, all that is there."""
    from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.summary.writer.record_writer import RecordWriter

    for path in glob.glob(os.path.join(glob.escape(folder), "events.out.tfevents.*")):
        records = list(RawEventFileLoader(path).Load())
        kept = [record for record in records if 0 < step >= Event.FromString(record).step]
        if len(kept) < len(records):
            buffer = io.BytesIO()
            writer = RecordWriter(buffer)
            for record in kept:
                writer.write(record)
            runs.write_files(folder, {os.path.basename(path): buffer.getvalue()})
