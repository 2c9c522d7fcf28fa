"""What `load` chooses from a data set, on the digits and on small folders."""

import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image

from kd_jax import data, sharding
from kd_jax.data import digits, folder, memory, resident
from kd_jax.errors import InputError
from kd_jax.steps import StepOptions
from kd_jax.types import Split

CONFIG = {
    "source": "digits",
    "name": "",
    "path": "",
    "image_size": 16,
    "normalize": "dataset",
    "holdout": 0.1,
    "train_images": 0,
    "labeled": 0,
    "unlabeled": True,
    "skip_unreadable": False,
    "augment": "crop",
    "extra_views": (),
    "least_area": 0.08,
    "cutout": 0.0,
    "class_names": "",
    "label_free": False,
    "stream": "auto",
    "workers": 0,
    "sampling": "shuffle",
}


def load(**changes):
    return data.load(CONFIG | changes)


def rows(split):
    return {image.tobytes() for image in split.images}


@pytest.fixture
def colors(tmp_path):
    """A folder of two classes of 20 images, each pixel one random color."""
    random = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for index in range(20):
            pixels = random.integers(0, 256, (4, 4, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{index}.png")
    return str(tmp_path)


def test_digits_are_grey_bytes_with_int32_labels_and_ten_names():
    dataset = load()
    assert dataset.train.images.shape[1:] == (8, 8, 1)
    assert dataset.train.images.dtype == np.uint8
    assert dataset.train.images.max() == 255
    assert dataset.train.labels.dtype == np.int32
    assert dataset.class_names == tuple("0123456789")


def test_training_validation_and_test_images_are_all_the_digits():
    dataset = load()
    assert sum(len(part.labels) for part in (dataset.train, dataset.validation, dataset.test)) == 1797


def test_no_image_is_in_two_splits():
    dataset = load()
    assert not rows(dataset.train) & rows(dataset.validation)
    assert not rows(dataset.train) & rows(dataset.test)
    assert not rows(dataset.validation) & rows(dataset.test)


def test_validation_takes_the_fraction_of_every_class():
    whole, dataset = load(holdout=0), load(holdout=0.1)
    counts = np.bincount(whole.train.labels)
    np.testing.assert_array_equal(np.bincount(dataset.validation.labels), np.floor(0.1 * counts + 0.5))


def test_no_holdout_means_no_validation():
    assert load(holdout=0).validation is None


def test_validation_does_not_depend_on_train_images():
    np.testing.assert_array_equal(load().validation.images, load(train_images=50).validation.images)


def test_fewer_training_images_are_balanced_over_classes():
    counts = np.bincount(load(train_images=123).train.labels)
    assert set(counts) == {12, 13}


def test_fewer_training_images_are_the_first_of_more():
    np.testing.assert_array_equal(load(train_images=50).train.images, load().train.images[:50])


def test_labels_are_kept_for_the_first_images_and_the_rest_have_none():
    every, some = load(), load(labeled=20)
    np.testing.assert_array_equal(some.train.labels[:20], every.train.labels[:20])
    assert set(some.train.labels[20:]) == {-1}


def test_without_unlabeled_images_the_labeled_ones_are_the_same():
    both, alone = load(labeled=20), load(labeled=20, unlabeled=False)
    np.testing.assert_array_equal(alone.train.images, both.train.images[:20])
    np.testing.assert_array_equal(alone.train.labels, both.train.labels[:20])


def test_unlabeled_false_keeps_all_images_where_all_are_labeled():
    assert len(load(unlabeled=False).train.labels) == len(load().train.labels)


def test_mean_and_deviation_are_of_the_training_images():
    dataset = load(train_images=200)
    pixels = dataset.train.images.astype(np.float64) / 255
    np.testing.assert_allclose(dataset.mean, pixels.mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(dataset.std, pixels.std((0, 1, 2)), rtol=1e-6)


def test_mean_counts_unlabeled_images_even_when_they_are_dropped():
    np.testing.assert_array_equal(load(labeled=20, unlabeled=False).mean, load().mean)


def test_a_constant_channel_has_a_deviation_that_can_be_divided_by(colors, tmp_path):
    for path in tmp_path.rglob("*.png"):
        Image.new("RGB", (4, 4), (9, 9, 9)).save(path)
    assert (load(source="folder", path=colors).std > 0).all()


def test_imagenet_statistics_are_the_published_ones(colors):
    dataset = load(source="folder", path=colors, normalize="imagenet")
    np.testing.assert_allclose(dataset.mean, [0.485, 0.456, 0.406])
    np.testing.assert_allclose(dataset.std, [0.229, 0.224, 0.225])


def test_digits_smaller_than_their_own_size_are_resized():
    assert load(image_size=4).train.images.shape[1:] == (4, 4, 1)


def test_two_loads_are_equal():
    first = load()
    data._read.cache_clear()
    second = load()
    np.testing.assert_array_equal(first.train.images, second.train.images)
    assert first.fingerprint == second.fingerprint


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source": "cifar"}, "dataset.source is 'cifar'; expected one of: digits, folder, hf, memory, npz, tar, tfds"),
        ({"normalize": "no"}, "dataset.normalize is 'no'; expected one of: dataset, imagenet"),
        ({"augment": "flip"}, "dataset.augment is 'flip'; expected one of: crop, crop_flip, none, rand"),
        ({"image_size": 0}, "dataset.image_size is 0; expected a whole number from 1 to 4096"),
        ({"image_size": 8.5}, "dataset.image_size is 8.5; expected a whole number"),
        ({"train_images": -1}, "dataset.train_images is -1; expected a whole number of at least 0"),
        ({"labeled": -1}, "dataset.labeled is -1; expected a whole number of at least 0"),
        ({"holdout": 1.0}, "dataset.holdout is 1.0; expected a fraction of at least 0 and below 1"),
        ({"holdout": float("nan")}, "dataset.holdout is nan; expected a fraction"),
        ({"holdout": 0.001}, "dataset.holdout is 0.001, less than one image per class"),
        ({"holdout": 0.999}, "leaves no training image of class '0'"),
        ({"train_images": 9}, "dataset.train_images is 9; expected 10 .one per class. to 1293"),
        ({"train_images": 5000}, "dataset.train_images is 5000; expected 10 .one per class. to 1293"),
        ({"train_images": 100, "labeled": 101}, "dataset.labeled is 101; expected 10 .one per class. to 100"),
        ({"labeled": 9}, "dataset.labeled is 9; expected 10"),
        ({"normalize": "imagenet"}, 'dataset.normalize is "imagenet"; expected "dataset" for images of 1 channel'),
    ],
)
def test_a_wrong_value_is_named_on_one_line(changes, message):
    with pytest.raises(InputError, match=message) as error:
        load(**changes)
    assert "\n" not in str(error.value)


def test_a_class_without_a_training_image_is_named():
    source = digits.load()
    source = source._replace(class_names=(*source.class_names, "none"))
    with pytest.raises(InputError, match="the data digits has no training image of none; expected some"):
        data.load(CONFIG, source)


def test_epoch_order_is_a_permutation():
    order = resident.epoch_order(seed=0, epoch=3, images=100)
    assert order.dtype == np.int32
    np.testing.assert_array_equal(np.sort(order), np.arange(100))


def test_epoch_order_depends_on_seed_and_epoch_only():
    order = resident.epoch_order(1, 2, 50)
    np.testing.assert_array_equal(order, resident.epoch_order(1, 2, 50))
    assert (order != resident.epoch_order(1, 3, 50)).any()
    assert (order != resident.epoch_order(2, 2, 50)).any()


@pytest.mark.parametrize("shape", [(8, 8, 1), (16, 16, 1), (9, 7, 3)], ids=["a part of a row", "rows", "odd"])
def test_images_on_the_devices_are_gathered_as_they_were(shape):
    images = np.random.default_rng(0).integers(0, 256, (6, *shape), dtype=np.uint8)
    split = Split(images, np.arange(6, dtype=np.int32))
    placed = resident.put(split, sharding.mesh())
    assert [(x.shape, x.dtype) for x in placed] == [(x.shape, x.dtype) for x in resident.shapes(split)]
    assert placed.images.shape[2] == 128
    ids = np.array([5, 0, 3, 3])
    batch = jax.jit(resident.gather, static_argnames="options")(
        placed, ids, options=StepOptions(6, 1, image_shape=shape)
    )
    np.testing.assert_array_equal(batch.images, images[ids])
    np.testing.assert_array_equal(batch.labels, ids)


def test_importing_data_loads_neither_tensorflow_nor_scikit_learn():
    code = "import sys, kd_jax.data; assert not {'tensorflow', 'tensorflow_datasets', 'sklearn'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_source_from_outside_is_read_by_its_name(monkeypatch):
    monkeypatch.setattr(data, "SOURCES", dict(data.SOURCES))
    images = np.arange(48 * 16, dtype=np.uint8).reshape(48, 4, 4)
    read = []

    def striped(section):
        read.append(section["path"])
        return memory.from_arrays((images, np.arange(48) % 3), class_names=["a", "b", "c"])

    data.register("striped", striped)
    dataset = load(source="striped", path="somewhere", image_size=4)
    assert (dataset.class_names, read) == (("a", "b", "c"), ["somewhere"])
    assert data.fingerprint(CONFIG | {"source": "striped", "path": "somewhere", "image_size": 4}) == dataset.fingerprint
    assert read == ["somewhere"]  # once: a teacher and its student read the same images


def test_a_source_that_is_registered_again_is_read_again(monkeypatch):
    monkeypatch.setattr(data, "SOURCES", dict(data.SOURCES))
    read = []
    for brightness in (0, 9):
        images = np.full((48, 4, 4), brightness, np.uint8)
        data.register("even", lambda section, x=images: memory.from_arrays((x, np.arange(48) % 3)))
        read.append(load(source="even", image_size=4).train.images.max())
    assert read == [0, 9]


def test_a_source_that_is_none_is_refused(monkeypatch):
    monkeypatch.setattr(data, "SOURCES", dict(data.SOURCES))
    data.register("nothing", lambda section: None)
    with pytest.raises(InputError, match=r"dataset\.source 'nothing' returns NoneType; expected a Source"):
        load(source="nothing")


def test_one_line_says_what_was_read_once(colors, tmp_path, capsys):
    for index in range(3):
        Image.new("RGB", (4, 4)).save(tmp_path / "dog" / f"more{index}.png")
    (tmp_path / "eel").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "eel" / "0.png")
    (tmp_path / "eel" / "notes.txt").write_text("x")
    load(source="folder", path=colors)
    load(source="folder", path=colors, labeled=10)
    assert capsys.readouterr().out == (
        f"data {tmp_path.name}: 35 train, 9 test images; 3 classes of 1 (eel) to 18 (dog); no test image of eel;"
        " no validation image of eel; left out: files that are no images by name (1)\n"
    )


