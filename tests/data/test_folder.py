"""Class folders: the layouts that are accepted, and what is said about the others."""

import hashlib
import os
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kd_jax.data import folder, hashes
from kd_jax.errors import InputError


def write(path, size=(6, 6), value=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, value, value)).save(path)
    return path


@pytest.fixture
def split_root(tmp_path):
    """train and test, with classes cat and dog, of three images each, 6x6."""
    for split in ("train", "test"):
        for label, name in enumerate(("cat", "dog")):
            for index in range(3):
                write(tmp_path / split / name / f"{index}.png", value=100 * label + index)
    return tmp_path


@pytest.fixture
def flat_root(tmp_path):
    """Classes cat and dog, of ten images each."""
    for label, name in enumerate(("cat", "dog")):
        for index in range(10):
            write(tmp_path / name / f"{index}.png", value=100 * label + index)
    return tmp_path


@pytest.fixture(autouse=True)
def home(tmp_path_factory, monkeypatch):
    """Where the hashes are remembered."""
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("HOME", str(home))
    hashes._load.cache_clear()
    return home


def load(root, **options):
    return folder.load(str(root), **{"image_size": 8} | options)


def test_images_get_the_label_of_their_folder(split_root):
    source = load(split_root)
    assert source.class_names == ("cat", "dog")
    np.testing.assert_array_equal(source.train.labels, source.train.images[:, 0, 0, 0] // 100)
    np.testing.assert_array_equal(source.test.labels, [0, 0, 0, 1, 1, 1])


@pytest.mark.parametrize("name", ["val", "validation"])
def test_the_test_set_may_be_called(split_root, name):
    (split_root / "test").rename(split_root / name)
    assert len(load(split_root).test.labels) == 6


def test_class_folders_alone_give_a_fifth_of_each_class_to_the_test_set(flat_root):
    source = load(flat_root)
    np.testing.assert_array_equal(np.bincount(source.test.labels), [2, 2])
    np.testing.assert_array_equal(np.bincount(source.train.labels), [8, 8])


def test_a_class_too_small_for_the_test_set_is_for_training_only(flat_root):
    write(flat_root / "eel" / "a.png")
    source = load(flat_root)
    np.testing.assert_array_equal(np.bincount(source.train.labels), [8, 8, 1])
    np.testing.assert_array_equal(np.bincount(source.test.labels), [2, 2])


def test_a_class_may_be_called_train(flat_root):
    (flat_root / "dog").rename(flat_root / "train")
    assert load(flat_root).class_names == ("cat", "train")


def test_images_in_folders_within_a_class_are_found(split_root):
    write(split_root / "train" / "cat" / "images" / "more.png")
    assert len(load(split_root).train.labels) == 7


def test_hidden_and_other_files_are_ignored(split_root):
    write(split_root / "train" / ".cache" / "a.png")
    write(split_root / "train" / "cat" / ".hidden.png")
    (split_root / "train" / "cat" / "Thumbs.db").write_bytes(b"x")
    assert len(load(split_root).train.labels) == 6


def test_extensions_in_capitals_are_read(split_root):
    write(split_root / "train" / "cat" / "A.JPEG")
    assert len(load(split_root).train.labels) == 7


def test_images_of_one_square_size_are_kept_as_they_are(split_root):
    assert load(split_root, image_size=8).train.images.shape == (6, 6, 6, 3)


def test_images_larger_than_image_size_are_resized(split_root):
    assert load(split_root, image_size=4).train.images.shape == (6, 4, 4, 3)


def test_one_test_image_of_another_size_makes_all_images_image_size(split_root):
    write(split_root / "test" / "dog" / "wide.png", size=(5, 9))
    source = load(split_root, image_size=8)
    assert source.train.images.shape == (6, 8, 8, 3)
    assert source.test.images.shape == (7, 8, 8, 3)


def test_the_shorter_sides_are_those_of_some_training_files_that_can_be_read(split_root):
    write(split_root / "train" / "cat" / "0.png", size=(9, 20))
    write(split_root / "train" / "dog" / "2.png", size=(30, 12))
    write(split_root / "test" / "dog" / "2.png", size=(99, 99))
    (split_root / "train" / "dog" / "1.png").write_bytes(b"no image")
    assert folder.shorter_sides(str(split_root)) == [9, 6, 6, 6, 12]
    assert folder.shorter_sides(str(split_root), most=2) == [9, 6]


def test_the_fingerprint_does_not_depend_on_where_the_folder_lies(split_root, tmp_path_factory):
    other = shutil.copytree(split_root, tmp_path_factory.mktemp("other") / "copy")
    assert load(split_root).fingerprint == load(other).fingerprint


def test_the_fingerprint_changes_with_a_file(split_root):
    before = load(split_root).fingerprint
    (split_root / "train" / "cat" / "0.png").rename(split_root / "train" / "cat" / "9.png")
    assert load(split_root).fingerprint != before


def test_an_unreadable_image_is_named_with_the_way_to_skip_it(split_root):
    damaged = split_root / "train" / "cat" / "1.png"
    damaged.write_bytes(damaged.read_bytes()[:50])
    with pytest.raises(InputError, match=r"train/cat/1\.png cannot be read .* dataset\.skip_unreadable=true") as error:
        load(split_root)
    assert "\n" not in str(error.value)


def test_unreadable_images_are_skipped_and_counted_on_request(split_root):
    (split_root / "train" / "cat" / "1.png").write_bytes(b"")
    source = load(split_root, skip_unreadable=True)
    assert source.skipped == 1
    np.testing.assert_array_equal(source.train.images[:, 0, 0, 0], [0, 2, 100, 101, 102])
    np.testing.assert_array_equal(source.train.labels, [0, 0, 1, 1, 1])


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_class_that_loses_all_images_is_named(split_root, split):
    for path in (split_root / split / "dog").iterdir():
        path.write_bytes(b"")
    with pytest.raises(InputError, match=r"image of class 'dog' .* can be read"):
        load(split_root, skip_unreadable=True)


def test_no_readable_image_at_all_is_an_error(split_root):
    for path in split_root.rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(InputError, match="none of the 12 images can be read"):
        load(split_root, skip_unreadable=True)


def test_an_empty_path_tells_which_flag_to_set():
    with pytest.raises(InputError, match=r"dataset\.path is empty; .*--config\.dataset\.path"):
        load("")


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(InputError, match="none', which does not exist"):
        load(tmp_path / "none")


def test_a_file_in_place_of_a_folder_is_named(tmp_path):
    with pytest.raises(InputError, match=r"a\.png', which is not a folder"):
        load(write(tmp_path / "a.png"))


def test_a_folder_without_class_folders_is_named(tmp_path):
    with pytest.raises(InputError, match="holds no class folders; expected"):
        load(tmp_path)


def test_a_single_class_folder_is_named(tmp_path):
    write(tmp_path / "cat" / "a.png")
    with pytest.raises(InputError, match=r"holds one class folder \('cat'\); expected"):
        load(tmp_path)


def test_a_class_without_images_is_named(split_root):
    (split_root / "train" / "eel").mkdir()
    (split_root / "test" / "eel").mkdir()
    with pytest.raises(InputError, match="train/eel holds no images; expected"):
        load(split_root)


def test_a_class_that_only_one_split_has_is_named(split_root):
    write(split_root / "test" / "eel" / "a.png")
    with pytest.raises(InputError, match="in only one of train and test: 'eel' in test; expected"):
        load(split_root)


def test_training_folders_without_a_test_set_are_named(split_root):
    shutil.rmtree(split_root / "test")
    with pytest.raises(InputError, match=r"no test set; .* these folders: test, testing, val, valid, validation"):
        load(split_root)


def test_too_few_images_for_a_test_set_are_named(tmp_path):
    for name in ("cat", "dog"):
        write(tmp_path / name / "a.png")
    with pytest.raises(InputError, match="too few images for a test set"):
        load(tmp_path)


@pytest.mark.parametrize(("train", "test"), [("Train", "Test"), ("TRAINING", "testing"), ("train", "Valid")])
def test_splits_are_known_by_their_names_in_any_case(split_root, train, test):
    (split_root / "train").rename(split_root / train)
    (split_root / "test").rename(split_root / test)
    source = load(split_root)
    assert (source.class_names, len(source.train.labels), len(source.test.labels)) == (("cat", "dog"), 6, 6)


@pytest.fixture
def three_root(split_root):
    """The same with a validation split of one image in each class."""
    for label, name in enumerate(("cat", "dog")):
        write(split_root / "val" / name / "a.png", value=100 * label + 50)
    return split_root


def test_val_beside_test_is_the_validation_split(three_root):
    source = load(three_root)
    np.testing.assert_array_equal(source.validation.images[:, 0, 0, 0], [50, 150])
    np.testing.assert_array_equal(source.validation.labels, [0, 1])
    assert (len(source.train.labels), len(source.test.labels)) == (6, 6)


def test_the_fingerprint_covers_the_validation_split(three_root):
    before = folder.fingerprint(str(three_root))
    write(three_root / "val" / "cat" / "a.png", value=51)
    assert folder.fingerprint(str(three_root)) != before


def test_two_folders_of_one_split_are_named(three_root):
    (three_root / "validation").mkdir()
    with pytest.raises(InputError, match="holds val and validation; expected one of them"):
        load(three_root)


def test_splits_in_the_place_of_classes_are_refused(split_root):
    (split_root / "train").rename(split_root / "one")
    (split_root / "test").rename(split_root / "two")
    with pytest.raises(InputError, match="folders one, two, which all hold the folders cat, dog; expected class"):
        load(split_root)


def test_all_classes_that_only_one_split_has_are_named(split_root):
    for name in ("eel", "fox"):
        write(split_root / "test" / name / "a.png")
    write(split_root / "train" / "ape" / "a.png")
    with pytest.raises(InputError, match=r"3 class folders .* 'ape' in train, 'eel' in test, 'fox' in test; expected"):
        load(split_root)


def test_links_to_folders_within_a_class_are_followed(split_root, tmp_path_factory):
    more = tmp_path_factory.mktemp("more")
    write(more / "a.png")
    (split_root / "train" / "cat" / "more").symlink_to(more)
    assert len(load(split_root).train.labels) == 7


def test_a_link_that_leads_back_is_refused(split_root):
    (split_root / "train" / "cat" / "back").symlink_to(split_root / "train")
    with pytest.raises(InputError, match="cat/back/cat leads back to a folder that it lies in; expected"):
        load(split_root)


def test_a_folder_that_cannot_be_listed_is_named(split_root, monkeypatch):
    closed, scandir = split_root / "train" / "dog", os.scandir

    def refuse(path):
        if Path(path) == closed:
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(InputError, match="train/dog cannot be listed: Permission denied; expected"):
        load(split_root)


@pytest.mark.parametrize("suffix", [".jfif", ".avif"])
def test_newer_suffixes_are_read_where_pillow_can(split_root, suffix):
    if suffix not in Image.registered_extensions():
        pytest.skip(f"Pillow cannot read {suffix} here")
    write(split_root / "train" / "cat" / f"a{suffix}")
    assert len(load(split_root).train.labels) == 7


def test_what_is_left_out_is_counted_by_reason(split_root):
    (split_root / "train" / "__MACOSX").mkdir()
    (split_root / "train" / "cat" / "Thumbs.db").write_bytes(b"x")
    (split_root / "train" / "cat" / "a.heic").write_bytes(b"x")
    (split_root / "train" / "note.txt").write_bytes(b"x")
    (split_root / "README").write_bytes(b"x")
    (split_root / "train" / "dog" / "0.png").write_bytes(b"")
    assert load(split_root, skip_unreadable=True).left_out == (
        "files beside the class folders (1)",
        "files or folders beside the splits (1)",
        "files that are no images by name (1)",
        "hidden files or folders (1)",
        "images of a kind that Pillow cannot read here (1)",
        "unreadable images (1)",
    )


@pytest.mark.parametrize(
    ("make", "cause"),
    [
        (os.mkfifo, "it is no regular file"),
        (lambda path: path.symlink_to("/nowhere/a.png"), "No such file or directory"),
        (lambda path: path.symlink_to("x.png"), "Too many levels of symbolic links"),
    ],
    ids=["pipe", "broken", "loop"],
)
def test_what_is_no_file_is_named_or_skipped(split_root, make, cause):
    make(split_root / "train" / "cat" / "x.png")
    with pytest.raises(InputError, match=rf"x\.png cannot be read as an image: {cause}"):
        load(split_root)
    assert load(split_root, skip_unreadable=True).skipped == 1


def test_class_names_that_are_not_utf8_can_be_printed(split_root):
    for split in ("train", "test"):
        os.rename(split_root / split / "dog", os.fsencode(split_root / split / "d") + b"\xff")
    assert load(split_root).class_names == ("cat", "d\\udcff")


@pytest.fixture
def later(monkeypatch):
    """A clock that is an hour ahead, so that what was just written is no longer fresh."""
    now = hashes.time.time_ns()
    monkeypatch.setattr(hashes.time, "time_ns", lambda: now + 3600 * 10**9)


def counted_reads(monkeypatch):
    read, digest = [], hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda file, kind: read.append(file.name) or digest(file, kind))
    return read


