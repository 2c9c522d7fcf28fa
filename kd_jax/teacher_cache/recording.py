"""What a teacher said at each step of a run, for every later run that sees the same views."""

import concurrent.futures
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from kd_jax import distributed, terminal
from kd_jax.batches import Epoch
from kd_jax.errors import one_line
from kd_jax.teacher_cache.store import Store

FILE = 2**14  # images of a file, about


class Recording:
    """Steps of a run, some to a file; it is written while training goes on.

    The files of an epoch begin with it, and a smaller batch has a file of its own.
    """

    def __init__(self, store: Store, names: Iterable[str], *, epoch: Epoch, steps: int):
        """`steps`: of the run."""
        self._store, self._names, self._epoch, self._total = store, tuple(names), epoch, steps
        self._length = min(epoch.whole, max(1, FILE // epoch.batch_size))
        self._pieces: list[dict[str, np.ndarray]] = []  # of the file that is not full yet, from its first step on
        self._first = self._next = 0  # the file's first step, and the step after these
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "recording")
        self._failed = False

    @property
    def folder(self) -> str:
        return self._store.folder

    def count(self) -> int:
        """How many of the run's steps are there."""
        return sum(min(self._kept(first), length) for first, length in self._files(0, self._total))

    def read(self, begin: int, end: int) -> tuple[dict[str, np.ndarray], ...] | None:
        """Of each view {name: [end - begin, B, ...]} at the steps from `begin`; None unless all are there."""
        files = self._files(begin, end)
        if not distributed.first(self._are_kept, files, end):
            return None
        joined = {}
        for name in self._names:
            parts = [self._store.array(name, first)[max(begin - first, 0) : end - first] for first, _ in files]
            joined[name] = parts[0] if len(parts) == 1 else np.concatenate(parts)
        views = joined[self._names[0]].shape[1]
        return tuple({name: array[:, view] for name, array in joined.items()} for view in range(views))

    def keep(self, taught: Sequence[Mapping[str, jax.Array]], begin: int, end: int) -> None:
        """Adds the steps from `begin` to before `end`: of each view {name: [end - begin, B, ...]}, on the devices."""
        if distributed.is_first():
            self._thread.submit(self._guarded, self._keep, taught, begin, end)

    def close(self) -> None:
        """Waits until all is written, the file that is not full too."""
        self._thread.submit(self._guarded, self._write)
        self._thread.shutdown()

    def _files(self, begin: int, end: int) -> list[tuple[int, int]]:
        """(first step, steps) of the files that hold the steps from `begin` to before `end`."""
        files, step, whole = [], begin, self._epoch.whole
        while step < end:
            within = step % self._epoch.steps
            start = within - within % self._length if within < whole else within
            length = min(self._length, whole - start) if within < whole else 1
            first = step - within + start
            length = min(length, self._total - first)
            files.append((first, length))
            step = first + length
        return files

    def _are_kept(self, files: Iterable[tuple[int, int]], end: int) -> bool:
        return all(self._kept(first) >= min(end - first, length) for first, length in files)

    def _kept(self, first: int) -> int:
        arrays = [self._store.read(name, first) for name in self._names]
        return min(0 if array is None else len(array) for array in arrays)

    def _keep(self, taught: Sequence[Mapping[str, jax.Array]], begin: int, end: int) -> None:
        on_host = {name: np.stack([np.asarray(view[name]) for view in taught], 1) for name in self._names}
        for first, length in self._files(begin, end):
            start, stop = max(first, begin), min(first + length, end)
            if start == first:
                self._pieces = []
            elif start != self._next:  # the steps before it were read, or not taken
                self._pieces = []
                if self._kept(first) < start - first:
                    continue
                self._pieces = [{name: self._store.array(name, first)[: start - first] for name in self._names}]
            self._pieces.append({name: x[start - begin : stop - begin] for name, x in on_host.items()})
            self._first, self._next = first, stop
            if stop == first + length:
                self._write()

    def _write(self) -> None:
        """Writes the steps of a file that were taken, if any."""
        if self._pieces:
            for name in self._names:
                self._store.write(name, self._first, np.concatenate([piece[name] for piece in self._pieces]))
        self._pieces = []

    def _guarded(self, function: Callable[..., None], *arguments: Any) -> None:
        """Calls it, but not after an error, which a line tells: nobody waits for it."""
        if not self._failed:
            try:
                function(*arguments)
            except Exception as error:  # of a full disk, say
                self._failed = True
                terminal.say(f"what the teacher says is not recorded any more: {one_line(error)}")
