"""Every key of a run's configuration, with its default: a small network trained alone on handwritten digits.

An experiment's file starts from `get_config()` and overrides a few keys. Values are numbers, strings, booleans,
dictionaries, and lists (written as tuples where the command line should be able to replace them).
"""

from kd_jax.config.tree import ConfigDict, placeholder
from kd_jax.errors import choose


def get_config(arg: str = "") -> ConfigDict:
    """Returns the complete tree: a small network already, so "small" is the default; "smoke" has two epochs."""
    choose("the config's argument", arg, ("", "small", "smoke"))
    config = ConfigDict()
    config.name = "base"  # names the run's folder; not part of its identity
    config.seed = 0  # of initialization, data order, augmentation; never of the held-out split
    # Of the computation: "float32" or "bfloat16" ("float64", with JAX_ENABLE_X64=1, is for checks).
    config.precision = "float32"
    config.deterministic = False  # deterministic kernels on a GPU, at a cost in speed; a CPU always is

    config.dataset = dataset = ConfigDict()
    dataset.source = "digits"  # "digits" (of the package), "folder" (class folders of images), "tfds"
    dataset.name = "cifar10"  # for "tfds": any image classification set
    dataset.path = ""  # for "folder": the folder; for "tfds": where its data lies ("": the TFDS default)
    dataset.image_size = 16  # pixels; images are resized inside the step
    dataset.normalize = "dataset"  # mean and deviation: "dataset" (its training images') or "imagenet"
    dataset.holdout = 0.1  # fraction of the training images kept for validation; the same for every seed
    dataset.train_images = 0  # use only so many training images, class-balanced; 0: all
    dataset.labeled = 0  # only so many of them keep their label, class-balanced; 0: all
    dataset.unlabeled = True  # keep the images that have no label
    dataset.skip_unreadable = False  # count and skip images that cannot be decoded, instead of stopping
    dataset.augment = "crop"  # "none", "crop", "crop_flip" or "randaugment" (after crop and flip)
    dataset.extra_views = ()  # for methods that compare views of an image: the augmentation of each further one

    config.model = model = ConfigDict()
    model.name = "resnet8"  # see kd_jax.models.NETWORKS
    # Options of the network; None: its own default. A network's other options can be added here.
    model.width = 0.25  # factor on every number of channels
    model.stem = placeholder(str)  # "cifar" (small images) or "imagenet" (64 pixels and more)
    model.head = placeholder(str)  # "linear", or "mlp" (Linear 1000, dropout, batch norm, ReLU before the last layer)
    model.shortcut = placeholder(str)  # "conv", or "pad" (no parameters)
    # Start from these weights, "": none: a .safetensors, .pth, .pt or .th file, a hub id OWNER/NAME@REVISION, a run
    model.pretrained = ""
    # "none", "backbone" (batch norms and head train) or "backbone_and_norms" (only the head trains)
    model.freeze = "none"

    config.teacher = teacher = ConfigDict()
    # "none", "config" (the run below, trained when missing), "run" (a finished run), "weights" (of the model below)
    teacher.kind = "none"
    teacher.path = ""  # for "run": its folder; for "weights": as model.pretrained
    teacher.mode = "eval"  # "eval", or "train": by the batch's statistics, and with dropout
    teacher.config = ConfigDict()  # for "config": a whole tree like this one; its `model` is the teacher

    config.method = ConfigDict()  # {term: {"method": name, "weight": 1.0, options}}; see kd_jax.methods.create
    config.method.cross_entropy = ConfigDict({"weight": 1.0})

    config.optimizer = optimizer = ConfigDict()  # of the student, and of what a term trains unless that says otherwise
    optimizer.name = "sgd"  # "sgd", "adam" (decay added to the gradient) or "adamw" (decay apart from it)
    optimizer.learning_rate = 0.1  # the schedule's highest
    optimizer.momentum = 0.9  # for "sgd"
    optimizer.nesterov = False  # for "sgd"
    optimizer.b1 = 0.9  # for "adam" and "adamw"
    optimizer.b2 = 0.999
    optimizer.weight_decay = 5e-4
    optimizer.decay_norms_and_biases = True  # False: weight decay on kernels only
    optimizer.schedule = "cosine"  # "constant", "cosine", "step" or "exponential"; each after a linear warmup
    optimizer.warmup_epochs = 1.0
    optimizer.milestones = (150, 180, 210)  # for "step": the epochs at which the rate falls by `gamma`
    optimizer.gamma = 0.1  # for "step"; for "exponential" the factor per epoch

    config.train = train = ConfigDict()
    train.epochs = 30
    train.steps = 0  # train for so many steps, whatever the size of an epoch; 0: `epochs` decides
    train.batch_size = 64  # of all devices together
    train.steps_per_call = 0  # steps compiled into one call; 0 chooses (1 on a CPU, where more are slower)
    train.ema = 0.0  # decay of a moving average of the student, which is then what is evaluated; 0: none
    train.label_smoothing = 0.0
    train.mixup = 0.0  # alpha of the Beta distribution; 0: none
    train.clip = 0.0  # largest global norm of the student's gradient; 0: none
    # Micro-batches that a batch is computed in, one after another, to save memory; batch statistics, means over the
    # labeled images and relations between images are then those of a micro-batch.
    train.accumulate = 1

    config.evaluate = evaluate = ConfigDict()
    evaluate.every_epochs = 1
    evaluate.batch_size = 500
    evaluate.select = "last"  # which checkpoint the test set sees: "last" or "best-validation"

    config.checkpoint = checkpoint = ConfigDict()
    checkpoint.every_epochs = 1
    checkpoint.keep = 1  # so many of the latest, beside the best

    config.log = log = ConfigDict()
    log.every_steps = 50
    log.wandb = ""  # mirror the run to this project of Weights & Biases; "": no. A teacher's config has its own
    if arg == "smoke":
        train.epochs = 2
    return config


def alone(config: ConfigDict) -> ConfigDict:
    """Makes a config one of plain training: no teacher, cross entropy on the labels."""
    config.teacher.kind = "none"
    config.method = ConfigDict({"cross_entropy": {"weight": 1.0}})
    return config


def with_teacher(config: ConfigDict, teacher: ConfigDict) -> ConfigDict:
    """Makes `teacher` the config of `config`'s teacher.

    It reads the same data in the same precision: an override of the outer key reaches it. Labels are its own: a
    teacher sees all of them unless `config.teacher.config.dataset.labeled` says otherwise.
    """
    for key in config.dataset:
        if key not in ("labeled", "unlabeled", "augment", "extra_views"):
            teacher.dataset[key] = config.dataset.get_ref(key)
    teacher.precision = config.get_ref("precision")
    teacher.deterministic = config.get_ref("deterministic")
    config.teacher.kind = "config"
    config.teacher.config = teacher
    return config
