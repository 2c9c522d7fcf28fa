"""A linear probe: how well a linear classifier tells classes apart by the embeddings of a network that is fixed."""

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.optimize

from kd_jax import data, eval_steps, keys, loaded, networks, runs, steps, teachers
from kd_jax.config.checks import choose_keys
from kd_jax.data.split import stratified_split
from kd_jax.errors import InputError, choose
from kd_jax.logging.progress import counted, working
from kd_jax.types import Array, RawBatch, Split

OF = ("student", "teacher", "initial")
STRENGTHS = (1.0, 0.1, 1e-2, 1e-3, 1e-4, 1e-5)  # of the penalty, the strongest first
ITERATIONS = 300  # of a fit at most; with the weakest penalties more change no accuracy
HELD_OUT = 0.1  # of the training images, to choose the strength by, where the data holds none out
BATCH = 256  # images that are embedded at a time


class Probe(NamedTuple):
    """A linear classifier of embeddings."""

    mean: np.ndarray  # [D] of the embeddings that it was fitted to
    std: np.ndarray  # [D]
    kernel: np.ndarray  # [D, K], of standardized embeddings
    bias: np.ndarray  # [K]

    def predict(self, embeddings: np.ndarray) -> np.ndarray:
        """The class [N] of each embedding [N, D]."""
        return (((embeddings - self.mean) / self.std) @ self.kernel + self.bias).argmax(-1)


def fit(embeddings: np.ndarray, labels: np.ndarray, strength: float, start: Probe | None = None) -> Probe:
    """Multinomial logistic regression with L-BFGS, of standardized embeddings.

    It minimizes the mean cross entropy plus strength / 2 times the kernel's sum of squares, the bias being free.

    Args:
      embeddings: [N, D]. labels: [N], from 0 to K - 1, every one there.
      strength: of the penalty, at least 0.
      start: of the search, a probe of the same embeddings.
    """
    mean, std = embeddings.mean(0), embeddings.std(0)
    std = np.where(std > 1e-6 * max(std.max(), 1e-30), std, 1.0)  # a feature that never changes says nothing
    x, y = jnp.asarray((embeddings - mean) / std, jnp.float32), jnp.asarray(labels)
    shape = embeddings.shape[1], int(labels.max()) + 1

    def split(weights: Any) -> tuple[Any, Any]:
        return weights[: -shape[1]].reshape(shape), weights[-shape[1] :]

    def value_and_slope(weights: np.ndarray) -> tuple[float, np.ndarray]:
        value, slope = _objective(jnp.asarray(weights, jnp.float32), x, y, strength, shape[1])
        return float(value), np.asarray(slope, np.float64)

    first = np.concatenate([start.kernel.ravel(), start.bias]) if start else np.zeros((shape[0] + 1) * shape[1])
    found = scipy.optimize.minimize(
        value_and_slope, first, jac=True, method="L-BFGS-B", options={"maxiter": ITERATIONS}
    )
    return Probe(mean, std, *split(found.x))


@functools.partial(jax.jit, static_argnums=4)
def _objective(weights: Array, x: Array, y: Array, strength: Array, classes: int) -> tuple[Array, Array]:
    def loss(weights: Array) -> Array:
        kernel = weights[:-classes].reshape(-1, classes)
        logits = jnp.dot(x, kernel, precision="highest") + weights[-classes:]
        entropy = optax.losses.softmax_cross_entropy_with_integer_labels(logits, y).mean()
        return entropy + 0.5 * strength * jnp.square(kernel).sum()

    return jax.value_and_grad(loss)(weights)


def measure(train: Split, validation: Split, test: Split) -> dict[str, float | int]:
    """The test accuracy of a probe, whose strength is the one with the highest validation accuracy.

    It is then fitted to training and validation images together.

    Args:
      train, validation, test: embeddings [N, D], in the place of images, with labels [N].
    Returns:
      {"accuracy", "validation" (of the chosen strength, fitted to `train` alone), "strength", "width": D}.
    """
    scores, probe = {}, None
    for strength in STRENGTHS:
        probe = fit(train.images, train.labels, strength, probe)
        scores[strength] = float((probe.predict(validation.images) == validation.labels).mean())
    chosen = max(STRENGTHS, key=scores.__getitem__)  # of equals the strongest
    images, labels = (np.concatenate(parts) for parts in zip(train, validation, strict=True))
    accuracy = float((fit(images, labels, chosen).predict(test.images) == test.labels).mean())
    width = train.images.shape[-1]
    return {"accuracy": accuracy, "validation": scores[chosen], "strength": chosen, "width": width}


