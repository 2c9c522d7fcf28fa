"""Random access to the records of TFRecord files, which have no index of their own."""

import struct
from collections.abc import Iterator, Sequence

import numpy as np
from etils import epath  # TFDS, which brings it, names its files so: they may lie in a bucket

from kd_jax.errors import InputError

HEAD, TAIL = 12, 4  # bytes around a record: its length in 8 and a checksum, and the checksum of its bytes


class TFRecords:
    """The records of some files, one file after another, by number. It goes to another process without the records.

    Args:
      files: paths.

    Raises:
      InputError: a file ends within a record.
    """

    def __init__(self, files: Sequence[str]):
        self._files = list(files)
        places = [place for number, file in enumerate(self._files) for place in _places(number, file)]
        self._places = np.array(places, np.int64).reshape(-1, 3)

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> bytes:
        number, start, length = self._places[index].tolist()
        with epath.Path(self._files[number]).open("rb") as file:
            file.seek(start)
            return file.read(length)


def _places(number: int, path: str) -> Iterator[tuple[int, int, int]]:
    """(the file's number, first byte, bytes) of each record of a file, of which the lengths alone are read."""
    size = epath.Path(path).stat().length
    with epath.Path(path).open("rb") as file:
        end = 0
        while head := file.read(HEAD):
            start = end + HEAD
            end = start + struct.unpack("<Q", head[:8])[0] + TAIL if len(head) == HEAD else size + 1
            if end > size:
                raise InputError(f"{path} ends within a record; expected a whole file: prepare the data set again")
            yield number, start, end - TAIL - start
            file.seek(end)
