"""From a config to an experiment: the data loaded, the networks and functions built, everything checked.

Nothing is written here, so that a refused run leaves nothing behind.
"""

import functools
import importlib.metadata
import math
import os
import platform
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kd_jax import augment, data, methods, models, optim, runs, sharding, teachers, weights
from kd_jax.errors import InputError, choose
from kd_jax.logging import wandb_run
from kd_jax.models import torch_names
from kd_jax.steps import Images, Parts, init_state, train_steps
from kd_jax.types import Hyper, Method, Network, Variables

PRECISIONS = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
TEACHERS = ("none", "config", "run", "weights")
SELECTIONS = ("last", "best-validation")

# (key, whether a value is good, what was expected)
CHECKS: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    ("seed", lambda v: 0 <= v < 2**32 and v == int(v), "a whole number from 0 to 4294967295"),
    ("train.epochs", lambda v: v >= 1, "at least 1"),
    ("train.steps", lambda v: v >= 0, "a number of steps, or 0"),
    ("train.batch_size", lambda v: v >= 1, "at least 1"),
    ("train.steps_per_call", lambda v: v >= 0, "a number of steps, or 0"),
    ("train.ema", lambda v: 0 <= v < 1, "a decay of at least 0 and below 1"),
    ("train.label_smoothing", lambda v: 0 <= v < 1, "at least 0 and below 1"),
    ("train.mixup", lambda v: v >= 0, "at least 0"),
    ("train.clip", lambda v: v >= 0, "at least 0"),
    ("train.accumulate", lambda v: v >= 1, "at least 1"),
    ("evaluate.every_epochs", lambda v: v >= 1, "at least 1"),
    ("evaluate.batch_size", lambda v: v >= 1, "at least 1"),
    ("checkpoint.every_epochs", lambda v: v >= 1, "at least 1"),
    ("checkpoint.keep", lambda v: v >= 1, "at least 1"),
    ("log.every_steps", lambda v: v >= 1, "at least 1"),
    ("optimizer.weight_decay", lambda v: v >= 0, "at least 0"),
    ("optimizer.warmup_epochs", lambda v: v >= 0, "at least 0"),
    ("optimizer.gamma", lambda v: 0 < v <= 1, "above 0 and at most 1"),
    *(
        (f"optimizer.{part}{key}", lambda v: 0 <= v < 1, "at least 0 and below 1")
        for part in ("", "method.")
        for key in ("momentum", "b1", "b2")
    ),
)


class TeacherRun(NamedTuple):
    """A teacher, by the folder of its run or with its variables."""

    folder: str  # or the source of its weights
    identity: dict[str, Any]
    network: Network
    experiment: "Experiment | None" = None  # how to train it when the folder has no result
    variables: Variables | None = None  # of weights that are no run


class Experiment(NamedTuple):
    """All that a run needs, built from its config."""

    config: dict[str, Any]
    identity: dict[str, Any]
    digest: str  # of the identity
    dataset: data.Dataset
    teacher: TeacherRun | None
    pretrained: Variables | None  # what the student starts from; without a head where that is a new one
    parts: Parts
    hyper: Hyper
    mesh: jax.sharding.Mesh
    steps: int
    steps_per_epoch: int
    steps_per_call: int

    def jit(self, function: Callable, **options) -> Callable:
        """Compiles one of the functions of `kd_jax.steps` with this experiment's parts."""
        compiler: dict[str, bool | int] = {}
        if jax.default_backend() == "gpu" and self.config["deterministic"]:
            compiler["xla_gpu_deterministic_ops"] = True
        if jax.default_backend() == "cpu" and function is init_state:
            compiler["xla_backend_optimization_level"] = 0  # it runs once, and this compiles in a tenth of the time
        return jax.jit(
            functools.partial(function, parts=self.parts),
            out_shardings=sharding.replicated(self.mesh),
            compiler_options=compiler,
            **options,
        )

    def place(self, tree: Any) -> Any:
        """Puts arrays on every device."""
        return jax.device_put(tree, sharding.replicated(self.mesh))

    def images(self, split: data.Split) -> Images:
        """A split on every device."""
        return Images(self.place(split.images), self.place(split.labels))


