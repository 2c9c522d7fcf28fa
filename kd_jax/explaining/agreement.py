"""Where students and their teacher look, over a whole test set: agreement in numbers, and a grid of images and maps.

All maps are those of an image's true class. It is the same question to every network: where is the evidence for what is
there? Maps of the classes that the networks predict would differ for another reason wherever the predictions do, and
those of the teacher's class would ask about something that is not there wherever the teacher is wrong.
"""

import collections
import functools
import io
import itertools
import json
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from kd_jax import evaluation, gradcam, loaded, runs, sharding, steps
from kd_jax.errors import InputError
from kd_jax.experiment import Experiment
from kd_jax.logging import metrics_file, progress, wandb_run
from kd_jax.types import Network, Variables

FILES = ("gaze.json", "gaze.png")
DRAWS = 1000  # of the bootstrap
# Of the grid, in inches.
CELL, CAPTION, GAP, SIDE, HEAD, HEADING, FOOT = 1.2, 0.26, 0.08, 0.1, 0.5, 0.3, 0.4
DPI = 120
PIXELS = 96  # of a cell's image, at least, so that a map over a small image is smooth


class Subject(NamedTuple):
    """A network whose maps are looked at."""

    folder: str  # of its run
    name: str
    config_hash: str | None  # of its run; None for weights that are no run
    network: Network
    variables: Variables
    prepare: Callable[[jax.Array], jax.Array]  # uint8 images -> normalised as it reads them


def explain(
    run: str,
    against: Sequence[str] = (),
    *,
    to: str | None = None,
    path: str | None = None,
    runs_folder: str = "runs",
    stage: int = -1,
    variant: str = "gradcam",
    shown: int = 15,
) -> dict[str, Any]:
    """Writes gaze.json and gaze.png in place of those that are there, and prints a summary.

    The grid goes to TensorBoard too, and to W&B where the run is mirrored.

    Args:
      run: the folder of a finished run with a teacher. against: folders of finished runs on the same data.
      to: the folder to write into; None for `run`.
      path: where the data lies now; None for where it lay.
      runs_folder: where the runs of teachers lie.
      stage, variant: see `kd_jax.gradcam.gradcam`.
      shown: how many images the grid shows.
    Returns:
      What gaze.json holds, see `summarize`.
    Raises:
      InputError: when a folder holds no finished run, there is no teacher, the runs' data differ, a network lacks the
        stage, or `to` cannot be written. Nothing was written.
    """
    runs.check_writable(to or run, "--to:" if to else "the work directory", FILES)
    to = to or run
    _check_data([run, *against])
    made, variables, _, teacher_variables = evaluation.restore(run, path=path, runs_folder=runs_folder)
    teacher = made.teacher
    if not teacher:
        where = made.config["teacher"]["path"]
        raise InputError(f"the teacher of {run} has no finished run in {where}; expected it there, see --runs")
    if teacher.network is None:
        raise InputError(f"the teacher of {run} is not a single network; expected one, which Grad-CAM can run")
    weights = teacher.source, teacher.name, None
    about: tuple[str, str, str | None] = weights if teacher.config_hash is None else _run(teacher.source)
    subjects = _tell_apart(
        Subject(*about, teacher.network, teacher_variables, made.components.prepare),
        Subject(*_run(run), made.components.student, variables, made.components.prepare),
        *(_subject(folder, made) for folder in against),
    )
    measured = _measure(made, subjects, stage=stage, variant=variant)
    gaze = {"stage": stage, "variant": variant, **summarize(measured, subjects)}
    chosen = choose_images(measured, made.dataset.test.labels, shown)
    cells = _cells(made, subjects, [i for group in chosen.values() for i in group], stage=stage, variant=variant)
    roles = ["teacher", "student", *["compared with"] * len(against)]
    titles = [f"{role}\n{_short(subject.name, 22)}" for role, subject in zip(roles, subjects, strict=True)]
    kind = {"gradcam": "Grad-CAM", "gradcam++": "Grad-CAM++"}[variant]
    place = "the last stage" if stage == -1 else f"stage {stage}"
    note = (
        f"{kind} of the true class, {place}; brighter is more, each map by itself.\n"
        "Below: the class that the network predicts, ✗ if wrong. #: place in the test set."
    )
    grid = _draw({heading: len(group) for heading, group in chosen.items()}, ["image\nits class", *titles], cells, note)
    runs.write_files(to, dict(zip(FILES, (json.dumps(gaze, indent=1).encode(), _png(grid)), strict=True)))
    _print(gaze)
    numbers, image = (os.path.join(to, name) for name in FILES)
    print(f"wrote {numbers} and {image}")
    result = runs.read_json(run, "result.json")
    metrics_file.write_image(to, result["checkpoint"], "gaze", grid)
    wandb_run.add_image(run, "gaze", image, result["steps"])
    return gaze


