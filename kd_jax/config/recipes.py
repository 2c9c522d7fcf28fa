"""The networks and the recipe that the experiments share, at five scales: one argument chooses.

* "": ResNet-50 teaches ResNet-18 on CIFAR-10 at 128x128, as in the project that this one reimplements. Both start from
  ImageNet weights. For a GPU.
* "small": ResNet-56 teaches ResNet-20 at 32x32.
* "lite": EfficientNet-Lite2 teaches EfficientNet-Lite0 at 64x64, on 4,000 of the images. Both start from ImageNet
  weights. For two CPU cores and hours.
* "laptop": ResNet-20 teaches a ResNet-8 of half the width, on 10,000 of the images. For two CPU cores.
* "smoke": small networks on handwritten digits, in seconds, to see that everything works.

What an experiment compares is trained by one recipe: SGD with momentum, a cosine schedule, the same epochs.
"""

from typing import Any

from kd_jax.config import base
from kd_jax.config.published import PUBLISHED
from kd_jax.config.record import Published, fitted
from kd_jax.config.tree import ConfigDict
from kd_jax.errors import InputError, choose

SCALES: dict[str, dict[str, Any]] = {
    "": {"student": ("resnet18", 1.0), "teacher": ("resnet50", 1.0), "size": 128, "epochs": 60},
    "small": {"student": ("resnet20", 1.0), "teacher": ("resnet56", 1.0), "size": 32, "epochs": 60},
    "lite": {
        "student": ("tf_efficientnet_lite0", 1.0),
        "teacher": ("tf_efficientnet_lite2", 1.0),
        "size": 64,
        "epochs": 6,
    },
    "laptop": {"student": ("resnet8", 0.5), "teacher": ("resnet20", 1.0), "size": 32, "epochs": 1},
    "smoke": {"student": ("resnet8", 0.25), "teacher": ("resnet14", 0.25), "size": 16, "epochs": 4},
}
# Of a size between the two, for schemes that have one.
ASSISTANTS = {
    "": ("resnet34", 1.0),
    "small": ("resnet32", 1.0),
    "lite": ("tf_efficientnet_lite1", 1.0),
    "laptop": ("resnet14", 1.0),
    "smoke": ("resnet8", 0.5),
}

# ImageNet weights on the Hugging Face hub: torchvision's (IMAGENET1K_V1), and Google's; those of two at one revision.
PRETRAINED = {
    "resnet18": "timm/resnet18.tv_in1k@590dfdd48494d2316a8385e1ca7fbec3b9359b35",
    "resnet34": "timm/resnet34.tv_in1k",
    "resnet50": "timm/resnet50.tv_in1k@78f3ecfdb38e06d9b8397f662e7ab8fee96026fa",
    "tf_efficientnet_lite0": "timm/tf_efficientnet_lite0.in1k",
    "tf_efficientnet_lite1": "timm/tf_efficientnet_lite1.in1k",
    "tf_efficientnet_lite2": "timm/tf_efficientnet_lite2.in1k",
}


def student(arg: str) -> ConfigDict:
    """The student at the scale `arg`, trained alone."""
    return _network(arg, "student")


def teacher(arg: str) -> ConfigDict:
    """The teacher at the scale `arg`, trained alone."""
    return _network(arg, "teacher")


def assistant(arg: str) -> ConfigDict:
    """A network between the two at the scale `arg`, trained alone."""
    return _network(arg, "assistant")


def distilled(arg: str, method: dict) -> ConfigDict:
    """The student at the scale `arg`, taught by the teacher through the terms of `method` beside the labels."""
    config = base.with_teacher(student(arg), teacher(arg))
    config.method = ConfigDict({"cross_entropy": {"weight": 1.0}, **method})
    return config


