"""Every key of a run's configuration: its default, what it means, and which values it may have.

`config.base.get_config`, the checks of a config, and the documentation of its keys come from `KEYS`. Options of
networks and methods are declared where they are taken, by annotations of the same kinds, as in
`width: Annotated[float, WIDTH] = 1.0`. Names that can be registered (of networks, methods, sources, optimizers, kinds
of teachers) are strings here, and are looked up by their owners.
"""

import inspect
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, NamedTuple

from kd_jax.errors import InputError, choose, shown

LARGEST = 2**31 - 1  # steps are counted in 32 bits
FINITE = 1e38  # about the largest float32


class Kind(NamedTuple):
    """What a value may be."""

    good: Callable[[Any], bool]
    expected: str  # for people: "a number above 0"

    def check(self, what: str, value: Any) -> None:
        """Raises InputError for a value that is not of this kind."""
        if not self.good(value):
            large = type(value) in (int, float) and abs(value) > LARGEST
            most = f", of at most {LARGEST} where it is whole and {FINITE:g} otherwise" if large else ""
            raise InputError(f"{what} is {shown(value)}; expected {self.expected}{most}")


class Key(NamedTuple):
    """A key of the configuration."""

    default: Any
    kind: Kind
    what: str  # what it means
    later: bool = False  # added when there were runs already: an identity has it only with another value


def whole(least: int = -LARGEST, most: int = LARGEST) -> Kind:
    """Whole numbers in a range."""
    expected = "a whole number"
    if least > -LARGEST:
        expected += f" from {least} to {most}" if most != LARGEST else f" of at least {least}"
    return Kind(lambda v: type(v) is int and least <= v <= most, expected)


def number(
    *,
    least: float = -FINITE,
    above: float = -FINITE * 2,
    below: float = FINITE * 2,
    most: float = FINITE,
    expected: str = "a finite number",
) -> Kind:
    """Finite numbers in a range, whole or not; `expected` says which."""

    def good(value: Any) -> bool:
        fits = type(value) is float or (type(value) is int and abs(value) <= LARGEST)  # an array of it has 32 bits
        return fits and least <= value <= most and above < value < below  # never true of NaN

    return Kind(good, expected)


def text(most: int = 4096) -> Kind:
    """One line of text."""
    return Kind(
        lambda v: type(v) is str and len(v) <= most and "\0" not in v and len(v.splitlines()) <= 1,
        f"a string of one line, of at most {most} characters",
    )


def listing(item: Kind, *, least: int = 0, most: int = 1000, expected: str = "") -> Kind:
    """Lists, or tuples, of values of one kind."""
    length = f"{least} to {most} values"
    return Kind(
        lambda v: isinstance(v, list | tuple) and least <= len(v) <= most and all(map(item.good, v)),
        expected or f"a list of {length}, each {item.expected}",
    )


def optional(kind: Kind) -> Kind:
    """The same, or None."""
    return Kind(lambda v: v is None or kind.good(v), f"{kind.expected}, or none")


ANYTHING = Kind(lambda v: True, "anything")
OF_NETWORK = Kind(lambda v: True, "what the network says, which checks it; may be absent")
FLAG = Kind(lambda v: type(v) is bool, "true or false")
SECTION = Kind(lambda v: isinstance(v, Mapping), "a section")
ABOVE_0 = number(above=0, expected="a number above 0")
AT_LEAST_0 = number(least=0, expected="a number of at least 0")
FRACTION = number(least=0, below=1, expected="a number of at least 0 and below 1")
WIDTH = number(above=0, most=64, expected="a factor above 0 and at most 64")
SIZE = whole(1, 65536)  # of a layer
NAME = Kind(
    lambda v: text(100).good(v) and bool(v.strip()) and "/" not in v and not v.startswith("."),
    "the start of a folder's name, of at most 100 characters, without '/'",
)


class Traced:
    """Marks an option of a loss or method as one that a step is told, as in `Annotated[float, ABOVE_0, TRACED]`.

    It may be any number, or a tuple of them, without another program being compiled. So neither Python's control flow
    nor a shape may depend on it.
    """


