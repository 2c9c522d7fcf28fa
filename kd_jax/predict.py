"""Classifies images with a finished run: the most probable classes of each.

usage: python -m kd_jax.predict --workdir=FOLDER [--top=3] IMAGES...
"""

import os
from collections.abc import Iterator, Sequence

from absl import flags

from kd_jax import cli
from kd_jax.errors import InputError

TOP = flags.DEFINE_integer("top", 3, "How many classes to print for each image.", lower_bound=1)
for name in ("workdir", "import"):
    flags.declare_key_flag(name)
BATCH = 64  # images; so many are in memory at a time


def main(arguments: list[str]) -> None:
    if not cli.WORKDIR.value or not arguments:
        raise InputError("expected --workdir=FOLDER, the folder of a finished run, and one image file or more")
    from kd_jax.data.names import printable

    for path, ranked in zip(arguments, predict(cli.WORKDIR.value, arguments), strict=True):
        classes = ", ".join(f"{name} {100 * p:.1f}%" for name, p in ranked[: TOP.value])
        print(printable(f"{path}: {classes}"), flush=True)


def predict(run: str, paths: Sequence[str]) -> Iterator[list[tuple[str, float]]]:
    """Reads images as the run's own were read, and classifies them, batch by batch.

    Yields:
      For each image its (class name, probability) pairs, the most probable first.
    Raises:
      InputError: when the folder holds no finished run, or a file no image. A missing file is named before any other
        is read.
    """
    import jax
    import numpy as np

    from kd_jax import loaded
    from kd_jax.data.images import read_image

    finished = loaded.load(run)
    if not finished.class_names:
        raise InputError(f"{run} was trained without labels and knows no classes; expected `kd_jax probe` for it")
    height, _, channels = finished.image_shape
    for path in paths:
        if not os.path.isfile(path):
            read_image(path, height, channels)  # which says what is wrong with it
    probabilities = jax.jit(lambda images: jax.nn.softmax(finished.logits(images)))
    # The last batch is filled up with black images: one compiled program for all.
    batch = np.zeros((min(BATCH, len(paths)), height, height, channels), np.uint8)

    for start in range(0, len(paths), BATCH):
        block = paths[start : start + BATCH]
        for index, path in enumerate(block):
            batch[index] = read_image(path, height, channels)
        for row in np.asarray(probabilities(batch.copy()))[: len(block)]:
            yield sorted(zip(finished.class_names, map(float, row), strict=True), key=lambda pair: -pair[1])


if __name__ == "__main__":
    cli.run(main, __doc__)
