"""Image classification sets of the Hugging Face hub, or in local parquet files, by the library `datasets`."""

import functools
import hashlib
import importlib
import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from kd_jax import hub
from kd_jax.data import images, lazy, listed
from kd_jax.data.names import printable, split_of, split_of_file
from kd_jax.data.split import Source
from kd_jax.errors import InputError, first_few, one_line

NAME = re.compile(r"(?P<repository>[\w.-]+/[\w.-]+)(/(?P<config>[\w.-]+))?(@(?P<revision>[\w.-]+))?")


class _Rows(NamedTuple):
    """Where images lie. In another process it maps the same files of the library's cache, and copies none."""

    what: str  # was asked for
    parts: Mapping[str, Any]  # {split: rows with the column of encoded images}
    column: str
    is_local: bool


def load(
    name: str,
    *,
    image_size: int,
    path: str = "",
    skip_unreadable: bool = False,
    label_free: bool = False,
    stream: str = "never",
) -> Source:
    """Reads a data set into memory, as RGB.

    Args:
      name: of the hub, OWNER/NAME[/CONFIG][@REVISION]; without a network, what its cache has.
      image_size: in pixels, see `folder.load`.
      path: a parquet file or a folder of some, in the place of `name`. The split of a file is a word of its name, or
        its folder's, as in `data/train-00000-of-00001.parquet`; files without one are to train on.
      skip_unreadable: leave out and count what cannot be decoded, instead of raising.
      label_free: no image has a label, whatever the columns say.
      stream: "always", or "auto" where memory has no room for them: images are read when they are asked for.

    Returns:
      Images [N, H, H, 3]. The class names are those of the column of labels, sorted where that holds text. Without a
      test split the validation split is the test set, and without either a fixed, class-balanced fifth. The fingerprint
      is of the class names, and of images and labels in their order, as they are encoded: that of images that stream is
      the same, and costs one pass over the files.

    Raises:
      InputError: if `datasets` is missing, the set is not there or cannot be fetched, has no column of images and one
        of labels, or does not fit in memory.
    """
    datasets = _import_datasets()
    what = f"dataset.path is {path!r}" if path else f"dataset.name is {name!r}"
    found = _local(datasets, path) if path else _of_hub(datasets, name)
    importlib.import_module("pyarrow").default_memory_pool().release_unused()  # else it keeps what it has converted
    image, label = _columns(datasets, what, next(iter(found.values())).features, label_free)
    sets = {split: part for own, part in found.items() if (split := split_of(own))}
    left_out = {f"split {own}": len(part) for own, part in found.items() if not split_of(own)}
    columns, names = _labels(what, sets, label)
    left_out |= {f"split {split} without labels": len(sets[split]) for split in sets.keys() - columns.keys()}
    if "train" not in columns:
        raise InputError(f"{what}, with splits {', '.join(found)}; expected a split train with labels")
    class_names = tuple(printable(str(own)) for own in names)
    encoded = datasets.Image(decode=False)
    try:
        raw = {split: sets[split].select_columns(image).cast_column(image, encoded) for split in columns}
    except Exception as error:  # of pyarrow, and of datasets for a label that is none of its classes
        raise InputError(f"{what}, which is damaged: {one_line(error, 160)}") from None
    try:
        parts = listed.with_test_set(
            {split: [((split, row), own) for row, own in enumerate(column)] for split, column in columns.items()}
        )
        if label and not hasattr(sets["train"].features[label], "names"):
            listed.check_classes(parts, class_names)
    except InputError as error:
        raise InputError(f"{what}: {error}") from None
    digest = hashlib.sha256(repr((class_names, {split: len(part) for split, part in raw.items()})).encode())

    rows = _Rows(what, raw, image, bool(path))
    items: Any = np.array([(list(raw).index(split), row) for part in parts.values() for (split, row), _ in part])
    options: Any = {"size": image_size, "skip": skip_unreadable}

    def contents() -> Iterator[tuple[str, bytes]]:
        for part in parts.values():
            for (split, row), own in part:
                said, content = _content(rows, split, row)
                digest.update(repr((split, row, own, len(content))).encode())
                digest.update(content)
                yield said, content

    if lazy.are_needed(stream, len(items) * 3 * image_size**2):
        read = functools.partial(_read_as, rows, image_size)
        decoded: Any = listed.lazy(items, read, lambda item: images.square_side(*item), seen=contents(), **options)
    else:
        decoded = listed.decode(
            contents(),
            len(items),
            lambda item: images.decode_shrunk(item[1], item[0], image_size, channels=3),
            **options,
        )
    return listed.source(
        parts,
        decoded,
        class_names,
        left_out,
        fingerprint=digest.hexdigest(),
        name=printable(os.path.basename(os.path.abspath(path))) if path else name,
        where=path or name,
    )


def _content(rows: _Rows, split: str, row: int) -> tuple[str, bytes]:
    """What errors call an image, and its file's content."""
    said = rows.parts[split][row][rows.column]
    content = (said and said["bytes"]) or b""
    if said and not content and not rows.is_local:  # the files of a set of the hub lie in its cache
        try:
            content = Path(said["path"]).read_bytes()
        except OSError as error:
            raise InputError(f"{rows.what}: image {row} of split {split} is gone: {error}") from None
    return f"image {row} of split {split}" + ("" if content else " has no bytes and"), content


