"""Classifies images with a finished run: the most probable classes of each.

usage: python -m kd_jax.predict --workdir=FOLDER [--top=3] [--json | --csv] IMAGES...

IMAGES are files, folders (all images below them) and patterns such as 'photos/**/*.jpg'. A file that cannot be read is
named on stderr and passed over; the exit status is then 1.
"""

import csv
import glob
import json
import os
import stat
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from absl import flags

from kd_jax import cli, terminal
from kd_jax.errors import InputError, TrainingError, one_line

TOP = flags.DEFINE_integer("top", 3, "How many classes to print for each image.", lower_bound=1)
CSV = flags.DEFINE_bool("csv", False, "Print a table of comma-separated values, with a header.")
for name in ("workdir", "json", "import"):
    flags.declare_key_flag(name)
BATCH = 64  # images; so many are in memory at a time

Ranked = list[tuple[str, float]]  # (class name, probability), the most probable first


def main(arguments: list[str]) -> None:
    if not cli.WORKDIR.value or not arguments:
        raise InputError("expected --workdir=FOLDER, the folder of a finished run, and one image file or more")
    if cli.JSON.value and CSV.value:
        raise InputError("both --json and --csv are given; expected one of them")
    from kd_jax.data.names import printable

    paths = find(arguments)
    # Elsewhere the lines themselves show how far it is, also through a pipe, which often ends at the same terminal.
    is_shown = len(paths) > BATCH and _is_file(sys.stdout)
    failed: list[InputError] = []

    def fail(error: InputError) -> None:
        failed.append(error)
        terminal.say(printable(one_line(error)), sys.stderr)

    batches = _batches(cli.WORKDIR.value, paths, fail)
    if is_shown:
        from kd_jax.logging.progress import counted

        batches = counted(batches, BATCH, len(paths))
    write = _as_json if cli.JSON.value else _as_csv if CSV.value else _as_text
    write(
        (printable(path), [(printable(name), p) for name, p in ranked[: TOP.value]])
        for batch in batches
        for path, ranked in batch
        if ranked
    )
    if failed:
        said = f"{len(failed)} of {len(paths)} images cannot be read"
        raise InputError(f"{said}; expected image files") if len(failed) == len(paths) else TrainingError(said)


def _is_file(stream: Any) -> bool:
    try:
        return stat.S_ISREG(os.fstat(stream.fileno()).st_mode)
    except (OSError, ValueError):  # it is none of the system's
        return False


def _as_text(found: Iterable[tuple[str, Ranked]]) -> None:
    for path, ranked in found:
        print(f"{path}: {', '.join(f'{name} {100 * p:.1f}%' for name, p in ranked)}", flush=True)


def _as_json(found: Iterable[tuple[str, Ranked]]) -> None:
    for path, ranked in found:
        classes = [{"class": name, "probability": round(p, 6)} for name, p in ranked]
        print(json.dumps({"path": path, "classes": classes}), flush=True)


def _as_csv(found: Iterable[tuple[str, Ranked]]) -> None:
    table = csv.writer(sys.stdout, lineterminator="\n")
    for number, (path, ranked) in enumerate(found):
        if number == 0:
            columns = range(1, 1 + len(ranked))
            table.writerow(["path", *(f"{what}_{i}" for i in columns for what in ("class", "probability"))])
        table.writerow([path, *(x for name, p in ranked for x in (name, round(p, 6)))])
        sys.stdout.flush()


def find(arguments: Sequence[str]) -> list[str]:
    """The files that arguments name: themselves, all images below a folder, what matches a pattern.

    Those of a folder or pattern are sorted. Of a folder, what is hidden or no image by its name is left out; what is
    named itself, or matches, counts whatever its name.

    Raises:
      InputError: for an argument that names nothing.
    """
    return [path for argument in arguments for path in _find(argument)]


def _find(argument: str) -> Iterable[str]:
    from kd_jax.data.folder import below

    is_pattern = glob.has_magic(argument) and not os.path.lexists(argument)
    found: dict[str, None] = {}
    for match in sorted(glob.glob(argument, recursive=True)) if is_pattern else [argument]:
        inside = sorted(os.path.join(match, path) for path in below(match)) if os.path.isdir(match) else [match]
        found |= dict.fromkeys(inside)
    if not found or not (is_pattern or os.path.lexists(argument)):
        raise InputError(f"{argument} names no image; expected a file, a folder of images, or a pattern of them")
    return found


def predict(
    run: str, paths: Sequence[str], failed: Callable[[InputError], None] | None = None
) -> Iterator[Ranked | None]:
    """Reads images as the run's own were read, and classifies them, batch by batch.

    Args:
      run: folder of the run.
      paths: of image files.
      failed: is told the error of an image that cannot be read, for which None is yielded; by default it is raised.
    Yields:
      For each image its (class name, probability) pairs, the most probable first.
    Raises:
      InputError: when the folder holds no finished run, or a file no image. Without `failed`, a missing file is named
        before any other is read.
    """
    return (ranked for batch in _batches(run, paths, failed) for _, ranked in batch)


def _batches(
    run: str, paths: Sequence[str], failed: Callable[[InputError], None] | None
) -> Iterator[list[tuple[str, Ranked | None]]]:
    """What `predict` yields, each with its path, a batch at a time."""
    import jax
    import numpy as np

    from kd_jax import loaded
    from kd_jax.data.images import read_image

    finished = loaded.load(run)
    if not finished.class_names:
        raise InputError(f"{run} was trained without labels and knows no classes; expected `kd_jax probe` for it")
    height, _, channels = finished.image_shape
    for path in paths if failed is None else ():
        if not os.path.isfile(path):
            read_image(path, height, channels)  # which says what is wrong with it
    probabilities = jax.jit(lambda images: jax.nn.softmax(finished.logits(images)))
    # The last batch is filled up with black images: one compiled program for all.
    batch = np.zeros((min(BATCH, len(paths)), height, height, channels), np.uint8)

    for start in range(0, len(paths), BATCH):
        block = paths[start : start + BATCH]
        is_read = []
        for index, path in enumerate(block):
            try:
                batch[index] = read_image(path, height, channels)
                is_read.append(True)
            except InputError as error:
                if failed is None:
                    raise
                failed(error)
                is_read.append(False)
        rows = np.asarray(probabilities(batch.copy()))
        yield [
            (path, _ranked(finished.class_names, row) if good else None)
            for path, row, good in zip(block, rows, is_read, strict=False)
        ]


def _ranked(class_names: Sequence[str], probabilities: Iterable[float]) -> Ranked:
    return sorted(zip(class_names, map(float, probabilities), strict=True), key=lambda pair: -pair[1])


if __name__ == "__main__":
    cli.run(main, __doc__)
