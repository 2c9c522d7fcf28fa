"""Archives, which are read as what they hold would be read from folders."""

import io
import json
import os
import tarfile

import numpy as np
import pytest

from kd_jax import data
from kd_jax.data import folder, hashes, tar
from kd_jax.errors import InputError
from tests import tiny
from tests.data.pictures import png


@pytest.fixture(autouse=True)
def home(tmp_path_factory, monkeypatch):
    """Where the hashes are remembered."""
    monkeypatch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
    hashes._load.cache_clear()


def pack(path, contents, mode="w"):
    with tarfile.open(path, mode) as archive:
        for name, content in contents.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return str(path)


def folders(count=5):
    """{split/class/file: content}, not in the order of the names."""
    names = [f"{split}/{name}/{i}.png" for split in ("test", "train") for name in ("dog", "cat") for i in range(count)]
    return {name: png(10 * i) for i, name in enumerate(names)}


def shard(first, label, count=6, suffix="cls"):
    contents = {}
    for i in range(first, first + count):
        contents |= {f"{i:04}.png": png(i), f"{i:04}.{suffix}": label(i)}
    return contents


def load(path, **options):
    return tar.load(str(path), **{"image_size": 8} | options)


def as_folder(root, contents):
    for name, content in contents.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return folder.load(str(root), image_size=8)


LAYOUTS = {
    "splits": folders(),
    "within a folder": {f"./pets/{name}": content for name, content in folders().items()},
    "classes alone": {name.removeprefix("train/"): x for name, x in folders().items() if name.startswith("train/")},
    "folders in classes": {
        f"train/{name}/{inner}.png": png(7 * i)
        for i, (name, inner) in enumerate((c, f) for c in ("b", "a") for f in ("z", "1/a", "1/b", f"{c}/c", "2", "1.5"))
    }
    | {"test/a/1.png": png(1), "test/b/1.png": png(2)},
    "sizes": {f"train/{c}/{i}.png": png(i, 5 + i) for c in "ab" for i in range(3)}
    | {"test/a/1.png": png(1), "test/b/1.png": png(2)},
}


@pytest.mark.parametrize("mode", ["w", "w:gz"])
@pytest.mark.parametrize("contents", LAYOUTS.values(), ids=LAYOUTS)
def test_class_folders_in_an_archive_are_read_as_class_folders(tmp_path, contents, mode):
    own = load(pack(tmp_path / "pets.tar", contents, mode))
    root = tmp_path / "root"
    theirs = as_folder(root, {name.removeprefix("./pets/"): content for name, content in contents.items()})
    assert own.class_names == theirs.class_names
    for split in ("train", "test"):
        np.testing.assert_array_equal(getattr(own, split).images, getattr(theirs, split).images)
        np.testing.assert_array_equal(getattr(own, split).labels, getattr(theirs, split).labels)


LABELS = {
    "cls": (lambda i: b"%d\n" % (i % 2), ("0", "1")),
    "txt": (lambda i: b"cat" if i % 2 == 0 else b"dog", ("cat", "dog")),
    "json": (lambda i: json.dumps({"label": i % 2, "caption": "x"}).encode(), ("0", "1")),
}


@pytest.mark.parametrize("suffix", LABELS)
def test_samples_of_shards_get_the_labels_beside_them(tmp_path, suffix):
    label, names = LABELS[suffix]
    pack(tmp_path / "pets-train-0000.tar", shard(0, label, suffix=suffix))
    pack(tmp_path / "pets-train-0001.tar", shard(6, label, suffix=suffix))
    pack(tmp_path / "pets-validation-0000.tar", shard(20, label, 2, suffix))
    pack(tmp_path / "pets-test-0000.tar", shard(30, label, 4, suffix))
    source = load(tmp_path)
    assert source.class_names == names
    np.testing.assert_array_equal(source.train.images[:, 0, 0, 0], np.arange(12))
    np.testing.assert_array_equal(source.validation.images[:, 0, 0, 0], [20, 21])
    np.testing.assert_array_equal(source.test.images[:, 0, 0, 0], np.arange(30, 34))
    for split in (source.train, source.validation, source.test):
        np.testing.assert_array_equal(split.labels, split.images[:, 0, 0, 0] % 2)


def test_of_one_archive_a_fifth_is_the_test_set_and_a_pattern_names_some(tmp_path):
    pack(tmp_path / "a.tar", shard(0, LABELS["cls"][0], 10))
    pack(tmp_path / "b.tar", shard(10, LABELS["cls"][0], 10))
    whole = load(f"{tmp_path}/[ab].tar")
    assert (len(whole.train.labels), len(whole.test.labels)) == (16, 4)
    assert len(load(tmp_path / "a.tar").train.labels) == 8


def test_an_archive_is_known_by_its_content(tmp_path):
    one, two = pack(tmp_path / "a.tar", folders()), pack(tmp_path / "b.tar", folders())
    assert load(one).fingerprint == tar.fingerprint(two)
    assert tar.fingerprint(pack(tmp_path / "c.tar", folders(6))) != tar.fingerprint(one)


def test_a_config_reads_it(tmp_path):
    path = pack(tmp_path / "a.tar", folders())
    section = tiny.config(**{"dataset.source": "tar", "dataset.path": path, "dataset.train_images": 0})["dataset"]
    read = data.load({**section, "holdout": 0.2})
    assert (len(read.train.labels), len(read.validation.labels), len(read.test.labels)) == (8, 2, 10)
    assert read.fingerprint == data.fingerprint(section)


