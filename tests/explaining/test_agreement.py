"""Agreement of students with their teacher over a test set, and the files and lines that `explain` writes."""

import functools
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import kd_jax
from kd_jax import augment, data, export, gradcam, runs, training
from kd_jax.errors import InputError
from kd_jax.experiment import create
from kd_jax.explaining import agreement, grid
from kd_jax.types import Network, Outputs
from tests import tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The runs `kd` and `teacher`; the latter is what `kd` is compared with too, as it agrees with itself."""
    folder = tmp_path_factory.mktemp("explaining")
    config = tiny.taught(**{"evaluate.batch_size": 101})  # the 359 test images are no multiple
    config["teacher"]["config"]["model"]["normalize"] = "half"
    training.train(config, str(folder / "kd"), runs_folder=str(folder / "runs"))
    (teacher,) = (folder / "runs" / "teachers").iterdir()
    (folder / "teacher").symlink_to(teacher)
    return folder


@pytest.fixture(scope="module")
def explained(folder):
    """The folder with the files for `kd` against its teacher."""
    kd, teacher, to = (str(folder / name) for name in ("kd", "teacher", "explained"))
    agreement.explain_run(kd, teacher, to=to, runs_folder=str(folder / "runs"), stage=2, num_images=12)
    return folder / "explained"


@pytest.fixture(scope="module")
def summary(explained):
    return json.loads((explained / "saliency.json").read_text())


@functools.cache
def maps_of(run):
    """Maps [359, h, w] of the whole test set in one batch, from the files of a run."""
    network, variables = kd_jax.load(run)[:2]
    saved = runs.read_json(str(run), "config.json")
    test = data.load(saved["config"]["dataset"]).test
    is_teacher = saved["config"]["model"]["normalize"] == "half"
    mean, std = (np.array([0.5] if is_teacher else saved["data"][key]) for key in ("mean", "std"))
    images = augment.prepare(test.images, size=8, mean=mean, std=std)
    return jax.jit(lambda v, x: gradcam.gradcam(network, v, x, test.labels, stage=2))(variables, images)


def test_accuracies_are_those_of_the_runs(folder, summary):
    for name, model in zip(("teacher", "kd", "teacher"), (summary["teacher"], *summary["students"]), strict=True):
        saved = runs.read_json(str(folder / name), "result.json")
        assert model["accuracy"] == pytest.approx(saved["test"]["accuracy"])


def test_hashes_are_those_of_the_runs(folder, summary):
    for name, model in zip(("teacher", "kd", "teacher"), (summary["teacher"], *summary["students"]), strict=True):
        assert model["config_hash"] == runs.read_json(str(folder / name), "config.json")["hash"]


def test_a_teacher_that_is_weights_and_no_run_has_no_hash(folder, tmp_path):
    file, run = str(tmp_path / "teacher.safetensors"), str(tmp_path / "run")
    export.export(str(folder / "teacher"), file)
    config = tiny.config(method=tiny.METHODS["kd"], **{"train.steps": 1})
    config["teacher"] |= {"kind": "weights", "path": file, "config": tiny.config(**{"model.width": 1 / 4})}
    training.train(config, run)
    teacher = agreement.explain_run(run, stage=2, num_images=1)["teacher"]
    assert (teacher["name"], teacher["config_hash"]) == ("teacher.safetensors", None)


def test_models_of_one_name_are_named_by_their_folders(folder, summary):
    (teacher,) = (path.name for path in (folder / "runs" / "teachers").iterdir())
    names = [model["name"] for model in (summary["teacher"], *summary["students"])]
    assert names == [teacher, "tiny, seed 0", "teacher"]  # the last is a link to the first


@pytest.mark.parametrize("name", gradcam.AGREEMENT)
def test_agreement_is_the_mean_over_the_test_set(folder, summary, name):
    teacher = maps_of(folder / "teacher")
    pixel = 8 / 4 if name == "center_distance" else 1  # of the images in a pixel of the maps
    expected = pixel * jax.jit(gradcam.AGREEMENT[name])(maps_of(folder / "kd"), teacher).mean()
    assert summary["students"][0]["agreement"]["all"][name]["mean"] == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize(("name", "value"), [("cosine", 1), ("pearson", 1), ("iou", 1), ("center_distance", 0)])
def test_the_teacher_agrees_with_itself(summary, name, value):
    measures = summary["students"][1]["agreement"]["all"]
    share = 1 - summary["teacher"]["zero_maps"] * (name != "center_distance")  # a zero map agrees with none
    assert measures[name]["mean"] == pytest.approx(value * share, abs=1e-5)


def test_intervals_hold_their_means(summary):
    for name in gradcam.AGREEMENT:
        interval = summary["students"][0]["agreement"]["all"][name]
        assert interval["low"] < interval["mean"] < interval["high"]


def test_the_picture_has_the_number_of_images_asked_for(explained):
    with Image.open(explained / "saliency.png") as image:
        width, height = image.size
    assert width == pytest.approx(grid.DPI * (2 * grid.MARGIN + 4 * grid.CELL + 3 * grid.GAP), abs=1)
    rows = 12 * (grid.CELL + grid.CAPTION) + 2 * grid.HEADING
    assert height == pytest.approx(grid.DPI * (rows + grid.HEADER + grid.FOOTER), abs=1)


def test_the_grid_reaches_tensorboard_at_the_step_that_was_tested(explained):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (event,) = EventAccumulator(str(explained)).Reload().Tensors("saliency")
    assert event.step == 12


class Fake(NamedTuple):
    """A network whose first map is a function of its image, averaged over squares, and which votes by rule."""

    saliency: Callable = lambda x: x
    pool: int = 2
    votes: int = 0  # for the class of the number of bright pixels plus this

    def map(self, images):
        """[B, h, w] of images [B, H, W, 1] in [0, 1]; of numpy or JAX."""
        size = images.shape[1] // self.pool
        return self.saliency(images.reshape(len(images), size, self.pool, size, self.pool).mean((2, 4)))

    def predicted(self, images):
        return ((images > 0.5).sum((1, 2, 3)) + self.votes) % 10

    def model(self):
        def apply(variables, images, *, train, rng=None, perturbations=None):
            x = self.map(images)[..., None]
            x = x if perturbations is None else x + perturbations[0]
            # The gradient is the same everywhere: Grad-CAM is the map itself, but for a factor.
            logits = x.mean((1, 2)) * jnp.ones((1, 10)) + jax.nn.one_hot(self.predicted(images), 10)
            return Outputs(logits, (x,), (x,), None, None, None, ()), {}

        return agreement.TrainedModel("", "", None, Network(None, apply), {}, lambda x: x / 255.0)


def bright(x):
    """Zero for dark images."""
    return x * (x.mean((1, 2), keepdims=True) > 0.3)


TEACHER, FIRST, OTHER = Fake(votes=1), Fake(bright, votes=2), Fake(lambda x: x**3, votes=3)


@functools.cache
def fake_measurements():
    """(experiment, test images in [0, 1], test labels, what is measured of three models)."""
    experiment = create(tiny.config())
    models = [fake.model() for fake in (TEACHER, FIRST, OTHER)]
    measurements = agreement.measure(experiment, models, stage=0, variant="gradcam")
    test = experiment.dataset.test
    return experiment, np.float32(test.images / 255.0), test.labels, measurements


def test_a_network_is_correct_where_it_predicts_the_label():
    _, images, labels, measurements = fake_measurements()
    expected = [fake.predicted(images) == labels for fake in (TEACHER, FIRST, OTHER)]
    assert any(x.any() for x in expected)
    np.testing.assert_array_equal(measurements.correct, expected)


def test_a_map_is_zero_where_it_is_zero_everywhere():
    _, images, _, measurements = fake_measurements()
    dark = images.mean((1, 2, 3)) <= 0.3
    assert 0 < dark.sum() < len(images)
    np.testing.assert_array_equal(measurements.zero, [0 * dark, dark, 0 * dark])


def test_disagreement_is_the_distance_of_two_students_with_nonzero_maps():
    _, images, _, measurements = fake_measurements()
    first, other = FIRST.map(images), OTHER.map(images)
    norms = np.linalg.norm(first, axis=(1, 2)) * np.linalg.norm(other, axis=(1, 2))
    dark = norms == 0
    expected = np.where(dark, -1, 1 - (first * other).sum((1, 2)) / np.where(dark, 1, norms))
    np.testing.assert_allclose(measurements.disagreement, expected, atol=1e-6)


def test_maps_of_two_sizes_are_compared_at_the_larger():
    experiment, images, *_ = fake_measurements()
    fakes = Fake(pool=4), Fake(pool=2)
    measurements = agreement.measure(experiment, [fake.model() for fake in fakes], stage=0, variant="gradcam")
    along = np.array([[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]])  # linear between the centers of pixels
    teacher, student = along @ fakes[0].map(images) @ along.T, fakes[1].map(images)
    norms = np.linalg.norm(teacher, axis=(1, 2)) * np.linalg.norm(student, axis=(1, 2))
    np.testing.assert_allclose(measurements.agreement[0, 0], (teacher * student).sum((1, 2)) / norms, rtol=1e-5)


def test_maps_of_one_pixel_are_refused():
    with pytest.raises(InputError, match="the maps of this stage have one pixel, which locates nothing"):
        agreement.measure(
            fake_measurements()[0], [Fake(pool=8).model(), Fake(pool=8).model()], stage=0, variant="gradcam"
        )


def test_a_cell_of_the_picture_is_the_map_of_its_model_over_its_image(monkeypatch):
    experiment, images, _, measurements = fake_measurements()
    drawn = []
    monkeypatch.setattr(grid, "draw", lambda *arguments: drawn.append(arguments))
    models = [fake.model() for fake in (TEACHER, FIRST, OTHER)]
    agreement._picture(experiment, models, measurements, stage=0, variant="gradcam", num_images=2)
    rows = drawn[0][2]
    positions = [int(row[0].caption.partition("#")[2]) for row in rows]
    pixels = images[positions].repeat(12, 1).repeat(12, 2)
    for column, fake in ((1, TEACHER), (3, OTHER)):
        expected = grid.overlay(jnp.asarray(pixels), jnp.asarray(fake.map(images[positions])))
        np.testing.assert_allclose([row[column].pixels for row in rows], expected, atol=1e-5)


def test_the_summary_splits_by_who_is_right_and_compares_where_all_are():
    rng = np.random.default_rng(0)
    correct, zero = rng.random((3, 40)) < 0.6, rng.random((3, 40)) < 0.1
    measurements = agreement.Measurements(rng.normal(size=(2, 4, 40)), correct, zero, np.zeros(40))
    summary = agreement.summarize(measurements, [fake.model() for fake in (TEACHER, FIRST, OTHER)])
    (teacher, first, other), pearson = correct, measurements.agreement[1, 1]
    groups = {
        "all": [True] * 40,
        "both_right": teacher & other,
        "only_teacher_right": teacher & ~other,
        "only_student_right": ~teacher & other,
        "both_wrong": ~teacher & ~other,
    }
    means = {name: group["pearson"]["mean"] for name, group in summary["students"][1]["agreement"].items()}
    assert means == pytest.approx({name: pearson[np.array(group)].mean() for name, group in groups.items()})
    gap = measurements.agreement[0, 1] - pearson
    difference = summary["students"][1]["difference"]
    assert difference["all"]["pearson"]["mean"] == pytest.approx(gap.mean())
    assert difference["all_right"]["pearson"]["mean"] == pytest.approx(gap[teacher & first & other].mean())
    assert [s["zero_maps"] for s in summary["students"]] == pytest.approx(list(zero[1:].mean(1)))


def test_a_bootstrap_interval_has_the_width_that_theory_gives():
    values = np.random.default_rng(1).normal(3.0, 2.0, (500, 1))
    mean, low, high = agreement.bootstrap(values)
    assert mean == pytest.approx(values.mean())
    assert high - low == pytest.approx(2 * 1.96 * values.std() / np.sqrt(500), rel=0.1)


def test_a_bootstrap_is_a_function_of_its_values_and_seed():
    values = np.random.default_rng(1).normal(size=(50, 2))
    assert tiny.identical(agreement.bootstrap(values), agreement.bootstrap(values))


def copy(folder, name, to):
    shutil.copytree(folder / name, to)
    return to


def change(run, **entries):
    saved = runs.read_json(str(run), "config.json")
    saved["data"] |= entries
    runs.write_json(str(run / "config.json"), saved)


def refused(folder, run, against=(), **options):
    """The message of the error; nothing is written."""
    options = {"runs_folder": str(folder / "runs"), "to": str(folder / "none")} | options
    with pytest.raises(InputError) as error:
        agreement.explain_run(str(run), [str(other) for other in against], **options)
    assert not (folder / "none").exists()
    return str(error.value)


def test_a_folder_without_a_run_is_refused(folder, tmp_path):
    assert f"{tmp_path} has no config.json; expected the folder of a run" in refused(folder, tmp_path)


def test_an_unfinished_run_is_refused(folder, tmp_path):
    run = copy(folder, "teacher", tmp_path / "run")
    (run / "result.json").unlink()
    assert f"the run in {run} has not finished" in refused(folder, folder / "kd", [run])


@pytest.mark.parametrize("name", ["kd", "teacher"])
def test_a_run_without_its_checkpoint_is_refused(folder, tmp_path, name):
    run = copy(folder, name, tmp_path / "run")
    shutil.rmtree(run / "checkpoints")
    arguments = (run, []) if name == "kd" else (folder / "kd", [run])
    message = refused(folder, *arguments)
    assert f"{run / 'checkpoints' / '12'} cannot be read; expected a whole checkpoint" in message
    assert "\n" not in message


def test_a_run_without_a_teacher_is_refused(folder):
    message = refused(folder, folder / "teacher")
    assert (
        message == f"the run in {folder / 'teacher'} has no teacher; expected a distilled one, and others as --against"
    )


def test_a_run_whose_teacher_is_gone_is_refused(folder, tmp_path):
    run = copy(folder, "kd", tmp_path / "run")
    saved = runs.read_json(str(run), "config.json") | {"teacher_source": None}
    runs.write_json(str(run / "config.json"), saved)
    message = refused(tmp_path, run, runs_folder=str(tmp_path))
    assert message == f"the teacher of {run} is gone; expected it where it was, or its run in --runs"


@pytest.mark.parametrize(
    ("entry", "message"),
    [({"fingerprint": "f"}, "a different test set"), ({"image_shape": [4, 4, 1]}, "a different image size")],
)
def test_runs_on_different_data_are_refused(folder, tmp_path, entry, message):
    run = copy(folder, "teacher", tmp_path / "run")
    change(run, **entry)
    assert f"{run} has {message} from {folder / 'kd'}; expected runs on the same data" in refused(
        folder, folder / "kd", [run]
    )


def test_data_other_than_the_runs_own_is_refused(folder, tmp_path):
    run = copy(folder, "kd", tmp_path / "run")
    change(run, fingerprint="f")
    assert f"the data is not what {str(run)!r} was trained on" in refused(folder, run)


def test_a_stage_that_a_network_lacks_is_refused_with_those_it_has(folder):
    message = refused(folder, folder / "kd", stage=3)
    assert (
        message == f"{(folder / 'teacher').resolve()}: stage is 3; expected 0 (the stem) to 2, or -3 to -1 (the last)"
    )


@pytest.mark.parametrize("name", agreement.OUTPUT_FILES)
def test_a_folder_in_the_place_of_a_file_is_refused(folder, tmp_path, name):
    (tmp_path / "to" / name).mkdir(parents=True)
    message = refused(folder, folder / "kd", to=str(tmp_path / "to"))
    assert message.endswith(f"{name} in it is a folder; expected a file or none")
    assert [path.name for path in (tmp_path / "to").iterdir()] == [name]


def test_a_compared_run_sees_images_normalized_as_in_its_training(folder, tmp_path):
    run = copy(folder, "kd", tmp_path / "run")
    change(run, std=[0.2], mean=[0.9])
    summary = agreement.explain_run(
        str(folder / "kd"), [str(run)], to=str(tmp_path), runs_folder=str(folder / "runs"), num_images=1
    )
    network, variables = kd_jax.load(run)[:2]
    test = data.load(runs.read_json(str(run), "config.json")["config"]["dataset"]).test
    images = jnp.float32((test.images / 255.0 - 0.9) / 0.2)
    images = jax.image.resize(images, (len(images), 8, 8, 1), "linear") if images.shape[1] != 8 else images
    logits = jax.jit(lambda v, x: network.apply(v, x, train=False)[0].logits)(variables, images)
    assert summary["students"][1]["accuracy"] == pytest.approx(float((logits.argmax(-1) == test.labels).mean()))


def test_the_grid_is_mirrored_for_the_run(folder, tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(agreement.mirrors, "add_image", lambda *arguments: calls.append(arguments))
    agreement.explain_run(str(folder / "kd"), to=str(tmp_path), runs_folder=str(folder / "runs"), num_images=1)
    assert calls == [(str(folder / "kd"), "saliency", str(tmp_path / "saliency.png"), 12)]


def test_a_failure_to_draw_loses_no_number_and_leaves_no_old_picture(folder, tmp_path, monkeypatch):
    (tmp_path / "saliency.png").write_bytes(b"of other numbers")
    monkeypatch.setattr(grid, "draw", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        agreement.explain_run(str(folder / "kd"), to=str(tmp_path), runs_folder=str(folder / "runs"), num_images=1)
    assert json.loads((tmp_path / "saliency.json").read_text())["images"] == 359
    assert not (tmp_path / "saliency.png").exists()


def test_an_older_and_a_newer_run_on_the_same_data_are_compared(folder, tmp_path, monkeypatch):
    run = copy(folder, "teacher", tmp_path / "run")
    now = runs.read_json(str(folder / "kd"), "config.json")["data"]["fingerprint"]
    digits = data.SOURCES["digits"]._replace(former_fingerprint=lambda section: "former")
    monkeypatch.setitem(data.SOURCES, "digits", digits)
    change(run, fingerprint="former")
    agreement._check_runs([str(folder / "kd"), str(run)], None)
    assert data.fingerprints(runs.read_json(str(run), "config.json")["config"]["dataset"]) == (now, "former")


def test_a_folder_that_cannot_be_written_is_refused(folder, tmp_path):
    (tmp_path / "file").write_text("")
    assert "cannot be written" in refused(folder, folder / "kd", to=str(tmp_path / "file"))


def test_the_command_writes_into_the_run_and_prints_a_line_per_model(folder):
    command = [sys.executable, "-m", "kd_jax.explain", f"--workdir={folder / 'kd'}", f"--runs={folder / 'runs'}"]
    options = ["--variant=gradcam++", "--images=3", "--against", *2 * [str(folder / "teacher")]]
    done = subprocess.run([*command, *options], cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1].startswith("maps of images 359/359  ")
    summary = json.loads((folder / "kd" / "saliency.json").read_text())
    assert (summary["variant"], summary["stage"]) == ("gradcam++", -1)
    cosine = summary["students"][0]["agreement"]["all"]["cosine"]
    read, teacher, student, *others, written = done.stdout.splitlines()
    assert read.startswith("data digits: 1438 train, ")
    assert teacher.startswith("teacher ")
    assert [line.partition(":")[0] for line in others] == ["teacher", "teacher"]
    assert student.endswith(f"maps {cosine['mean']:.3f} [{cosine['low']:.3f}, {cosine['high']:.3f}]")
    assert written == f"wrote {folder / 'kd' / 'saliency.json'} and {folder / 'kd' / 'saliency.png'}"