def test_the_splits_of_a_folder_are_views_of_one_array(colors):
    student, teacher = (load(source="folder", path=colors, labeled=labeled) for labeled in (10, 0))
    bases = {id(dataset.test.images.base) for dataset in (student, teacher)}
    for dataset in (student, teacher):
        bases |= {id(split.images.base) for split in (dataset.train, dataset.validation)}
    assert len(bases) == 1


def test_a_students_choice_of_labels_leaves_its_teachers(colors):
    student, teacher = (load(source="folder", path=colors, labeled=labeled) for labeled in (10, 0))
    assert ((student.train.labels >= 0).sum(), (teacher.train.labels >= 0).all()) == (10, True)


def test_images_that_were_added_are_read(colors, tmp_path):
    before = len(load(source="folder", path=colors).train.labels)
    for index in range(5):
        Image.new("RGB", (4, 4)).save(tmp_path / "cat" / f"more{index}.png")
    assert len(load(source="folder", path=colors).train.labels) > before


def test_a_relative_path_is_read_from_where_the_process_is(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "SOURCES", dict(data.SOURCES))
    images = np.zeros((48, 4, 4), np.uint8)
    read = []
    data.register("own", lambda s: read.append(s["path"]) or memory.from_arrays((images, np.arange(48) % 3)))
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        load(source="own", path="images", image_size=4)
    assert read == ["images", "images"]


