"""Images in class folders: `train/CLASS/FILE` and `test/CLASS/FILE`, or `CLASS/FILE` alone."""

import hashlib
import itertools
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from kd_jax.data import images
from kd_jax.data.split import TEST_SHARE, Source, stratified_split
from kd_jax.errors import InputError
from kd_jax.types import Split

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
TEST_NAMES = ("test", "val", "validation")  # the first that is there is the test set

Files = list[tuple[Path, int]]  # image files, each with its label


def load(path: str, *, image_size: int, skip_unreadable: bool = False) -> Source:
    """Reads all images of a folder into memory, as RGB.

    Args:
      path: holds `train` and one of `test`, `val` and `validation`, each with one folder per class; or the class
        folders themselves, of which a fixed, class-balanced fifth is then the test set. Images may lie in folders
        within a class's folder. What is hidden, and what is no image by its name, is ignored.
      image_size: in pixels. Images that all share one square size of at most this are kept as they are. Otherwise each
        is made upright and resized so that its shorter side has this size, and its center square is kept.
      skip_unreadable: leave out and count what cannot be decoded, instead of raising.

    Returns:
      Images [N, H, H, 3]; the class names are the folders', sorted.

    Raises:
      InputError: if folders, classes or images are missing or unreadable, or if the images do not fit in memory.
    """
    root = _existing_folder(path)
    train, test, class_names = _list_images(root)
    files = train + test
    pixels, readable = _read(files, image_size, skip_unreadable)
    labels = np.array([label for _, label in files], np.int32)
    in_train = np.arange(len(files)) < len(train)
    for name, part in (("training", in_train), ("test", ~in_train)):
        lost = set(labels[part]) - set(labels[part & readable])
        if lost:
            raise InputError(f"no {name} image of class {class_names[min(lost)]!r} in {root} can be read")
    if skipped := int(np.count_nonzero(~readable)):
        print(f"{skipped} of {len(files)} images in {root} cannot be read and are left out", flush=True)
    count = np.count_nonzero(in_train & readable)
    labels = labels[readable]
    return Source(
        Split(pixels[:count], labels[:count]),
        Split(pixels[count:], labels[count:]),
        class_names,
        _fingerprint(root, files),
        skipped=skipped,
        name=root.resolve().name,
    )


def fingerprint(path: str) -> str:
    """The `Source.fingerprint` of a folder, without reading its images."""
    root = _existing_folder(path)
    train, test, _ = _list_images(root)
    return _fingerprint(root, train + test)


def _existing_folder(path: str) -> Path:
    if not path:
        raise InputError("dataset.path is empty; expected a folder of images: set --config.dataset.path=FOLDER")
    root = Path(path).expanduser()
    if not root.is_dir():
        problem = "is not a folder" if root.exists() else "does not exist"
        raise InputError(f"dataset.path is {path!r}, which {problem}; expected a folder that holds class folders")
    return root


def _list_images(root: Path) -> tuple[Files, Files, tuple[str, ...]]:
    """The training files, the test files, and the class names."""
    # A folder `train` that holds files only is the class of the trains.
    if not (root / "train").is_dir() or not _subfolders(root / "train"):
        class_names = _class_names(root)
        files = _class_files(root, class_names)
        test, train = stratified_split(np.array([label for _, label in files]), TEST_SHARE)
        if not len(test):
            raise InputError(f"{root} holds too few images for a test set; expected at least three of each class")
        return [files[i] for i in sorted(train)], [files[i] for i in sorted(test)], class_names
    test_root = next((root / name for name in TEST_NAMES if (root / name).is_dir()), None)
    if test_root is None:
        raise InputError(f"{root} holds train and no test set; expected one of these folders: {', '.join(TEST_NAMES)}")
    class_names, test_names = _class_names(root / "train"), _class_names(test_root)
    different = sorted(set(class_names) ^ set(test_names))
    if different:
        owner = "train" if different[0] in class_names else test_root.name
        raise InputError(
            f"{root} has {len(different)} class folders in only one of train and {test_root.name}, such as "
            f"{different[0]!r} in {owner}; expected the same class folders in both"
        )
    return _class_files(root / "train", class_names), _class_files(test_root, class_names), class_names


def _subfolders(folder: Path) -> list[str]:
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))


def _class_names(folder: Path) -> tuple[str, ...]:
    names = tuple(_subfolders(folder))
    if len(names) < 2:
        found = f"one class folder ({names[0]!r})" if names else "no class folders"
        raise InputError(f"{folder} holds {found}; expected one folder of images for each of at least two classes")
    return names


def _class_files(folder: Path, class_names: Sequence[str]) -> Files:
    files = []
    for label, name in enumerate(class_names):
        found = list(_walk(folder / name))
        if not found:
            raise InputError(
                f"class folder {folder / name} holds no images; expected files named {', '.join(SUFFIXES)}"
            )
        files += [(path, label) for path in found]
    return files


def _walk(folder: Path) -> Iterator[Path]:
    for where, inner, names in os.walk(folder):
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        for name in sorted(names):
            if name.lower().endswith(SUFFIXES) and not name.startswith("."):
                yield Path(where, name)


def _read(files: Files, size: int, skip: bool) -> tuple[np.ndarray, np.ndarray]:
    """The pixels [M, H, H, 3] of the files that can be read, and which of the N files these are, [N] bool."""
    readable = np.ones(len(files), bool)

    def decoded(pool: ThreadPoolExecutor) -> Iterator[np.ndarray]:
        blocks = [files[start : start + 64] for start in range(0, len(files), 64)]  # a task per image would cost more
        results = pool.map(lambda block: [_read_one(path, size, skip) for path, _ in block], blocks)
        for index, pixels in enumerate(itertools.chain.from_iterable(results)):
            if pixels is None:
                readable[index] = False
            else:
                yield pixels

    # Pillow decodes outside the interpreter's lock. More threads than cores halve the speed on small images.
    with images.quiet(), ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        try:
            return images.collect(decoded(pool), len(files), size), readable
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _read_one(path: Path, size: int, skip: bool) -> np.ndarray | None:
    try:
        return images.shrink_to(images.decode(path, size, channels=3), size)
    except InputError as error:
        if skip:
            return None
        raise InputError(f"{error}; remove it, or set dataset.skip_unreadable=true to skip such images") from None


def _fingerprint(root: Path, files: Files) -> str:
    """Of the names and sizes of the files: quick, and independent of where the folder lies."""
    lines = sorted(f"{path.relative_to(root).as_posix()}\0{path.stat().st_size}\n" for path, _ in files)
    return hashlib.sha256("".join(lines).encode(errors="surrogateescape")).hexdigest()
