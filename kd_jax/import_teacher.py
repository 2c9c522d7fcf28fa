"""Makes a teacher of a PyTorch network: a folder that trains students without PyTorch.

usage: python -m kd_jax.import_teacher timm/NAME[.TAG] --to=FOLDER [--weights=FILE]
       python -m kd_jax.import_teacher FILE.py:FUNCTION --to=FOLDER --weights=FILE [--image_size=N --mean=.. --std=..]

A name of timm's is built with its weights from the Hugging Face hub, or with those of --weights. FUNCTION of a Python
file of your own is called without arguments, and returns a torch.nn.Module that reads images [B, 3, H, W], normalized
by --mean and --std, and returns logits [B, K]. Then `teacher.kind=exported teacher.path=FOLDER` teaches. This needs the
extra `torch`: pip install "kd_jax[torch]".

What a network without classes returns is an embedding [B, D]: that of DINOv2 and of CLIP's image towers, or with
--embedding of any. Such a teacher teaches embeddings, as in --config=embedding.
"""

import shlex
import sys
from typing import Any

from absl import flags

from kd_jax import cli
from kd_jax.errors import InputError

WEIGHTS = cli.define_path("weights", None, 'A file of weights; "none" leaves them random.')
NUM_CLASSES = flags.DEFINE_integer("num_classes", None, "timm: classes of the weights, by default those of its own.")
IMAGE_SIZE = flags.DEFINE_integer("image_size", None, "Pixels of the images that it reads.", lower_bound=1)
MEAN = flags.DEFINE_list("mean", None, "Of pixels in [0, 1], one for each channel.")
STD = flags.DEFINE_list("std", None, "Of pixels in [0, 1], one for each channel.")
CLASS_NAMES = cli.define_path(
    "class_names", None, "A file with the name of a class in each line, in the network's order."
)
EMBEDDING = flags.DEFINE_bool(
    "embedding", None, "Whether it returns an embedding and no logits; by default what timm knows of it."
)
for name in ("to", "import"):
    flags.declare_key_flag(name)


def main(arguments: list[str]) -> None:
    if len(arguments) != 1 or not cli.TO.value:
        raise InputError("expected one network, timm/NAME or FILE.py:FUNCTION, and --to=FOLDER")
    from kd_jax.data.names import read_class_names  # after the flags: JAX is slow to import
    from kd_jax.teachers.from_torch import import_teacher

    import_teacher(
        arguments[0],
        cli.TO.value,
        weights_file=WEIGHTS.value,
        num_classes=NUM_CLASSES.value,
        class_names=read_class_names("--class_names", CLASS_NAMES.value) if CLASS_NAMES.value else None,
        embedding=EMBEDDING.value,
        again=f"kd_jax import-teacher {shlex.join(sys.argv[1:])}",
        **_given(),
    )


def _given() -> dict[str, Any]:
    """What of the preprocessing the flags say."""
    given: dict[str, Any] = {"size": IMAGE_SIZE.value} if IMAGE_SIZE.value else {}
    for key, flag in (("mean", MEAN), ("std", STD)):
        if flag.value:
            try:
                given[key] = tuple(float(x) for x in flag.value)
            except ValueError:
                raise InputError(f"--{key} is {','.join(flag.value)!r}; expected numbers with commas between") from None
    return given


if __name__ == "__main__":
    cli.run(main, __doc__)
