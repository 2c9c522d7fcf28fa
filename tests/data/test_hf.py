"""Sets of the Hugging Face hub's form, in parquet files that the tests make; nothing is downloaded."""

import io
import pickle
import socket
import sys
import time

import numpy as np
import pytest
from PIL import Image

from kd_jax import data
from kd_jax.data import hf, lazy
from kd_jax.errors import InputError
from tests import silent_hub, tiny
from tests.data.pictures import png

needs_datasets = pytest.mark.usefixtures("datasets")
pytestmark = pytest.mark.filterwarnings("ignore")  # of datasets, and what it imports


@pytest.fixture(scope="module")
def datasets():
    return pytest.importorskip("datasets", reason='the extra hf is not installed: pip install "kd_jax[hf]"')


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch, request):
    """Where `datasets` keeps what it has read."""
    if "datasets" in request.fixturenames:
        monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def rows(count, *, names=("cat", "dog"), first=0, label="label", size=6):
    """Images whose pixels are their number, of alternating classes."""
    import datasets

    kind = datasets.ClassLabel(names=list(names)) if names else datasets.Value("string")
    values = [i % 2 if names else ("dog", "cat")[i % 2] for i in range(count)]
    features = datasets.Features({"image": datasets.Image(), label: kind})
    pictures = [{"bytes": png(first + i, size), "path": None} for i in range(count)]
    return datasets.Dataset.from_dict({"image": pictures, label: values}, features=features)


def with_broken(part, number, content):
    """The same images, one of which has another file."""
    import datasets

    pictures = [image if i != number else {"bytes": content, "path": None} for i, image in enumerate(encoded(part))]
    return datasets.Dataset.from_dict({"image": pictures, "label": part["label"]}, features=part.features)


def encoded(part):
    import datasets

    return part.cast_column("image", datasets.Image(decode=False))["image"]


def save(root, **splits):
    (root / "data").mkdir(exist_ok=True)
    for split, part in splits.items():
        part.to_parquet(root / "data" / f"{split}-00000-of-00001.parquet")
    return str(root)


def load(path, **options):
    return hf.load("", path=str(path), **{"image_size": 8} | options)


@needs_datasets
def test_a_folder_of_parquet_files_is_read_by_the_types_of_its_columns(tmp_path):
    path = save(tmp_path, train=rows(8), valid=rows(2, first=20), test=rows(4, first=30))
    source = load(path)
    assert (source.class_names, source.name) == (("cat", "dog"), tmp_path.name)
    for split, first, count in ((source.train, 0, 8), (source.validation, 20, 2), (source.test, 30, 4)):
        np.testing.assert_array_equal(split.images[:, 0, 0, 0], first + np.arange(count))
        np.testing.assert_array_equal(split.labels, np.arange(count) % 2)
    assert load(path).fingerprint == source.fingerprint


@needs_datasets
def test_one_file_of_text_labels_has_sorted_classes_and_a_fifth_of_it_is_the_test_set(tmp_path):
    save(tmp_path, train=rows(20, names=None, size=12))
    source = load(tmp_path / "data" / "train-00000-of-00001.parquet", image_size=8)
    assert source.class_names == ("cat", "dog")
    assert (source.train.images.shape, source.test.images.shape) == ((16, 8, 8, 3), (4, 8, 8, 3))
    np.testing.assert_array_equal(source.train.labels, 1 - source.train.images[:, 0, 0, 0] % 2)


@needs_datasets
def test_a_split_without_labels_is_left_out(tmp_path):
    test = rows(4).map(lambda row: {**row, "label": -1})
    source = load(save(tmp_path, train=rows(8), validation=rows(2, first=20), test=test))
    assert (len(source.test.labels), source.validation) == (2, None)
    assert source.left_out == ("split test without labels (4)",)