TRACED = Traced()
# Annotations of options that many losses have.
Temperature = Annotated[float, ABOVE_0, TRACED]
Factor = Annotated[float, TRACED]
NonNegative = Annotated[float, AT_LEAST_0, TRACED]


def class_weights(value: Any) -> Any:
    """`train.class_weights`: a word of `WEIGHINGS`, or a list of numbers, which "1,2.5,4" is too.

    Raises:
      ValueError, TypeError: for anything else.
    """
    if isinstance(value, str) and value in WEIGHINGS:
        return value
    numbers = [float(x) for x in value.strip("[()] ").split(",")] if isinstance(value, str) else value
    if not (numbers and listing(AT_LEAST_0, most=LARGEST).good(numbers)):
        raise ValueError
    return numbers


def _are_class_weights(value: Any) -> bool:
    try:
        return bool(class_weights(value))
    except (ValueError, TypeError):
        return False


WEIGHINGS = ("none", "balanced", "effective")
CLASS_WEIGHTS = Kind(
    _are_class_weights,
    f"one of {', '.join(WEIGHINGS)}, or a number of at least 0 for each class, as in '1,2.5,4'",
)

KEYS: dict[str, Key] = {
    "name": Key("base", NAME, "names the run's folder; not part of its identity"),
    "seed": Key(0, whole(0, 2**32 - 1), "of initialization, data order, augmentation; never of the held-out split"),
    "precision": Key(
        "float32",
        text(),
        'of the computation: "float32" or "bfloat16" ("float64", with JAX_ENABLE_X64=1, is for checks)',
    ),
    "deterministic": Key(False, FLAG, "deterministic kernels on a GPU, at a cost in speed; a CPU always is"),
    # The images.
    "dataset.source": Key(
        "digits",
        text(),
        '"digits" (of the package), "folder" (class folders of images), "tar" (archives: WebDataset\'s, or of class'
        ' folders), "npz" (a file of arrays), "hf" (the Hugging Face hub, or parquet files), "tfds"',
    ),
    "dataset.name": Key(
        "cifar10", text(), 'for "tfds": any image classification set; for "hf": OWNER/NAME[/CONFIG][@REVISION]'
    ),
    "dataset.path": Key(
        "",
        text(),
        'for "folder", "npz", "tar": the folder, the file, a file or a folder or a pattern; for "hf": parquet files in'
        ' the place of a name; for "tfds": where its data lies ("": the TFDS default)',
    ),
    "dataset.class_names": Key(
        "",
        text(),
        'a file with the name of a class in each line, in the order of the labels; "": as the source names them. Not'
        " part of a run's identity",
        later=True,
    ),
    "dataset.image_size": Key(16, whole(1, 4096), "pixels; images are resized inside the step"),
    "dataset.normalize": Key("dataset", text(), 'mean and deviation: "dataset" (its training images\') or "imagenet"'),
    "dataset.holdout": Key(
        0.1,
        number(least=0, below=1, expected="a fraction of at least 0 and below 1"),
        "fraction of the training images kept for validation, the same for every seed; where the data has no validation"
        " split",
    ),
    "dataset.train_images": Key(0, whole(0), "use only so many training images, class-balanced; 0: all"),
    "dataset.labeled": Key(0, whole(0), "only so many of them keep their label, class-balanced; 0: all"),
    "dataset.unlabeled": Key(True, FLAG, "keep the images that have no label"),
    "dataset.label_free": Key(
        False,
        FLAG,
        'no image has a label, and there are no classes: of a "folder" or "tar" all images, wherever they lie in it'
        " (or in folders train and test)",
        later=True,
    ),
    "dataset.skip_unreadable": Key(False, FLAG, "count and skip images that cannot be decoded, instead of stopping"),
    "dataset.stream": Key(
        "auto",
        text(),
        'of a "folder", "hf" and "tfds": "always", "never", or "auto": images are read at every step where they take'
        " more than half of the memory. Not part of a run's identity, as it changes no result",
        later=True,
    ),
    "dataset.workers": Key(
        0, whole(0, 1024), "processes that read what streams; 0: threads. Not part of a run's identity", later=True
    ),
    "dataset.sampling": Key(
        "shuffle",
        text(),
        'of an epoch: "shuffle", every image once; "balanced", as many, but every class equally often: images of small'
        " classes come again, of large ones a part. Images without a label come once",
        later=True,
    ),
    "dataset.augment": Key(
        "crop", text(), '"none", "crop", "crop_flip", "randaugment" (after crop and flip), or "resized_crop" (and flip)'
    ),
    "dataset.least_area": Key(
        0.08,
        number(above=0, most=1, expected="a share above 0 and at most 1"),
        'for "resized_crop": of the image, what the smallest crop covers',
        later=True,
    ),
    "dataset.cutout": Key(
        0.0, FRACTION, "side of a square that is cut out of each image, by the image's side; 0: none", later=True
    ),
    "dataset.extra_views": Key(
        (), listing(text()), "for methods that compare views of an image: the augmentation of each further one"
    ),
    # The network. The options from `width` on are the network's, and None is its own default; others can be added.
    "model.name": Key("resnet8", text(), "see kd_jax.models.NETWORKS"),
    "model.width": Key(0.25, OF_NETWORK, "factor on every number of channels"),
    "model.stem": Key(None, OF_NETWORK, '"cifar" (small images) or "imagenet" (64 pixels and more)'),
    "model.head": Key(
        None,
        OF_NETWORK,
        '"linear", or "mlp" (Linear 1000, dropout, batch norm, ReLU before the last layer)',
    ),
    "model.shortcut": Key(None, OF_NETWORK, '"conv", or "pad" (no parameters)'),
    "model.image_size": Key(
        0, whole(0, 4096), "pixels that it reads, to which images are resized; 0: dataset.image_size", later=True
    ),
    "model.normalize": Key(
        "",
        text(),
        'by which mean and deviation images are normalized for it: "imagenet", "half" (both 0.5), "published" (as for'
        ' its published weights); "": what dataset.normalize says',
        later=True,
    ),
    "model.quantize": Key(
        "",
        text(),
        '"int8": it is trained and evaluated as with 8-bit weights and activations, simulated; "": it is not',
        later=True,
    ),
    "model.pretrained": Key(
        "",
        text(),
        'start from these weights, "": none: a file (safetensors, or of PyTorch), a hub id OWNER/NAME@REVISION, a run',
    ),
    "model.freeze": Key(
        "none",
        text(),
        '"none", "backbone" (batch norms and head train) or "backbone_and_norms" (only the head trains)',
    ),
    # The teacher.
    "teacher.kind": Key(
        "none",
        text(),
        '"none", "config" (the run below, trained when missing), "run" (a finished one), "weights" (of that model), '
        '"untrained" (that model as it begins), "exported" (a program: a folder of `kd_jax import-teacher`), '
        '"ensemble" (of the members below), "mean" (the student\'s own moving average, see train.ema)',
    ),
    "teacher.path": Key("", text(), 'for "run" and "exported": its folder; for "weights": as model.pretrained'),
    "teacher.mode": Key("eval", text(), '"eval", or "train": by the batch\'s statistics, and with dropout'),
    "teacher.epoch": Key(
        0,
        whole(0, 10**6),
        'for "config" and "run": it teaches as it was after so many epochs, if that is saved (0: what the run tested)',
        later=True,
    ),
    "teacher.members": Key(
        {}, SECTION, 'for "ensemble": {name: a section like this one}, each a teacher of its own', later=True
    ),
    "teacher.cache": Key(
        "none",
        text(),
        'what the teacher says in training is kept: "recording" (at each step, for every run with this seed, data,'
        ' augmentation and batch size), "views" (of each crop and flip, for every run with this data), "auto" (what'
        ' costs less); "none": it runs in every step. No result depends on it',
        later=True,
    ),
    "teacher.top_k": Key(
        0, whole(0), "of the cache: of many classes only so many logits are kept, the largest; 0: all", later=True
    ),
    "teacher.config": Key({}, SECTION, 'for "config": a whole tree like this one; its `model` is the teacher'),
    # The loss.
    "method": Key(
        {"cross_entropy": {"weight": 1.0}},
        SECTION,
        '{term: {"method": name, "weight": 1.0, options}}; see kd_jax.methods.create',
    ),
    # The optimizer of the student, and of what a term trains unless that says otherwise.
    "optimizer.name": Key(
        "sgd",
        text(),
        '"sgd", "adam" (decay added to the gradient), "adamw" (decay apart from it), "dot" (SGD with a momentum for'
        " the label's terms and one for the teacher's, for one more backward pass), or any of optax, as \"lion\" and"
        ' "contrib.muon"',
    ),
    "optimizer.options": Key({}, SECTION, "of an optimizer of optax, or a registered one, by name", later=True),
    "optimizer.learning_rate": Key(0.1, ABOVE_0, "the schedule's highest"),
    "optimizer.momentum": Key(0.9, FRACTION, 'for "sgd" and "dot"'),
    "optimizer.nesterov": Key(False, FLAG, 'for "sgd"'),
    "optimizer.delta": Key(
        0.075,
        FRACTION,
        "for \"dot\": by how much the momentum of the label's terms is lower and that of the teacher's higher",
        later=True,
    ),
    "optimizer.gradients": Key(
        "sum",
        text(),
        '"sum"; "project": the gradient of the teacher\'s terms loses what opposes that of the others, for one more'
        " backward pass",
        later=True,
    ),
    "optimizer.b1": Key(0.9, FRACTION, 'for "adam" and "adamw"'),
    "optimizer.b2": Key(0.999, FRACTION, 'for "adam" and "adamw"'),
    "optimizer.weight_decay": Key(5e-4, AT_LEAST_0, "pulls every parameter to zero"),
    "optimizer.decay_norms_and_biases": Key(
        True, FLAG, "False: weight decay on kernels only, not on factors, tokens and positions either"
    ),
    "optimizer.schedule": Key(
        "cosine",
        text(),
        '"constant", "cosine", "step", "exponential", or any of optax, as "linear_schedule"; after a linear warmup',
    ),
    "optimizer.schedule_options": Key(
        {},
        SECTION,
        "of a schedule of optax, or a registered one, by name; its values are factors of the rate",
        later=True,
    ),
    "optimizer.warmup_epochs": Key(
        1.0,
        number(least=0, most=1e6, expected="a number of at least 0, and at most a million"),
        "of the warmup; may be a fraction",
    ),
    "optimizer.milestones": Key(
        (150, 180, 210),
        listing(number(above=0, most=1e6), expected="a list of epochs above 0, as in (150, 180)"),
        'for "step": the epochs at which the rate falls by `gamma`',
    ),
    "optimizer.gamma": Key(
        0.1,
        number(above=0, most=1, expected="a number above 0 and at most 1"),
        'for "step"; for "exponential" the factor per epoch',
    ),
    # The run.
    "train.epochs": Key(30, whole(1, 10**6), "of the training images; counts where `steps` is 0"),
    "train.steps": Key(0, whole(0), "train for so many steps, and `epochs` counts for nothing; 0: `epochs` decides"),
    "train.batch_size": Key(64, whole(1), "of all devices together"),
    "train.last_batch": Key(
        "drop",
        text(),
        'of an epoch, where the images are no multiple of the batch: "drop" (other images in every epoch), "keep" (one'
        " step more, with a smaller batch, whose losses are means over its own images)",
        later=True,
    ),
    "train.steps_per_call": Key(
        0, whole(0), "steps compiled into one call; 0 chooses (1 on a CPU, where more are slower)"
    ),
    "train.ema": Key(
        0.0,
        FRACTION,
        "decay of a moving average of the student, which is then what is evaluated; 0: none",
    ),
    "train.label_smoothing": Key(0.0, FRACTION, "share of a label that all classes get"),
    "train.mixup": Key(
        0.0,
        number(least=0, most=1e6, expected="a number of at least 0, and at most a million"),
        "alpha of the Beta distribution; 0: none",
    ),
    "train.cutmix": Key(
        0.0,
        number(least=0, most=1e6, expected="a number of at least 0, and at most a million"),
        "as `mixup`, with rectangles of other images; with both, either is drawn for each batch",
        later=True,
    ),
    "train.class_weights": Key(
        "none",
        CLASS_WEIGHTS,
        'what an image counts for by its class in the terms that read labels: "none", "balanced" (N / (K n_c), every'
        ' class equally), "effective" (between the two, see class_weights_beta), or a number for each class. Scaled to'
        " a mean of 1 over the labeled training images",
        later=True,
    ),
    "train.class_weights_beta": Key(
        0.999, FRACTION, 'of "effective": 0 weighs all images equally, towards 1 it becomes "balanced"', later=True
    ),
    "train.clip": Key(0.0, AT_LEAST_0, "largest global norm of the student's gradient; 0: none"),
    "train.accumulate": Key(
        1,
        whole(1),
        "micro-batches that a batch is computed in, one after another, to save memory; batch statistics, means over the"
        " labeled images and relations between images are then those of a micro-batch",
    ),
    "evaluate.every_epochs": Key(1, whole(1), "the end counts too"),
    "evaluate.batch_size": Key(500, whole(1, 10**6), "of all devices together"),
    "evaluate.select": Key(
        "last",
        text(),
        'which checkpoint the test set sees: "last", "best-validation" (the earliest of equals), or "both": the last is'
        " the run's result, and result.json says beside it what the best is on the test set",
    ),
    "evaluate.metric": Key(
        "accuracy",
        text(),
        'by which one is the best on the validation split: "accuracy", "balanced_accuracy" or "macro_f1"',
        later=True,
    ),
    "evaluate.test_every_epoch": Key(
        False,
        FLAG,
        "the test set is read at every evaluation, as papers do that report their best epoch. It selects nothing, and"
        " the run is marked: result.json says the best of these accuracies beside the run's own",
        later=True,
    ),
    "checkpoint.every_epochs": Key(1, whole(1), "the end counts too"),
    "checkpoint.keep": Key(1, whole(1), "so many of the latest, beside the best"),
    "log.every_steps": Key(50, whole(1), "a line of metrics"),
    "log.wandb": Key(
        "", text(), 'mirror the run to this project of Weights & Biases; "": no. A teacher\'s config has its own'
    ),
    "log.mlflow": Key(
        "",
        text(),
        'mirror the run to this experiment of MLflow, where MLFLOW_TRACKING_URI says; "": no',
        later=True,
    ),
    "log.aim": Key(
        "", text(), 'mirror the run to the repository of Aim in this folder, or at aim://HOST:PORT; "": no', later=True
    ),
}
# Of every term of `method`; its others are options of the method.
TERM: dict[str, Key] = {
    "method": Key(None, text(), "which method; by default the term's name"),
    "weight": Key(None, number(), "a factor; by default the method's own, mostly 1"),
    "warmup_epochs": Key(
        0,
        number(least=0, most=1e6, expected="a number of epochs, or 0"),
        "over which the weight rises, by equal parts in each epoch",
    ),
    "epochs": Key(
        None,
        optional(Kind(lambda v: _is_window(v), "[first, last) in epochs, as in [0, 30] or [30, null]")),
        "outside of them the term counts nothing and its parameters wait; None for the end",
    ),
    "teacher": Key("", text(), "of several teachers: the name of the one that the term reads; '': all together"),
    "decay_epochs": Key(
        None,
        optional(Kind(lambda v: _is_window(v) and v[1] is not None, "[first, last] in epochs, as in [150, 240]")),
        "between them the weight falls to zero along half a cosine",
    ),
    "optimizer": Key(
        {},
        Kind(SECTION.good, "keys of the section `optimizer`"),
        "what its parameters' optimizer does otherwise than the student's",
    ),
}


