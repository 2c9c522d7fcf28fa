"""Classifies images with a finished run: the most probable classes of each.

usage: python -m kd_jax.predict --workdir=FOLDER [--top=3] IMAGES...
"""

from absl import flags

from kd_jax import cli
from kd_jax.errors import InputError

TOP = flags.DEFINE_integer("top", 3, "How many classes to print for each image.", lower_bound=1)
flags.declare_key_flag("workdir")


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

    from kd_jax import augment, data, experiment, runs

    saved = runs.read_json(run, "config.json")
    network, variables, class_names = experiment.load(run)
    seen = saved["data"]
    height, _, channels = seen["image_shape"]
    images = np.stack([data.read_image(path, height, channels) for path in paths])

    @jax.jit
    def probabilities(images):
        size = saved["config"]["dataset"]["image_size"]
        x = augment.prepare(images, size=size, mean=np.array(seen["mean"]), std=np.array(seen["std"]))
        return jax.nn.softmax(network.apply(variables, x, train=False)[0].logits)

    return [
        sorted(zip(class_names, map(float, row), strict=True), key=lambda pair: -pair[1])
        for row in np.asarray(probabilities(images))
    ]


if __name__ == "__main__":
    cli.run(main, __doc__)
