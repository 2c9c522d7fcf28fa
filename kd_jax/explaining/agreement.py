"""Agreement of students' saliency maps with their teacher's over a whole test set, from finished runs to numbers.

All maps explain an image's true class, so that every network answers the same question: where is the evidence for this
class? Maps of the predicted classes would also differ because the predictions do, and maps of the teacher's prediction
would ask about a class that is absent wherever the teacher is wrong.
"""

import collections
import contextlib
import functools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kd_jax import data as datasets
from kd_jax import evaluation, gradcam, loaded, networks, remote, runs, sharding
from kd_jax.data import memory, resident
from kd_jax.data.names import printable
from kd_jax.errors import InputError
from kd_jax.experiment import Experiment
from kd_jax.explaining import grid
from kd_jax.logging import metrics_file, mirrors, progress
from kd_jax.types import Network, Outputs, Split, Variables

OUTPUT_FILES = ("saliency.json", "saliency.png")
BOOTSTRAP_DRAWS = 1000


class TrainedModel(NamedTuple):
    """A trained network, and where it comes from."""

    folder: str  # of its run, or the source of its weights
    name: str
    config_hash: str | None  # of its run; None for weights without a run
    network: Network
    variables: Variables
    prepare: Callable[[jax.Array], jax.Array]  # uint8 images -> normalized as the network expects them


class Measurements(NamedTuple):
    """What is measured on each of N images. Networks are the teacher, then the students."""

    agreement: np.ndarray  # [students, measures, N], in the order of `gradcam.AGREEMENT`
    correct: np.ndarray  # [networks, N] bool, whether the prediction is
    zero: np.ndarray  # [networks, N] bool, whether the map is zero
    disagreement: np.ndarray  # [N], see `measure`


def explain_run(
    run: str | os.PathLike[str],
    against: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] = (),
    *,
    to: str | os.PathLike[str] | None = None,
    path: str | os.PathLike[str] | None = None,
    data: memory.Data | None = None,
    runs_folder: str | os.PathLike[str] = "runs",
    stage: int = -1,
    variant: str = "gradcam",
    num_images: int = 15,
) -> dict[str, Any]:
    """Writes saliency.json, prints a summary and writes saliency.png; existing ones are overwritten.

    The numbers are written before anything is drawn. The picture also goes to TensorBoard, and to the mirrors that
    the run has.

    Args:
      run: the folder of a finished run with a teacher.
      against: folders of finished runs on the same data, or one.
      to: the folder to write into; `run` if None.
      path, data, runs_folder: see `evaluation.restore`.
      stage, variant: see `kd_jax.gradcam.gradcam`.
      num_images: how many images the picture shows.
    Returns:
      The content of saliency.json, see `summarize`.
    Raises:
      InputError: if a folder holds no finished run, there is no teacher, the runs' data differ, a network lacks the
        stage, or `to` cannot be written. Nothing is written in that case.
    """
    run, against = os.path.expanduser(run), [against] if isinstance(against, str | os.PathLike) else against
    others = [os.path.expanduser(other) for other in against]
    folder = os.path.expanduser(to or run)
    runs.check_writable(folder, "--to:" if to else "the work directory", OUTPUT_FILES)
    _check_runs([run, *others], path)
    experiment, student_variables, method_variables, teacher_variables = evaluation.restore(
        run, path=path, data=data, runs_folder=runs_folder
    )
    method = experiment.components.method
    if not experiment.teacher:
        raise InputError(f"the teacher of {run} is gone; expected it where it was, or its run in --runs")
    models = _with_distinct_names(
        _teacher(experiment, teacher_variables),
        _model_of_run(
            run,
            networks.predicting(experiment.components.student, method),
            networks.predicting_variables(method, student_variables, method_variables),
            experiment.components.prepare,
        ),
        *(_other_student(other, experiment) for other in others),
    )
    measurements = measure(experiment, models, stage=stage, variant=variant)
    summary = {"stage": stage, "variant": variant, **summarize(measurements, models)}
    numbers, image = (os.path.join(folder, name) for name in OUTPUT_FILES)
    runs.write_files(folder, {OUTPUT_FILES[0]: runs.json_text(summary).encode()})
    _print_summary(summary)
    picture_file = os.path.join(remote.local(folder), OUTPUT_FILES[1])
    with contextlib.suppress(FileNotFoundError):  # a picture that is there shows other numbers
        os.remove(picture_file)
        remote.changed(image)
    picture = _picture(experiment, models, measurements, stage=stage, variant=variant, num_images=num_images)
    runs.write_files(folder, {OUTPUT_FILES[1]: grid.png(picture)})
    print(printable(f"wrote {numbers} and {image}"))
    result = runs.read_json(run, "result.json")
    metrics_file.write_image(folder, result["checkpoint"], "saliency", picture)
    mirrors.add_image(run, "saliency", picture_file, result["steps"])
    return summary