def _is_window(value: Any) -> bool:
    if not isinstance(value, list | tuple) or len(value) != 2:
        return False
    first, last = value
    epoch = whole(0, 10**6).good
    return epoch(first) and (last is None or (epoch(last) and last > first))


def later(name: str) -> dict[str, Any]:
    """{key: default} of the keys of a section that were added when there were runs already."""
    return {key: entry.default for key, entry in section(name).items() if entry.later}


def complete(config: Any) -> Any:
    """A config with the keys that have been added since there were runs, down to those of its teachers."""
    if not isinstance(config, Mapping):
        return config
    new = {name: {**later(name), **tree} if isinstance(tree, Mapping) else tree for name, tree in config.items()}
    if isinstance(teacher := new.get("teacher"), dict):
        if "config" in teacher:
            teacher["config"] = complete(teacher["config"])
        if isinstance(members := teacher["members"], Mapping):
            teacher["members"] = {name: _complete_member(member) for name, member in members.items()}
    return new


def _complete_member(member: Any) -> Any:
    has_own = isinstance(member, Mapping) and member.get("config")
    return {**member, "config": complete(member["config"])} if has_own else member


def section(name: str) -> dict[str, Key]:
    """The keys of a section, without its name; "" for those of the top that are no sections."""
    if not name:
        return {key: entry for key, entry in KEYS.items() if "." not in key}
    return {key.removeprefix(f"{name}."): entry for key, entry in KEYS.items() if key.startswith(f"{name}.")}


