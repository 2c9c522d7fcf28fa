"""A network on Tiny ImageNet at 32x32, from whose weights others start where no hub can be reached.

Stanford's CS231n course, 200 classes of 500 images; here as class folders, `train` and `val`.

    python -m kd_jax.main --config=configs/pretrain.py:student[,small|,lite|,laptop|,smoke] \
        --config.dataset.path=tinyimagenet32 --workdir=runs/pretrained
    python -m kd_jax.main --config=configs/kd.py:small --config.model.pretrained=runs/pretrained

The argument is "student" or "teacher" and a scale of kd_jax/config/recipes.py. At 128x128 all images are used, for a
GPU; at "small", "lite" and "laptop" 20,000 of them, 100 of each class, for two CPU cores. At "smoke" the images are
handwritten digits.
"""

from kd_jax.config import base, recipes
from kd_jax.errors import choose

EPOCHS = {"": 40, "small": 10, "lite": 10, "laptop": 6, "smoke": 2}


def get_config(arg="student"):
    role, _, scale = arg.partition(",")
    networks = {"student": recipes.student, "teacher": recipes.teacher}
    config = base.alone(choose("the network to pretrain", role, networks)(scale))
    config.name = f"pretrained-{config.model.name}"
    config.model.pretrained = ""
    config.train.epochs, config.train.steps = EPOCHS[scale], 0
    if scale != "smoke":
        config.dataset.source = "folder"
        config.dataset.name = "tinyimagenet32"
        config.dataset.holdout = 0.02
        config.dataset.train_images = 20_000 if scale else 0
    return config