def test_contents_of_one_size_and_time_have_other_fingerprints(split_root):
    path = split_root / "train" / "cat" / "0.png"
    before, status, content = folder.fingerprint(str(split_root)), path.stat(), bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert folder.fingerprint(str(split_root)) != before


def test_files_that_have_not_changed_are_not_read_again(split_root, later, monkeypatch):
    first = folder.fingerprint(str(split_root))
    hashes._load.cache_clear()  # as in another process
    read = counted_reads(monkeypatch)
    write(split_root / "train" / "cat" / "new.png")
    assert folder.fingerprint(str(split_root)) != first
    assert [Path(name).name for name in read] == ["new.png"]


def test_remembered_hashes_that_were_damaged_are_made_again(split_root, later, home):
    first = folder.fingerprint(str(split_root))
    (memory,) = (home / ".cache" / "kd_jax" / "hashes").iterdir()
    memory.write_text(memory.read_text().replace('cat/0.png": [', 'cat/0.png": [1'))
    hashes._load.cache_clear()
    assert folder.fingerprint(str(split_root)) == first


def test_a_home_that_cannot_be_written_is_no_error(split_root, later, monkeypatch):
    first = folder.fingerprint(str(split_root))
    hashes._load.cache_clear()
    monkeypatch.setenv("HOME", str(split_root / "train" / "cat" / "0.png"))
    assert folder.fingerprint(str(split_root)) == first


