"""Images in class folders: `train/CLASS/FILE` and `test/CLASS/FILE`, or `CLASS/FILE` alone."""

import collections
import contextlib
import functools
import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kd_jax.data import hashes, images, lazy, listed
from kd_jax.data.names import NEW_SUFFIXES, SPLITS, SUFFIXES, printable, split_of
from kd_jax.data.split import Source
from kd_jax.errors import InputError, first_few

FORMER_TEST_NAMES = ("test", "val", "validation")  # the first that was there was the test set

Files = listed.Listed[str]  # image files, relative to the whole folder, each with its label


class Listing(NamedTuple):
    """What a folder holds."""

    files: dict[str, Files]  # of "train", "test" and, if there is one, "validation", in this order
    class_names: tuple[str, ...]  # as the folders are called
    left_out: collections.Counter[str]  # {why: how many}


def load(
    path: str, *, image_size: int, skip_unreadable: bool = False, label_free: bool = False, stream: str = "never"
) -> Source:
    """Reads all images of a folder into memory, as RGB.

    Args:
      path: holds a folder for each split, as `SPLITS` names them, each with one folder per class; or the class folders
        themselves, of which a fixed, class-balanced fifth is then the test set. With `train` and a validation split
        alone, that is the test set. Images may lie in folders within a class's folder, and links are followed. What is
        hidden, and what is no image by its name, is left out and counted.
      image_size: in pixels. Images that all share one square size of at most this are kept as they are. Otherwise each
        is made upright and resized so that its shorter side has this size, and its center square is kept.
      skip_unreadable: leave out and count what cannot be decoded, instead of raising.
      stream: "always", or "auto" where memory has no room for them: images are read when they are asked for.
      label_free: no image has a label, and all count wherever they lie: in the folders of the splits where there is one
        for `train`, else in the whole folder.

    Returns:
      Images [N, H, H, 3]; the class names are the folders', sorted. The train and the test images are views of one
      array, which is nobody else's.

    Raises:
      InputError: if folders, classes or images are missing or unreadable, or if the images do not fit in memory.
    """
    root = _existing_folder(path)
    listing = _list_checked(root, label_free)
    names = [name for part in listing.files.values() for name, _ in part]
    options: Any = {"size": image_size, "skip": skip_unreadable}
    return listed.source(
        listing.files,
        listed.lazy(
            names,
            functools.partial(_read_as, root, image_size),
            lambda name: images.square_side(root / name),
            **options,
        )
        if lazy.are_needed(stream, len(names) * 3 * image_size**2)
        else listed.decode(
            names, len(names), lambda name: images.read_shrunk(root / name, image_size, channels=3), **options
        ),
        tuple(printable(name) for name in listing.class_names),
        listing.left_out,
        fingerprint=_fingerprint(root, listing),
        name=printable(root.resolve().name),
        where=str(root),
    )


def _read_as(root: Path, largest: int, side: int, name: str) -> np.ndarray:
    """An image as it is where all are in memory: a square of this `side`."""
    images.be_quiet()
    return images.to_side(images.read_shrunk(root / name, largest, channels=3), side)


def fingerprint(path: str, *, label_free: bool = False) -> str:
    """The `Source.fingerprint` of a folder, of the names and contents of its images; see `hashes` for what it costs."""
    root = _existing_folder(path)
    return _fingerprint(root, _list_checked(root, label_free))