def _check_data(folders: Sequence[str]) -> None:
    """Raises InputError unless all are finished runs on the data of the first, which has a teacher."""
    saved = {folder: runs.read_json(folder, "config.json") for folder in folders}
    for folder in folders:
        runs.read_json(folder, "result.json")
    first = folders[0]
    if saved[first]["config"]["teacher"]["kind"] == "none":
        raise InputError(f"the run in {first} has no teacher; expected a distilled one, and others as --against")
    for folder in folders[1:]:
        for what, key in (("test set", "fingerprint"), ("size of images", "image_shape")):
            if saved[folder]["data"][key] != saved[first]["data"][key]:
                raise InputError(f"{folder} has another {what} than {first}; expected runs on the same data")


def _subject(folder: str, made: Experiment) -> Subject:
    """A run that is compared, with the images normalised as it was trained."""
    run = loaded.load(folder)
    return Subject(*_run(folder), run.network, made.place(run.variables), run.preprocess)


def _run(folder: str) -> tuple[str, str, str]:
    """The first fields of a run's `Subject`."""
    saved = runs.read_json(folder, "config.json")
    return folder, f"{saved['config']['name']}, seed {saved['config']['seed']}", saved["hash"]


def _tell_apart(*subjects: Subject) -> list[Subject]:
    """Those that share a name have that of their folder instead."""
    names = collections.Counter(subject.name for subject in subjects)
    folders = (os.path.basename(os.path.normpath(subject.folder)) for subject in subjects)
    return [
        subject if names[subject.name] == 1 else subject._replace(name=folder)
        for subject, folder in zip(subjects, folders, strict=True)
    ]


def _look(subjects: Sequence[Subject], variables, images, labels, *, stage: int, variant: str):
    """Maps [B, h, w] and outputs of every network for uint8 images [B, H, W, C]."""
    maps, outputs = [], []
    for subject, own in zip(subjects, variables, strict=True):
        try:
            seen = gradcam.gradcam_and_outputs(
                subject.network, own, subject.prepare(images), labels, stage=stage, variant=variant
            )
        except InputError as error:
            raise InputError(f"{subject.folder}: {error}") from None
        maps.append(seen[0])
        outputs.append(seen[1])
    return maps, outputs


def _measure(made: Experiment, subjects: Sequence[Subject], *, stage: int, variant: str) -> dict[str, np.ndarray]:
    """Every image of the test set, in batches.

    Returns:
      agreement: [students, measures, N], of each student's map with the teacher's, both at the size of the largest map;
      distances are in pixels of the image. right: [networks, N] bool, the teacher first. zero: [networks, N] bool,
      whether the map is zero. moved: [N], one minus the cosine of the first two students' maps, or -1 where one of
      these or the teacher's is zero; 0 where there is one student.
    """
    size = made.config["dataset"]["image_size"]

    @functools.partial(jax.jit, out_shardings=sharding.replicated(made.mesh))
    def step(variables, data, index):
        images, labels, _ = steps.gather(data, index, made.options.batch_sharding)
        maps, outputs = _look(subjects, variables, images, labels, stage=stage, variant=variant)
        teacher, *students = maps = gradcam.at_one_size(maps)
        units = {"centre_distance": size / teacher.shape[1]}  # pixels of the image in one of the maps

        def agreement(student):
            measured = {name: measure(student, teacher) for name, measure in gradcam.AGREEMENT.items()}
            return jnp.stack([units.get(name, 1.0) * values for name, values in measured.items()])

        zero = jnp.stack([x.max((1, 2)) == 0 for x in maps])
        moved = 1 - gradcam.cosine(*students[:2]) if len(students) > 1 else jnp.zeros(len(labels))
        return {
            "agreement": jnp.stack([agreement(student) for student in students]),
            "right": jnp.stack([x.logits.argmax(-1) == labels for x in outputs]),
            "zero": zero,
            "moved": jnp.where(zero[:3].any(0), -1.0, moved),
        }

    test = made.dataset.test
    data, variables = made.place(test), [subject.variables for subject in subjects]
    parts = []
    batches = list(evaluation.batches(made, len(test.labels)))
    for index, mask in progress.counted(batches, len(batches[0][0]), len(test.labels)):
        keep = np.asarray(mask)
        parts.append({name: np.asarray(x)[..., keep] for name, x in step(variables, data, index).items()})
    return {name: np.concatenate([part[name] for part in parts], axis=-1) for name in parts[0]}


