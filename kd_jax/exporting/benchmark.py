"""A table of all formats of one student: size, accuracy, same predictions, latency."""

import importlib.util
import os
import sys
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

import kd_jax
from kd_jax import exporting, runs, stopping
from kd_jax.errors import InputError, TrainingError, one_line
from kd_jax.exporting import Options, measure, program, safetensors
from kd_jax.logging.progress import working

BATCHES = (1, 32)
WEIGHTS = "model.safetensors"
ROOT = os.path.dirname(os.path.dirname(kd_jax.__file__))
ONNX_PYTHON = os.path.join(ROOT, ".venv-onnx", "bin", "python")  # of launch/onnx.sh


class Row(NamedTuple):
    """What was measured of a format; None where its runtime is not here."""

    name: str
    megabytes: float | None = None
    accuracy: float | None = None
    same: float | None = None  # share of the images of the network's class
    milliseconds: dict[str, float] | None = None  # of a call, by the batch
    why: str = ""  # there is nothing


def run(source: str, folder: str, data: str | None = None, count: int = 1000) -> list[Row]:
    """Exports a run to each format into a new folder, runs each, and writes `export_benchmark.json` there.

    Args:
      source: the folder of a finished run.
      folder: a new one.
      data: the data's path, if it has moved.
      count: of test images.
    Raises:
      InputError: when there is no such run, its data cannot be read, or the folder exists or cannot be written.
    """
    source, folder = os.path.expanduser(source), os.path.expanduser(folder)
    read = program.read(source, path=data, count=count)
    if read.labels is None:
        raise InputError(f"the data of {source} is needed; there are {read.images}")
    if read.program.returns != "logits":
        raise InputError(f"{source} was trained without labels and has no accuracy; expected a run with classes")
    try:
        os.mkdir(folder)
    except OSError as error:
        raise runs.refused(f"--to is {folder!r}; expected a new folder", error) from None
    with stopping.unfinished(folder):
        rows = _rows(source, folder, read)
        value = {"images": len(read.test), "rows": [row._asdict() for row in rows]}
        runs.write_json(os.path.join(folder, "export_benchmark.json"), value)
    return rows


def table(rows: Sequence[Row]) -> str:
    """The rows as text."""
    lines = [f"{'':14} {'MB':>7} {'accuracy':>9} {'same':>7}" + "".join(f"{f'ms of {n}':>11}" for n in BATCHES)]
    for row in rows:
        if row.milliseconds is None:
            lines.append(f"{row.name:14} {row.why}")
            continue
        times = "".join(f"{row.milliseconds[str(n)]:>11.2f}" for n in BATCHES)
        lines.append(f"{row.name:14} {row.megabytes:7.2f} {row.accuracy:9.2%} {row.same:7.1%}{times}")
    return "\n".join(lines)


def _rows(source: str, folder: str, read: program.Source) -> list[Row]:
    network = jax.jit(read.program.rounded or read.program.apply)
    expected = np.asarray(network(read.test)).argmax(1)

    def latency(batch: int) -> float:
        return measure.latency(lambda: np.asarray(network(read.test[:batch])))

    times = {str(batch): latency(batch) for batch in BATCHES}
    weights = os.path.join(folder, WEIGHTS)
    safetensors.write(source, weights)
    accuracy = float((expected == read.labels).mean())
    rows = [Row("kd_jax", exporting.megabytes(weights), accuracy, 1.0, times)]
    for name, kind in exporting.FORMATS.items():
        for quantize in kind.quantize:
            title = f"{name} {quantize}".strip()
            try:
                with working(f"exporting and measuring {title} ..."):
                    ran = _run_format(name, quantize, read, folder)
            except (InputError, TrainingError) as error:
                rows.append(Row(title, why=one_line(error, 160)))
                continue
            found = ran.logits.argmax(1)
            accuracy, same = float((found == read.labels).mean()), float((found == expected).mean())
            rows.append(Row(title, ran.megabytes, accuracy, same, ran.milliseconds))
    return rows


class _Ran(NamedTuple):
    megabytes: float
    milliseconds: dict[str, float]
    logits: np.ndarray


def _run_format(name: str, quantize: str, read: program.Source, folder: str) -> _Ran:
    """Exports to a format, for each batch where it is fixed, and runs it in a process of its own."""
    kind, path = exporting.FORMATS[name], ""
    times: dict[str, float] = {}
    elsewhere = name == "onnx" and not importlib.util.find_spec("jax2onnx") and os.path.exists(ONNX_PYTHON)
    python = ONNX_PYTHON if elsewhere else sys.executable
    for batch in BATCHES:
        path = os.path.join(folder, f"{name}{quantize}{f'-{batch}' if kind.fixed_batch else ''}{kind.ending}")
        if elsewhere and not times:
            measure.call(python, "kd_jax.export", f"--workdir={os.path.join(folder, WEIGHTS)}", f"--to={path}")
        elif not os.path.exists(path):
            options = Options(batch if kind.fixed_batch else None, quantize, read.training)
            exporting.export(name, read.program, path, options, read.test[: exporting.CHECKED])
        measured = measure.measure(name, path, read.test, batch, python)
        times[str(batch)] = measured.milliseconds
    return _Ran(exporting.megabytes(path), times, measured.logits)