def probe_run(
    folder: str | os.PathLike[str],
    changes: Mapping[str, Any] | None = None,
    *,
    of: Sequence[str] = ("student", "teacher"),
    runs_folder: str | os.PathLike[str] = "runs",
) -> dict[str, Any]:
    """Probes the networks of a finished run.

    Args:
      folder: of the run.
      changes: what of its section `dataset` is otherwise, {"source": "folder", "path": "flowers"}: the probe needs
        labels. Images are read as the run's own were, without augmentation.
      of: "student", "teacher" (left out where the run has none, or it is gone) and "initial", the student before
        training.
      runs_folder: where the runs of teachers lie.
    Returns:
      {"data", "train_images", "test_images", and for each of `of` what `measure` returns}.
    Raises:
      InputError: when the folder holds no finished run, or the data has no labels, or other channels.
    """
    folder, runs_folder = os.path.expanduser(folder), os.path.expanduser(runs_folder)
    for name in of:
        choose("what is probed", name, OF)
    saved = runs.read_config(folder)
    section = {**saved["config"]["dataset"], "class_names": "", "label_free": False, **(changes or {})}
    choose_keys("dataset", section, keys.section("dataset"))
    if saved["config"]["dataset"]["label_free"] and not {"source", "name", "path"} & (changes or {}).keys():
        raise InputError(
            f"the images of {folder} have no labels, and a probe needs some; expected dataset.path=FOLDER of others"
        )
    student = loaded.load(folder)
    dataset = data.load(section)
    if (channels := dataset.train.images.shape[-1]) != student.image_shape[-1]:
        raise InputError(f"the images have {channels} channels; expected the run's {student.image_shape[-1]}")
    splits = _splits(dataset)
    size = min(BATCH, max(len(split.labels) for split in splits))  # one for all, so that there is one program
    found: dict[str, Any] = {
        "data": dataset.name,
        "train_images": len(splits[0].labels) + len(splits[1].labels),
        "test_images": len(splits[2].labels),
    }
    for name in of:
        embed = _teacher(saved, folder, runs_folder, dataset) if name == "teacher" else _student(saved, student, name)
        if embed is not None:
            parts = zip(("training", "validation", "test"), splits, strict=True)
            embedded = [Split(_embeddings(embed, own.images, size, name, part), own.labels) for part, own in parts]
            with working(f"fitting the probe of the {name} ..."):
                found[name] = measure(*embedded)
    return found


def _splits(dataset: data.Dataset) -> tuple[Split, Split, Split]:
    """The labeled images to fit to, to choose by, and to test on."""
    if not dataset.class_names:
        raise InputError("dataset.label_free is true, and a probe needs labels; expected false, and images of classes")
    there = dataset.train.labels >= 0
    train = Split(dataset.train.images[there], dataset.train.labels[there])
    if dataset.validation is not None:
        return train, dataset.validation, dataset.test
    held, rest = stratified_split(train.labels, HELD_OUT)
    if not len(held):
        raise InputError(f"the data has {len(there)} training images; expected enough to hold out one of each class")
    return Split(*(x[rest] for x in train)), Split(*(x[held] for x in train)), dataset.test


def _student(saved: Mapping[str, Any], student: loaded.LoadedRun, name: str) -> Callable[[Array], Array | None]:
    variables = student.variables
    if name == "initial":
        network = networks.create(saved["config"], len(student.class_names))
        images = jax.ShapeDtypeStruct((2, *student.image_shape), jnp.uint8)
        shape = jax.eval_shape(student.preprocess, images)
        key = steps.stream(jax.random.key(np.uint32(saved["config"]["seed"])), "student")
        variables = {**variables, **jax.jit(network.init)(key, jnp.zeros(shape.shape, shape.dtype))}

    def embed(variables: Any, images: Array) -> Array | None:
        return student.network.apply(variables, student.preprocess(images), train=False)[0].embedding

    return functools.partial(jax.jit(embed), variables)


def _teacher(
    saved: Mapping[str, Any], folder: str, runs_folder: str, dataset: data.Dataset
) -> Callable[[Array], Array | None] | None:
    config = {**saved["config"], "teacher": teachers.finished(saved, folder, runs_folder)}
    known = saved["data"]
    mean, std = (np.asarray(known[key], np.float32) for key in ("mean", "std"))
    own = dataset._replace(class_names=tuple(known["class_names"]), mean=mean, std=std)  # as the run has them
    setting = teachers.Setting(config, own, runs_folder, _no_experiment, training=False)
    teacher = teachers.create(setting)
    if teacher is None:
        return None
    student = networks.create(config, len(own.class_names))
    prepare = teacher.prepare or networks.preprocessor(config, student, mean, std)

    def embed(variables: Any, images: Array) -> Array | None:
        labels = jnp.full(len(images), -1)
        batch = eval_steps.batch_of(prepare(images), RawBatch(images, labels, labels), len(own.class_names))
        return teacher.apply(variables, batch, jax.random.key(0), False).embedding

    return functools.partial(jax.jit(embed), teacher.load()[0])


def _no_experiment(config: Mapping[str, Any]) -> Any:
    raise InputError("the teacher of a finished run is no config any more")


def _embeddings(
    embed: Callable[[Array], Array | None], images: np.ndarray, size: int, name: str, part: str
) -> np.ndarray:
    """[N, D] of images [N, h, w, C], `size` at a time; the last batch is filled up."""
    found = []
    for start in counted(range(0, len(images), size), size, len(images), f"{name}'s embeddings of {part} images"):
        block = np.asarray(images[start : start + size])
        said = embed(jnp.asarray(np.concatenate([block, np.zeros((size - len(block), *block.shape[1:]), np.uint8)])))
        if said is None:
            raise InputError(f"the {name} reports no embedding; expected a network that does")
        found.append(np.asarray(said)[: len(block)])
    return np.concatenate(found)
