"""Images that are not in memory: each is read when it is asked for."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

THREADS = min(8, os.cpu_count() or 1)  # more threads than cores halve the speed on small images


def are_needed(stream: str, size: int) -> bool:
    """Whether images of so many bytes are read when they are asked for, by `dataset.stream`."""
    return stream == "always" or (stream == "auto" and size > room())


def room() -> int:
    """Bytes of images that can lie in memory: half of what host and devices have."""
    from kd_jax.data.images import available_memory  # it needs Pillow, which not all have that train on arrays

    memory = [available_memory()]
    if statistics := jax.local_devices()[0].memory_stats():  # a CPU has none
        memory.append(statistics["bytes_limit"])
    return min(memory) // 2


class Images:
    """N images [h, w, C] uint8 in a fixed order. A slice or an array of positions chooses some, and reads none.

    `numpy.asarray` reads all of them, in threads. It goes to another process as it is.
    """

    dtype, ndim = np.dtype(np.uint8), 4

    def __init__(
        self,
        read: Callable[[Any], np.ndarray],
        items: Sequence[Any],
        shape: tuple[int, ...],
        chosen: np.ndarray | None = None,
    ):
        """`read` makes an image [h, w, C] of this `shape` of one of the `items`; `chosen`: their positions [N]."""
        self._read, self._items, self._shape = read, items, shape
        self._chosen = np.arange(len(items)) if chosen is None else chosen

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self._chosen), *self._shape)

    def __len__(self) -> int:
        return len(self._chosen)

    def __getitem__(self, index: slice | np.ndarray) -> "Images":
        return Images(self._read, self._items, self._shape, self._chosen[index])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        found = np.empty(self.shape, np.uint8)

        def one(place: int) -> None:
            found[place] = self._read(self._items[self._chosen[place]])

        if len(found) < 2 or THREADS < 2:
            for place in range(len(found)):
                one(place)
        else:
            with ThreadPoolExecutor(THREADS) as pool:
                list(pool.map(one, range(len(found))))
        return found if dtype is None else found.astype(dtype)
