"""Training data that does not lie on the devices: each batch is read when its step is near, by Grain.

The order is that of `resident`, a function of (seed, epoch), and a batch is the same pixels: a run that streams ends as
one whose images lie on the devices. Where it goes on follows from its step alone.
"""

import contextlib
import functools
import itertools
import math
from collections.abc import Callable, Generator, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from kd_jax import sharding
from kd_jax.batches import Epoch
from kd_jax.data import resident
from kd_jax.data.lazy import Images
from kd_jax.errors import InputError
from kd_jax.types import Feed, RawBatch, Split

CALL = 2**28  # bytes of images that a call takes at most
AHEAD, MOST_AHEAD = 2**29, 16  # bytes of images that are read ahead, about, and batches


def is_streamed(split: Split) -> bool:
    """Whether the images of a split are read when they are asked for."""
    return isinstance(split.images, Images)


class Batches:
    """Batches of a split by number, as far as one process needs them: a source of Grain."""

    def __init__(self, split: Split, count: int, ids: Callable[[int], np.ndarray], parts: Mapping[int, slice]):
        """`ids`: of each of the `count` batches the positions of its images; `parts`: by how many these are, the rows
        that are read."""
        self._split, self._count, self._ids, self._parts = split, count, ids, parts

    @property
    def size(self) -> int:
        """Bytes of a batch, at most."""
        rows = max(part.stop - part.start for part in self._parts.values())
        return rows * math.prod(self._split.images.shape[1:])

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, number: int) -> Any:
        whole = self._ids(number)
        ids: Any = whole[self._parts[len(whole)]]
        images: Any = np.asarray(self._split.images[ids])
        return RawBatch(images, self._split.labels[ids], ids)


def ids_of_step(step: int, *, orders: Callable[[int], np.ndarray], divided: Epoch) -> np.ndarray:
    """The positions [B] int32 of the images of a step, as `resident.feed` has them; `orders` as of `resident`."""
    epoch, within = divmod(step, divided.steps)
    return _order(orders, epoch)[within * divided.batch_size :][: divided.batch_size]


@functools.lru_cache(maxsize=2)  # of a million images it takes longer than a step
def _order(orders: Callable[[int], np.ndarray], epoch: int) -> np.ndarray:
    return orders(epoch)


def evaluated(split: Split, ids: np.ndarray, mesh: Mesh) -> Iterator[RawBatch]:
    """The batches of the images at `ids` [n, B], one after another, on the devices."""
    batches = Batches(split, len(ids), functools.partial(_row, ids), {ids.shape[1]: own_part(mesh, ids.shape[1])})
    for batch in read(batches, 0, workers=0):
        yield _put(batch, sharding.split(mesh))


def _row(ids: np.ndarray, number: int) -> np.ndarray:
    return ids[number]


def _put(own: RawBatch, on_devices: NamedSharding) -> RawBatch:
    """A batch, of which each process has its own part, on the devices."""
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(on_devices, x), own)


def feed(
    train: Split,
    *,
    seed: int,
    divided: Epoch,
    steps_per_call: int,
    total_steps: int,
    mesh: Mesh,
    workers: int,
    sampling: str = "shuffle",
) -> Feed:
    """The feed of a split whose images are read as they are needed; for the arguments see `resident.feed`.

    Args:
      workers: processes that read; 0: threads of this one.
    """
    on_devices = NamedSharding(mesh, PartitionSpec(None, sharding.AXIS))
    orders = resident.orders(train.labels, seed=seed, sampling=sampling)
    ids = functools.partial(ids_of_step, orders=orders, divided=divided)
    parts = {size: own_part(mesh, size) for size in divided.sizes}
    source = Batches(train, total_steps, ids, parts)

    def calls(step: int) -> Iterator[tuple[RawBatch, int]]:
        batches = read(source, step, workers)
        with contextlib.closing(batches):
            while step < total_steps:
                end = divided.end_of_call(step, steps_per_call, total_steps)
                each = [next(batches) for _ in range(end - step)]
                step = end
                yield _put(jax.tree.map(lambda *parts: np.stack(parts), *each), on_devices), step

    return Feed(
        steps_per_epoch=divided.steps,
        constants=None,
        calls=calls,
        fetch=fetch,
        example=resident.example(train),
        labels=sharding.put(train.labels, sharding.replicated(mesh)),
    )


def read(source: Batches, first: int, workers: int) -> Generator[RawBatch, None, None]:
    """The batches from a number on, some of them read ahead."""
    import grain  # slow to import

    if not flags.FLAGS.is_parsed():  # of a program that has no command line; Grain reads its own
        flags.FLAGS.mark_as_parsed()
    ahead = max(2, min(MOST_AHEAD, AHEAD // source.size))
    dataset = grain.MapDataset.source(source)[first:]
    batches = dataset.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=ahead))
    if workers:
        batches = batches.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=1))
    with contextlib.closing(iter(batches)) as found:  # else processes are left
        yield from found


def own_part(mesh: Mesh, batch_size: int) -> slice:
    """Of the rows of a batch, those on this process's devices.

    Raises:
      InputError: its devices do not follow each other in the mesh.
    """
    indices: Any = sharding.split(mesh).addressable_devices_indices_map((batch_size,))
    parts = sorted((rows.start or 0, rows.stop or batch_size) for (rows,) in indices.values())
    if any(before[1] != after[0] for before, after in itertools.pairwise(parts)):
        raise InputError("the devices of this process do not follow each other in the mesh; expected them in a row")
    return slice(parts[0][0], parts[-1][1])


def fetch(constants: Any, row: RawBatch) -> RawBatch:
    """`Feed.fetch` of what streams: a row is a batch."""
    del constants
    return row


def steps_per_call(wanted: int, train: Split, batch_size: int) -> int:
    """As many as wanted, but no more than a call has room for."""
    return max(1, min(wanted, CALL // (batch_size * math.prod(train.images.shape[1:]))))


def row_shapes(train: Split, rows: tuple[int, int]) -> Any:
    """The shapes of a call's rows, (steps, images of each)."""
    images: Any = jax.ShapeDtypeStruct((*rows, *train.images.shape[1:]), jnp.uint8)
    numbers: Any = jax.ShapeDtypeStruct(rows, jnp.int32)
    return RawBatch(images, numbers, numbers)