def _check_runs(folders: Sequence[str], path: str | os.PathLike[str] | None) -> None:
    """Raises InputError unless all are finished runs on the same data, and the first has a teacher."""
    saved = {folder: runs.read_config(folder) for folder in folders}
    if without := next((folder for folder in folders if not saved[folder]["data"]["class_names"]), ""):
        raise InputError(f"{without} was trained without labels, and Grad-CAM explains a class; expected other runs")
    for folder in folders:
        runs.read_json(folder, "result.json")
    first, *others = folders
    if saved[first]["config"]["teacher"]["kind"] == "none":
        raise InputError(f"the run in {first} has no teacher; expected a distilled one, and others as --against")
    if saved[first]["config"]["teacher"]["kind"] == "mean":
        raise InputError(f"the teacher of {first} was the student's own average; expected a run with another teacher")
    for folder in others:
        theirs, own = saved[folder]["data"], saved[first]["data"]
        different = {
            "test set": theirs["fingerprint"] != own["fingerprint"]
            and not {theirs["fingerprint"], own["fingerprint"]} <= _fingerprints(saved[first]["config"], path),
            "image size": theirs["image_shape"] != own["image_shape"],
        }
        for what in (what for what, differs in different.items() if differs):
            raise InputError(f"{folder} has a different {what} from {first}; expected runs on the same data")


def _fingerprints(config: Mapping[str, Any], path: str | os.PathLike[str] | None) -> set[str]:
    """Those of the data of a run as it is now: an older run may know it by another than a new one."""
    section = config["dataset"]
    if section["source"] == "memory":
        return set()
    return set(datasets.fingerprints({**section, "path": os.path.expanduser(path) if path else section["path"]}))


def _model_of_run(
    folder: str, network: Network, variables: Variables, prepare: Callable[[jax.Array], jax.Array]
) -> TrainedModel:
    saved = runs.read_json(folder, "config.json")
    name = f"{saved['config']['name']}, seed {saved['config']['seed']}"
    return TrainedModel(folder, name, saved["hash"], network, variables, prepare)


def _teacher(experiment: Experiment, variables: Variables) -> TrainedModel:
    teacher = experiment.teacher
    assert teacher is not None
    prepare = teacher.prepare or experiment.components.prepare
    if teacher.network is None:
        raise InputError(f"the teacher {teacher.name} is not a single network; expected one that Grad-CAM can run")
    if teacher.config_hash is None:  # of weights without a run
        return TrainedModel(teacher.source, teacher.name, None, teacher.network, variables, prepare)
    return _model_of_run(teacher.source, teacher.network, variables, prepare)


def _other_student(folder: str, experiment: Experiment) -> TrainedModel:
    """The network of another run, with its own normalization of images."""
    run = loaded.load(folder)
    return _model_of_run(folder, run.network, experiment.place(run.variables), run.preprocess)


def _with_distinct_names(*models: TrainedModel) -> list[TrainedModel]:
    """Replaces each name that several models share by the names of their folders."""
    counts = collections.Counter(model.name for model in models)
    folders = (os.path.basename(os.path.normpath(model.folder)) for model in models)
    return [
        model if counts[model.name] == 1 else model._replace(name=folder)
        for model, folder in zip(models, folders, strict=True)
    ]


def _maps_and_outputs(
    models: Sequence[TrainedModel],
    variables: Sequence[Variables],
    images: jax.Array,
    labels: jax.Array,
    *,
    stage: int,
    variant: str,
) -> tuple[list[jax.Array], list[Outputs]]:
    """Maps [B, h, w] and outputs of every model for uint8 images [B, H, W, C]; `variables` are traced."""
    maps, outputs = [], []
    for model, values in zip(models, variables, strict=True):
        inputs = model.prepare(images)
        try:
            of_model = gradcam.gradcam_and_outputs(model.network, values, inputs, labels, stage=stage, variant=variant)
        except InputError as error:
            raise InputError(f"{model.folder}: {error}") from None
        maps.append(of_model[0])
        outputs.append(of_model[1])
    return maps, outputs


