"""Arrays in files that bear the SHA-256 of what they hold: written whole, read by mapping them into memory."""

import contextlib
import glob
import hashlib
import os
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from kd_jax import remote, runs
from kd_jax.errors import InputError, one_line

MAPS = 16  # files that are mapped at a time: each is an open one


class Store:
    """Numbered arrays of several fields in a folder. Any number of processes may write the same ones.

    Of one field and number the longest array stays, and of those the one whose name comes first, whoever wrote it.
    """

    def __init__(self, folder: str, about: Mapping[str, Any]):
        """`about` is what `about.json` says of the folder; its digest is part of the folder's name."""
        self.folder = os.path.join(folder, runs.digest(about)[:16])
        self._about = about
        self._known: dict[tuple[str, int], str] = {}  # the files whose content was compared with their names
        self._maps: dict[str, np.ndarray] = {}
        self._unreadable: set[str] = set()  # of which a line said so

    def read(self, field: str, number: int) -> np.ndarray | None:
        """The array, or None where none can be read; a damaged one is removed. A line says both."""
        for path in self._paths(field, number):
            array = self._maps.get(path)  # kept here, as another thread may drop the maps
            if array is None:
                try:
                    array = np.load(path, mmap_mode="r", allow_pickle=False)
                    if path != self._known.get((field, number)) and path != self._path(field, number, array):
                        raise ValueError("its content does not match its name")
                except FileNotFoundError:  # another process wrote in its place
                    continue
                except OSError as error:
                    if path not in self._unreadable:
                        print(f"{path} cannot be read: {one_line(error)}", flush=True)
                    self._unreadable.add(path)
                    continue
                except (ValueError, EOFError) as error:
                    print(f"{path} is damaged and is made again ({error})", flush=True)
                    self._remove(path)
                    continue
                if len(self._maps) >= MAPS:
                    self._maps.clear()
                self._maps[path] = array
            self._known[field, number] = path
            return array
        return None

    def array(self, field: str, number: int) -> np.ndarray:
        """An array that is there."""
        array = self.read(field, number)
        assert array is not None, f"{field} {number} of {self.folder} was there"
        return array

    def write(self, field: str, number: int, array: np.ndarray) -> None:
        """Writes an array, unless a longer one is there."""
        about = os.path.join(self._place, "about.json")
        os.makedirs(self._place, exist_ok=True)
        if not os.path.exists(about):
            runs.write_files(self._place, {"about.json": runs.json_text(self._about).encode()})
            self._send(about)
        path = self._path(field, number, array)
        partial = f"{path}.{uuid.uuid4().hex}.tmp"
        try:
            with open(partial, "wb") as file:
                np.save(file, array, allow_pickle=False)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.remove(partial)
            raise
        self._send(path)
        for other in self._found(field, number)[1:]:
            self._maps.pop(other, None)
            self._remove(other)

    def _remove(self, path: str) -> None:
        with contextlib.suppress(OSError):
            os.remove(path)
        self._send(path)

    def _send(self, path: str) -> None:
        """Tells an object store of a file that was written or removed; a line says where it does not learn of it."""
        try:
            remote.changed(os.path.join(self.folder, os.path.basename(path)))
        except InputError as error:
            print(f"{one_line(error)}; it is kept for this run alone", flush=True)

    @property
    def _place(self) -> str:
        """The folder on this machine."""
        return remote.local(self.folder)

    def _paths(self, field: str, number: int) -> Iterator[str]:
        """Where the array may lie, the best first."""
        if known := self._known.get((field, number)):
            yield known
        yield from self._found(field, number)

    def _found(self, field: str, number: int) -> list[str]:
        pattern = f"{field}-{number:08d}-{'?' * 8}-*.npy"
        names = glob.glob(pattern, root_dir=self._place)
        best_first = sorted(names, key=lambda name: (-int(name.split("-")[-2]), name))
        return [os.path.join(self._place, name) for name in best_first]

    def _path(self, field: str, number: int, array: np.ndarray) -> str:
        return os.path.join(self._place, f"{field}-{number:08d}-{len(array):08d}-{digest(array)}.npy")


def digest(*arrays: np.ndarray) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of arrays, with their types and shapes."""
    found = hashlib.sha256()
    for array in arrays:
        found.update(f"{array.dtype.str} {array.shape}".encode())
        found.update(array.tobytes())
    return found.hexdigest()[:16]
