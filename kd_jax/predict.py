"""Classifies images with a finished run: the most probable classes of each.

usage: python -m kd_jax.predict --workdir=FOLDER [--top=3] IMAGES...
"""

from absl import flags

from kd_jax import cli
from kd_jax.errors import InputError

TOP = flags.DEFINE_integer("top", 3, "How many classes to print for each image.", lower_bound=1)
for name in ("workdir", "import"):
    flags.declare_key_flag(name)


def main(arguments: list[str]) -> None:
    if not cli.WORKDIR.value or not arguments:
        raise InputError("expected --workdir=FOLDER, the folder of a finished run, and one image file or more")
    for path, ranked in zip(arguments, predict(cli.WORKDIR.value, arguments), strict=True):
        print(f"{path}: " + ", ".join(f"{name} {100 * p:.1f}%" for name, p in ranked[: TOP.value]))


def predict(run: str, paths: list[str]) -> list[list[tuple[str, float]]]:
    """Reads images as the run's own were read, and classifies them.

    Returns:
      For each image its (class name, probability) pairs, the most probable first.
    Raises:
      InputError: when the folder holds no finished run, or a file no image.
    """
    import jax
    import numpy as np

    from kd_jax import loaded
    from kd_jax.data.images import read_image

    finished = loaded.load(run)
    height, _, channels = finished.image_shape
    images = np.stack([read_image(path, height, channels) for path in paths])
    probabilities = jax.jit(lambda images: jax.nn.softmax(finished.logits(images)))

    return [
        sorted(zip(finished.class_names, map(float, row), strict=True), key=lambda pair: -pair[1])
        for row in np.asarray(probabilities(images))
    ]


if __name__ == "__main__":
    cli.run(main, __doc__)