def test_what_is_no_image_is_counted_and_what_cannot_be_decoded_is_skipped_if_that_is_said(tmp_path):
    others = {"train/cat/.hidden.png": b"x", "words.txt": b"x", "train/loose.png": png(0), "train/cat/9.png": b"no"}
    path = pack(tmp_path / "a.tar", {**others, **folders()})
    with pytest.raises(
        InputError, match=r"train/cat/9.png in .*a.tar cannot be read as an image.*skip_unreadable=true"
    ):
        load(path)
    source = load(path, skip_unreadable=True)
    assert source.skipped == 1
    assert source.left_out == (
        "files that are no images by name (1)",
        "hidden files or folders (1)",
        "images beside the class folders (1)",
        "unreadable images (1)",
    )
    np.testing.assert_array_equal(source.train.images, as_folder(tmp_path / "root", folders()).train.images)


@pytest.mark.parametrize(
    ("contents", "said"),
    [
        ({"readme.md": b""}, "it holds no images; expected files named .jpg"),
        (
            {"a.png": png(0), "b.png": png(1)},
            "it holds no labels and no class folders; expected KEY.cls beside KEY.jpg",
        ),
        ({**shard(0, LABELS["cls"][0]), "z.png": png(0)}, r"no label of z.png in a.tar; expected KEY.cls"),
        (shard(0, lambda i: b"cat"), "0000.cls holds b'cat'; expected a whole number of at least 0"),
        (shard(0, lambda i: b"-1"), "0000.cls holds b'-1'; expected a whole number"),
        (
            shard(0, lambda i: b'{"class": 1}', suffix="json"),
            '0000.json holds .*; expected {"label": a number or a name}',
        ),
        (shard(0, lambda i: b"0"), r"it holds 1 class\(es\); expected at least two"),
        (shard(0, lambda i: b"%d" % (3 * (i % 2))), r"it holds 4 class\(es\), of which 1, 2 has no training image"),
        (
            {**shard(0, LABELS["cls"][0]), **shard(6, LABELS["txt"][0], suffix="txt")},
            "some of its labels are numbers and others names",
        ),
        ({"cat/1.png": png(0), "dog/1.png": png(1)}, "it holds too few images for a test set"),
        (
            shard(0, lambda i: b"%d" % (i % 2 * 2 * 10**9)),
            "a label of its 6 images is 2000000000; expected numbers from 0",
        ),
        (
            {**shard(0, LABELS["cls"][0]), "0003.mask.png": png(0)},
            "0003.png and 0003.mask.png in a.tar are of one sample; expected one image of each",
        ),
    ],
)
def test_what_an_archive_lacks_is_said_on_one_line(tmp_path, contents, said):
    with pytest.raises(InputError, match=said) as error:
        load(pack(tmp_path / "a.tar", contents))
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:-12_000],
        lambda content: content[: 512 * 3 + 100],
        lambda content: content[: 512 * 2],
        lambda content: content[:1536] + b"\xff" * 200 + content[1736:],
        lambda content: b"no archive",
        lambda content: b"",
    ],
)
@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_a_damaged_archive_is_named(tmp_path, damage, mode):
    path = tmp_path / "a.tar"
    contents = {f"train/{name}/{i}.png": np.random.default_rng(i).bytes(900) for name in "ab" for i in range(9)}
    pack(path, contents, mode)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError, match=r"a.tar (cannot be read as a tar archive|is damaged)"):
        load(path)


def test_a_label_that_is_there_twice_is_refused(tmp_path):
    path = pack(tmp_path / "a.tar", shard(0, LABELS["cls"][0]))
    with tarfile.open(path, "a") as archive:
        archive.addfile(tarfile.TarInfo("0003.cls"))
    with pytest.raises(InputError, match=r"holds 0003.cls twice; expected a label for each sample"):
        load(path)


def test_a_pipe_is_no_archive(tmp_path):
    os.mkfifo(tmp_path / "a.tar")
    for path in (tmp_path, tmp_path / "a.tar"):
        with pytest.raises(InputError, match="where no archive is"):
            load(path)


def test_without_labels_all_images_count_or_those_of_the_splits(tmp_path):
    loose = {"a.png": png(1), "deep/in/b.png": png(2), "b.cls": b"not read"} | {f"{i}.png": png(i) for i in range(8)}
    source = load(pack(tmp_path / "a.tar", loose), label_free=True)
    assert (len(source.train.labels), len(source.test.labels), source.class_names) == (8, 2, ())
    split = {"./train/x/a.png": png(3), "./train/b.png": png(4), "./test/c.png": png(5), "./other.png": png(6)}
    source = load(pack(tmp_path / "b.tar", split), label_free=True)
    assert [part.images[:, 0, 0, 0].tolist() for part in (source.train, source.test)] == [[3, 4], [5]]
    assert source.left_out == ("images beside the splits (1)",)
    pack(tmp_path / "train.tar", {"a.png": png(7), "train/b.png": png(8)})
    pack(tmp_path / "test.tar", {"c.png": png(9)})
    source = load(tmp_path / "t*.tar", label_free=True)
    assert [part.images[:, 0, 0, 0].tolist() for part in (source.train, source.test)] == [[7, 8], [9]]


@pytest.mark.parametrize("path", ["", "nothing.tar", "."])
def test_a_path_without_archives_is_refused(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        InputError, match=r"dataset.path is (empty|'nothing.tar', where no archive|'.', where no archive)"
    ):
        tar.load(path, image_size=8)


def test_some_names_with_a_split_and_some_without_are_refused(tmp_path):
    pack(tmp_path / "train-0.tar", shard(0, LABELS["cls"][0]))
    pack(tmp_path / "more.tar", shard(6, LABELS["cls"][0]))
    with pytest.raises(
        InputError, match=r"it holds train-0.tar and more.tar; expected the name of a split in all names"
    ):
        load(tmp_path)