def summarize(measured: Mapping[str, np.ndarray], subjects: Sequence[Subject]) -> dict[str, Any]:
    """Means over the test set, with their intervals.

    Args:
      measured: see `_measure`. subjects: the teacher, the distilled student, the others.
    Returns:
      {"images", "interval", "teacher": {"workdir", "name", "config_hash", "accuracy", "zero_maps"}, "students": [{...
      the same keys, "agreement": {"all", "both_right", "only_teacher_right", "only_student_right", "both_wrong":
      GROUP}, "difference": {"all", "all_right": GROUP} of the first student minus this one, image by image; None for
      the first}]}. A GROUP is {"images", and for "cosine", "pearson", "iou" and "centre_distance" (in pixels of the
      image) {"mean", "low", "high"}, or None where it has no images}. `config_hash` is that of the run, which names it
      wherever its folder lies; None for a teacher that is weights and no run. `zero_maps` is the fraction of images
      whose map is zero, and whose agreement is therefore 0.
    """
    agreement, right, zero = (measured[name] for name in ("agreement", "right", "zero"))

    def about(index: int) -> dict[str, Any]:
        subject = subjects[index]
        return {
            "workdir": subject.folder,
            "name": subject.name,
            "config_hash": subject.config_hash,
            "accuracy": float(right[index].mean()),
            "zero_maps": float(zero[index].mean()),
        }

    students = []
    for index, values in enumerate(agreement, start=1):
        teacher, student = right[0], right[index]
        groups = {
            "all": teacher | True,
            "both_right": teacher & student,
            "only_teacher_right": teacher & ~student,
            "only_student_right": ~teacher & student,
            "both_wrong": ~teacher & ~student,
        }
        difference = None
        if index > 1:
            all_right = right[0] & right[1] & student
            gap = agreement[0] - values
            difference = {"all": _group(gap), "all_right": _group(gap[:, all_right])}
        own = {name: _group(values[:, group]) for name, group in groups.items()}
        students.append({**about(index), "agreement": own, "difference": difference})
    interval = f"95%, percentile bootstrap over test images ({DRAWS} draws); not over seeds of training"
    return {"images": right.shape[1], "interval": interval, "teacher": about(0), "students": students}


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
    """Mean over rows [n, m], and the 2.5th and 97.5th percentile of the means of rows drawn with replacement; each [m].

    The percentile interval of Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, section 13.3. The draws
    are a function of `seed` and n.
    """
    rng = np.random.default_rng(seed)
    values = values.astype(np.float64)
    means = [values[rng.integers(len(values), size=len(values))].mean(0) for _ in range(DRAWS)]
    low, high = np.percentile(means, [2.5, 97.5], axis=0)
    return values.mean(0), low, high