def shorter_sides(path: str, *, label_free: bool = False, most: int = 200) -> list[int]:
    """The shorter side in pixels of some training images that can be read, as they lie in their files."""
    root = _existing_folder(path)
    names = [name for name, _ in _list_checked(root, label_free).files["train"]]
    found = []
    with images.quiet():
        for name in names[:: max(1, len(names) // most)][:most]:
            with contextlib.suppress(InputError):
                found.append(min(images.sides(root / name)))
    return found


def former_fingerprint(path: str) -> str | None:
    """The fingerprint of names and sizes that stands in the config.json of older runs.

    None for a folder of which the versions that made them saw another test set.
    """
    root = _existing_folder(path)
    files = _list_checked(root).files
    whole = not _split_folders(root)  # of which the test set is a part
    if not whole:
        test = next((name for name in FORMER_TEST_NAMES if (root / name).is_dir()), None)
        if not (files["train"][0][0].startswith("train/") and files["test"][0][0].startswith(f"{test}/")):
            return None
    lines = []
    for split in ("train", "test"):
        for name, _ in files[split]:
            if _was_seen(root, name, class_depth=1 if whole else 2):
                lines.append(f"{name}\0{(root / name).stat().st_size}\n")
            elif whole or split == "test":
                return None
    return hashlib.sha256("".join(sorted(lines)).encode(errors="surrogateescape")).hexdigest()


def _was_seen(root: Path, name: str, class_depth: int) -> bool:
    """Whether earlier versions read a file: of fewer kinds, and not through a link below a class folder."""
    inner = (root / folder for folder in Path(name).parents if len(folder.parts) > class_depth)
    return name.lower().endswith(SUFFIXES) and (root / name).is_file() and not any(x.is_symlink() for x in inner)


def _existing_folder(path: str) -> Path:
    if not path:
        raise InputError("dataset.path is empty; expected a folder of images: set --config.dataset.path=FOLDER")
    root = Path(os.path.expanduser(path))
    if not os.path.isdir(root):  # False for whatever goes wrong, unlike that of Path
        problem = "is not a folder" if os.path.exists(root) else "does not exist"
        raise InputError(f"dataset.path is {path!r}, which {problem}; expected a folder that holds class folders")
    return root


def _list_checked(root: Path, label_free: bool = False) -> Listing:
    """The image files of every split; raises InputError for a layout that is not understood."""
    try:
        return _list_label_free(root) if label_free else _list(root)
    except InputError as error:
        raise InputError(f"dataset.path is {str(root)!r}: {error}") from None


def _list(root: Path) -> Listing:
    left_out: collections.Counter[str] = collections.Counter()
    folders = _split_folders(root)
    if not folders:
        class_names = _class_names(root, left_out)
        files = _class_files(root, "", class_names, left_out)
        parts = listed.with_test_set({"train": files})
        return Listing(parts, class_names, +left_out)
    if "test" not in folders:
        if "validation" not in folders:
            expected = ", ".join(name for split in ("test", "validation") for name in SPLITS[split])
            raise InputError(
                f"it holds {folders['train'].name} and no test set; expected one of these folders: {expected}"
            )
        folders["test"] = folders.pop("validation")
    inner, loose = _entries(root, left_out)
    left_out["files or folders beside the splits"] += len(inner) - len(folders) + len(loose)
    names = {split: _class_names(folder, left_out) for split, folder in folders.items()}
    for split, folder in folders.items():
        own = folders["train"].name
        only = [
            f"{printable(name)!r} in {own if name in names['train'] else folder.name}"
            for name in sorted(set(names["train"]) ^ set(names[split]))
        ]
        if only:
            raise InputError(
                f"it has {len(only)} class folders in only one of {own} and {folder.name}:"
                f" {', '.join(only)}; expected the same class folders in both"
            )
    order = ("train", "test", "validation")
    files_of = {
        split: _class_files(root, folders[split].name, names["train"], left_out) for split in order if split in folders
    }
    return Listing(files_of, names["train"], +left_out)


def _list_label_free(root: Path) -> Listing:
    left_out: collections.Counter[str] = collections.Counter()
    found = {split: name for name in _entries(root, left_out)[0] if (split := split_of(name))}
    folders = found if "train" in found else {"train": ""}
    known, parts = listed.suffixes(), {}
    for split, name in folders.items():
        parts[split] = [(file, -1) for file in _walk(root, name, known, left_out, ())]
        if not parts[split]:
            raise InputError(f"{root / name} holds no images; expected files named {', '.join(known)}")
    return Listing(listed.with_test_set(parts), (), +left_out)


def _split_folders(root: Path) -> dict[str, Path]:
    """The folders of the splits; empty for one that holds class folders itself."""
    found: dict[str, list[Path]] = collections.defaultdict(list)
    for name in _entries(root)[0]:
        if split := split_of(name):
            found[split].append(root / name)
    # A folder `train` that holds files only is the class of the trains.
    if not any(_entries(folder)[0] for folder in found["train"]):
        return {}
    for folders in found.values():
        if len(folders) > 1:
            both = " and ".join(folder.name for folder in folders)
            raise InputError(f"it holds {both}; expected one of them")
    return {split: folders[0] for split, folders in found.items() if folders}


def _entries(folder: Path, left_out: collections.Counter[str] | None = None) -> tuple[list[str], list[str]]:
    """The names of the folders and of the files in a folder, each sorted, without what is hidden."""
    folders: list[str] = []
    files: list[str] = []
    try:
        for entry in os.scandir(folder):
            if entry.name.startswith(".") or entry.name == "__MACOSX":  # the latter is of zip files made on a Mac
                if left_out is not None:
                    left_out["hidden files or folders"] += 1
                continue
            try:
                inner = entry.is_dir()
            except OSError:  # a link to itself
                inner = False
            (folders if inner else files).append(entry.name)
    except OSError as error:
        raise InputError(f"{folder} cannot be listed: {error.strerror}; expected a folder that can be read") from None
    return sorted(folders), sorted(files)


def _class_names(folder: Path, left_out: collections.Counter[str]) -> tuple[str, ...]:
    names, files = _entries(folder, left_out)
    left_out["files beside the class folders"] += len(files)
    if len(names) < 2:
        found = f"one class folder ({names[0]!r})" if names else "no class folders"
        raise InputError(
            f"{folder} holds {found}; expected one folder of images for each of at least two classes, or"
            " dataset.label_free=true"
        )
    within = {tuple(_entries(folder / name)[0]) for name in names}
    if len(within) == 1 and len(same := within.pop()) > 1:
        raise InputError(
            f"{folder} holds the folders {first_few(names)}, which all hold the folders {first_few(same)}; expected"
            f" class folders, or those of the splits: {', '.join(name for split in SPLITS.values() for name in split)}"
        )
    return tuple(names)


def _class_files(root: Path, split: str, class_names: Sequence[str], left_out: collections.Counter[str]) -> Files:
    known = listed.suffixes()
    files = []
    for label, name in enumerate(class_names):
        found = list(_walk(root, os.path.join(split, name), known, left_out, ()))
        if not found:
            raise InputError(
                f"class folder {root / split / name} holds no images; expected files named {', '.join(known)}"
            )
        files += [(path, label) for path in found]
    return files


def _walk(
    root: Path,
    folder: str,
    suffixes: tuple[str, ...],
    left_out: collections.Counter[str],
    above: tuple[tuple[int, int], ...],
) -> Iterator[str]:
    """The image files of a folder, then those of the folders in it, links among them."""
    folders, files = _entries(root / folder, left_out)
    status = os.stat(root / folder)
    own = (status.st_dev, status.st_ino)
    if own in above:
        raise InputError(f"{root / folder} leads back to a folder that it lies in; expected links without a loop")
    for name in files:
        if name.lower().endswith(suffixes):
            yield os.path.join(folder, name)
        elif name.lower().endswith(NEW_SUFFIXES):
            left_out["images of a kind that Pillow cannot read here"] += 1
        else:
            left_out["files that are no images by name"] += 1
    for name in folders:
        yield from _walk(root, os.path.join(folder, name), suffixes, left_out, (*above, own))


def below(folder: str) -> Iterator[str]:
    """All image files below a folder, by their names and without what is hidden, relative to it."""
    return _walk(Path(folder), "", listed.suffixes(), collections.Counter(), ())


def _fingerprint(root: Path, listing: Listing) -> str:
    """Of the names and contents of the files, independent of where the folder lies."""
    names = [name for files in listing.files.values() for name, _ in files]
    lines = sorted(f"{name}\0{content}\n" for name, content in zip(names, hashes.of_files(root, names), strict=True))
    return hashlib.sha256("".join(lines).encode(errors="surrogateescape")).hexdigest()