def check_section(name: str, tree: Any, what: str = "") -> None:
    """Raises InputError unless `tree` has the keys of a section, each with a value of its kind; others may be there.

    Args:
      name: of the section in `KEYS`.
      tree: what stands there.
      what: how errors call it; by default `name`.
    """
    what = what or name
    if name:
        SECTION.check(what, tree)
    dot = f"{what}." if what else ""
    for key, entry in section(name).items():
        if key not in tree:
            if entry.kind is OF_NETWORK:
                continue
            raise InputError(f"the config lacks {dot}{key}; expected every key of kd_jax/keys.py")
        entry.kind.check(f"{dot}{key}", tree[key])


def check_options(
    what: str, owner: str, parameters: Mapping[str, inspect.Parameter], given: Mapping[str, Any], others: Any = ()
) -> None:
    """Raises InputError for options that a function does not take, lacks, or has of another kind than it says.

    Args:
      what: how errors call a key before its dot, as in "method.kd".
      owner: how they call the keys: "an option of method.kd".
      parameters: of the function, those that are options.
      given: {option: value}.
      others: options that are known beside these.
    """
    named = {p.name: p for p in parameters.values() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for option, value in given.items():
        if option not in named and takes_any:
            continue
        choose(owner, option, [*others, *named])
        kind_of(named[option]).check(f"{what}.{option}", value)
    for option, parameter in named.items():
        if parameter.default is parameter.empty and option not in given:
            raise InputError(f"{what}.{option} is missing; expected a value, as it has no default")


NUMBERS = number(expected="a number that is finite")
# By the type of a default: what may take its place. Any other default, None for one, allows anything.
BY_DEFAULT: dict[type, Kind] = {
    bool: FLAG,
    int: whole(),
    float: NUMBERS,
    str: text(),
    list: Kind(lambda v: isinstance(v, list | tuple), "a list"),
    tuple: Kind(lambda v: isinstance(v, list | tuple), "a list"),
}


def kind_of(parameter: inspect.Parameter) -> Kind:
    """What a parameter may be: by the `Kind` in its annotation, or else by the type of its default."""
    annotation = parameter.annotation
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        inner = [kind for kind in map(_declared, typing.get_args(annotation)) if kind]
        return optional(inner[0]) if inner else ANYTHING
    return _declared(annotation) or BY_DEFAULT.get(type(parameter.default), ANYTHING)


def traced(parameters: Iterable[inspect.Parameter], given: Mapping[str, Any]) -> dict[str, Any]:
    """{option: number, or a tuple of them} of the options whose annotation has `TRACED`.

    Args:
      parameters: of a function, those that are options.
      given: {option: value}; the others have their default. What is no number, None for one, is left out.
    """
    values = {p.name: given.get(p.name, p.default) for p in parameters if _is_traced(p.annotation)}
    several = {option: tuple(value) for option, value in values.items() if isinstance(value, list | tuple)}
    return {option: float(value) for option, value in values.items() if _is_number(value)} | {
        option: tuple(map(float, value)) for option, value in several.items() if all(map(_is_number, value))
    }


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)


def _is_traced(annotation: Any) -> bool:
    return any(isinstance(x, Traced) for x in getattr(annotation, "__metadata__", ())) or any(
        map(_is_traced, typing.get_args(annotation))
    )


def _declared(annotation: Any) -> Kind | None:
    kinds = (x for x in getattr(annotation, "__metadata__", ()) if isinstance(x, Kind))
    return next(kinds, None)
