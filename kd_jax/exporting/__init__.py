"""Programs for other runtimes: each format writes one and runs it. `export` writes a file that has been checked so."""

import functools
import importlib
import json
import os
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from kd_jax.errors import InputError, TrainingError

TOLERANCE = 1e-4  # of the largest logit
CHECKED = 100  # images
CALIBRATED = 256  # images
PREPROCESS = ("inside", "beside")
QUANTIZE = ("", "int8")
SIDECAR = ".json"  # behind the path of a program: what is known of it

# Takes images [N, h, w, C] and returns [N, K], in the format's own runtime.
Runner = Callable[[np.ndarray], np.ndarray]


class Program(NamedTuple):
    """What is exported."""

    apply: Callable[[Any], Any]  # images [B, h, w, C] of `dtype` -> logits [B, K], or an embedding [B, D]
    shape: tuple[int, int, int]  # (h, w, C)
    dtype: str  # of the images: uint8, or float32 where they are prepared already
    about: dict[str, Any]  # of the sidecar
    returns: str = "logits"  # or "embedding", of a run without classes
    rounded: Callable[[Any], Any] | None = None  # `apply` as with the 8 bits that the network was trained with


class Options(NamedTuple):
    """How it is written. What a format does not have it refuses."""

    batch: int | None = None  # of a format whose batch is fixed
    quantize: str = ""
    images: np.ndarray | None = None  # [N, h, w, C] of the program's type, which a quantized program is calibrated by


class Format(NamedTuple):
    """A format: the module `kd_jax.exporting.NAME` has `write(program, path, options)` and `runner(path)`."""

    ending: str  # of a file's name
    fixed_batch: bool = False
    quantize: Sequence[str] = ("",)

    def module(self, name: str) -> ModuleType:
        """Imported late: each has a heavy library, which need not be there."""
        return importlib.import_module(f"kd_jax.exporting.{name}")


FORMATS = {
    "stablehlo": Format(".stablehlo"),
    "savedmodel": Format(""),  # a folder
    "tflite": Format(".tflite", fixed_batch=True, quantize=QUANTIZE),
    "onnx": Format(".onnx"),
}


def runner(name: str, path: str) -> Runner:
    """What runs a program of a format.

    Raises:
      InputError: when the format's runtime is not installed.
    """
    return FORMATS[name].module(name).runner(path)


def check(name: str, path: str, options: Options) -> None:
    """Raises InputError for an option that a format does not have, and for a path that is taken."""
    kind = FORMATS[name]
    if options.batch is not None and not kind.fixed_batch:
        raise InputError(f"--batch is {options.batch}, and a program of format {name} takes any; expected no --batch")
    if options.quantize not in kind.quantize:
        raise InputError(f"--quantize is {options.quantize!r}; expected 'int8' with --format=tflite, or none")
    check_new(path, path + SIDECAR)


def check_new(path: str, *beside: str) -> None:
    """Raises InputError unless files of these names can be new ones of a folder."""
    for taken in (path, *beside):
        if os.path.lexists(taken):
            which = "which" if taken == path else f"and {taken}"
            raise InputError(f"--to is {path!r}, {which} already exists; expected a new file")
    if not os.path.isdir(os.path.dirname(path) or "."):
        raise InputError(f"--to is {path!r}; expected a file in an existing folder")


def claim(path: str, given: str) -> None:
    """Makes an empty file, so that its name is this process's from now on; raises InputError, of the path `given`."""
    from kd_jax import runs

    try:
        open(path, "x").close()
    except OSError as error:
        raise runs.refused(f"--to is {given!r}, which cannot be written", error) from None


