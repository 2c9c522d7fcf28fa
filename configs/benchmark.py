"""The benchmark of distillation, a run per argument: PAIR,METHOD[,published][,laptop][,EPOCHS].

    kd_jax table --rows=cifar100 [--pairs=resnet32x4-resnet8x4] [--methods=kd,dkd] [--seeds=5] [--preset=published]
    python -m kd_jax.main --config=configs/benchmark.py:resnet32x4-resnet8x4,kd

PAIR is a name of `kd_jax/config/pairs.py`. METHOD is a name of `kd_jax/config/published.py`, whose terms it has, with
what was published for that pair where it differs; or one of `CONTROLS`.

The recipe for CIFAR is that of Tian et al., ICLR 2020: 240 epochs of SGD at 0.05, for MobileNets and ShuffleNets 0.01,
divided by 10 after 150, 180 and 210; batches of 64, weight decay 5e-4 on everything, random crops and flips. What a
method trains beside the student is trained by the same optimizer. Two presets, whose numbers do not compare:

* honest, where the argument does not say: a tenth is held out for validation. Reported are the last epoch and, of those
  that are evaluated, the one that is best on the validation split.
* "published", as papers do: all images are trained on, the last, smaller batch of an epoch too, and the test set is
  read after every epoch. Reported are the last epoch and the one that is best on the test set, which selects nothing.

For ImageNet it is that of configs/imagenet.py. EPOCHS is another length, to which milestones and what methods count in
epochs are fitted. "laptop" is for CIFAR on two CPU cores: honest, with 10,000 images, 15 epochs, and a cosine from a
learning rate that was chosen on the validation split, for cross entropy alone. There the teacher's weights are given,
--config.teacher.path=FILE; its own run, PAIR,teacher,laptop, has all images and twice the epochs.
"""

from kd_jax.config import base, experiment, recipes
from kd_jax.config.pairs import PAIRS
from kd_jax.config.published import PUBLISHED
from kd_jax.errors import InputError, choose

PRESETS = ("honest", "published")  # the first is not named
# Rows that are no method: the teacher alone, and what a difference is to be seen beside.
CONTROLS = {
    "teacher": "teacher alone",
    "again": "cross entropy, other seeds",  # which `kd_jax table` chooses
    "random_teacher": "KD, an untrained teacher",
    "kd_twice": "KD, twice the epochs",
}
ROWS_OF = {"again": "cross_entropy", "random_teacher": "kd", "kd_twice": "kd"}  # whose terms they have
METHODS = {name: record.title for name, record in PUBLISHED.items()} | CONTROLS  # and what a table calls them
EPOCHS, LAPTOP_EPOCHS = 240, 15
SLOW = ("mobilenetv2_half", "shufflenetv1", "shufflenetv2")
OF_RECIPE = ("optimizer.learning_rate", "optimizer.nesterov")  # of a method's own recipe, where all have one
LAPTOP_RATE = 0.2  # of 0.05, 0.1, 0.2 and 0.4 for ResNet-8, CIFAR-10, two seeds


def get_config(arg="resnet56-resnet20,kd"):
    name, _, rest = arg.partition(",")
    method, *others = rest.split(",")
    pair = choose("the pair", name, PAIRS)
    choose("the method", method, METHODS)
    words = [other for other in others if not other.isdecimal()]
    for word in words:
        choose("a part of the config's argument", word, ("published", "laptop"))
    scale = "imagenet" if pair.data == "imagenet" else "laptop" if "laptop" in words else ""
    lengths = [int(other) for other in others if other.isdecimal()]
    if (scale and len(words) > (scale == "laptop")) or len(lengths) > 1 or 0 in lengths:
        said = f"{name},{method} with 'published' or, for CIFAR, 'laptop', and one number of epochs"
        raise InputError(f"the config's argument is {arg!r}; expected {said}")

    def make(network):
        made = _network(network, pair.data, scale, "published" in words)
        if lengths:
            share = lengths[0] / made.train.epochs
            made.optimizer.milestones = tuple(max(1, round(share * epoch)) for epoch in made.optimizer.milestones)
            made.train.epochs = lengths[0]
        return made

    config = make(pair.teacher if method == "teacher" else pair.student)
    config.name = f"{name}-{method}"
    if method == "teacher":
        if scale == "laptop":
            config.train.epochs, config.dataset.train_images = 2 * config.train.epochs, 0
        return config
    record = PUBLISHED[ROWS_OF.get(method, method)]
    others = {key: value for key, value in record.others.items() if key not in OF_RECIPE}
    terms_of = {"pair": pair.like, "scale": scale, "imagenet": scale == "imagenet"}
    recipes.put(config, record._replace(others=others), **terms_of)
    if method == "kd_twice":
        config.train.epochs *= 2
        config.optimizer.milestones = tuple(2 * epoch for epoch in config.optimizer.milestones)
    if record.teacher:
        base.with_teacher(config, make(pair.teacher))
        config.teacher.config.name = f"{name}-teacher"
        config.teacher.cache = "auto"
        if scale:
            config.teacher.kind, config.teacher.path = "weights", recipes.PRETRAINED.get(pair.teacher, "")
        if pair.data == "cifar10":  # whose published weights are of networks with this shortcut
            config.teacher.config.model.shortcut = "pad"
        if method == "random_teacher":  # whose averages are those of nothing
            config.teacher.kind, config.teacher.path, config.teacher.mode = "untrained", "", "train"
    return config


def methods(data):
    """The rows of a table of a data set: those of ImageNet have published terms, and published teachers."""
    if data != "imagenet":
        return list(METHODS)
    return [name for name, record in PUBLISHED.items() if record.imagenet] + [n for n in CONTROLS if n != "teacher"]


def _network(name, data, scale, published):
    """A network of a pair, trained alone."""
    if scale == "imagenet":
        return experiment("imagenet").network(name)
    config = base.alone(base.get_config())
    config.model.name, config.model.width = name, 1.0
    if name == "resnet50":
        config.model.stem = "cifar"
    config.dataset.source, config.dataset.name, config.dataset.image_size = "tfds", data, 32
    config.dataset.augment = "crop_flip"
    config.dataset.holdout = 0.0 if published else 0.1
    config.optimizer.learning_rate, config.optimizer.warmup_epochs = 0.01 if name in SLOW else 0.05, 0.0
    config.optimizer.schedule, config.optimizer.milestones = "step", (150, 180, 210)
    config.train.epochs, config.train.batch_size = EPOCHS, 64
    if published:
        config.train.last_batch, config.evaluate.test_every_epoch = "keep", True
    elif scale == "laptop":
        config.dataset.train_images = 10_000
        config.optimizer.learning_rate, config.optimizer.schedule = LAPTOP_RATE, "cosine"
        config.train.epochs, config.train.clip = LAPTOP_EPOCHS, 5.0
        config.evaluate.every_epochs = 5
        if data == "cifar10":  # as the published teachers read it
            config.dataset.normalize = "imagenet"
    else:
        config.evaluate.select = "both"
    return config