def _read_as(rows: _Rows, largest: int, side: int, item: np.ndarray) -> np.ndarray:
    """An image as it is where all are in memory: a square of this `side`."""
    images.be_quiet()
    split, row = item.tolist()
    name, content = _content(rows, list(rows.parts)[split], row)
    return images.to_side(images.decode_shrunk(content, name, largest, channels=3), side)


def _labels(what: str, sets: Mapping[str, Any], column: str) -> tuple[dict[str, list[int]], Sequence[Any]]:
    """({split: its labels}, the classes), of the splits that have labels, as ImageNet's test set has none.

    Without a column of them each is 0, and there are no classes.
    """
    if not column:
        return {split: [0] * len(part) for split, part in sets.items()}, ()
    said = {split: part.with_format(None)[column][:] for split, part in sets.items()}
    said = {split: values for split, values in said.items() if not all(map(_is_missing, values))}
    if any(_is_missing(value) for values in said.values() for value in values):
        raise InputError(f"{what}, with images without a label; expected one for every image")
    names = getattr(next(iter(sets.values())).features[column], "names", None)
    if names is None:
        names = sorted({value for values in said.values() for value in values})
        said = {split: [names.index(value) for value in values] for split, values in said.items()}
    return {split: [int(value) for value in values] for split, values in said.items()}, names


def _import_datasets() -> ModuleType:
    try:
        import datasets
    except ImportError as error:
        raise InputError(
            f'dataset.source is "hf", but {error.name or "datasets"} is not installed; expected the extra of it: pip'
            ' install "kd_jax[hf]"'
        ) from error
    datasets.disable_progress_bars()
    for name in ("datasets", "huggingface_hub"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # they log every attempt, and the error too
    return datasets


def _local(datasets: ModuleType, path: str) -> Any:
    """{split: rows} of parquet files."""
    root = Path(os.path.expanduser(path))
    files = sorted(root.rglob("*.parquet")) if root.is_dir() else [root] if root.is_file() else []
    if not files:
        raise InputError(f"dataset.path is {path!r}, where no parquet file is; expected one, or a folder of some")
    by_split: dict[str, list[str]] = {}
    for file in files:
        split = split_of_file(file.name) or (split_of(file.parent.name) if file.parent != root.parent else "")
        by_split.setdefault(split or "train", []).append(str(file))
    try:
        return datasets.load_dataset("parquet", data_files=by_split)
    except Exception as error:  # of pyarrow, and of datasets, which names its own
        cause = error.__cause__ or error
        raise InputError(f"dataset.path is {path!r}, which cannot be read as parquet: {one_line(cause, 160)}") from None


def _of_hub(datasets: ModuleType, name: str) -> Any:
    """{split: rows} of a set of the hub, or of its cache."""
    if not (given := NAME.fullmatch(name)):
        raise InputError(f"dataset.name is {name!r}; expected OWNER/NAME[/CONFIG][@REVISION] of the hub, or a path")
    offline = hub.unreachable()
    before = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = bool(offline) or before  # then it looks into its cache alone, at once
    try:
        return datasets.load_dataset(given["repository"], given["config"], revision=given["revision"])
    except Exception as error:  # each version of the library has its own
        reason = f"it is not in the cache, and {offline}" if offline else one_line(error, 160)
        raise InputError(
            f"dataset.name is {name!r}, which cannot be fetched: {reason}. Download its parquet files where there is a"
            " network and give their folder as dataset.path, or fill the cache there"
        ) from None
    finally:
        datasets.config.HF_HUB_OFFLINE = before


def _columns(datasets: ModuleType, what: str, features: Any, label_free: bool) -> tuple[str, str]:
    """The names of the columns of images and of labels: by their types, and where several fit by their names.

    Where the types do not say it, as in a file of another library, by their names alone. "" for none of labels.
    """
    by_type = {
        "image": [key for key, feature in features.items() if isinstance(feature, datasets.Image)],
        "label": [key for key, feature in features.items() if isinstance(feature, datasets.ClassLabel)],
    }
    if not by_type["image"]:
        by_type["image"] = [key for key in ("image", "img") if _is_encoded(features.get(key))]
    if not by_type["label"]:
        by_type["label"] = [key for key in ("label", "labels", "class") if _is_plain(features.get(key))]
    if label_free:
        by_type["label"] = [""]
    chosen = {kind: [key for key in keys if key in (kind, f"fine_{kind}")] or keys for kind, keys in by_type.items()}
    if any(len(keys) != 1 for keys in chosen.values()):
        columns = first_few((f"{key} ({_type(feature)})" for key, feature in features.items()), 12)
        raise InputError(
            f"{what}, with columns {columns}; expected one of type Image, and one of type ClassLabel or"
            " `label` of whole numbers or text"
        )
    return chosen["image"][0], chosen["label"][0]


def _is_missing(label: Any) -> bool:
    return label is None or (isinstance(label, int) and label < 0)


def _is_encoded(feature: Any) -> bool:
    """Whether a column can hold files of images: {"bytes", "path"}, or bytes alone."""
    is_file = isinstance(feature, dict) and feature.keys() == {"bytes", "path"}
    return is_file or getattr(feature, "dtype", "") in ("binary", "large_binary")


def _is_plain(feature: Any) -> bool:
    return getattr(feature, "dtype", "") in ("string", "large_string", "int64", "int32", "int8", "int16", "uint8")


def _type(feature: Any) -> str:
    return str(feature.dtype) if type(feature).__name__ == "Value" else type(feature).__name__