def published(name: str, arg: str, *, imagenet: bool = False) -> ConfigDict:
    """The student at the scale `arg`, taught by the teacher through what `published.PUBLISHED` has under a name.

    Args:
      name: of the record.
      arg: the scale.
      imagenet: through the terms for ImageNet in the place of those for CIFAR-100; the data stays the scale's.
    Raises:
      InputError: for an unknown name or scale, and where no terms for ImageNet were found.
    """
    record = choose("the method", name, PUBLISHED)
    if imagenet and record.imagenet is None:
        known = ", ".join(other for other in PUBLISHED if PUBLISHED[other].imagenet)
        raise InputError(f"{name} has no terms for ImageNet; expected no 'imagenet', or one of: {known}")
    config = distilled(arg, {}) if record.teacher else base.alone(student(arg))
    put(config, record, scale=arg, imagenet=imagenet)
    config.name = name
    return config


def put(config: ConfigDict, record: Published, *, pair: str = "", scale: str = "", imagenet: bool = False) -> None:
    """Makes the method of a config what a record has, fitted to the config's epochs, with the keys that are part of it.

    Args:
      pair: of `pairs.PAIRS`, whose settings it gets; "" for the usual ones.
      scale: of SCALES, for which some options are smaller.
      imagenet: the terms for ImageNet in the place of those for CIFAR-100.
    """
    terms, whole = record.terms(pair, imagenet=imagenet)
    own, smaller = epochs(config), record.smaller.get(scale, {})
    config.method = ConfigDict(
        {term: {**options, **smaller.get(term, {})} for term, options in fitted(terms, own, own / whole).items()}
    )
    for key, value in record.others.items():
        section, _, own_key = key.rpartition(".")
        config[section][own_key] = value


def kd(arg: str) -> ConfigDict:
    """The student at the scale `arg`, taught by KD; weights and temperature of Tian et al., ICLR 2020."""
    return taught(student(arg), teacher(arg))


def taught(student: ConfigDict, teacher: ConfigDict) -> ConfigDict:
    """The student, taught by that teacher through KD; weights and temperature as in `kd`."""
    config = base.with_teacher(student, teacher)
    config.method = ConfigDict(PUBLISHED["kd"].cifar100)
    return config


def epochs(config: ConfigDict) -> int:
    """How many epochs a run has at least."""
    train, images = config.train, config.dataset.train_images * (1 - config.dataset.holdout)
    return int(train.steps * train.batch_size / images) if train.steps and images else int(train.epochs)


def _network(arg: str, role: str) -> ConfigDict:
    if arg not in SCALES:
        raise InputError(f"the config's argument is {arg!r}; expected nothing, 'small', 'lite', 'laptop' or 'smoke'")
    scale = SCALES[arg]
    config = base.get_config()
    config.model.name, config.model.width = ASSISTANTS[arg] if role == "assistant" else scale[role]
    config.name = config.model.name
    config.dataset.image_size = scale["size"]
    config.train.epochs = scale["epochs"]
    if arg != "smoke":
        config.dataset.source = "tfds"
        config.dataset.name = "cifar10"
        config.dataset.normalize = "imagenet"
        config.dataset.augment = "crop_flip"
        config.train.batch_size = 128
        config.train.clip = 5.0
    if arg == "laptop":
        config.dataset.train_images = 10_000
        config.train.batch_size = 64
        config.train.steps = 936  # 6 epochs, and as many steps where only some of the images have a label
        config.optimizer.learning_rate = 0.4  # of 0.05 to 1.6, chosen on the validation split for cross entropy alone
        config.evaluate.every_epochs = 1000  # the end is enough
    if arg == "lite":
        config.dataset.train_images = 4_000
        config.dataset.normalize = "dataset"
        config.model.normalize = "published"
        config.train.batch_size = 64
        config.optimizer.name = "adamw"
        config.optimizer.learning_rate = 1e-3
        config.optimizer.weight_decay = 0.01
        config.evaluate.every_epochs = 1000  # the end is enough
    if arg == "":
        config.precision = "bfloat16"
    if arg in ("", "lite"):
        config.model.pretrained = PRETRAINED.get(config.model.name, "")
    return config
