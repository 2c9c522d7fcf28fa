"""Shows where a distilled student and its teacher look, and measures over the test set how far they agree.

usage: python -m kd_jax.explain --workdir=RUN [--against=RUN ...] [--path=DATA] [--stage=-1] [--variant=gradcam]

RUN is a finished run with a teacher. --against takes other finished runs on the same data, one or more, for example
the same student trained alone. Into RUN, or into --to, it writes gaze.json, the agreement of every student's Grad-CAM
maps with the teacher's, and gaze.png, a grid of images and maps, which goes to TensorBoard too. All maps are those of
an image's true class.

The grid's images are chosen by rule. One of each class (of evenly spaced classes, where there is no room for all): its
first image in the test set that teacher and student both get right, else its first image. With --against, up to a third
are those where the maps of RUN and of the first --against differ most: of the images that the teacher gets right and on
which no map is zero, the cosine of these two is lowest.
"""

from absl import flags

from kd_jax import cli
from kd_jax.errors import InputError

STAGE = flags.DEFINE_integer("stage", -1, "Whose maps: 0 (the stem), 1, ..., or -1 (the last) backwards.")
VARIANT = flags.DEFINE_enum("variant", "gradcam", ["gradcam", "gradcam++"], "How maps are computed.")
IMAGES = flags.DEFINE_integer("images", 15, "How many images the grid shows.", lower_bound=1, upper_bound=100)
for name in ("workdir", "against", "path", "to", "runs", "import"):
    flags.declare_key_flag(name)


def main(arguments: list[str]) -> None:
    if not cli.WORKDIR.value:
        raise InputError(
            "expected --workdir=FOLDER, the folder of a finished run with a teacher, and --against=FOLDER for others"
        )
    against = [*cli.AGAINST.value, *arguments]  # absl gives what follows the first one as arguments
    if not all(against):
        raise InputError("--against is empty; expected the folder of a finished run")
    from kd_jax.explaining import agreement

    agreement.explain(
        cli.WORKDIR.value,
        against,
        to=cli.TO.value,
        path=cli.PATH.value,
        runs_folder=cli.RUNS.value,
        stage=STAGE.value,
        variant=VARIANT.value,
        shown=IMAGES.value,
    )


if __name__ == "__main__":
    cli.run(main, __doc__)