def choose_images(measured: Mapping[str, np.ndarray], labels: np.ndarray, count: int) -> dict[str, list[int]]:
    """Chooses at most `count` images by rule, never by hand.

    One of each class, or of evenly spaced classes where there is no room for all: its first that the teacher and the
    first student both get right, else its first. Where students are compared, up to a third are those with the
    largest `moved` of those that the teacher gets right.

    Args:
      measured: see `_measure`. labels: [N].
    Returns:
      {heading: positions in the test set}.
    """
    both = measured["right"][0] & measured["right"][1]
    moved = np.where(measured["right"][0], measured["moved"], -1)
    most = [int(i) for i in np.argsort(-moved, kind="stable")[: count // 3] if moved[i] > 0]
    classes = np.unique(labels)
    room = min(len(classes), count - len(most))

    def first(label: int) -> int:
        own = labels == label
        return int(np.argmax(own & both if (own & both).any() else own))

    spaced = classes[np.linspace(0, len(classes) - 1, room).round().astype(int)]
    heading = "one of each class" if room == len(classes) else f"one of each of {room} classes"
    chosen = {heading: [first(label) for label in spaced]}
    return chosen | ({"where the student differs most from the first compared": most} if most else {})


class _Cell(NamedTuple):
    pixels: np.ndarray  # [h, w, 1 or 3] in [0, 1]
    caption: str
    right: bool = True


def _cells(
    made: Experiment, subjects: Sequence[Subject], positions: Sequence[int], *, stage: int, variant: str
) -> list[list[_Cell]]:
    """A row for each of the test images at `positions`: itself, then every network's map over it."""
    images, labels = (x[positions] for x in made.dataset.test)
    factor = max(1, -(-PIXELS // images.shape[1]))
    pixels = images.repeat(factor, 1).repeat(factor, 2).astype(np.float32) / 255

    @jax.jit
    def look(variables, images, labels, pixels):
        maps, outputs = _look(subjects, variables, images, labels, stage=stage, variant=variant)
        return [gradcam.overlay(pixels, x) for x in maps], [jax.nn.softmax(x.logits) for x in outputs]

    overlays, probabilities = jax.device_get(look([s.variables for s in subjects], images, labels, pixels))
    names = [_short(name, 13) for name in made.dataset.class_names]
    rows = []
    for i, (position, label) in enumerate(zip(positions, labels, strict=True)):
        row = [_Cell(pixels[i], f"{names[label]}  #{position}")]
        for overlay, share in zip(overlays, probabilities, strict=True):
            best = share[i].argmax()
            mark = "" if best == label else "✗ "
            row.append(_Cell(overlay[i], f"{mark}{names[best]} {100 * share[i, best]:.0f}%", best == label))
        rows.append(row)
    return rows


def _draw(groups: Mapping[str, int], titles: Sequence[str], rows: Sequence[Sequence[_Cell]], note: str) -> np.ndarray:
    """The grid [H, W, 3] uint8. `groups`: {heading: how many of the rows stand under it}."""
    width = 2 * SIDE + len(titles) * (CELL + GAP) - GAP
    height = HEAD + len(groups) * HEADING + len(rows) * (CELL + CAPTION) + FOOT
    figure = Figure((width, height), dpi=DPI)
    canvas = FigureCanvasAgg(figure)
    lefts = [SIDE + column * (CELL + GAP) for column in range(len(titles))]

    def write(x, top, text, **options):
        style = {"ha": "center", "va": "top", "fontsize": 7.5, "parse_math": False} | options
        figure.text(x / width, 1 - top / height, text, **style)

    for left, title in zip(lefts, titles, strict=True):
        write(left + CELL / 2, 0.1, title, fontsize=6.8)
    top, remaining = HEAD, iter(rows)
    for heading, count in groups.items():
        write(SIDE, top + 0.08, heading, ha="left", fontweight="bold")
        top += HEADING
        for row in itertools.islice(remaining, count):
            for left, cell in zip(lefts, row, strict=True):
                axes = figure.add_axes((left / width, 1 - (top + CELL) / height, CELL / width, CELL / height))
                axes.imshow(np.broadcast_to(cell.pixels, (*cell.pixels.shape[:2], 3)))
                axes.set_axis_off()
                write(left + CELL / 2, top + CELL + 0.04, cell.caption, color="black" if cell.right else "#b00020")
            top += CELL + CAPTION
    write(SIDE, top + 0.06, note, ha="left", fontsize=6.5, color="#444444")
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _short(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def _png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="png")
    return file.getvalue()


def _print(gaze: Mapping[str, Any]) -> None:
    def say(value: Mapping[str, float], form: str) -> str:
        return f"{value['mean']:{form}} [{value['low']:{form}}, {value['high']:{form}}]"

    teacher, images = gaze["teacher"], gaze["images"]
    print(f"teacher {teacher['name']}: accuracy {100 * teacher['accuracy']:.2f}% of {images} images")
    for student in gaze["students"]:
        text = f"{student['name']}: accuracy {100 * student['accuracy']:.2f}%, "
        text += f"cosine with the teacher's maps {say(student['agreement']['all']['cosine'], '.3f')}"
        if student["difference"]:
            text += f"; the first student's minus this {say(student['difference']['all']['cosine'], '+.3f')}"
        print(text)
