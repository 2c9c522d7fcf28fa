"""TFDS, on data sets that the tests make on the disk: nothing is downloaded."""

import hashlib
import pickle
import socket
import sys

import numpy as np
import pytest

from kd_jax.data import lazy
from kd_jax.data import tfds as source
from kd_jax.errors import InputError
from tests import tiny


@pytest.fixture(autouse=True)
def reached(monkeypatch):
    """Refuses every connection; a test that asks for one fails."""
    addresses = []

    def refuse(self, address):
        addresses.append(address)
        raise ConnectionRefusedError(f"a test reaches for {address}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    yield
    assert addresses == []


@pytest.fixture(scope="session")
def tfds():
    return source._import_tfds()


@pytest.fixture(scope="session")  # a worker may come back to this file, and a name is registered once
def shades(tfds):
    """Registers `kd_shades`: gray images whose pixels are 10 times the label plus their number, in splits by config."""

    class KdShades(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")
        SUPPORTED_VERSIONS = [tfds.core.Version("1.1.0")]  # noqa: RUF012
        BUILDER_CONFIGS = [  # noqa: RUF012
            tfds.core.BuilderConfig(name=name)
            for name in (
                *("test", "validation", "three", "alone", "sizes", "nothing", "deep", "hidden", "offline"),
                "photographs",
            )
        ]

        def _info(self):
            dtype = np.uint16 if self.builder_config.name == "deep" else np.uint8
            kind = {"shape": (None, None, 1), "encoding_format": "png"}
            if self.builder_config.name == "photographs":
                kind = {"shape": (None, None, 3), "encoding_format": "jpeg"}
            features = {
                "image": tfds.features.Image(dtype=dtype, **kind),
                "label": tfds.features.ClassLabel(names=["cat", "dog"]),
            }
            if self.builder_config.name == "nothing":
                features["kind"] = features.pop("label")
            return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            name = self.builder_config.name
            if name == "offline":
                raise ConnectionError("no route\nto host")
            rest = {} if name == "alone" else {"validation" if name == "validation" else "test": self._examples(4)}
            if name == "three":
                rest["validation"] = self._examples(2)
            return {"train": self._examples(20)} | rest

        def _generate_examples(self):
            raise NotImplementedError

        def _examples(self, count):
            for index in range(count):
                side = 6 + index if self.builder_config.name == "sizes" else 6
                label = -1 if self.builder_config.name == "hidden" else index % 2
                pixels = np.full((side, side, 1), 100 * (index % 2) + index, np.uint8)
                if self.builder_config.name == "photographs":
                    pixels = np.random.default_rng(index).integers(0, 256, (20 + index % 3, 30, 3), np.uint8)
                yield index, {"image": pixels, "label": label}

    return "kd_shades"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the sets lie."""
    return str(tmp_path_factory.mktemp("tfds"))


@pytest.fixture(scope="module")
def load(shades, folder):
    return lambda config, **options: source.load(
        f"{shades}/{config}", **{"image_size": 8, "data_dir": folder} | options
    )


def test_grey_images_keep_one_channel_and_their_label(load):
    train = load("test").train
    assert train.images.shape == (20, 6, 6, 1)
    assert train.images.dtype == np.uint8
    assert train.labels.dtype == np.int32
    np.testing.assert_array_equal(train.labels, train.images[:, 0, 0, 0] // 100)


def test_class_names_are_those_of_the_label(load):
    assert load("test").class_names == ("cat", "dog")


def test_two_loads_give_the_same_order(load):
    np.testing.assert_array_equal(load("test").train.images, load("test").train.images)


def test_validation_stands_in_for_a_missing_test_split(load):
    assert len(load("validation").test.labels) == 4


def test_the_test_split_is_the_test_set_where_there_is_one(load):
    both = load("three")
    assert (len(both.train.labels), len(both.test.labels)) == (20, 4)


def test_the_images_of_the_two_splits_are_kept_apart(load):
    loaded = load("test")
    for split, count in ((loaded.train, 20), (loaded.test, 4)):
        expected = [100 * (index % 2) + index for index in range(count)]
        assert sorted(split.images[:, 0, 0, 0].tolist()) == sorted(expected)


def test_the_former_fingerprint_of_another_version_is_another(load, shades, folder):
    first, second = (
        source.former_fingerprint(f"{shades}/test:{version}", data_dir=folder) for version in ("1.0.0", "1.1.0")
    )
    assert first != second


def test_a_fifth_of_train_stands_in_for_a_set_with_one_split(load):
    alone = load("alone")
    np.testing.assert_array_equal(np.bincount(alone.test.labels), [2, 2])
    assert len(alone.train.labels) == 16


def test_images_of_several_sizes_get_the_wanted_size(load):
    assert load("sizes", image_size=5).train.images.shape == (20, 5, 5, 1)


def test_fingerprints_of_two_sets_differ(load):
    assert load("test").fingerprint != load("validation").fingerprint


def test_validation_beside_test_is_the_validation_split(load):
    source = load("three")
    assert [len(part.labels) for part in (source.train, source.test, source.validation)] == [20, 4, 2]
    np.testing.assert_array_equal(source.validation.images[:, 0, 0, 0], [0, 101])


def test_a_set_without_test_and_validation_has_no_validation_split(load):
    assert load("alone").validation is None


def test_the_fingerprint_is_of_the_pixels_labels_and_class_names(load):
    digest = hashlib.sha256(b"(('cat', 'dog'), ['train', 'test'])")
    source = load("test")
    for split in (source.train, source.test):
        for pixels, label in zip(split.images, split.labels, strict=True):
            digest.update(b"((6, 6, 1), %d)" % label + pixels.tobytes())
    assert source.fingerprint == digest.hexdigest()


def test_the_fingerprint_does_not_depend_on_the_size_that_is_asked_for(load):
    assert load("test").fingerprint == load("test", image_size=4).fingerprint


def test_the_former_fingerprint_is_of_name_version_and_sizes(load, shades, folder):
    load("test")
    former = hashlib.sha256(b"('kd_shades/test/1.0.0', '1.0.0', [('test', 4), ('train', 20)])").hexdigest()
    assert source.former_fingerprint(f"{shades}/test", data_dir=folder) == former


@pytest.fixture(scope="module")
def in_array_records(tfds, shades, tmp_path_factory):
    """Prepares a configuration in the other format and returns where."""
    folder = str(tmp_path_factory.mktemp("array_record"))

    def prepare(config, file_format="array_record"):
        tfds.builder(f"{shades}/{config}", data_dir=folder, file_format=file_format).download_and_prepare()
        return folder

    return prepare


def same(kept, other):
    assert other.fingerprint == kept.fingerprint
    for split in ("train", "test", "validation"):
        if own := getattr(kept, split):
            np.testing.assert_array_equal(np.asarray(getattr(other, split).images), own.images)
            np.testing.assert_array_equal(getattr(other, split).labels, own.labels)


@pytest.mark.parametrize(
    ("config", "size", "shape"),
    [("three", 8, (6, 6, 1)), ("alone", 4, (4, 4, 1)), ("sizes", 8, (8, 8, 1)), ("photographs", 16, (16, 16, 3))],
)
@pytest.mark.parametrize("file_format", ["tfrecord", "array_record"])
def test_streamed_images_are_those_in_memory(load, in_array_records, folder, config, size, shape, file_format):
    where = folder if file_format == "tfrecord" else in_array_records(config)
    streamed = load(config, image_size=size, data_dir=where, stream="always")
    assert isinstance(streamed.train.images, lazy.Images)
    assert streamed.train.images.shape[1:] == shape
    same(load(config, image_size=size), streamed)


def test_the_format_of_the_files_changes_nothing(load, in_array_records):
    same(load("photographs"), load("photographs", data_dir=in_array_records("photographs")))


@pytest.mark.parametrize("file_format", ["tfrecord", "array_record"])
def test_images_that_stream_go_to_other_processes_without_the_files(load, in_array_records, folder, file_format):
    where = folder if file_format == "tfrecord" else in_array_records("three")
    images = load("three", data_dir=where, stream="always").train.images
    content = pickle.dumps(images)
    assert b"KdShades" not in content  # the builder may be of a module that another process does not have
    np.testing.assert_array_equal(np.asarray(pickle.loads(content)), np.asarray(images))


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_run_that_streams_ends_as_one_in_memory(load, shades, folder, tmp_path, workers):
    load("three")
    section = {"dataset.source": "tfds", "dataset.name": f"{shades}/three", "dataset.path": folder}
    ends = []
    for how in ({"dataset.stream": "never"}, {"dataset.stream": "always", "dataset.workers": workers}):
        own = tiny.config(**section, **how, **{"dataset.train_images": 0, "train.epochs": 1})
        ends.append(tiny.train(own, tmp_path, how["dataset.stream"]))
    (state, result), (other, expected) = ends
    assert tiny.identical((state.params, state.stats), (other.params, other.stats))
    assert (result["test"], result["config_hash"]) == (expected["test"], expected["config_hash"])


@pytest.mark.parametrize("stream", ["never", "always"])
def test_damaged_files_are_named(load, shades, tmp_path, stream):
    load("test", data_dir=str(tmp_path))
    (file,) = tmp_path.rglob("*train.tfrecord*")
    content = bytearray(file.read_bytes())
    content[40] ^= 1
    file.write_bytes(content)
    with pytest.raises(InputError, match=r"'kd_shades', whose files are damaged: .* prepare it again") as error:
        load("test", data_dir=str(tmp_path), stream=stream)
    assert "\n" not in str(error.value)


def test_files_that_are_cut_while_they_stream_are_one_line(load, tmp_path):
    images = load("test", data_dir=str(tmp_path), stream="always").train.images
    (file,) = tmp_path.rglob("*train.tfrecord*")
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(InputError, match="image 19 of the TFDS set cannot be read any more: ") as error:
        np.asarray(images[19:])
    assert "\n" not in str(error.value)


def test_files_of_another_format_are_refused_where_they_would_stream(load, in_array_records):
    where = in_array_records("validation", "parquet")
    with pytest.raises(InputError, match="prepared as parquet, whose images cannot be read one by one; expected tfrec"):
        load("validation", data_dir=where, stream="always")


def test_a_set_without_labels_is_refused_with_its_features(load):
    with pytest.raises(InputError, match="with features image, kind; expected an image and a class label"):
        load("nothing")


def test_images_of_sixteen_bits_are_refused(load):
    with pytest.raises(InputError, match="1 channels of uint16; expected 1 or 3 channels of uint8"):
        load("deep")


def test_images_with_a_hidden_label_are_refused(load):
    with pytest.raises(InputError, match="images without a label"):
        load("hidden")


def test_a_failed_download_names_the_set_and_the_cause_on_one_line(load):
    with pytest.raises(InputError, match="'kd_shades/offline', which cannot be prepared: no route to host"):
        load("offline")


def test_an_unknown_name_suggests_near_ones(tfds, tmp_path):
    with pytest.raises(InputError, match=r"dataset\.name is 'cifar1O'; expected .* cifar10"):
        source.load("cifar1O", image_size=8, data_dir=str(tmp_path))


@pytest.mark.parametrize("name", ["", "mnist:9.9.9", "imagenet_resized/3x3"])
def test_a_wrong_version_or_configuration_is_one_line(tfds, tmp_path, name):
    with pytest.raises(InputError, match=r"dataset\.name is ") as error:
        source.load(name, image_size=8, data_dir=str(tmp_path))
    assert "\n" not in str(error.value)


def test_missing_tensorflow_names_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    with pytest.raises(InputError, match=r"tensorflow cannot be imported; install it .*, or use another source"):
        source.load("cifar10", image_size=8)