def measure(experiment: Experiment, models: Sequence[TrainedModel], *, stage: int, variant: str) -> Measurements:
    """Measures every image of the test set, in batches.

    Each student's map is compared with the teacher's at the resolution of the largest map; distances are in pixels of
    the image. `disagreement` is one minus the cosine of the first two students' maps. It is -1 where either of these or
    the teacher's map is zero, and 0 everywhere if there is one student.
    """
    size = experiment.config["dataset"]["image_size"]

    @functools.partial(jax.jit, out_shardings=sharding.replicated(experiment.mesh))
    def measure_batch(variables: Sequence[Variables], split: Split, index: jax.Array) -> dict[str, jax.Array]:
        images, labels, *_ = resident.gather(split, index, options=experiment.options)
        maps, outputs = _maps_and_outputs(models, variables, images, labels, stage=stage, variant=variant)
        teacher, *students = maps = gradcam.at_one_size(maps)
        units = {"center_distance": size / teacher.shape[1]}  # pixels of the image per pixel of a map
        agreement = [
            [units.get(name, 1.0) * function(student, teacher) for name, function in gradcam.AGREEMENT.items()]
            for student in students
        ]
        zero = jnp.stack([x.max((1, 2)) == 0 for x in maps])
        distance = 1 - gradcam.cosine(*students[:2]) if len(students) > 1 else jnp.zeros(len(labels))
        return {
            "agreement": jnp.array(agreement),
            "correct": jnp.stack([x.logits.argmax(-1) == labels for x in outputs]),
            "zero": zero,
            "disagreement": jnp.where(zero[:3].any(0), -1.0, distance),
        }

    test = experiment.dataset.test
    split, variables = resident.put(test, experiment.mesh), [model.variables for model in models]
    measured = []
    batches = list(evaluation.batches(experiment, len(test.labels)))
    for index, mask in progress.counted(batches, len(batches[0][0]), len(test.labels), "maps of images"):
        keep = np.asarray(mask)
        values = measure_batch(variables, split, index)
        measured.append({name: np.asarray(x)[..., keep] for name, x in values.items()})
    return Measurements(**{name: np.concatenate([x[name] for x in measured], axis=-1) for name in measured[0]})


def summarize(measurements: Measurements, models: Sequence[TrainedModel]) -> dict[str, Any]:
    """Means over the test set, with confidence intervals.

    Args:
      measurements: of the models.
      models: the teacher, the distilled student, the other students.
    Returns:
      {"images", "interval", "teacher": MODEL, "students": [MODEL | {"agreement", "difference"}]}, where

      * MODEL is {"workdir", "name", "config_hash", "accuracy", "zero_maps"}. `config_hash` identifies the run even if
        its folder moves; it is None for a teacher without a run. `zero_maps` is the fraction of images whose map is
        zero, and whose agreement is therefore 0.
      * "agreement" is {"all", "both_right", "only_teacher_right", "only_student_right", "both_wrong": GROUP}.
      * "difference" is {"all", "all_right": GROUP} of the first student minus this one, paired by image; None for the
        first.
      * GROUP is {"images", "cosine", "pearson", "iou", "center_distance": {"mean", "low", "high"}}, the distance in
        pixels of the image; without images the measures are None.
    """
    agreement, correct, zero, _ = measurements

    def describe(index: int) -> dict[str, Any]:
        model = models[index]
        return {
            "workdir": model.folder,
            "name": model.name,
            "config_hash": model.config_hash,
            "accuracy": float(correct[index].mean()),
            "zero_maps": float(zero[index].mean()),
        }

    students = []
    for index, values in enumerate(agreement, start=1):
        teacher, student = correct[0], correct[index]
        groups = {
            "all": np.ones_like(teacher),
            "both_right": teacher & student,
            "only_teacher_right": teacher & ~student,
            "only_student_right": ~teacher & student,
            "both_wrong": ~teacher & ~student,
        }
        difference = None
        if index > 1:
            all_right = correct[0] & correct[1] & student
            gap = agreement[0] - values
            difference = {"all": _group(gap), "all_right": _group(gap[:, all_right])}
        by_group = {name: _group(values[:, members]) for name, members in groups.items()}
        students.append({**describe(index), "agreement": by_group, "difference": difference})
    interval = f"95%, percentile bootstrap over test images ({BOOTSTRAP_DRAWS} draws); not over training seeds"
    return {"images": correct.shape[1], "interval": interval, "teacher": describe(0), "students": students}


