"""Agreement of students with their teacher over a test set, and the grid; at the end the command that writes them."""

import functools
import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import kd_jax
from kd_jax import augment, data, experiment, export, gaze, gradcam, loop, runs
from kd_jax.types import InputError, Network, Outputs
from tests import tiny

GROUPS = ("both_right", "only_teacher_right", "only_student_right", "both_wrong")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The runs `kd` and `teacher`; the latter is what `kd` is compared with too, as it agrees with itself."""
    folder = tmp_path_factory.mktemp("gaze")
    config = tiny.taught(**{"evaluate.batch_size": 101})  # the 359 test images are no multiple
    loop.train_and_evaluate(config, str(folder / "kd"), runs_folder=str(folder / "runs"))
    (teacher,) = (folder / "runs" / "teachers").iterdir()
    (folder / "teacher").symlink_to(teacher)
    return folder


@pytest.fixture(scope="module")
def explained(folder):
    """What is written about `kd` against its teacher."""
    kd, teacher, to = (str(folder / name) for name in ("kd", "teacher", "explained"))
    gaze.explain(kd, [teacher], to=to, runs_folder=str(folder / "runs"), stage=2, shown=12)
    return folder / "explained"


@pytest.fixture(scope="module")
def found(explained):
    return json.loads((explained / "gaze.json").read_text())


@functools.cache
def maps_of(run):
    """[359, h, w], from what a run saved, in one batch; and the labels."""
    network, variables, _ = kd_jax.load(str(run))
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
    loop.train_and_evaluate(config, run)
    teacher = gaze.explain(run, stage=2, shown=1)["teacher"]
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


def test_the_groups_hold_every_image_once(found):
    for student in found["students"]:
        groups = student["agreement"]
        assert sum(groups[name]["images"] for name in GROUPS) == groups["all"]["images"] == found["images"] == 359


def test_the_groups_follow_the_accuracies(found):
    for student in found["students"]:
        right = sum(student["agreement"][name]["images"] for name in ("both_right", "only_student_right"))
        assert right / 359 == pytest.approx(student["accuracy"])


def test_the_difference_is_that_of_the_first_student_and_the_other(found):
    first, other = (student["agreement"]["all"]["cosine"]["mean"] for student in found["students"])
    assert found["students"][0]["difference"] is None
    assert found["students"][1]["difference"]["all"]["cosine"]["mean"] == pytest.approx(first - other, abs=1e-9)


def test_intervals_hold_their_means(found):
    for name in gradcam.AGREEMENT:
        interval = found["students"][0]["agreement"]["all"][name]
        assert interval["low"] < interval["mean"] < interval["high"]


def test_the_grid_has_a_row_for_each_image_and_a_column_for_each_network(explained):
    with Image.open(explained / "gaze.png") as image:
        width, height = image.size
    assert width == pytest.approx(gaze.DPI * (2 * gaze.SIDE + 4 * gaze.CELL + 3 * gaze.GAP), abs=1)
    rows = 12 * (gaze.CELL + gaze.CAPTION) + 2 * gaze.HEADING
    assert height == pytest.approx(gaze.DPI * (rows + gaze.HEAD + gaze.FOOT), abs=1)


def test_the_grid_reaches_tensorboard_at_the_step_that_was_tested(explained):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (event,) = EventAccumulator(str(explained)).Reload().Tensors("gaze")
    assert event.step == 12


class Fake:
    """A network whose first map is its image, averaged over squares of `pool` pixels."""

    def __init__(self, pool):
        self.pool = pool

    def apply(self, variables, images, *, train, rng=None, perturbations=None):
        size = images.shape[1] // self.pool
        x = images.reshape(len(images), size, self.pool, size, self.pool).mean((2, 4))[..., None]
        x = x if perturbations is None else x + perturbations[0]
        logits = x.mean((1, 2)) * jnp.ones((1, 10))
        return Outputs(logits, (x,), (x,), None, None, None, ()), {}


def test_maps_of_two_sizes_are_compared_at_the_larger():
    made = experiment.create(tiny.config())
    networks = [Network(None, Fake(pool).apply) for pool in (4, 2)]
    subjects = [gaze.Subject("", "", None, network, {}, lambda x: x / 255.0) for network in networks]
    measured = gaze._measure(made, subjects, stage=0, variant="gradcam")
    images = made.dataset.test.images[..., 0] / 255.0
    teacher, student = (images.reshape(-1, 8 // p, p, 8 // p, p).mean((2, 4)) for p in (4, 2))
    expected = gradcam.cosine(jnp.float32(student), gradcam.upsample(jnp.float32(teacher), 4))
    np.testing.assert_allclose(measured["agreement"][0, 0], expected, rtol=1e-5)


def test_a_bootstrap_interval_has_the_width_that_theory_gives():
    values = np.random.default_rng(1).normal(3.0, 2.0, (500, 1))
    mean, low, high = gaze.bootstrap(values)
    assert mean == pytest.approx(values.mean())
    assert high - low == pytest.approx(2 * 1.96 * values.std() / np.sqrt(500), rel=0.1)


def test_a_bootstrap_is_a_function_of_its_values_and_seed():
    values = np.random.default_rng(1).normal(size=(50, 2))
    assert tiny.identical(gaze.bootstrap(values), gaze.bootstrap(values))


LABELS = np.array([2, 0, 0, 1, 1, 2])


def measured(right, moved=(0, 0, 0, 0, 0, 0)):
    return {"right": np.array(right, bool), "moved": np.array(moved, float)}


def test_each_class_shows_its_first_image_that_teacher_and_student_get_right_else_its_first():
    right = [[0, 1, 1, 1, 0, 1], [1, 0, 1, 0, 1, 1]]
    assert gaze.choose_images(measured(right), LABELS, 6) == {"one of each class": [2, 3, 5]}


def test_up_to_a_third_are_the_images_where_the_students_differ_most():
    moved = [0.1, -1, 0.5, 0.2, 0.9, 0.3]
    chosen = gaze.choose_images(measured(np.ones((3, 6)), moved), LABELS, 6)
    assert chosen["where the student's gaze differs most"] == [4, 2]


def test_an_image_that_the_teacher_gets_wrong_is_not_one_where_they_differ_most():
    right = np.ones((3, 6))
    right[0, 4] = 0
    chosen = gaze.choose_images(measured(right, [0.1, -1, 0.5, 0.2, 0.9, 0.3]), LABELS, 6)
    assert chosen["where the student's gaze differs most"] == [2, 5]


def test_an_image_on_which_a_map_is_zero_is_not_one_where_they_differ_most():
    chosen = gaze.choose_images(measured(np.ones((3, 6)), [-1] * 6), LABELS, 6)
    assert list(chosen) == ["one of each class"]


def test_where_there_is_no_room_for_all_classes_they_are_evenly_spaced():
    labels = np.arange(100)
    chosen = gaze.choose_images({"right": np.ones((2, 100), bool), "moved": np.zeros(100)}, labels, 4)
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
        gaze.explain(str(run), [str(other) for other in against], **options)
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
