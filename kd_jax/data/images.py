"""From image files of any kind and size to pixels of one size."""

import contextlib
import functools
import io
import os
import re
import stat
import struct
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, TypeVar

import numpy as np
from PIL import Image, ImageOps

from kd_jax.errors import InputError, one_line

T = TypeVar("T")

LARGE = 2**24  # pixels; decoding more takes hundreds of megabytes, and so one such image is decoded at a time
_one_large_image = threading.Lock()


def read_image(path: str | os.PathLike, size: int, channels: int) -> np.ndarray:
    """Reads one image as the images of a data set were read.

    Args:
      path: an image file of any size.
      size: the height and width of the data set's images, in pixels.
      channels: 3 (RGB) or 1 (gray).

    Returns:
      [size, size, channels] uint8: the center square of the upright image, resized with antialiasing. What is
      transparent is white; more than 8 bits are brought to 8 by the range of the format.

    Raises:
      InputError: if the file is missing, damaged, or no image.
    """
    with quiet():
        return _decode(path, size, channels, crop_and_resize)


def read_shrunk(path: str | os.PathLike, size: int, channels: int) -> np.ndarray:
    """The same as `read_image`, but a square of at most `size` pixels is kept as it is; to be called within `quiet`."""
    return _decode(path, size, channels, shrink_to)


def decode_shrunk(content: bytes, name: str, size: int, channels: int) -> np.ndarray:
    """`read_shrunk` of a file's content; `name` is what errors call it."""
    return _decode(name, size, channels, shrink_to, content)


def square_side(path: str | os.PathLike, content: bytes | None = None) -> int:
    """The side of a square image, 0 for another, of its header alone; raises what `read_image` does.

    With `content`, that of the file, nothing is read, and `path` is what errors call it.
    """
    width, height = sides(path, content)
    return width if width == height else 0


def sides(path: str | os.PathLike, content: bytes | None = None) -> tuple[int, int]:
    """The width and height of an image as it lies in its file; see `square_side`."""
    try:
        with Image.open(path if content is None else io.BytesIO(content)) as image:
            return image.width, image.height
    except Exception as error:
        raise _unreadable(path, error) from None


@functools.cache
def be_quiet() -> None:
    """The same as `quiet` for the rest of the process, where many threads read."""
    warnings.filterwarnings("ignore", module="PIL")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silences Pillow's warnings, such as those of the damaged EXIF data that many good photographs carry."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def crop_and_resize(image: Image.Image, size: int) -> np.ndarray:
    """The image's center square, resized to [size, size, C] uint8."""
    return _array(ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR))


def shrink_to(image: Image.Image, size: int) -> np.ndarray:
    """The image as it is where it is a square of at most `size` pixels, else fitted to [size, size, C]."""
    return _array(image) if image.width == image.height <= size else crop_and_resize(image, size)


def to_side(pixels: np.ndarray, side: int) -> np.ndarray:
    """What `shrink_to` made of an image, as it is among images [side, side, C]."""
    return pixels if len(pixels) == side else crop_and_resize(to_image(pixels), side)


def common_side(sides: Iterable[int], size: int) -> int:
    """The side H of what `collect` makes of images, by the sides of the square ones, 0 for each other."""
    there = set(sides)
    return there.pop() if len(there) == 1 and 0 < min(there) <= size else size


def counted(images: Iterable[T], count: int) -> Iterator[T]:
    """The same images; a line says every ten seconds how many of `count` went by."""
    note_due = time.monotonic() + 2
    for done, image in enumerate(images, 1):
        yield image
        if time.monotonic() > note_due:
            print(f"read {done} of {count} images", file=sys.stderr, flush=True)
            note_due += 10


def collect(images: Iterable[np.ndarray], count: int, size: int) -> np.ndarray:
    """Collects the results of `shrink_to`, in one array that is made once: at its peak there is no second copy.

    Args:
      images: uint8 [h, h, C] each, h at most `size`.
      count: how many there are at most.
      size: in pixels, what images of several sizes are brought to.

    Returns:
      [N, H, H, C] uint8: H is the images' own size if they share one, else `size`.

    Raises:
      InputError: if there are none, or more than fit in memory. The latter is raised at the first image that is too
        large for all to be of its size.
    """
    kept, done = np.empty((0, 0, 0, 0), np.uint8), 0
    for image in counted(images, count):
        if not done:
            kept = _room(count, image.shape, size)
        elif kept.shape[1:] not in (image.shape, (size, size, image.shape[-1])):
            smaller, kept = kept, _room(count, (size, size, image.shape[-1]), size)
            for index in range(done):
                kept[index] = to_side(smaller[index], size)
            del smaller
        kept[done] = to_side(image, kept.shape[1])
        done += 1
    if not done:
        raise InputError(f"none of the {count} images can be read; expected at least one per class")
    return kept[:done]


def to_image(pixels: np.ndarray) -> Image.Image:
    """A Pillow image of uint8 pixels [h, w, 1] or [h, w, 3]."""
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