def test_the_fingerprint_is_of_names_and_contents(split_root):
    lines = sorted(
        f"{path.relative_to(split_root)}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n"
        for path in split_root.rglob("*.png")
    )
    assert folder.fingerprint(str(split_root)) == hashlib.sha256("".join(lines).encode()).hexdigest()


def test_the_former_fingerprint_is_of_names_and_sizes_without_validation(three_root, tmp_path_factory):
    lines = sorted(
        f"{path.relative_to(three_root)}\0{path.stat().st_size}\n"
        for split in ("train", "test")
        for path in (three_root / split).rglob("*.png")
    )
    former = hashlib.sha256("".join(lines).encode()).hexdigest()
    more = tmp_path_factory.mktemp("more")
    write(more / "a.png")
    (three_root / "train" / "cat" / "more").symlink_to(more)  # was not followed
    assert folder.former_fingerprint(str(three_root)) == former


@pytest.mark.parametrize("seen", [True, False])
def test_there_is_no_former_fingerprint_where_the_test_set_was_another(flat_root, seen):
    write(flat_root / "dog" / "a.jpg").rename(flat_root / "dog" / ("a.jpeg" if seen else "a.jfif"))
    assert (folder.former_fingerprint(str(flat_root)) is not None) == seen


def test_there_is_no_former_fingerprint_where_other_splits_were_seen(split_root):
    (split_root / "test").rename(split_root / "Test")
    assert folder.former_fingerprint(str(split_root)) is None