def create(config: Mapping[str, Any], *, runs_folder: str = "runs", devices=None, training: bool = True) -> Experiment:
    """Checks a config, loads its data, and builds its functions.

    Args:
      config: a complete tree (see kd_jax/config/base.py), a ConfigDict or plain.
      runs_folder: where the runs of teachers lie.
      devices: to run on; by default all local ones.
      training: False for evaluation alone, which needs neither a teacher nor a batch that the devices divide.
    Raises:
      InputError: for anything that is wrong with the config or the data.
    """
    config = plain(config)
    _check(config)
    # What needs no data is built first: an unknown name is then reported before a long load.
    method = methods.create(config["method"])
    create_network(config, num_classes=2)
    if training and (project := config["log"].get("wandb")):
        wandb_run.check(project)
    dataset = data.load(config["dataset"])
    mesh = sharding.mesh(devices)
    steps, steps_per_epoch = _length(config["train"], len(dataset.train.labels), mesh.size) if training else (1, 1)
    teacher = _teacher(config, dataset, runs_folder, devices)
    if training and method.reads and teacher is None:
        raise InputError(
            f"teacher.kind is 'none' and the method's terms ({', '.join(config['method'])}) read a teacher's"
            f" {', '.join(sorted(method.reads))}; expected 'config', 'run' or 'weights'"
        )
    identity = runs.identity(config, dataset.fingerprint, teacher.identity if teacher else None)
    source = config["model"]["pretrained"]
    if source:
        identity["model"] = {**identity["model"], "pretrained": weights.fingerprint(source)}
    parts = _parts(config, dataset, method, teacher, mesh, steps, steps_per_epoch)
    hyper = Hyper(
        learning_rate=jnp.float32(config["optimizer"]["learning_rate"]),
        weight_decay=jnp.float32(config["optimizer"]["weight_decay"]),
        method_learning_rate=jnp.float32(config["optimizer"]["method"]["learning_rate"]),
        weights={term: jnp.float32(weight) for term, weight in method.weights.items()},
    )
    if training:
        _trace(parts, hyper, dataset, config["train"]["batch_size"], teacher)
    pretrained = None
    if source:
        pretrained, said = weights.load(source, _shapes(parts.student, parts.prepare, dataset), config["model"]["name"])
        print(f"{config['model']['name']} starts from {said}", flush=True)
    # On a CPU, convolutions inside a loop are many times slower than the same step called from Python.
    per_call = config["train"]["steps_per_call"] or (1 if jax.default_backend() == "cpu" else 50)
    return Experiment(
        config,
        identity,
        runs.digest(identity),
        dataset,
        teacher,
        pretrained,
        parts,
        hyper,
        mesh,
        steps,
        steps_per_epoch,
        min(per_call, steps_per_epoch),
    )


def plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dictionaries of numbers, strings, booleans and lists, out of a ConfigDict or of such dictionaries."""
    if hasattr(config, "to_dict"):
        config = config.to_dict()

    def convert(value):
        if isinstance(value, Mapping):
            return {key: convert(v) for key, v in value.items()}
        return [convert(v) for v in value] if isinstance(value, list | tuple) else value

    return convert(config)


def create_network(config: Mapping[str, Any], num_classes: int) -> Network:
    """The network of a config's `model` section, in its precision."""
    options = {key: value for key, value in config["model"].items() if key not in ("name", "freeze", "pretrained")}
    freeze = choose("model.freeze", config["model"]["freeze"], optim.FREEZES)
    dtype = choose("precision", config["precision"], PRECISIONS)
    return models.create(config["model"]["name"], num_classes, frozen_trunk=freeze == "encoder", dtype=dtype, **options)


def load(folder: str) -> tuple[Network, Variables, tuple[str, ...]]:
    """Loads a finished run.

    Returns:
      (network, variables, class_names): `network.apply(variables, images, train=False)` reads images that are
      normalised as `runs.read_json(folder, "config.json")["data"]` says.
    Raises:
      InputError: when the folder holds no finished run.
    """
    saved = runs.read_json(folder, "config.json")
    class_names = tuple(saved["data"]["class_names"])
    return create_network(saved["config"], len(class_names)), weights.read_run(folder)[0], class_names


