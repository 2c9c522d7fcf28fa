"""From image files of any kind and size to pixels of one size."""

import contextlib
import os
import re
import sys
import time
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from kd_jax.errors import InputError, one_line


def read_image(path: str | os.PathLike, size: int, channels: int) -> np.ndarray:
    """Reads one image as the images of a data set were read.

    Args:
      path: an image file of any size.
      size: the height and width of the data set's images, in pixels.
      channels: 3 (RGB) or 1 (gray).

    Returns:
      [size, size, channels] uint8: the center square of the upright image, resized with antialiasing.

    Raises:
      InputError: if the file is missing, damaged, or no image.
    """
    with quiet():
        return crop_and_resize(decode(path, size, channels), size)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silences Pillow's warnings, such as those of the damaged EXIF data that many good photographs carry."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def decode(path: str | os.PathLike, size: int, channels: int) -> Image.Image:
    """The upright image in a file, gray or RGB, with each side as in the file or at least `2 * size` pixels."""
    try:
        with Image.open(path) as image:
            image.draft(None, (2 * size, 2 * size))  # a large JPEG is decoded at a fraction of its size: much faster
            ImageOps.exif_transpose(image, in_place=True)
            return _convert(image, "L" if channels == 1 else "RGB")
    except Exception as error:  # Pillow raises a dozen types, SyntaxError among them, on damaged files
        cause = "no known image format" if isinstance(error, Image.UnidentifiedImageError) else one_line(error)
        raise InputError(f"{path} cannot be read as an image: {cause}") from None


def crop_and_resize(image: Image.Image, size: int) -> np.ndarray:
    """The image's center square, resized to [size, size, C] uint8."""
    return _array(ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR))


def shrink_to(image: Image.Image, size: int) -> np.ndarray:
    """The image as it is where it is a square of at most `size` pixels, else fitted to [size, size, C]."""
    return _array(image) if image.width == image.height <= size else crop_and_resize(image, size)


def collect(images: Iterable[np.ndarray], count: int, size: int) -> np.ndarray:
    """Collects the results of `shrink_to`.

    Args:
      images: uint8 [h, h, C] each, h at most `size`.
      count: how many there are at most, for the estimate of the memory that they need.
      size: in pixels, what images of several sizes are brought to.

    Returns:
      [N, H, H, C] uint8: H is the images' own size if they share one, else `size`.

    Raises:
      InputError: if there are none, or more than fit in memory. The latter is raised at the first image that is too
        large for all to be of its size.
    """
    kept, largest, note_due = [], 0, time.monotonic() + 2
    for image in images:
        if image.nbytes > largest:
            largest = image.nbytes
            _check_memory(count, image.shape)
        kept.append(image)
        if time.monotonic() > note_due:
            print(f"read {len(kept)} of {count} images", file=sys.stderr, flush=True)
            note_due += 10
    if not kept:
        raise InputError(f"none of the {count} images can be read; expected at least one per class")
    if len({image.shape for image in kept}) > 1:
        _check_memory(count, (size, size, kept[0].shape[-1]))
        kept = [crop_and_resize(to_image(image), size) for image in kept]
    return np.stack(kept)


def to_image(pixels: np.ndarray) -> Image.Image:
    """A Pillow image of uint8 pixels [h, w, 1] or [h, w, 3]."""
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


def _convert(image: Image.Image, mode: str) -> Image.Image:
    if image.mode in ("I", "F"):  # the range of such values is not known
        raise ValueError("it has 32 bits per channel; expected 8 or 16")
    if image.mode.startswith("I;16"):  # Pillow would clip to 255
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image.convert(mode)


def _array(image: Image.Image) -> np.ndarray:
    pixels = np.asarray(image)
    return pixels[..., None] if pixels.ndim == 2 else pixels


def _check_memory(count: int, shape: tuple[int, ...]) -> None:
    """Refuses more than half of the memory: splitting the images takes as much again."""
    needed, available = count * int(np.prod(shape)), _available_memory()
    if needed > available / 2:
        raise InputError(
            f"{count} images of {shape[0]}x{shape[1]} pixels take {needed / 2**30:.1f} GiB; expected at most half of "
            f"the {available / 2**30:.1f} GiB of free memory: lower dataset.image_size, or use a smaller data set"
        )


def _available_memory() -> int:
    """Bytes of memory that can be used: what Linux says is available, or all there is on another system."""
    meminfo = Path("/proc/meminfo")
    found = re.search(r"MemAvailable:\s+(\d+) kB", meminfo.read_text()) if meminfo.exists() else None
    return 1024 * int(found[1]) if found else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