@needs_datasets
def test_a_config_reads_it_and_no_connection_is_made(tmp_path, monkeypatch):
    path = save(tmp_path, train=rows(20), test=rows(4))

    def refuse(self, address):
        raise AssertionError(f"a test reaches for {address}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    section = tiny.config(**{"dataset.source": "hf", "dataset.path": path, "dataset.train_images": 0})["dataset"]
    read = data.load({**section, "holdout": 0.2})
    assert (len(read.train.labels), len(read.validation.labels), len(read.test.labels)) == (16, 4, 4)


@needs_datasets
def test_an_image_that_cannot_be_decoded_is_named_and_skipped_if_that_is_said(tmp_path):
    path = save(tmp_path, train=with_broken(rows(8), 3, b"no image"), test=rows(4))
    with pytest.raises(
        InputError, match=r"image 3 of split train cannot be read as an image: no known .*skip_unreadable"
    ):
        load(path)
    source = load(path, skip_unreadable=True)
    assert (source.skipped, len(source.train.labels)) == (1, 7)


def streamed(path, **options):
    """What is read of a path into memory, and what streams."""
    return [load(path, stream=how, **options) for how in ("never", "always")]


@needs_datasets
@pytest.mark.parametrize(("sizes", "side"), [((6,), 6), ((6, 9), 8), ((12,), 8)])
def test_streamed_images_are_those_in_memory(tmp_path, sizes, side):
    import datasets

    parts = [rows(8, size=size, first=10 * size) for size in sizes]
    path = save(tmp_path, train=datasets.concatenate_datasets(parts), test=rows(4, first=200, size=sizes[0]))
    kept, images = streamed(path)
    for split in ("train", "test"):
        own, other = getattr(kept, split), getattr(images, split)
        assert isinstance(other.images, lazy.Images)
        assert other.images.shape[1:] == (side, side, 3)
        np.testing.assert_array_equal(np.asarray(other.images), own.images)
        np.testing.assert_array_equal(other.labels, own.labels)
    assert images.fingerprint == kept.fingerprint


@needs_datasets
def test_a_fifth_that_is_the_test_set_streams_and_bytes_alone_do(tmp_path):
    pyarrow, pq = (pytest.importorskip(name) for name in ("pyarrow", "pyarrow.parquet"))
    pq.write_table(pyarrow.table({"image": [png(i) for i in range(20)], "label": [0, 1] * 10}), tmp_path / "a.parquet")
    kept, images = streamed(tmp_path / "a.parquet")
    np.testing.assert_array_equal(np.asarray(images.test.images), kept.test.images)
    np.testing.assert_array_equal(np.asarray(images.train.images), kept.train.images)


@needs_datasets
def test_images_that_stream_go_to_other_processes_without_the_table(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "png")
    part = rows(200).map(lambda row: {**row, "image": {"bytes": file.getvalue(), "path": None}})
    images = load(save(tmp_path, train=part, test=rows(4)), image_size=40, stream="always").train.images
    content = pickle.dumps(images)
    assert len(content) < 0.1 * 200 * len(file.getvalue())
    np.testing.assert_array_equal(np.asarray(pickle.loads(content)[:2]), np.asarray(images[:2]))


@needs_datasets
def test_what_is_no_image_is_named_before_it_is_needed(tmp_path):
    path = save(tmp_path, train=with_broken(rows(8), 3, b"no image"), test=rows(4))
    with pytest.raises(InputError, match=r"image 3 of split train cannot be read as an image: no known .*skip_unread"):
        load(path, stream="always")
    kept, images = streamed(path, skip_unreadable=True)
    assert (images.skipped, images.fingerprint) == (1, kept.fingerprint)
    np.testing.assert_array_equal(np.asarray(images.train.images), kept.train.images)


@needs_datasets
def test_an_image_damaged_behind_its_header_is_named_when_it_is_needed(tmp_path):
    path = save(tmp_path, train=with_broken(rows(8), 3, png(3)[:50]), test=rows(4))
    images = load(path, stream="always").train.images
    np.asarray(images[:3])
    with pytest.raises(InputError, match="image 3 of split train cannot be read as an image"):
        np.asarray(images[3:4])


@needs_datasets
@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_that_streams_ends_as_one_in_memory(tmp_path, workers):
    path = save(tmp_path, train=rows(40), test=rows(4))
    section = {"dataset.source": "hf", "dataset.path": path, "dataset.train_images": 0, "train.epochs": 2}
    ends = []
    for how in ({"dataset.stream": "never"}, {"dataset.stream": "always", "dataset.workers": workers}):
        ends.append(tiny.train(tiny.config(**section, **how), tmp_path, how["dataset.stream"]))
    (state, result), (other, expected) = ends
    assert tiny.identical((state.params, state.stats), (other.params, other.stats))
    assert (result["test"], result["config_hash"]) == (expected["test"], expected["config_hash"])


def no_columns(root):
    return save(root, train=rows(4).remove_columns("label"))


def no_train(root):
    return save(root, test=rows(4))


def hidden(root):
    return save(root, train=rows(4).map(lambda row, i: {**row, "label": -1 if i else 0}, with_indices=True))


def text(root):
    (root / "a.parquet").write_text("no parquet")
    return str(root)


def without_bytes(root):
    """An image of which the file alone is named."""
    import datasets

    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    pictures = [{"bytes": None, "path": "/dev/zero"}] * 8
    part = datasets.Dataset.from_dict({"image": pictures, "label": [0, 1] * 4}, features=features)
    (root / "train.parquet").parent.mkdir(exist_ok=True)
    pq = pytest.importorskip("pyarrow.parquet")
    pq.write_table(part.data.table, root / "train.parquet")
    return str(root)


def more_classes(root):
    return save(root, train=rows(8, names=None), test=rows(4, names=None).map(lambda row: {**row, "label": "bird"}))


@needs_datasets
def test_columns_of_another_library_are_read_by_their_names(tmp_path):
    pyarrow, pq = (pytest.importorskip(name) for name in ("pyarrow", "pyarrow.parquet"))
    for i, pictures in enumerate(([png(i) for i in range(20)], [{"bytes": png(i), "path": None} for i in range(20)])):
        pq.write_table(pyarrow.table({"image": pictures, "label": [0, 1] * 10}), tmp_path / f"{i}.parquet")
        source = load(tmp_path / f"{i}.parquet")
        np.testing.assert_array_equal(source.train.labels, source.train.images[:, 0, 0, 0] % 2)


@needs_datasets
def test_without_labels_no_column_of_them_is_needed(tmp_path):
    source = load(save(tmp_path, train=rows(20).remove_columns("label")), label_free=True)
    assert (len(source.train.labels), len(source.test.labels), source.class_names) == (16, 4, ())


@needs_datasets
@pytest.mark.parametrize(
    ("make", "said"),
    [
        (without_bytes, "image 0 of split train has no bytes and cannot be read as an image"),
        (more_classes, "of which bird has no training image"),
        (no_columns, r"with columns image \(Image\); expected one of type Image, and one of type ClassLabel"),
        (no_train, "with splits test; expected a split train with labels"),
        (hidden, "with images without a label; expected one for every image"),
        (text, "which cannot be read as parquet"),
        (str, "where no parquet file is"),
    ],
)
def test_what_is_wrong_with_files_is_said_on_one_line(tmp_path, make, said):
    with pytest.raises(InputError, match=said) as error:
        load(make(tmp_path))
    assert len(str(error.value).splitlines()) == 1


@needs_datasets
def test_a_hub_that_does_not_answer_is_one_line_within_seconds(monkeypatch):
    with silent_hub.asked(monkeypatch):
        begin = time.monotonic()
        with pytest.raises(
            InputError, match=r"'owner/name', which cannot be fetched: it is not in the cache, and"
        ) as error:
            hf.load("owner/name", image_size=8)
        assert time.monotonic() - begin < 5
    assert len(str(error.value).splitlines()) == 1


@needs_datasets
def test_a_name_of_another_form_is_refused():
    with pytest.raises(InputError, match=r"dataset.name is 'cifar10'; expected OWNER/NAME\[/CONFIG\]\[@REVISION\]"):
        hf.load("cifar10", image_size=8)


def test_without_the_library_its_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(
        InputError, match=r'datasets is not installed; expected the extra of it: pip install "kd_jax\[hf\]"'
    ):
        hf.load("owner/name", image_size=8)
