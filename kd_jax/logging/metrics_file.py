"""Where a run's numbers go: metrics.jsonl, TensorBoard and the log (through CLU), W&B.

The only importer of clu.metric_writers, and so of TensorFlow. Where these are missing the rest still works.
"""

import contextlib
import json
import math
import os
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from kd_jax.logging.wandb_run import Mirror
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


def _clu_writer(folder: str, instead: str) -> Any:
    try:
        import_tensorflow()
        from clu import metric_writers
    except ImportError as error:
        name = error.name or "TensorFlow"
        print(f"{name} is not installed: {instead}, not to TensorBoard", flush=True)
        return None
    return metric_writers.MultiWriter([metric_writers.SummaryWriter(folder), metric_writers.LoggingWriter()])