def export(name: str, program: Program, path: str, options: Options, images: np.ndarray) -> dict[str, float]:
    """Writes a program, and what is known of it beside it, once its own runtime has shown what the network says.

    Args:
      name: of the format.
      program: to write.
      path: of a new file or folder; the sidecar is `path` + ".json".
      options: of the format, checked by `check`.
      images: [N, h, w, C] of the program's type, to compare on.
    Returns:
      `compare`'s.
    Raises:
      InputError: when it cannot be written, or its runtime is not installed. TrainingError: when the program differs.
    """
    from kd_jax import runs, stopping

    module, partial, sidecar = FORMATS[name].module(name), f"{path}.{os.getpid()}.tmp", path + SIDECAR
    claim(sidecar, path)
    try:
        with stopping.unfinished(partial, sidecar):
            module.write(program, partial, options)
            run = functools.partial(_run_apart, name, partial) if options.quantize else module.runner(partial)
            found = compare((options.quantize and program.rounded) or program.apply, run, images)
            if not options.quantize and (found["error"] > TOLERANCE or found["same"] < 1):
                raise TrainingError(
                    f"the program of format {name} differs from the network: by {found['error']:.1e} of the largest,"
                    f" and {found['same']:.1%} of the classes are the same; expected {TOLERANCE:.0e} and all"
                )
            with open(sidecar, "w") as file:
                batch = options.batch or (1 if FORMATS[name].fixed_batch else None)
                of_options = {"returns": program.returns, "batch": batch, "quantize": options.quantize}
                json.dump({"format": name, **program.about, **of_options}, file)
            os.rename(partial, path)
    except OSError as error:
        raise runs.refused(f"--to is {path!r}, which cannot be written", error) from None
    return found


def _run_apart(name: str, path: str, images: np.ndarray) -> np.ndarray:
    """Runs a quantized program, whose runtime may end the process."""
    from kd_jax.exporting import measure

    try:
        return measure.measure(name, path, images).logits
    except TrainingError as error:
        raise InputError(
            f"--quantize is 'int8', and the runtime cannot run this network so ({error}); expected none with it"
        ) from error


def compare(logits: Callable[[Any], Any], run: Runner, images: np.ndarray) -> dict[str, float]:
    """How the logits of a runner differ from a network's.

    Returns:
      "error": the largest difference, as a share of the largest logit; "same": the share of images of the same class,
      where two classes that differ by no more than the tolerance are both the network's.
    """
    import jax

    expected, found = np.asarray(jax.jit(logits)(images)), run(images)
    if found.shape != expected.shape or not np.isfinite(found).all():
        raise TrainingError(f"the program's logits are {found.shape}, or not finite; expected numbers {expected.shape}")
    largest = np.abs(expected).max()
    chosen = np.take_along_axis(expected, found.argmax(1)[:, None], 1)[:, 0]
    same = expected.max(1) - chosen <= TOLERANCE * largest
    return {"error": float(np.abs(found - expected).max() / largest), "same": float(same.mean())}


def by_path(path: str) -> str:
    """The format that a path's ending names; raises InputError for one that names none."""
    endings = {".safetensors": "safetensors"} | {kind.ending: name for name, kind in FORMATS.items() if kind.ending}
    ending = os.path.splitext(path)[1]
    if ending not in endings:
        raise InputError(
            f"--to is {path!r}, whose ending names no format; expected {', '.join(endings)}, or --format,"
            f" one of {', '.join(('safetensors', *FORMATS))}"
        )
    return endings[ending]


def megabytes(path: str) -> float:
    """The size of a file, or of all in a folder, in 10^6 bytes."""
    files = [os.path.join(folder, name) for folder, _, names in os.walk(path) for name in names] or [path]
    return sum(map(os.path.getsize, files)) / 1e6


def in_batches(run: Runner, size: int) -> Runner:
    """A runner of any number of images by one of a fixed number."""
    return lambda images: np.concatenate([run(part) for part in batches(images, size)])[: len(images)]


def batches(images: np.ndarray, size: int) -> list[np.ndarray]:
    """Images in batches of a size; the last one is filled up with its last image."""
    filled = np.concatenate([images, np.repeat(images[-1:], -len(images) % size, 0)])
    return [filled[start : start + size] for start in range(0, len(filled), size)]
