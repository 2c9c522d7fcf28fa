"""Images in tar archives, which are not unpacked: WebDataset's shards, or class folders.

A sample of a shard is `KEY.jpg` with `KEY.cls` (a number from 0), `KEY.json` (its "label"), or `KEY.txt` (the name of
its class) beside it.
"""

import collections
import contextlib
import glob
import hashlib
import json
import os
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kd_jax.data import hashes, images, listed
from kd_jax.data.names import NEW_SUFFIXES, printable, split_of, split_of_file
from kd_jax.data.split import Source, select
from kd_jax.errors import InputError, first_few, one_line
from kd_jax.types import Split

ARCHIVES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
LABELS = ("cls", "json", "txt")  # the first that a sample has counts
LARGEST_LABEL = 2**20  # bytes
BLOCK = 512  # bytes of a tar's header


class Member(NamedTuple):
    """An image in an archive."""

    archive: int
    name: str
    offset: int


class Contents(NamedTuple):
    """What some archives hold."""

    images: list[Member]
    labels: dict[tuple[int, str], dict[str, bytes]]  # (archive, key): {suffix: content}
    left_out: collections.Counter[str]  # {why: how many}


def load(path: str, *, image_size: int, skip_unreadable: bool = False, label_free: bool = False) -> Source:
    """Reads all images of tar archives into memory, as RGB.

    Args:
      path: an archive, a folder of archives, or a pattern such as "shards/train-*.tar". The split of an archive is a
        word of its name, as in `imagenet-train-0003.tar`; with class folders it may be a folder, as in
        `train/CLASS/FILE`. Without a test split the validation split is the test set, and without either a fixed,
        class-balanced fifth. What is hidden, and what is neither an image nor a label, is left out and counted.
      image_size: in pixels, see `folder.load`.
      skip_unreadable: leave out and count what cannot be decoded, instead of raising.
      label_free: no image has a label, and all count wherever they lie: in the folders of the splits where there is one
        for `train` and no archive's name says the split, else all.

    Returns:
      Images [N, H, H, 3], in each split in the order of class folders, or of the archives. The class names are those of
      the folders or labels, sorted, or the numbers.

    Raises:
      InputError: if an archive is damaged, an image has no label, two are of one sample, a class has no image, or the
        images do not fit in memory.
    """
    archives = _archives(path)
    contents = _list(archives)
    try:
        parts, class_names = _parts(archives, contents, label_free)
        parts = listed.with_test_set(parts)
    except InputError as error:
        raise InputError(f"dataset.path is {path!r}: {error}") from None
    members = [member for part in parts.values() for member, _ in part]
    return listed.source(
        parts,
        _read(archives, members, image_size, skip_unreadable),
        class_names,
        contents.left_out,
        fingerprint=_fingerprint(archives),
        name=printable(os.path.basename(os.path.abspath(os.path.expanduser(path)))),
        where=path,
    )


def fingerprint(path: str) -> str:
    """The `Source.fingerprint` of archives, of their names and contents; see `hashes` for what it costs."""
    return _fingerprint(_archives(path))


def _fingerprint(archives: Sequence[Path]) -> str:
    each = [(file.name, hashes.of_files(file.parent, [file.name])[0]) for file in archives]
    alone = len(each) == 1 and not split_of_file(each[0][0])  # its name then means nothing
    lines = [f"{'' if alone else name}\0{content}\n" for name, content in each]
    return hashlib.sha256("".join(lines).encode(errors="surrogateescape")).hexdigest()


def _archives(path: str) -> list[Path]:
    """The archives that a path names, sorted by name."""
    if not path:
        raise InputError("dataset.path is empty; expected a .tar archive, or a folder of some")
    own = os.path.expanduser(path)
    if os.path.isdir(own):
        found = [name for name in glob.glob(os.path.join(glob.escape(own), "*")) if name.lower().endswith(ARCHIVES)]
    else:
        found = [own] if os.path.isfile(own) else glob.glob(own)
    found = [name for name in found if os.path.isfile(name)]  # no pipe, which may never end
    if not found:
        raise InputError(
            f"dataset.path is {path!r}, where no archive is; expected one, or a folder of files named"
            f" *{', *'.join(ARCHIVES)}"
        )
    return sorted(map(Path, found))


@contextlib.contextmanager
def _opened(file: Path) -> Iterator[tarfile.TarFile]:
    """An archive; what is wrong with it is one line, whatever compression finds it."""
    try:
        with tarfile.open(file, errorlevel=2) as archive:
            yield archive
    except InputError:
        raise
    except Exception as error:  # of tarfile, zlib, lzma and others, EOFError among them
        raise InputError(f"{file} cannot be read as a tar archive: {one_line(error, 120)}") from None


