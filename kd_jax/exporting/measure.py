"""Runs a program in a process of its own, in which its runtime may end as it likes.

python -m kd_jax.exporting.measure FORMAT PATH IMAGES.npy BATCH RESULT.npz

The result holds the "logits" of all images [N, K], and the median "milliseconds" of a call with BATCH images.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

import kd_jax
from kd_jax import stopping
from kd_jax.errors import TrainingError
from kd_jax.exporting import runner

CALLS, SECONDS = 200, 5.0  # of a measurement at most, after two calls that are not counted


class Measured(NamedTuple):
    """What a program did."""

    logits: np.ndarray  # [N, K]
    milliseconds: float  # of a call


def measure(name: str, path: str, images: np.ndarray, batch: int = 1, python: str = sys.executable) -> Measured:
    """Runs a program of a format on images [N, h, w, C].

    Raises:
      TrainingError: when the process fails, with the last line that it said.
    """
    with tempfile.TemporaryDirectory() as folder, stopping.unfinished(folder):
        given, result = os.path.join(folder, "images.npy"), os.path.join(folder, "result.npz")
        np.save(given, images)
        call(python, "kd_jax.exporting.measure", name, path, given, str(batch), result)
        with np.load(result) as found:
            return Measured(found["logits"], float(found["milliseconds"]))


def call(python: str, module: str, *arguments: str) -> None:
    """Runs a module of kd_jax; raises as `measure`."""
    environment = os.environ | {"PYTHONPATH": os.path.dirname(os.path.dirname(kd_jax.__file__))}
    command, pipe = [python, "-m", module, *arguments], subprocess.PIPE
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=pipe, env=environment) as process:
        stopping.children.add(process)
        said = process.communicate()[1].decode(errors="replace")
        stopping.children.remove(process)
    if process.returncode:
        lines = said.strip().splitlines() if process.returncode > 0 else ()
        raise TrainingError(lines[-1].removeprefix("error: ") if lines else f"{module} was ended by what it runs")


def latency(call: Callable[[], Any], *, calls: int = CALLS, seconds: float = SECONDS) -> float:
    """The median milliseconds of a call, of so many at most in about so much time."""
    call(), call()
    times: list[float] = []
    while len(times) < calls and sum(times) < seconds:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return 1e3 * float(np.median(times))


if __name__ == "__main__":
    name, path, given, batch, result = sys.argv[1:]
    run, images = runner(name, path), np.load(given)
    np.savez(result, logits=run(images), milliseconds=latency(lambda: run(images[: int(batch)])))
