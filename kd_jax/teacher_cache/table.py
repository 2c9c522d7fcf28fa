"""A table of what a teacher says of every view of every training image, built once."""

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from kd_jax import augment, distributed, runs, sharding, steps
from kd_jax.data import resident
from kd_jax.experiment import Experiment
from kd_jax.logging.progress import counted
from kd_jax.steps import Components, StepOptions
from kd_jax.teacher_cache.asking import Said
from kd_jax.teacher_cache.store import Store
from kd_jax.types import Array, Batch, Outputs, Split, Teacher, Variables

IMAGES = 500  # of a file


def is_whole(store: Store, names: Iterable[str], images: int) -> bool:
    """Whether the table of so many images is there."""
    return all(store.read(name, first) is not None for name in names for first in range(0, images, IMAGES))


def build(
    experiment: Experiment,
    teacher_variables: Variables,
    split: Split,
    store: Store,
    names: Iterable[str],
    keep: Callable[[Outputs], Said],
    crops: Sequence[int],
) -> None:
    """Adds to a store what is missing of a table, [images, views, ...] a file.

    Args:
      experiment: whose teacher is asked. teacher_variables: its.
      split: the training images on the devices.
      store: of the table; what it holds already is kept.
      names, keep: of what is kept of the teacher's outputs.
      crops: numbers of the views.
    Raises:
      InputError: where the folder cannot be written. OSError: for a full disk.
    """
    count = len(split.labels)

    def is_missing(number: int) -> bool:
        return any(store.read(name, number) is None for name in names)

    def write(number: int, said: Mapping[str, np.ndarray]) -> None:
        try:
            for name, array in said.items():
                store.write(name, number, array)
        except OSError as error:
            raise runs.refused(f"the table {store.folder!r} cannot be written", error) from error

    missing = distributed.first(lambda: [n for n in range(0, count, IMAGES) if is_missing(n)])
    if not missing:
        return
    mesh = experiment.mesh
    size = IMAGES + -IMAGES % mesh.size
    say = experiment.jit(functools.partial(_say, keep=keep))

    def files() -> Iterator[None]:
        for number in missing:
            if distributed.first(is_missing, number):  # still: another run may have made it
                ids = np.minimum(np.arange(number, number + size, dtype=np.int32), count - 1)
                on_devices = sharding.put(ids, sharding.split(mesh))
                each = [say(teacher_variables, split, on_devices, np.int32(crop)) for crop in crops]
                length = min(IMAGES, count - number)
                said = {name: np.stack([np.asarray(one[name])[:length] for one in each], 1) for name in names}
                distributed.first(write, number, said)
            yield

    total = IMAGES * (len(missing) - 1) + (count - 1) % IMAGES + 1
    for _ in counted(files(), IMAGES, total, "asking the teacher, of images"):
        pass


def _say(
    variables: Variables,
    split: Split,
    ids: Array,
    crop: Array,
    *,
    keep: Callable[[Outputs], Said],
    components: Components,
    options: StepOptions,
) -> Said:
    """What is kept of one view of the images at `ids` [B]."""
    raw = resident.gather(split, ids, options=options)
    numbers = jnp.full_like(ids, crop)
    pixels = Batch(augment.take_crops(raw.images, numbers), raw.labels, raw.labels, ids, numbers)
    return keep(steps.ask(components, variables, pixels, jax.random.key(0), False))


def load(experiment: Experiment, store: Store, names: Iterable[str]) -> Variables:
    """The table on every device, {name: [N, views, ...]}: the variables of `teacher`."""
    count = len(experiment.dataset.train.labels)
    table = {}
    for name in names:
        one = store.array(name, 0)
        whole = np.empty((count, *one.shape[1:]), one.dtype)
        for first in range(0, count, IMAGES):
            whole[first : first + IMAGES] = store.array(name, first)
        table[name] = experiment.place(whole)
    return table


def teacher(of: Teacher, crops: Sequence[int], restore: Callable[[Said], Outputs]) -> Teacher:
    """The teacher that looks up what it says in a table."""
    column = np.zeros(augment.CROPS, np.int32)
    column[list(crops)] = np.arange(len(crops))

    def apply(variables: Variables, batch: Batch, rng: Array, train: bool) -> Outputs:
        del rng, train
        at = batch.ids, jnp.asarray(column)[batch.crop]
        return restore({name: table[at] for name, table in variables.items()})

    return of._replace(apply=apply, network=None)
