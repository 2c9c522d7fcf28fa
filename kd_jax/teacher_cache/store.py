"""Arrays in files that bear the SHA-256 of what they hold: written whole, read by mapping them into memory."""

import contextlib
import glob
import hashlib
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from kd_jax import runs


class Store:
    """Numbered arrays of several fields in a folder. Any number of processes may write the same ones."""

    def __init__(self, folder: str, about: Mapping[str, Any]):
        """`about` is what `about.json` says of the folder; its digest is part of the folder's name."""
        self.folder = os.path.join(folder, runs.digest(about)[:16])
        self._about = about
        self._read: dict[tuple[str, int], np.ndarray] = {}

    def read(self, field: str, number: int) -> np.ndarray | None:
        """The array, or None where there is none, or a damaged one, which is removed, and a line says so."""
        if (field, number) not in self._read:
            for path in glob.glob(self._path(field, number, "*")):
                try:
                    array = np.load(path, mmap_mode="r", allow_pickle=False)
                    if self._path(field, number, digest(array)) != path:
                        raise ValueError("its content does not match its name")
                except FileNotFoundError:  # another process wrote in its place
                    continue
                except (OSError, ValueError, EOFError) as error:
                    print(f"{path} is damaged and is made again ({error})", flush=True)
                    with contextlib.suppress(OSError):
                        os.remove(path)
                else:
                    self._read[field, number] = array
        return self._read.get((field, number))

    def array(self, field: str, number: int) -> np.ndarray:
        """An array that is there."""
        array = self.read(field, number)
        assert array is not None, f"{field} {number} of {self.folder} was there"
        return array

    def write(self, field: str, number: int, array: np.ndarray) -> None:
        """Writes an array, in the place of another one of its field and number."""
        about = os.path.join(self.folder, "about.json")
        os.makedirs(self.folder, exist_ok=True)
        if not os.path.exists(about):
            runs.write_files(self.folder, {"about.json": runs.json_text(self._about).encode()})
        path = self._path(field, number, digest(array))
        partial = f"{path}.{os.getpid()}.tmp"
        try:
            with open(partial, "wb") as file:
                np.save(file, array, allow_pickle=False)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
            self._read.pop((field, number), None)
        except BaseException:
            with contextlib.suppress(OSError):
                os.remove(partial)
            raise
        for other in glob.glob(self._path(field, number, "*")):
            if other != path:
                with contextlib.suppress(OSError):
                    os.remove(other)

    def _path(self, field: str, number: int, digest: str) -> str:
        return os.path.join(self.folder, f"{field}-{number:08d}-{digest}.npy")


def digest(*arrays: np.ndarray) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of arrays, with their types and shapes."""
    found = hashlib.sha256()
    for array in arrays:
        found.update(f"{array.dtype.str} {array.shape}".encode())
        found.update(array.tobytes())
    return found.hexdigest()[:16]