def _members(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """The members of an archive, which would keep them all."""
    kept: Any = vars(archive)["members"]
    for member in archive:
        yield member
        kept.clear()


def _list(archives: Sequence[Path]) -> Contents:
    """Reads the headers of archives, and the labels."""
    contents = Contents([], collections.defaultdict(dict), collections.Counter())
    for number, file in enumerate(archives):
        with _opened(file) as archive:
            for member in _members(archive):
                _note(contents, number, archive, member)
            # tarfile ends without a word at a header that is damaged or cut off.
            stream: Any = archive.fileobj
            stream.seek(archive.offset)
            if stream.read(BLOCK) != bytes(BLOCK):
                raise InputError(f"{file} is damaged at byte {archive.offset}; expected a whole tar archive")
    return contents


def _note(contents: Contents, number: int, archive: tarfile.TarFile, member: tarfile.TarInfo) -> None:
    """Takes down one member of an archive."""
    folders = member.name.split("/")
    if member.isdir():
        return
    if any((name.startswith(".") and name != ".") or name == "__MACOSX" for name in folders):
        contents.left_out["hidden files or folders"] += 1
        return
    if not member.isreg():
        contents.left_out["links and other files without content"] += 1
        return
    key, suffix = _key(member.name)
    if member.name.lower().endswith(listed.suffixes()):
        contents.images.append(Member(number, member.name, member.offset_data))
    elif suffix in LABELS and member.size <= LARGEST_LABEL:
        said = contents.labels[number, key]
        if suffix in said:
            raise InputError(
                f"{os.fsdecode(archive.name or b'')} holds {member.name} twice; expected a label for each sample"
            )
        said[suffix] = _content(archive, member)
    elif member.name.lower().endswith(NEW_SUFFIXES):
        contents.left_out["images of a kind that Pillow cannot read here"] += 1
    else:
        contents.left_out["files that are no images by name"] += 1


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(member)
    assert file is not None, "a regular file has a content"
    return file.read()


def _key(name: str) -> tuple[str, str]:
    """(key, suffix) of a WebDataset's member: the name is cut at the first dot behind its folders."""
    folder, slash, file = name.rpartition("/")
    key, _, suffix = file.partition(".")
    return folder + slash + key, suffix.lower()


def _parts(
    archives: Sequence[Path], contents: Contents, label_free: bool
) -> tuple[dict[str, listed.Listed[Member]], tuple[str, ...]]:
    """The images of each split with their labels, and the class names."""
    if not contents.images:
        raise InputError(f"it holds no images; expected files named {', '.join(listed.suffixes())}")
    of_archive = [split_of_file(file.name) for file in archives]
    if any(of_archive) and not all(of_archive):
        one, other = (
            next(f.name for f, split in zip(archives, of_archive, strict=True) if bool(split) is x)
            for x in (True, False)
        )
        raise InputError(f"it holds {one} and {other}; expected the name of a split in all names, or in none")
    samples = any((member.archive, _key(member.name)[0]) in contents.labels for member in contents.images)
    found: list[tuple[Member, str, Any]]
    if label_free:
        found = _label_free(contents, named=any(of_archive))
    else:
        found = _samples(archives, contents) if samples else _of_folders(contents, named=any(of_archive))
    classes: set[Any] = {label for _, _, label in found}
    if label_free:
        class_names: tuple[str, ...] = ()
    elif all(isinstance(label, int) for label in classes):
        if (largest := max(classes)) >= len(found):  # before a name is made of each
            raise InputError(f"a label of its {len(found)} images is {largest}; expected numbers from 0 without a gap")
        class_names = tuple(map(str, range(largest + 1)))
    elif all(isinstance(label, str) for label in classes):
        class_names = tuple(sorted(classes))
    else:
        raise InputError("some of its labels are numbers and others names; expected one kind")
    number = {label: i for i, label in enumerate(class_names)}
    parts: dict[str, listed.Listed[Member]] = collections.defaultdict(list)
    for member, split, label in found:
        own = label if isinstance(label, int) else number[label]
        parts[of_archive[member.archive] or split or "train"].append((member, own))
    if "train" not in parts:
        raise InputError(f"it holds {' and '.join(parts)} images alone; expected some to train on")
    if not label_free:
        listed.check_classes(parts, class_names)
    return parts, tuple(map(printable, class_names))


def _label_free(contents: Contents, *, named: bool) -> list[tuple[Member, str, int]]:
    """(image, split, no label) of all images; `named`: the archives' names say the split."""
    of_folder = [split_of(member.name.removeprefix("./").split("/")[0]) for member in contents.images]
    if named or "train" not in of_folder:
        return [(member, "", -1) for member in contents.images]
    contents.left_out["images beside the splits"] += of_folder.count("")
    return [(member, split, -1) for member, split in zip(contents.images, of_folder, strict=True) if split]


def _samples(archives: Sequence[Path], contents: Contents) -> list[tuple[Member, str, Any]]:
    """(image, no split, label) of every sample of shards."""
    found, without = [], []
    used: dict[tuple[int, str], str] = {}
    for member in contents.images:
        own = member.archive, _key(member.name)[0]
        if own in used:  # a mask, or another sample whose name has a dot
            both = f"{used[own]} and {member.name} in {archives[member.archive].name}"
            raise InputError(f"{both} are of one sample; expected one image of each, and no dot in KEY")
        used[own] = member.name
        if own not in contents.labels:
            without.append(f"{member.name} in {archives[member.archive].name}")
        else:
            found.append((member, "", _label(own[1], contents.labels[own])))
    if without:
        raise InputError(f"no label of {first_few(without, 3)}; expected KEY.cls, KEY.json or KEY.txt beside KEY.jpg")
    contents.left_out["labels without an image"] += len(contents.labels.keys() - used.keys())
    return found


def _label(key: str, said: Mapping[str, bytes]) -> int | str:
    suffix = next(suffix for suffix in LABELS if suffix in said)
    try:
        text = said[suffix].decode().strip()
        label = json.loads(text)["label"] if suffix == "json" else int(text) if suffix == "cls" else text
        if (type(label) is int and 0 <= label < 2**31) or (type(label) is str and label):
            return label
    except (ValueError, KeyError, TypeError, RecursionError):  # of the text, the JSON, the number
        pass
    expected = {"cls": "a whole number of at least 0", "json": '{"label": a number or a name}', "txt": "a name"}
    raise InputError(f"{key}.{suffix} holds {said[suffix][:40]!r}; expected {expected[suffix]}")


def _of_folders(contents: Contents, *, named: bool) -> list[tuple[Member, str, str]]:
    """(image, split, class) of images in class folders; `named`: the archives' names say the split."""
    paths = [[name for name in member.name.split("/") if name != "."] for member in contents.images]
    while len({path[0] for path in paths}) == 1 and min(map(len, paths)) > 2 and not split_of(paths[0][0]):
        paths = [path[1:] for path in paths]  # a folder around all
    splits = not named and any(split_of(path[0]) == "train" and len(path) > 2 for path in paths)
    found: list[tuple[tuple[str, ...], Member, str, str]] = []
    for member, path in zip(contents.images, paths, strict=True):
        split, rest = (split_of(path[0]), path[1:]) if splits else ("", path)
        if len(rest) < 2 or (splits and not split):
            contents.left_out["images beside the class folders"] += 1
        else:
            # As `folder.load` has them: of each folder the files, and then the folders.
            order = (rest[0], *(f"{int(i < len(rest) - 1)}{name}" for i, name in enumerate(rest) if i))
            found.append((order, member, split, rest[0]))
    for _, labels in contents.labels.items():
        contents.left_out["files that are no images by name"] += len(labels)
    if not found:
        raise InputError("it holds no labels and no class folders; expected KEY.cls beside KEY.jpg, or CLASS/FILE")
    return [entry[1:] for entry in sorted(found)]


def _read(archives: Sequence[Path], members: Sequence[Member], size: int, skip: bool) -> tuple[np.ndarray, np.ndarray]:
    """The pixels [M, H, H, 3] of the images that can be read, and which of the N members these are, [N] bool."""
    order = sorted(range(len(members)), key=lambda i: (members[i].archive, members[i].offset))

    def contents() -> Iterator[tuple[str, bytes]]:
        """(name, content) as they lie on the disk: what is compressed cannot be read backwards."""
        at = 0
        for number, file in enumerate(archives):
            with _opened(file) as archive:
                for member in _members(archive):
                    if at == len(order) or members[order[at]].archive != number:
                        break
                    if member.isreg() and member.offset_data == members[order[at]].offset:
                        yield f"{member.name} in {file}", _content(archive, member)
                        at += 1

    pixels, told = listed.decode(
        contents(),
        len(members),
        lambda item: images.decode_shrunk(item[1], item[0], size, channels=3),
        size=size,
        skip=skip,
    )
    readable = np.empty(len(members), bool)
    readable[order] = told
    back = np.argsort(np.array(order)[told])
    return select(Split(pixels, np.zeros(len(pixels))), back, in_place=True).images, readable