def _group(values: np.ndarray) -> dict[str, Any]:
    """Means of [measures, n] over the images, with intervals."""
    if not values.shape[1]:
        return {"images": 0, **dict.fromkeys(gradcam.AGREEMENT)}
    mean, low, high = bootstrap(values.T)
    rows = zip(mean, low, high, strict=True)
    intervals = {
        name: {"mean": float(m), "low": float(a), "high": float(b)}
        for name, (m, a, b) in zip(gradcam.AGREEMENT, rows, strict=True)
    }
    return {"images": values.shape[1], **intervals}


def bootstrap(values: np.ndarray, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean over rows [n, m], and the 2.5th and 97.5th percentiles of the means of resampled rows; each [m].

    The percentile interval of Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, section 13.3. The draws
    depend only on `seed` and n.
    """
    rng = np.random.default_rng(seed)
    values = values.astype(np.float64)
    means = [values[rng.integers(len(values), size=len(values))].mean(0) for _ in range(BOOTSTRAP_DRAWS)]
    low, high = np.percentile(means, [2.5, 97.5], axis=0)
    return values.mean(0), low, high


def _picture(
    experiment: Experiment,
    models: Sequence[TrainedModel],
    measurements: Measurements,
    *,
    stage: int,
    variant: str,
    num_images: int,
) -> np.ndarray:
    """The picture [H, W, 3] uint8 of chosen images and every model's maps over them."""
    images, labels = experiment.dataset.test
    chosen = grid.choose_images(measurements.correct, measurements.disagreement, labels, num_images)
    positions = [position for group in chosen.values() for position in group]

    @jax.jit
    def maps_and_probabilities(
        variables: Sequence[Variables], images: jax.Array, labels: jax.Array
    ) -> tuple[list[jax.Array], list[jax.Array]]:
        maps, outputs = _maps_and_outputs(models, variables, images, labels, stage=stage, variant=variant)
        return maps, [jax.nn.softmax(x.logits) for x in outputs]

    images, labels = np.asarray(images[positions]), labels[positions]
    variables = [model.variables for model in models]
    maps, probabilities = jax.device_get(maps_and_probabilities(variables, images, labels))
    rows = grid.cells(positions, images, labels, maps, probabilities, experiment.dataset.class_names)
    roles = ["teacher", "student", *["compared with"] * (len(models) - 2)]
    titles = [f"{role}\n{model.name}" for role, model in zip(roles, models, strict=True)]
    kind = {"gradcam": "Grad-CAM", "gradcam++": "Grad-CAM++"}[variant]
    place = "last stage" if stage == -1 else f"stage {stage}"
    note = (
        f"{kind} of the true class, {place}; brighter is more within a map.\n"
        "Below: the predicted class, ✗ if wrong. #: position in the test set."
    )
    return grid.draw(
        {heading: len(group) for heading, group in chosen.items()}, ["image\nits class", *titles], rows, note
    )


def _print_summary(summary: dict[str, Any]) -> None:
    def interval(value: dict[str, float], form: str) -> str:
        return f"{value['mean']:{form}} [{value['low']:{form}}, {value['high']:{form}}]"

    teacher, images = summary["teacher"], summary["images"]
    print(f"teacher {printable(teacher['name'])}: accuracy {100 * teacher['accuracy']:.2f}% of {images} images")
    for student in summary["students"]:
        line = f"{printable(student['name'])}: accuracy {100 * student['accuracy']:.2f}%, "
        line += f"cosine with the teacher's maps {interval(student['agreement']['all']['cosine'], '.3f')}"
        if student["difference"]:
            line += f"; the first student's minus this {interval(student['difference']['all']['cosine'], '+.3f')}"
        print(line)
