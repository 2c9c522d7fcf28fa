"""Names of files, classes and splits; the first two may on Linux be any bytes."""

import os
import re

from kd_jax.errors import InputError

SPLITS = {  # what a split may be called, in small or capital letters
    "train": ("train", "training"),
    "validation": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
NEW_SUFFIXES = (".jfif", ".avif", ".heic", ".heif")  # read where Pillow can; the former fingerprint knows none of them


def printable(name: str) -> str:
    r"""The name with what is not UTF-8 written as `\udcff`, so that it can be printed, drawn and saved."""
    return name.encode(errors="backslashreplace").decode()


def split_of(name: str) -> str:
    """The split that the name of a folder or column is one of, "train", "validation" or "test"; "" for none."""
    return next((split for split, names in SPLITS.items() if name.lower() in names), "")


def split_of_file(path: str) -> str:
    """The split that a word of a file's name is one of, as in `imagenet-train-0003.tar`; "" for none."""
    words = re.split("[^a-z]+", os.path.basename(path).lower())
    return next((split for word in words if (split := split_of(word))), "")


def read_class_names(what: str, path: str) -> tuple[str, ...]:
    """The names in a text file, one to a line; `what` is what errors call it.

    Raises:
      InputError: when it cannot be read, or names a class twice.
    """
    try:
        with open(os.path.expanduser(path), encoding="utf-8-sig") as file:
            names = tuple(line.strip() for line in file if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{what} is {path!r}, which cannot be read; expected a text file") from error
    if twice := next((name for i, name in enumerate(names) if name in names[:i]), ""):
        raise InputError(f"{what} is {path!r}, which names {twice!r} twice; expected a name for each class")
    return names
