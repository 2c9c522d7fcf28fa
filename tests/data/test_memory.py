"""Arrays as a data set: what is taken, what is refused, a run on them."""

import numpy as np
import pytest

import kd_jax
from kd_jax import experiment, training
from kd_jax.data import memory
from kd_jax.errors import InputError
from tests import tiny

IMAGES = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)
LABELS = np.arange(40) % 4


def test_without_a_test_set_a_fifth_of_each_class_is_one():
    source = memory.from_arrays((IMAGES, LABELS))
    assert (len(source.train.labels), np.bincount(source.test.labels).tolist()) == (32, [2, 2, 2, 2])


def test_images_without_channels_are_gray():
    source = memory.from_arrays((IMAGES[..., 0], LABELS), (IMAGES[:4, ..., 0], LABELS[:4]))
    assert (source.train.images.shape, source.class_names) == ((40, 8, 8, 1), ("0", "1", "2", "3"))


def test_other_arrays_are_another_data_set():
    first, same, other = (
        memory.from_arrays((images, LABELS)).fingerprint for images in (IMAGES, IMAGES.copy(), IMAGES ^ 1)
    )
    assert first == same != other


@pytest.mark.parametrize(
    ("train", "options", "said"),
    [
        ((IMAGES / 255, LABELS), {}, r"the train images are float64 \[40, 8, 8, 3\]; expected uint8"),
        ((IMAGES[0, 0], LABELS[:8]), {}, r"the train images are uint8 \[8, 3\]; expected uint8 \[N, H, W\]"),
        ((IMAGES[..., :2], LABELS), {}, r"expected uint8 \[N, H, W\] or \[N, H, W, 1 or 3\]"),
        ((IMAGES, LABELS[:5]), {}, r"the train labels are int64 \[5\]; expected integers, one for each image"),
        ((IMAGES, LABELS / 2), {}, "the train labels are float64"),
        ((IMAGES, LABELS - 1), {}, "the train labels go from -1 to 2; expected integers from 0"),
        ((IMAGES, LABELS + 2**32), {}, "the train labels go from 4294967296 to 4294967299; expected"),
        ((IMAGES, LABELS), {"class_names": ["a", "b"]}, "class_names has 2 names, and the train labels are 4"),
        ((IMAGES, LABELS), {"class_names": "abcde"}, "class_names has 5 names, and the train labels are 4"),
        ((IMAGES, LABELS), {"class_names": "abca"}, "class_names has 3 names, and the train labels are 4"),
        ((IMAGES, 0 * LABELS), {}, "expected at least two classes"),
        ((IMAGES, np.where(LABELS == 3, 255, LABELS)), {}, "from 0 to 255; expected"),
        ((IMAGES, LABELS % 3), {"test": (IMAGES, LABELS)}, "from 0 to 3; expected"),
        ((IMAGES[:4], LABELS[:4]), {}, "no class has 3 images, of which one could be for the test"),
        ((IMAGES[:, :0], LABELS), {}, r"the train images are \[40, 0, 8, 3\]; expected at least one pixel"),
        ((IMAGES[:0], LABELS[:0]), {}, r"the train images are \[0, 8, 8, 3\]; expected at least one pixel"),
        (([[1], [1, 2]], [0, 1]), {}, "the train data is no pair of arrays"),
        ((IMAGES, LABELS, LABELS), {}, r"the train data is a tuple; expected a pair, \(images, labels\)"),
        (IMAGES, {}, r"the train data is a ndarray; expected a pair, \(images, labels\)"),
        ((IMAGES, LABELS), {"test": (IMAGES[:, :4], LABELS)}, r"the test images are \(4, 8, 3\); expected \(8, 8, 3\)"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(train, options, said):
    with pytest.raises(InputError, match=said):
        memory.from_arrays(train, **options)


@pytest.mark.parametrize(("data", "kind"), [(5, "int"), ((IMAGES, LABELS, LABELS), "tuple")])
def test_data_that_is_no_pair_is_refused(data, kind):
    with pytest.raises(InputError, match=rf"data is a {kind}; expected \(\(images, labels\), \(images, labels\)\)"):
        memory.source_of(data)


def test_the_command_line_cannot_name_arrays():
    with pytest.raises(
        InputError, match=r"'memory', whose arrays only a program has; expected kd_jax\.train, kd_jax\.e"
    ):
        experiment.create(tiny.config(**{"dataset.source": "memory"}))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on arrays."""
    folder = tmp_path_factory.mktemp("memory")
    short = {"dataset.train_images": 0, "train.batch_size": 8, "train.steps": 2}
    config = tiny.taught(**short)
    config["teacher"]["config"]["train"] |= {"batch_size": 8, "steps": 2}
    data = [(IMAGES, LABELS), (IMAGES, LABELS)]
    return folder, data, config, training.train(config, folder / "run", data=data, runs_folder=folder)


def test_a_run_on_arrays_says_what_it_reached(run):
    _, _, _, result = run
    assert result.accuracy == result.result["test"]["accuracy"]
    assert result.result["test"]["images"] == 40


def test_it_is_evaluated_on_the_same_arrays(run):
    folder, data, _, result = run
    measured = kd_jax.evaluate_run(folder / "run", data=data, runs_folder=folder)
    assert measured == result.result["test"]


def test_it_is_explained_on_the_same_arrays(run, tmp_path):
    folder, data, _, result = run
    summary = kd_jax.explain_run(folder / "run", to=tmp_path, data=data, runs_folder=folder, stage=2, num_images=1)
    assert summary["students"][0]["accuracy"] == pytest.approx(result.accuracy)


@pytest.mark.parametrize("labels", [LABELS, LABELS % 3], ids=["other images", "other classes"])
def test_it_is_not_evaluated_on_others(run, labels):
    folder, _, _, _ = run
    with pytest.raises(InputError, match=r"the data is not what .* was trained on"):
        kd_jax.evaluate_run(folder / "run", data=memory.from_arrays((IMAGES ^ 1, labels)))


def test_the_same_call_again_returns_the_finished_run(run, capsys):
    folder, data, config, result = run
    again = training.train(config, folder / "run", data=data, runs_folder=folder)
    assert "finished already" in capsys.readouterr().out
    assert tiny.identical(again.state.params, result.state.params)


def test_all_teachers_of_a_chain_read_the_arrays(tmp_path):
    data = ((IMAGES, LABELS), (IMAGES, LABELS))
    config = tiny.taught(**{"dataset.train_images": 0})
    outer = tiny.taught(**{"dataset.train_images": 0})
    outer["teacher"]["config"] = config
    made = experiment.create(outer, source=memory.source_of(data), runs_folder=str(tmp_path))
    assert made.identity["teacher"]["run"] == made.teacher.untrained.identity