def _decode(
    path: str | os.PathLike,
    size: int,
    channels: int,
    finish: Callable[[Image.Image, int], np.ndarray],
    content: bytes | None = None,
) -> np.ndarray:
    """`finish(image, size)` of the upright image in a file, each of whose sides is whole or at least `2 * size`.

    With `content`, that of the file, nothing is read.
    """

    def read(file: str | os.PathLike | IO[bytes]) -> np.ndarray:
        with Image.open(file) as image:
            image.draft(None, (2 * size, 2 * size))  # a large JPEG is decoded at a fraction of its size: much faster
            with _one_large_image if image.width * image.height > LARGE else contextlib.nullcontext():
                ImageOps.exif_transpose(image, in_place=True)
                return finish(_convert(image, "L" if channels == 1 else "RGB"), size)

    try:
        if content is None and not stat.S_ISREG(os.stat(path).st_mode):  # opening a pipe would wait for ever
            raise ValueError("it is no regular file")
        try:
            return read(path if content is None else io.BytesIO(content))
        except ValueError as error:  # Pillow limits the size of texts, which are not needed
            if "PngImagePlugin.MAX_TEXT" not in str(error) and "MAX_TEXT_MEMORY" not in str(error):
                raise
            return read(_without_texts(Path(path).read_bytes() if content is None else content))
    except Exception as error:  # Pillow raises a dozen types, SyntaxError among them, on damaged files
        raise _unreadable(path, error) from None


def _unreadable(path: str | os.PathLike, error: Exception) -> InputError:
    cause = "no known image format" if isinstance(error, Image.UnidentifiedImageError) else one_line(error)
    return InputError(f"{os.fspath(path)} cannot be read as an image: {cause}")


def _without_texts(png: bytes) -> IO[bytes]:
    """A PNG file without its texts and its color profile, the chunks that may be compressed without limit."""
    chunks, start = [png[:8]], 8
    while start + 8 <= len(png):
        length, kind = struct.unpack(">I4s", png[start : start + 8])
        if kind not in (b"tEXt", b"zTXt", b"iTXt", b"iCCP"):
            chunks.append(png[start : start + 12 + length])
        start += 12 + length
    return io.BytesIO(b"".join(chunks))


def _convert(image: Image.Image, mode: str) -> Image.Image:
    netpbm = image.mode == "I" and image.format == "PPM"  # of 16 bits, whatever its own range was: Pillow scales it
    if image.mode in ("I", "F") and not netpbm:  # the range of such values is not known
        raise ValueError("it has 32 bits per channel; expected 8 or 16")
    if netpbm or image.mode.startswith("I;16"):  # Pillow would clip to 255
        bits = getattr(image, "tag_v2", {}).get(258, (16,))[0]  # a TIFF may have 12 in 16
        image = Image.fromarray((np.asarray(image) >> (bits - 8)).astype(np.uint8))
    if image.has_transparency_data:  # what lies under it is arbitrary, often black
        white = Image.new("RGBA", image.size, "white")
        white.alpha_composite(image.convert("RGBA"))
        image = white
    image.load()
    return image if image.mode == mode else image.convert(mode)


def _array(image: Image.Image) -> np.ndarray:
    pixels = np.asarray(image)
    return pixels[..., None] if pixels.ndim == 2 else pixels


def _room(count: int, shape: tuple[int, ...], size: int) -> np.ndarray:
    """An array [count, *shape], of which only what is written takes memory; refused where the whole would not fit."""
    needed, available = count * int(np.prod(shape)), available_memory()
    if needed > available / 2:
        raise InputError(
            f"dataset.image_size is {size}, and {count} images of {shape[0]}x{shape[1]} pixels take"
            f" {needed / 2**30:.1f} GiB; expected at most half of the {available / 2**30:.1f} GiB of free memory, since"
            " placing them for training takes as much again: lower dataset.image_size, or use a smaller data set"
        )
    return np.empty((count, *shape), np.uint8)


def available_memory(root: Path = Path("/")) -> int:
    """Bytes of memory that can be used: what Linux says is available and its containers allow, or all there is."""
    meminfo = root / "proc/meminfo"
    found = re.search(r"MemAvailable:\s+(\d+) kB", meminfo.read_text()) if meminfo.exists() else None
    free = 1024 * int(found[1]) if found else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([free, *_allowed_by_containers(root)])


def _allowed_by_containers(root: Path) -> Iterator[int]:
    """Bytes that each control group above this process has left: of version 2, or the memory part of version 1."""
    groups = root / "proc/self/cgroup"
    for line in groups.read_text().splitlines() if groups.exists() else ():
        _, controllers, inside = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        top = root / "sys/fs/cgroup" / controllers
        limit, usage, cache = (
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            if controllers
            else ("memory.max", "memory.current", "inactive_file")
        )
        own = top / inside.lstrip("/")  # may be seen from the outside only: then the top is the container's own
        for group in (own, *own.parents):
            with contextlib.suppress(OSError, ValueError):  # no such file, or "max"
                most, used = (int((group / name).read_text()) for name in (limit, usage))
                # Files that were read count as used, and give way.
                freed = re.search(rf"^{cache} (\d+)$", (group / "memory.stat").read_text(), re.MULTILINE)
                yield max(most - used + (int(freed[1]) if freed else 0), 0)
            if group == top:
                break