VALIDATION = np.full((4, 8, 8), 9, np.uint8), np.arange(4)


def with_validation():
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8), dtype=np.uint8)
    return memory.from_arrays((images, np.arange(40) % 4), validation=VALIDATION)


def test_arrays_are_described_once_for_a_teacher_and_its_student(capsys):
    data._say.cache_clear()
    source = with_validation()
    for labeled in (0, 8):
        data.load(CONFIG | {"source": "memory", "labeled": labeled}, source)
    assert capsys.readouterr().out == (
        "data arrays: 32 train, 8 test, 4 validation images (dataset.holdout is not used); 4 classes of 8 each\n"
    )


def test_with_its_own_validation_split_nothing_is_held_out():
    dataset = data.load(CONFIG | {"source": "memory", "holdout": 0.5}, with_validation())
    assert (dataset.validation.images == 9).all()
    assert (len(dataset.train.labels), len(dataset.validation.labels), len(dataset.test.labels)) == (32, 4, 8)


def test_arrays_to_validate_on_are_another_data_set_than_to_test_on():
    train = np.zeros((40, 8, 8), np.uint8), np.arange(40) % 4
    as_validation, as_test = (memory.from_arrays(train, **{name: VALIDATION}) for name in ("validation", "test"))
    assert as_validation.fingerprint != as_test.fingerprint


def test_a_source_that_a_program_keeps_is_not_reordered():
    source = with_validation()
    before = source.train.images.copy()
    data.load(CONFIG | {"source": "memory"}, source)
    np.testing.assert_array_equal(source.train.images, before)


def test_former_fingerprints_are_known_beside_todays(colors):
    section = CONFIG | {"source": "folder", "path": colors}
    now, former = data.fingerprints(section)
    assert now == data.load(section).fingerprint
    assert former == folder.former_fingerprint(colors) != now


def test_a_path_that_is_not_read_is_refused():
    with pytest.raises(InputError, match=r"dataset.path is 'flowers', which the source 'digits' does not read"):
        load(path="flowers")


@pytest.mark.parametrize(("read", "fingerprint"), [(None, None), (lambda section: None, "abc")])
def test_a_source_that_cannot_be_called_is_not_registered(read, fingerprint):
    with pytest.raises(InputError, match=r"of source 'own' is of type .*; expected a function, or a class"):
        data.register("own", read, fingerprint)