def describe_data(dataset: data.Dataset) -> dict[str, Any]:
    """What a run's config.json says of its data: enough to classify another image."""
    return {
        "fingerprint": dataset.fingerprint,
        "class_names": list(dataset.class_names),
        "mean": [float(x) for x in dataset.mean],
        "std": [float(x) for x in dataset.std],
        "image_shape": list(dataset.train.images.shape[1:]),
        "train_images": len(dataset.train.labels),
        "labelled": int((dataset.train.labels >= 0).sum()),
        "skipped": dataset.skipped,
    }


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that results depend on."""
    packages = ("jax", "flax", "optax", "numpy")
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in packages}


def _check(config: dict[str, Any]) -> None:
    for key, good, expected in CHECKS:
        try:
            value: Any = functools.reduce(lambda tree, part: tree[part], key.split("."), config)
        except KeyError:
            raise InputError(f"the config lacks {key}; expected every key of kd_jax/config/base.py") from None
        if type(value) not in (int, float) or not math.isfinite(value) or not good(value):
            raise InputError(f"{key} is {value!r}; expected {expected}")
    milestones = config["optimizer"]["milestones"]
    if not all(type(epoch) in (int, float) and epoch > 0 for epoch in milestones):
        raise InputError(f"optimizer.milestones is {milestones!r}; expected epochs above 0, as in (150, 180)")
    choose("precision", config["precision"], PRECISIONS)
    choose("teacher.kind", config["teacher"]["kind"], TEACHERS)
    choose("evaluate.select", config["evaluate"]["select"], SELECTIONS)
    if config["evaluate"]["select"] == "best-validation" and not config["dataset"]["holdout"]:
        raise InputError("dataset.holdout is 0, so there is no validation split; expected evaluate.select 'last'")


def _length(train: Mapping[str, Any], images: int, devices: int) -> tuple[int, int]:
    """(steps of the run, steps of an epoch)."""
    batch_size, accumulate = train["batch_size"], train["accumulate"]
    if batch_size > images:
        raise InputError(f"train.batch_size is {batch_size}; expected at most the {images} training images")
    if batch_size % (devices * accumulate):
        raise InputError(
            f"train.batch_size is {batch_size}; expected a multiple of {devices * accumulate}"
            f" ({devices} devices times train.accumulate {accumulate})"
        )
    steps_per_epoch = images // batch_size
    return train["steps"] or train["epochs"] * steps_per_epoch, steps_per_epoch


def _parts(
    config: dict[str, Any],
    dataset: data.Dataset,
    method: Method,
    teacher: TeacherRun | None,
    mesh: jax.sharding.Mesh,
    steps: int,
    steps_per_epoch: int,
) -> Parts:
    """What a step is made of."""
    num_classes = len(dataset.class_names)
    pixels = {
        "size": config["dataset"]["image_size"],
        "mean": dataset.mean,
        "std": dataset.std,
        "dtype": PRECISIONS[config["precision"]],
    }
    kind = teachers.batch_statistics if config["teacher"]["batch_statistics"] else teachers.live
    return Parts(
        student=create_network(config, num_classes),
        teacher=kind(teacher.network) if teacher else None,
        method=method,
        optimizer=optim.create(
            config["optimizer"],
            config["optimizer"]["method"],
            steps=steps,
            steps_per_epoch=steps_per_epoch,
            freeze=config["model"]["freeze"],
            clip=config["train"]["clip"],
        ),
        augment=augment.create(
            num_classes=num_classes,
            kind=config["dataset"]["augment"],
            label_smoothing=config["train"]["label_smoothing"],
            mixup=config["train"]["mixup"],
            **pixels,
        ),
        prepare=functools.partial(augment.prepare, **pixels),
        batch_sharding=sharding.split(mesh),
        ema=config["train"]["ema"],
        accumulate=config["train"]["accumulate"],
        teacher_network=teacher.network if teacher else None,
    )


def _shapes(network: Network, prepare: Callable, dataset: data.Dataset) -> Variables:
    """The shapes of a network's variables for the images of a data set."""
    images = jax.ShapeDtypeStruct((2, *dataset.train.images.shape[1:]), jnp.uint8)
    return jax.eval_shape(network.init, jax.random.key(0), jax.eval_shape(prepare, images))


