"""Images in a file of numpy arrays."""

import numpy as np
import pytest

from kd_jax import data
from kd_jax.data import memory, npz
from kd_jax.errors import InputError
from tests import tiny

RNG = np.random.default_rng(0)


def arrays(count):
    return RNG.integers(0, 256, (count, 8, 8), dtype=np.uint8), np.arange(count) % 3


TRAIN, VALIDATION, TEST = arrays(30), arrays(6), arrays(9)
SPLITS = {
    "ours": {"train": TRAIN, "validation": VALIDATION, "test": TEST},
    "medmnist": {"train": TRAIN, "val": VALIDATION, "test": TEST},
}


def save(folder, contents):
    np.savez_compressed(folder / "images.npz", **contents)
    return str(folder / "images.npz")


@pytest.mark.parametrize("splits", SPLITS.values(), ids=SPLITS)
@pytest.mark.parametrize("column", [False, True])
def test_a_file_is_read_as_its_arrays(tmp_path, splits, column):
    contents = {f"{name}_images": images for name, (images, _) in splits.items()}
    contents |= {f"{name}_labels": labels[:, None] if column else labels for name, (_, labels) in splits.items()}
    read = npz.load(save(tmp_path, contents | {"class_names": np.array(["cat", "dog", "hen"])}))
    expected = memory.from_arrays(TRAIN, TEST, ["cat", "dog", "hen"], validation=VALIDATION)
    assert (read.class_names, read.fingerprint, read.name) == (
        ("cat", "dog", "hen"),
        expected.fingerprint,
        "images.npz",
    )
    for own, theirs in (
        (read.train, expected.train),
        (read.validation, expected.validation),
        (read.test, expected.test),
    ):
        np.testing.assert_array_equal(own.images, theirs.images)
        np.testing.assert_array_equal(own.labels, theirs.labels)


def test_kerass_names_are_known_and_a_part_is_kept_for_the_test(tmp_path):
    read = npz.load(save(tmp_path, {"x_train": TRAIN[0], "y_train": TRAIN[1]}))
    assert read.class_names == ("0", "1", "2")
    assert len(read.test.labels) == 6


def test_a_config_reads_it(tmp_path):
    names = ("train_images", "train_labels", "test_images", "test_labels")
    path = save(tmp_path, dict(zip(names, (*TRAIN, *TEST), strict=True)))
    section = tiny.config(**{"dataset.source": "npz", "dataset.path": path, "dataset.train_images": 0})["dataset"]
    read = data.load({**section, "holdout": 0.0})
    assert sorted(read.train.labels.tolist()) == sorted(TRAIN[1].tolist())
    assert len(read.test.labels) == 9


@pytest.mark.parametrize(
    ("contents", "said"),
    [
        ({"images": TRAIN[0], "labels": TRAIN[1]}, "images.npz holds images, labels; expected train_images and train_"),
        ({}, "images.npz holds nothing; expected train_images"),
        ({"x_train": TRAIN[0] / 255, "y_train": TRAIN[1]}, "images.npz: the train images are float64"),
        ({"x_train": np.array([{}]), "y_train": TRAIN[1]}, "cannot be read as a .npz file: Object arrays cannot be"),
    ],
)
def test_a_file_of_other_arrays_is_refused(tmp_path, contents, said):
    with pytest.raises(InputError, match=said):
        npz.load(save(tmp_path, contents))


@pytest.mark.parametrize("text", [None, b"", b"PK\x03\x04 cut", b"text"])
def test_a_file_that_is_none_is_refused(tmp_path, text):
    if text is not None:
        (tmp_path / "images.npz").write_bytes(text)
    with pytest.raises(InputError, match=r"images.npz', which cannot be read as a .npz file"):
        npz.load(str(tmp_path / "images.npz"))


def test_a_path_is_needed():
    with pytest.raises(InputError, match=r"dataset.path is empty; expected a .npz file of images and labels"):
        npz.load("")