def test_a_few_images_of_cifar10_are_read_as_they_are(tmp_path):
    archive = Path(os.environ.get("KD_JAX_SHARED", ""), "data", "cifar10_jpeg.tar.gz")
    if not archive.is_file():
        pytest.skip("KD_JAX_SHARED names no folder that holds data/cifar10_jpeg.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extraction_filter = getattr(tarfile, "data_filter", None)  # Python 3.11.0 to 3.11.3 have none
        for member in tar:  # the archive begins with the test images of each class
            if member.isfile() and int(Path(member.name).stem) < 5:
                tar.extract(member, tmp_path)
            if member.name.startswith("cifar10_jpeg/train"):
                break
    source = load(tmp_path / "cifar10_jpeg" / "test", image_size=32)
    assert source.train.images.shape == (40, 32, 32, 3)
    assert source.class_names[:2] == ("airplane", "automobile")


def test_without_labels_all_images_count_wherever_they_lie(tmp_path):
    for i in range(10):
        write(tmp_path / ("" if i % 2 else "deep/er") / f"{i}.png", value=i)
    (tmp_path / "notes.txt").write_text("")
    source = load(tmp_path, label_free=True)
    assert (source.class_names, source.left_out) == ((), ("files that are no images by name (1)",))
    assert (len(source.train.labels), len(source.test.labels)) == (8, 2)
    values = [*source.train.images[:, 0, 0, 0], *source.test.images[:, 0, 0, 0]]
    assert sorted(values) == list(range(10))
    assert set(source.train.labels) | set(source.test.labels) == {-1}
    assert source.fingerprint == folder.fingerprint(str(tmp_path), label_free=True)


def test_without_labels_the_folders_of_splits_are_known(split_root):
    write(split_root / "train" / "loose.png", value=50)
    source, labeled = load(split_root, label_free=True), load(split_root)
    assert (len(source.train.labels), len(source.test.labels)) == (7, 6)
    np.testing.assert_array_equal(source.test.images, labeled.test.images)


def test_without_labels_a_folder_without_images_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(InputError, match=r"holds no images; expected files named .jpg"):
        load(tmp_path, label_free=True)


def test_a_flat_folder_is_told_of_the_key_for_images_without_labels(tmp_path):
    write(tmp_path / "1.png")
    with pytest.raises(InputError, match=r"holds no class folders; expected .*, or dataset.label_free=true"):
        load(tmp_path)