def _trace(parts: Parts, hyper: Hyper, dataset: data.Dataset, batch_size: int, teacher: TeacherRun | None) -> None:
    """Traces initialisation and a step, so that an error in them is seen before a teacher is trained or a file made."""

    def shapes(x):
        return jax.ShapeDtypeStruct(x.shape, x.dtype)

    images = Images(shapes(dataset.train.images), shapes(dataset.train.labels))
    teacher_variables: Variables = {}
    if teacher:
        teacher_variables = _shapes(teacher.network, parts.prepare, dataset)
    state = jax.eval_shape(functools.partial(init_state, parts=parts), np.uint32(0), teacher_variables, images)
    order = jax.ShapeDtypeStruct((1, batch_size), jnp.int32)
    jax.eval_shape(functools.partial(train_steps, parts=parts), state, teacher_variables, images, order, hyper)


def _teacher(config, dataset: data.Dataset, runs_folder: str, devices) -> TeacherRun | None:
    kind = config["teacher"]["kind"]
    if kind == "none":
        return None
    if kind == "run":
        return _finished_teacher(config, dataset)
    nested = config["teacher"]["config"]
    if not nested:
        raise InputError("teacher.config is empty; expected a whole config, or teacher.kind 'none' or 'run'")
    if kind == "weights":
        return _teacher_of_weights(config, dataset)
    for key in ("source", "name", "path", "image_size", "normalize", "train_images", "holdout"):
        here, there = config["dataset"][key], nested["dataset"][key]
        if here != there:
            raise InputError(
                f"teacher.config.dataset.{key} is {there!r}; expected the student's {here!r}"
                " (a teacher of other data is given as a run)"
            )
    try:
        experiment = create(nested, runs_folder=runs_folder, devices=devices)
    except InputError as error:
        raise InputError(f"in the teacher's config, {error}") from error
    folder = teacher_folder(experiment.digest, runs_folder)
    return TeacherRun(folder, experiment.identity, experiment.parts.student, experiment)


def teacher_folder(digest: str, runs_folder: str) -> str:
    """Where the run of a teacher lies that a config describes."""
    return os.path.join(runs_folder, "teachers", digest[:8])


def _teacher_of_weights(config, dataset: data.Dataset) -> TeacherRun:
    source, nested = config["teacher"]["path"], config["teacher"]["config"]
    if not source:
        raise InputError("teacher.path is empty; expected the weights of teacher.config.model")
    network = create_network({**nested, "precision": config["precision"]}, len(dataset.class_names))
    size, channels = config["dataset"]["image_size"], dataset.train.images.shape[-1]
    shapes = jax.eval_shape(
        network.init, jax.random.key(0), jax.ShapeDtypeStruct((2, size, size, channels), jnp.float32)
    )
    variables = torch_names.match(torch_names.without_prefix(weights.read(source)), shapes, nested["model"]["name"])
    return TeacherRun(source, {"weights": weights.fingerprint(source)}, network, variables=variables)


def _finished_teacher(config, dataset: data.Dataset) -> TeacherRun:
    folder = config["teacher"]["path"]
    if not folder:
        raise InputError("teacher.path is empty; expected the folder of a finished run")
    saved = runs.read_json(folder, "config.json")
    if not runs.has_result(folder):
        raise InputError(f"teacher.path is {folder!r}, a run without result.json; expected a finished run")
    class_names = tuple(saved["data"]["class_names"])
    if class_names != dataset.class_names:
        raise InputError(
            f"the teacher {folder!r} knows {_some(class_names)}; expected the student's {_some(dataset.class_names)}"
        )
    for what, there, here in (
        ("image_size", saved["config"]["dataset"]["image_size"], config["dataset"]["image_size"]),
        ("mean", saved["data"]["mean"], dataset.mean),
        ("std", saved["data"]["std"], dataset.std),
    ):
        if not np.allclose(there, here, atol=1e-4):
            raise InputError(
                f"the teacher {folder!r} reads images of {what} {there}; expected the student's {here}"
                " (see dataset.image_size and dataset.normalize)"
            )
    network = create_network({**saved["config"], "precision": config["precision"]}, len(class_names))
    return TeacherRun(folder, saved["identity"], network)


def _some(names: tuple[str, ...]) -> str:
    shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
    return f"{len(names)} classes ({shown})"
