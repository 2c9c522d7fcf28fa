"""ImageNet as papers have it: ResNet-34 teaches ResNet-18, or ResNet-50 MobileNetV1, by a method as it was published.

The recipe of the benchmarks of distillation: 100 epochs of SGD at 0.1 for batches of 256, divided by 10 after 30, 60
and 90, weight decay 1e-4 on everything; random resized crops and flips, torchvision's teachers. Nothing is held out, so
that the test set, which is ImageNet's validation set, is read once, at the end. It differs from theirs in two things:
images are decoded to their center square of 256 pixels, of which crops are taken, and an evaluation sees that square at
224 pixels, whole.

    python -m kd_jax.main --config=configs/imagenet.py --config.dataset.path=FOLDER
    python -m kd_jax.main --config=configs/imagenet.py:mobilenetv1,dkd --config.dataset.path=FOLDER

FOLDER holds `train/CLASS/FILE` and `val/CLASS/FILE`, as ImageNet is usually unpacked. It streams where memory has no
room for the 250 GB of pixels; docs/scale.md says how many machines share a run. What was published for a pair stands
in kd_jax/config/numbers.py: KD has 71.03 and 71.37 for ResNet-18, 70.50 for MobileNetV1. For eight GPUs and a day.
"""

from kd_jax.config import base, recipes
from kd_jax.config.published import PUBLISHED
from kd_jax.errors import InputError, choose

PAIRS = {"resnet18": "resnet34", "mobilenetv1": "resnet50"}  # student: teacher
EPOCHS = 100


def get_config(arg=""):
    parts = arg.split(",") if arg else []
    students = [part for part in parts if part in PAIRS] or ["resnet18"]
    names = [part for part in parts if part not in PAIRS] or ["kd"]
    if len(students) > 1 or len(names) > 1:
        raise InputError(f"the config's argument is {arg!r}; expected one of {', '.join(PAIRS)}, and a method")
    (student,), (name,) = students, names
    record = choose("the method", name, {key: each for key, each in PUBLISHED.items() if each.imagenet})
    config = network(student)
    if record.teacher:
        teacher = network(PAIRS[student])
        config = base.with_teacher(config, teacher)
        config.teacher.kind = "weights"
        config.teacher.path = recipes.PRETRAINED[PAIRS[student]]
    recipes.put(config, record, pair=f"{PAIRS[student]}-{student}", imagenet=True)
    config.name = f"imagenet-{student}-{name}"
    return config


def network(name):
    """A network of the pairs, trained alone."""
    config = base.alone(base.get_config())
    config.name = config.model.name = name
    config.model.width, config.model.image_size = 1.0, 224
    config.precision = "bfloat16"
    config.dataset.source, config.dataset.path, config.dataset.image_size = "folder", "imagenet", 256
    config.dataset.normalize, config.dataset.augment, config.dataset.holdout = "imagenet", "resized_crop", 0.0
    config.dataset.skip_unreadable = True
    config.optimizer.learning_rate, config.optimizer.weight_decay = 0.1, 1e-4
    config.optimizer.schedule, config.optimizer.milestones = "step", (30, 60, 90)
    config.optimizer.warmup_epochs = 0.0
    config.train.epochs, config.train.batch_size = EPOCHS, 256
    return config
