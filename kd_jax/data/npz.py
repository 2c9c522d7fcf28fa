"""Images in one file of numpy arrays, as `np.savez` writes it, MedMNIST and Keras have it."""

import os
import zipfile

import numpy as np

from kd_jax.data import memory
from kd_jax.data.split import Source
from kd_jax.errors import InputError, one_line

# What each array may be called: ours and MedMNIST's, or Keras's.
NAMES = {
    "train": (("train_images", "train_labels"), ("x_train", "y_train")),
    "validation": (("validation_images", "validation_labels"), ("val_images", "val_labels"), ("x_val", "y_val")),
    "test": (("test_images", "test_labels"), ("x_test", "y_test")),
}
CLASS_NAMES = "class_names"


def load(path: str) -> Source:
    """Reads a .npz file.

    Its arrays are `train_images` uint8 [N, H, W, C] or [N, H, W], C being 1 or 3, and `train_labels` [N] or [N, 1],
    integers from 0; the same for `test_`, without which a fixed fifth of the training images is the test set, and
    `validation_`; and `class_names`, by default the numbers. Pickled arrays are not read.

    Raises:
      InputError: when the file cannot be read, or its arrays are others; see `memory.from_arrays`.
    """
    path = os.path.expanduser(path)
    if not path:
        raise InputError("dataset.path is empty; expected a .npz file of images and labels")
    try:
        with open(path, "rb") as raw, np.load(raw, allow_pickle=False) as file:
            found = {name: file[name] for name in file.files}
    except (OSError, ValueError, zipfile.BadZipFile, EOFError, AttributeError) as error:
        raise InputError(
            f"dataset.path is {path!r}, which cannot be read as a .npz file: {one_line(error, 120)}"
        ) from error
    splits = {
        split: (found[images], _flat(found[labels]))
        for split, names in NAMES.items()
        for images, labels in names
        if images in found and labels in found
    }
    if "train" not in splits:
        raise InputError(
            f"{path} holds {', '.join(sorted(found)) or 'nothing'}; expected train_images and train_labels, or x_train"
            " and y_train"
        )
    class_names = found[CLASS_NAMES].tolist() if CLASS_NAMES in found else None
    try:
        source = memory.from_arrays(
            splits["train"], splits.get("test"), class_names, validation=splits.get("validation")
        )
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    return source._replace(name=os.path.basename(path))


def _flat(labels: np.ndarray) -> np.ndarray:
    return labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels
