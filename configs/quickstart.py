"""A first run, in seconds on a laptop: a small student on handwritten digits, of which only 200 have a label.

    bash launch/quickstart.sh
    python -m kd_jax.main --config=configs/quickstart.py[:ROW[,smoke]]

Small as it is, with "smoke" it takes a few steps only. The argument's first part is a row of the quickstart's table.
Every row has the same student, recipe and number of steps:

* alone: the 200 labeled images, by cross entropy.
* kd_same, rkd_same: the same 200 images, with a teacher that saw every label of the training set.
* kd, rkd (the default): the other training images beside them, without a label.
"""

from kd_jax.config import base
from kd_jax.config.tree import ConfigDict
from kd_jax.errors import InputError, choose

METHODS = {
    "alone": {"cross_entropy": {"weight": 1.0}},
    "kd": {"cross_entropy": {"weight": 0.1}, "kd": {"weight": 0.9, "temperature": 4.0}},
    "rkd": {
        "cross_entropy": {"weight": 1.0},
        "rkd_distance": {"weight": 25.0},
        "rkd_angle": {"weight": 50.0},
    },
}
ROWS = ("alone", "kd_same", "kd", "rkd_same", "rkd")


def get_config(arg: str = "rkd") -> ConfigDict:
    parts = [choose("a part of the config's argument", part, (*ROWS, "small", "smoke")) for part in arg.split(",")]
    rows, smoke = [part for part in parts if part in ROWS], "smoke" in parts
    if len(rows) > 1:
        raise InputError(f"the config's argument names {' and '.join(rows)}; expected one row")
    (arg,) = rows or ["rkd"]
    config = base.get_config()
    config.name = f"quickstart-{arg}"
    config.dataset.labeled = 200
    config.dataset.unlabeled = arg in ("kd", "rkd")
    config.train.steps = 30 if smoke else 600
    config.train.batch_size = 64
    config.evaluate.every_epochs = 1000  # the end is enough
    config.checkpoint.every_epochs = 50
    config.log.every_steps = 100
    config.optimizer.warmup_epochs = 0.0
    config.optimizer.learning_rate = 1.0
    config.train.clip = 1.0  # the losses differ in scale; a bounded gradient makes one rate suit them all
    if arg != "alone":
        base.with_teacher(config, _teacher(epochs=1 if smoke else 20))
    config.method = ConfigDict(METHODS[arg.removesuffix("_same")])
    return config


def _teacher(epochs: int) -> ConfigDict:
    config = base.get_config()
    config.name = "quickstart-teacher"
    config.model.width = 1.0
    config.train.epochs = epochs
    config.evaluate.every_epochs = 5
    config.checkpoint.every_epochs = 5
    return config
