"""Measures how well the saliency maps of a distilled student and its teacher agree, and draws them.

usage: python -m kd_jax.explain --workdir=RUN [--against=RUN ...] [--path=DATA] [--stage=-1] [--variant=gradcam]

RUN is a finished run with a teacher. --against takes one or more other finished runs on the same data, for example
the same student trained alone. The command writes into RUN, or into --to: saliency.json, the agreement of every
student's Grad-CAM maps with the teacher's over the test set, and saliency.png, a grid of images and maps, which also
goes to TensorBoard. All maps explain an image's true class.

The images of the grid are chosen by rule. One of each class (of evenly spaced classes if there are too many): its first
image in the test set that teacher and student both get right, else its first image. With --against, up to a third are
the images where the maps of RUN and of the first --against have the lowest cosine, among those that the teacher gets
right and on which no map is zero.
"""

from absl import flags

from kd_jax import cli
from kd_jax.errors import InputError

STAGE = flags.DEFINE_integer("stage", -1, "The stage whose maps are computed: 0 (the stem), 1, ...; -1 is the last.")
VARIANT = flags.DEFINE_enum("variant", "gradcam", ["gradcam", "gradcam++"], "The kind of maps.")
IMAGES = flags.DEFINE_integer("images", 15, "The number of images in the grid.", lower_bound=1, upper_bound=100)
for name in ("workdir", "against", "path", "to", "runs", "import"):
    flags.declare_key_flag(name)


def main(arguments: list[str]) -> None:
    if not cli.WORKDIR.value:
        raise InputError(
            "expected --workdir=FOLDER, the folder of a finished run with a teacher, and --against=FOLDER for others"
        )
    against = [*cli.AGAINST.value, *arguments]  # absl takes values after the first as positional arguments
    if not all(against):
        raise InputError("--against is empty; expected the folder of a finished run")
    from kd_jax.explaining import agreement

    agreement.explain_run(
        cli.WORKDIR.value,
        against,
        to=cli.TO.value,
        path=cli.PATH.value,
        runs_folder=cli.RUNS.value,
        stage=STAGE.value,
        variant=VARIANT.value,
        num_images=IMAGES.value,
    )


if __name__ == "__main__":
    cli.run(main, __doc__)
