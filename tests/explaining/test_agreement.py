"""Agreement of students with their teacher over a test set, and the grid; at the end the command that writes them."""

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
from kd_jax import augment, data, experiment, export, gradcam, runs, training
from kd_jax.errors import InputError
from kd_jax.explaining import agreement
from kd_jax.types import Network, Outputs
from tests import tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The runs `kd` and `teacher`; the latter is what `kd` is compared with too, as it agrees with itself."""
    folder = tmp_path_factory.mktemp("gaze")
    config = tiny.taught(**{"evaluate.batch_size": 101})  # the 359 test images are no multiple
    training.train(config, str(folder / "kd"), runs_folder=str(folder / "runs"))
    (teacher,) = (folder / "runs" / "teachers").iterdir()
    (folder / "teacher").symlink_to(teacher)
    return folder


@pytest.fixture(scope="module")
def explained(folder):
    """What is written about `kd` against its teacher."""
    kd, teacher, to = (str(folder / name) for name in ("kd", "teacher", "explained"))
    agreement.explain(kd, [teacher], to=to, runs_folder=str(folder / "runs"), stage=2, shown=12)
    return folder / "explained"


@pytest.fixture(scope="module")
def found(explained):
    return json.loads((explained / "gaze.json").read_text())


@functools.cache
def maps_of(run):
    """[359, h, w], from what a run saved, in one batch; and the labels."""
    network, variables = kd_jax.load(run)[:2]
    saved = runs.read_json(str(run), "config.json")
    test = data.load(saved["config"]["dataset"]).test
    mean, std = (np.array(saved["data"][key]) for key in ("mean", "std"))
    images = augment.prepare(test.images, size=8, mean=mean, std=std)
    return jax.jit(lambda v, x: gradcam.gradcam(network, v, x, test.labels, stage=2))(variables, images)


def test_accuracies_are_those_of_the_runs(folder, found):
    for name, about in zip(("teacher", "kd", "teacher"), (found["teacher"], *found["students"]), strict=True):
        saved = runs.read_json(str(folder / name), "result.json")
        assert about["accuracy"] == pytest.approx(saved["test"]["accuracy"])


def test_hashes_are_those_of_the_runs(folder, found):
    for name, about in zip(("teacher", "kd", "teacher"), (found["teacher"], *found["students"]), strict=True):
        assert about["config_hash"] == runs.read_json(str(folder / name), "config.json")["hash"]


def test_a_teacher_that_is_weights_and_no_run_has_no_hash(folder, tmp_path):
    file, run = str(tmp_path / "teacher.safetensors"), str(tmp_path / "run")
    export.export(str(folder / "teacher"), file)
    config = tiny.config(method=tiny.METHODS["kd"], **{"train.steps": 1})
    config["teacher"] |= {"kind": "weights", "path": file, "config": tiny.config(**{"model.width": 1 / 4})}
    training.train(config, run)
    teacher = agreement.explain(run, stage=2, shown=1)["teacher"]
    assert (teacher["name"], teacher["config_hash"]) == ("teacher.safetensors", None)


def test_networks_of_one_name_are_told_apart_by_their_folders(folder, found):
    (teacher,) = (path.name for path in (folder / "runs" / "teachers").iterdir())
    names = [about["name"] for about in (found["teacher"], *found["students"])]
    assert names == [teacher, "tiny, seed 0", "teacher"]  # the last is a link to the first


@pytest.mark.parametrize("name", gradcam.AGREEMENT)
def test_agreement_is_the_mean_over_every_image_of_the_test_set(folder, found, name):
    teacher = maps_of(folder / "teacher")
    pixel = 8 / 4 if name == "centre_distance" else 1  # of the images in a pixel of the maps
    expected = pixel * gradcam.AGREEMENT[name](maps_of(folder / "kd"), teacher).mean()
    assert found["students"][0]["agreement"]["all"][name]["mean"] == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize(("name", "value"), [("cosine", 1), ("pearson", 1), ("iou", 1), ("centre_distance", 0)])
def test_the_teacher_agrees_with_itself(found, name, value):
    agreement = found["students"][1]["agreement"]["all"]
    share = 1 - found["teacher"]["zero_maps"] * (name != "centre_distance")  # a zero map agrees with none
    assert agreement[name]["mean"] == pytest.approx(value * share, abs=1e-5)


def test_intervals_hold_their_means(found):
    for name in gradcam.AGREEMENT:
        interval = found["students"][0]["agreement"]["all"][name]
        assert interval["low"] < interval["mean"] < interval["high"]


def test_the_grid_has_a_row_for_each_image_and_a_column_for_each_network(explained):
    with Image.open(explained / "gaze.png") as image:
        width, height = image.size
    assert width == pytest.approx(agreement.DPI * (2 * agreement.SIDE + 4 * agreement.CELL + 3 * agreement.GAP), abs=1)
    rows = 12 * (agreement.CELL + agreement.CAPTION) + 2 * agreement.HEADING
    assert height == pytest.approx(agreement.DPI * (rows + agreement.HEAD + agreement.FOOT), abs=1)


def test_the_grid_reaches_tensorboard_at_the_step_that_was_tested(explained):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (event,) = EventAccumulator(str(explained)).Reload().Tensors("gaze")
    assert event.step == 12


class Fake(NamedTuple):
    """A network whose first map is a function of its image, averaged over squares, and which votes by rule."""

    look: Callable = lambda x: x
    pool: int = 2
    votes: int = 0  # for the class of the number of bright pixels plus this

    def map(self, images):
        """[B, h, w] of images [B, H, W, 1] in [0, 1]; of numpy or JAX."""
        size = images.shape[1] // self.pool
        return self.look(images.reshape(len(images), size, self.pool, size, self.pool).mean((2, 4)))

    def predicted(self, images):
        return ((images > 0.5).sum((1, 2, 3)) + self.votes) % 10

    def subject(self, name=""):
        def apply(variables, images, *, train, rng=None, perturbations=None):
            x = self.map(images)[..., None]
            x = x if perturbations is None else x + perturbations[0]
            # The gradient is the same everywhere: Grad-CAM is the map itself, but for a factor.
            logits = x.mean((1, 2)) * jnp.ones((1, 10)) + jax.nn.one_hot(self.predicted(images), 10)
            return Outputs(logits, (x,), (x,), None, None, None, ()), {}

        return agreement.Subject(name, name, None, Network(None, apply), {}, lambda x: x / 255.0)


def bright(x):
    """Zero for dark images."""
    return x * (x.mean((1, 2), keepdims=True) > 0.3)


TEACHER, FIRST, OTHER = Fake(votes=1), Fake(bright, votes=2), Fake(lambda x: x**3, votes=3)


@functools.cache
def faked():
    """(experiment, test images in [0, 1], test labels, what is measured of three networks)."""
    made = experiment.create(tiny.config())
    subjects = [fake.subject() for fake in (TEACHER, FIRST, OTHER)]
    measured = agreement._measure(made, subjects, stage=0, variant="gradcam")
    return made, np.float32(made.dataset.test.images / 255.0), made.dataset.test.labels, measured


def test_a_network_is_right_where_it_predicts_the_label():
    _, images, labels, measured = faked()
    expected = [fake.predicted(images) == labels for fake in (TEACHER, FIRST, OTHER)]
    assert any(x.any() for x in expected)
    np.testing.assert_array_equal(measured["right"], expected)


def test_a_map_is_zero_where_it_is_zero_everywhere():
    _, images, _, measured = faked()
    dark = images.mean((1, 2, 3)) <= 0.3
    assert 0 < dark.sum() < len(images)
    np.testing.assert_array_equal(measured["zero"], [0 * dark, dark, 0 * dark])


def test_moved_is_the_distance_of_the_first_two_students_where_no_map_is_zero():
    _, images, _, measured = faked()
    first, other = FIRST.map(images), OTHER.map(images)
    norms = np.linalg.norm(first, axis=(1, 2)) * np.linalg.norm(other, axis=(1, 2))
    dark = norms == 0
    expected = np.where(dark, -1, 1 - (first * other).sum((1, 2)) / np.where(dark, 1, norms))
    np.testing.assert_allclose(measured["moved"], expected, atol=1e-6)


def test_maps_of_two_sizes_are_compared_at_the_larger():
    made, images, *_ = faked()
    fakes = Fake(pool=4), Fake(pool=2)
    measured = agreement._measure(made, [fake.subject() for fake in fakes], stage=0, variant="gradcam")
    along = np.array([[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]])  # linear between the centres of pixels
    teacher, student = along @ fakes[0].map(images) @ along.T, fakes[1].map(images)
    norms = np.linalg.norm(teacher, axis=(1, 2)) * np.linalg.norm(student, axis=(1, 2))
    np.testing.assert_allclose(measured["agreement"][0, 0], (teacher * student).sum((1, 2)) / norms, rtol=1e-5)


def test_maps_of_one_pixel_are_refused():
    with pytest.raises(InputError, match="the maps of this stage are one pixel, which shows no place"):
        agreement._measure(faked()[0], [Fake(pool=8).subject(), Fake(pool=8).subject()], stage=0, variant="gradcam")


def test_a_cell_of_the_grid_is_the_map_of_its_network_over_its_image():
    made, images, *_ = faked()
    rows = agreement._cells(made, [TEACHER.subject(), OTHER.subject()], [5, 9], stage=0, variant="gradcam")
    pixels = images[[5, 9]].repeat(12, 1).repeat(12, 2)
    for column, fake in ((1, TEACHER), (2, OTHER)):
        expected = gradcam.overlay(jnp.asarray(pixels), jnp.asarray(fake.map(images[[5, 9]])))
        np.testing.assert_allclose([row[column].pixels for row in rows], expected, atol=1e-5)


def test_a_cell_says_what_its_network_predicts_and_marks_what_is_wrong():
    made, images, labels, measured = faked()
    positions = [int(np.argmax(measured["right"][1])), int(np.argmin(measured["right"][1]))]
    right, wrong = (row[1] for row in agreement._cells(made, [FIRST.subject()], positions, stage=0, variant="gradcam"))
    share = 100 * np.e / (np.e + 9)  # one logit is higher by 1
    predicted = FIRST.predicted(images)
    assert (right.caption, right.right) == (f"{labels[positions[0]]} {share:.0f}%", True)
    assert (wrong.caption, wrong.right) == (f"✗ {predicted[positions[1]]} {share:.0f}%", False)


def test_the_summary_splits_by_who_is_right_and_compares_where_all_are():
    rng = np.random.default_rng(0)
    right = rng.random((3, 40)) < 0.6
    measured = {"agreement": rng.normal(size=(2, 4, 40)), "right": right, "zero": rng.random((3, 40)) < 0.1}
    summary = agreement.summarize(measured, [fake.subject() for fake in (TEACHER, FIRST, OTHER)])
    (teacher, first, other), own = right, measured["agreement"][1, 1]
    groups = {
        "all": [True] * 40,
        "both_right": teacher & other,
        "only_teacher_right": teacher & ~other,
        "only_student_right": ~teacher & other,
        "both_wrong": ~teacher & ~other,
    }
    found = {name: group["pearson"]["mean"] for name, group in summary["students"][1]["agreement"].items()}
    assert found == pytest.approx({name: own[np.array(group)].mean() for name, group in groups.items()})
    gap = measured["agreement"][0, 1] - own
    difference = summary["students"][1]["difference"]
    assert difference["all"]["pearson"]["mean"] == pytest.approx(gap.mean())
    assert difference["all_right"]["pearson"]["mean"] == pytest.approx(gap[teacher & first & other].mean())
    assert [s["zero_maps"] for s in summary["students"]] == pytest.approx(list(measured["zero"][1:].mean(1)))


def test_a_bootstrap_interval_has_the_width_that_theory_gives():
    values = np.random.default_rng(1).normal(3.0, 2.0, (500, 1))
    mean, low, high = agreement.bootstrap(values)
    assert mean == pytest.approx(values.mean())
    assert high - low == pytest.approx(2 * 1.96 * values.std() / np.sqrt(500), rel=0.1)


def test_a_bootstrap_is_a_function_of_its_values_and_seed():
    values = np.random.default_rng(1).normal(size=(50, 2))
    assert tiny.identical(agreement.bootstrap(values), agreement.bootstrap(values))


LABELS = np.array([2, 0, 0, 1, 1, 2])


def measured(right, moved=(0, 0, 0, 0, 0, 0)):
    return {"right": np.array(right, bool), "moved": np.array(moved, float)}


def test_each_class_shows_its_first_image_that_teacher_and_student_get_right_else_its_first():
    right = [[0, 1, 1, 1, 0, 1], [1, 0, 1, 0, 1, 1]]
    assert agreement.choose_images(measured(right), LABELS, 6) == {"one of each class": [2, 3, 5]}


def test_up_to_a_third_are_the_images_where_the_students_differ_most():
    moved = [0.1, -1, 0.5, 0.2, 0.9, 0.3]
    chosen = agreement.choose_images(measured(np.ones((3, 6)), moved), LABELS, 6)
    assert chosen["where the student differs most from the first compared"] == [4, 2]


def test_an_image_that_the_teacher_gets_wrong_is_not_one_where_they_differ_most():
    right = np.ones((3, 6))
    right[0, 4] = 0
    chosen = agreement.choose_images(measured(right, [0.1, -1, 0.5, 0.2, 0.9, 0.3]), LABELS, 6)
    assert chosen["where the student differs most from the first compared"] == [2, 5]


def test_an_image_on_which_a_map_is_zero_is_not_one_where_they_differ_most():
    chosen = agreement.choose_images(measured(np.ones((3, 6)), [-1] * 6), LABELS, 6)
    assert list(chosen) == ["one of each class"]


def test_where_there_is_no_room_for_all_classes_they_are_evenly_spaced():
    labels = np.arange(100)
    chosen = agreement.choose_images({"right": np.ones((2, 100), bool), "moved": np.zeros(100)}, labels, 4)
    assert chosen == {"one of each of 4 classes": [0, 33, 66, 99]}


def copy(folder, name, to):
    shutil.copytree(folder / name, to)
    return to


def change(run, **entries):
    saved = runs.read_json(str(run), "config.json")
    saved["data"] |= entries
    runs.write_json(str(run / "config.json"), saved)


def refused(folder, run, against=(), **options):
    """Why it is refused; nothing is written."""
    options = {"runs_folder": str(folder / "runs"), "to": str(folder / "none")} | options
    with pytest.raises(InputError) as error:
        agreement.explain(str(run), [str(other) for other in against], **options)
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
    asked = (run, []) if name == "kd" else (folder / "kd", [run])
    said = refused(folder, *asked)
    assert f"{run / 'checkpoints' / '12'} cannot be read; expected a whole checkpoint" in said
    assert "\n" not in said


def test_a_run_without_a_teacher_is_refused(folder):
    said = refused(folder, folder / "teacher")
    assert said == f"the run in {folder / 'teacher'} has no teacher; expected a distilled one, and others as --against"


def test_a_run_whose_teacher_is_gone_is_refused(folder, tmp_path):
    said = refused(folder, folder / "kd", runs_folder=str(tmp_path))
    assert (
        f"has no finished run in {tmp_path}/teachers/{(folder / 'teacher').resolve().name}; expected it there" in said
    )


@pytest.mark.parametrize(
    ("entry", "said"),
    [({"fingerprint": "f"}, "another test set"), ({"image_shape": [4, 4, 1]}, "another size of images")],
)
def test_runs_on_different_data_are_refused(folder, tmp_path, entry, said):
    run = copy(folder, "teacher", tmp_path / "run")
    change(run, **entry)
    assert f"{run} has {said} than {folder / 'kd'}; expected runs on the same data" in refused(
        folder, folder / "kd", [run]
    )


def test_data_that_is_not_what_the_run_was_trained_on_is_refused(folder, tmp_path):
    run = copy(folder, "kd", tmp_path / "run")
    change(run, fingerprint="f")
    assert f"the data is not what {str(run)!r} was trained on" in refused(folder, run)


def test_a_stage_that_a_network_lacks_is_refused_with_those_it_has(folder):
    said = refused(folder, folder / "kd", stage=4)
    assert said == f"{(folder / 'teacher').resolve()}: stage is 4; expected 0 (the stem) to 3, or -4 to -1 (the last)"


@pytest.mark.parametrize("name", agreement.FILES)
def test_a_folder_in_the_place_of_a_file_is_refused(folder, tmp_path, name):
    (tmp_path / "to" / name).mkdir(parents=True)
    said = refused(folder, folder / "kd", to=str(tmp_path / "to"))
    assert said.endswith(f"{name} in it is a folder; expected a file or none")
    assert [path.name for path in (tmp_path / "to").iterdir()] == [name]


def test_a_run_that_is_compared_sees_images_normalised_as_it_was_trained(folder, tmp_path):
    run = copy(folder, "teacher", tmp_path / "run")
    change(run, std=[0.2], mean=[0.9])
    found = agreement.explain(
        str(folder / "kd"), [str(run)], to=str(tmp_path), runs_folder=str(folder / "runs"), shown=1
    )
    network, variables = kd_jax.load(run)[:2]
    test = data.load(runs.read_json(str(run), "config.json")["config"]["dataset"]).test
    images = jnp.float32((test.images / 255.0 - 0.9) / 0.2)
    images = jax.image.resize(images, (len(images), 8, 8, 1), "linear") if images.shape[1] != 8 else images
    logits = jax.jit(lambda v, x: network.apply(v, x, train=False)[0].logits)(variables, images)
    assert found["students"][1]["accuracy"] == pytest.approx(float((logits.argmax(-1) == test.labels).mean()))


def test_the_grid_is_mirrored_for_the_run(folder, tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(agreement.wandb_run, "add_image", lambda *arguments: calls.append(arguments))
    agreement.explain(str(folder / "kd"), to=str(tmp_path), runs_folder=str(folder / "runs"), shown=1)
    assert calls == [(str(folder / "kd"), "gaze", str(tmp_path / "gaze.png"), 12)]


def test_a_folder_that_cannot_be_written_is_refused(folder, tmp_path):
    (tmp_path / "file").write_text("")
    assert "cannot be written" in refused(folder, folder / "kd", to=str(tmp_path / "file"))


def test_the_command_writes_into_the_run_and_prints_what_it_found_of_each_that_it_names(folder):
    command = [sys.executable, "-m", "kd_jax.explain", f"--workdir={folder / 'kd'}", f"--runs={folder / 'runs'}"]
    own = ["--variant=gradcam++", "--images=3", "--against", *2 * [str(folder / "teacher")]]
    done = subprocess.run([*command, *own], cwd=Path(__file__).parent.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1].startswith("359/359 images  ")
    found = json.loads((folder / "kd" / "gaze.json").read_text())
    assert (found["variant"], found["stage"]) == ("gradcam++", -1)
    cosine = found["students"][0]["agreement"]["all"]["cosine"]
    teacher, student, *others, written = done.stdout.splitlines()
    assert teacher.startswith("teacher ")
    assert [line.partition(":")[0] for line in others] == ["teacher", "teacher"]
    assert student.endswith(f"maps {cosine['mean']:.3f} [{cosine['low']:.3f}, {cosine['high']:.3f}]")
    assert written == f"wrote {folder / 'kd' / 'gaze.json'} and {folder / 'kd' / 'gaze.png'}"
