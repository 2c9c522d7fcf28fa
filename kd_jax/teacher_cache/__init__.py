"""What the teacher says in training, kept, so that a run costs the student alone and ends as it would without.

A recording holds what was said at each step of a run. Every run with its seed, data, augmentation and batch size sees
the same views in the same order, whatever its method, and reads it. A table holds what is said of each of the at most
162 views of an image that crops and flips make, for any seed.
"""

import functools
import importlib.metadata
import math
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from kd_jax import distributed, losses, models, registry, remote, sharding, steps, teachers, tracing
from kd_jax.config import checks
from kd_jax.data import stream
from kd_jax.errors import InputError, one_line
from kd_jax.eval_steps import batch_of
from kd_jax.experiment import Experiment
from kd_jax.teacher_cache import asking, table
from kd_jax.teacher_cache.asking import Said
from kd_jax.teacher_cache.recording import Recording
from kd_jax.teacher_cache.store import Store, digest
from kd_jax.teachers import kept
from kd_jax.types import Array, Feed, Missing, Variables

LARGEST_TABLE = 2**33  # bytes, which lie on every device
RANDOM = ("jax_default_prng_impl", "jax_threefry_partitionable")  # settings of JAX by which views are drawn
# What can be kept, from little to much, and of a teacher without classes the last.
FIELDS = (("logits",), ("logits", "embedding"), ("embedding",))


class TeacherCache:
    """What the teacher says at each step of a run: read where it is kept; asked, and kept, where it is not."""

    def __init__(self, experiment: Experiment, feed: Feed, fields: Sequence[str]):
        self._experiment, self._feed = experiment, feed
        self._keep = functools.partial(kept.keep, fields=tuple(fields), top_k=experiment.config["teacher"]["top_k"])
        self._restore = functools.partial(kept.restore, num_classes=len(experiment.dataset.class_names))
        # The first of many processes writes what the teacher says, and has to have all of it.
        each_has_its_own = PartitionSpec(None, sharding.AXIS) if distributed.count() == 1 else PartitionSpec()
        self._said = NamedSharding(experiment.mesh, each_has_its_own)
        self.sizes: Mapping[str, int] = {}  # of what is kept, bytes of a step by name
        self._shapes: tuple[Any, ...] = ()  # of what is kept at the steps of a call
        self.kind = "views"  # what is kept
        self.asked = 0  # steps at which the teacher itself ran
        self._recording: Recording | None = None
        self._variables: Variables = {}
        self._teach = self._asking(experiment)
        fetch = functools.partial(asking.fetch_taught, fetch=feed.fetch, restore=self._restore)
        self.train_steps = experiment.jit(functools.partial(steps.train_steps, fetch=fetch), donate_argnums=0)

    def _asking(self, experiment: Experiment) -> Callable[..., tuple[Said, ...]]:
        function = functools.partial(asking.teach_steps, keep=self._keep, fetch=self._feed.fetch)
        return experiment.jit(function, out_shardings=self._said)

    def trace(self) -> bool:
        """Whether the teacher reports the fields; `sizes` is then known.

        Raises:
          Exception: the method reads more of the teacher than the fields.
        """
        made, train, teacher = self._experiment, self._experiment.dataset.train, self._experiment.teacher
        assert teacher is not None
        rows = min(made.steps_per_call, made.steps), made.config["train"]["batch_size"]
        said = tracing.taught_shapes(self._teach, teacher, train, rows, made.mesh)
        if any(x is None or isinstance(x, Missing) for view in said for x in view.values()):
            return False
        tracing.trace(self.train_steps, made.state_shapes(), None, train, rows, made.hyper, made.mesh, said)
        self._shapes = said
        self.sizes = {name: len(said) * math.prod(x.shape[1:]) * x.dtype.itemsize for name, x in said[0].items()}
        return True

    @property
    def what(self) -> str:
        """What is kept, for people."""
        top_k = self._experiment.config["teacher"]["top_k"]
        logits = f"{top_k} largest of {len(self._experiment.dataset.class_names)} logits" if top_k else "logits"
        kept = [logits] * bool(self.sizes.keys() & {"logits", "largest"}) + ["embedding"] * ("embedding" in self.sizes)
        return " and ".join(kept)

    def error_of_top_k(self, teacher_variables: Variables) -> str:
        """How far from the teacher's probabilities those are that its largest logits leave, for people."""
        made, example = self._experiment, self._feed.example

        def divergences(variables: Variables, images: Array, **_: Any) -> list[Array]:
            pixels = batch_of(images, example, len(made.dataset.class_names))
            said = steps.ask(made.components, variables, pixels, jax.random.key(0), False)
            logits = self._restore(self._keep(said)).logits
            return [losses.kd(logits, said.logits, temperature=t).mean() / t**2 for t in (1.0, 4.0)]

        found = made.jit(divergences)(teacher_variables, example.images)
        return "of the first images, these are off by KL " + " and ".join(
            f"{float(x):.2g} at temperature {t}" for x, t in zip(found, (1, 4), strict=True)
        )

    def record(self, recording: Recording, teacher_variables: Variables) -> None:
        """From now on reads a recording, and adds to it what it lacks."""
        self.kind, self._recording, self._variables = "recording", recording, teacher_variables

    def look_up(self, store: Store, crops: Sequence[int], teacher_variables: Variables) -> None:
        """From now on looks up a table, which is built where it is missing."""
        made = self._experiment
        assert made.teacher is not None
        table.build(made, teacher_variables, self._feed.constants, store, self.sizes, self._keep, crops)
        self._variables = table.load(made, store, self.sizes)
        teacher = table.teacher(made.teacher, crops, self._restore)
        self._teach = self._asking(made._replace(components=made.components._replace(teacher=teacher)))

    def rows(self, rows: Any, begin: int, end: int) -> tuple[Any, tuple[Said, ...]]:
        """The rows of the feed for the steps from `begin` to before `end`, and with them what the teacher says."""
        if self._recording and (said := self._recording.read(begin, end)):
            return rows, sharding.put(said, self._said)
        seed = np.uint32(self._experiment.config["seed"])
        asked = self._teach(seed, np.int32(begin), self._variables, self._feed.constants, rows)
        if self._recording:
            self.asked += end - begin
            self._recording.keep(asked, begin, end)
        return rows, asked

    def blank(self, rows: Any) -> tuple[Any, tuple[Said, ...]]:
        """What `rows` returns of a whole call, with zeros for what nobody was asked: to measure a step by."""
        return rows, sharding.put(jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), self._shapes), self._said)

    def close(self) -> None:
        """Waits until all is written."""
        if self._recording:
            self._recording.close()


class Needs(NamedTuple):
    """What would be kept of a run's teacher."""

    recording: int  # bytes, of all steps
    table: int  # bytes; 0 where the views cannot be listed
    views: int  # of each image, in the table

    def choose(self, steps: int, steps_per_epoch: int, *, there: int = 0, whole: bool = False) -> str:
        """What "auto" takes for a run of `steps`, of which `there` are recorded; `whole`: the table is there."""
        pays = self.views and (whole or steps >= self.views * steps_per_epoch)
        return "views" if pays and self.table <= LARGEST_TABLE and there < steps else "recording"


def needs(experiment: Experiment, sizes: Mapping[str, int]) -> Needs:
    """What would be kept, by `TeacherCache.sizes`."""
    config, size = experiment.config, sum(sizes.values())
    images, crops = len(experiment.dataset.train.labels), _crops(experiment)
    a_view = size // config["train"]["batch_size"] // experiment.components.method.views
    seen = experiment.epoch.images_before(experiment.steps)
    recording = size // experiment.epoch.batch_size * seen
    return Needs(recording, images * len(crops or ()) * a_view, len(crops or ()))


def _crops(experiment: Experiment) -> tuple[int, ...] | None:
    """The views that a table lists; None where there can be none."""
    streams = stream.is_streamed(experiment.dataset.train)
    return None if streams else teachers.listed_views(experiment.config)


def create(experiment: Experiment, feed: Feed, teacher_variables: Variables) -> TeacherCache | None:
    """What `teacher.cache` of the config says, and a line says why; None where the teacher runs in every step.

    Raises:
      InputError: for a table that is too large.
    """
    config, teacher = experiment.config, experiment.teacher
    kind, top_k = config["teacher"]["cache"], config["teacher"]["top_k"]
    found: TeacherCache | str = "it does not run at all"
    if kind == "none" or teacher is None or teacher.is_average or not experiment.components.method.needs_teacher:
        if not top_k:
            return None
    elif _is_apart(experiment):
        found = "the runs lie in an object store, of which many processes have no copy in common"
    else:
        found = readable(experiment, feed)
    if isinstance(found, str):
        if top_k:
            raise InputError(f"teacher.top_k is {top_k}, and nothing of the teacher can be kept: {found}; expected 0")
        print(f"teacher.cache is {kind!r}, but the teacher runs in every step: {found}", flush=True)
        return None
    if kind == "views" and stream.is_streamed(experiment.dataset.train):
        raise InputError("teacher.cache is 'views', and the images stream; expected 'recording' or 'none'")
    cache, size, images = found, sum(found.sizes.values()), len(experiment.dataset.train.labels)
    crops, need = _crops(experiment), needs(experiment, found.sizes)
    folder, about = os.path.join(experiment.runs_folder, "teachers"), _of_teacher(experiment, teacher_variables)
    store = Store(os.path.join(folder, "views"), about | _of_table(experiment, crops))
    recording = Recording(
        Store(os.path.join(folder, "recordings"), about | _of_recording(experiment)),
        cache.sizes,
        epoch=experiment.epoch,
        steps=experiment.steps,
    )
    there, chosen = distributed.first(recording.count) if kind != "views" else 0, kind
    whole = crops is not None and distributed.first(table.is_whole, store, cache.sizes, images)
    if kind == "auto":
        chosen = need.choose(experiment.steps, feed.steps_per_epoch, there=there, whole=whole)
    if chosen == "views":
        assert crops is not None, "`teachers.create` has seen to it"
        if need.table > LARGEST_TABLE:
            raise InputError(
                f"teacher.cache is 'views', whose table takes {size_of(need.table)}; expected at most"
                f" {size_of(LARGEST_TABLE)}, or 'recording'"
            )
        rest = (
            "which is there"
            if whole
            else f"for which it sees {len(crops)} view(s) of every image, once for all runs of this data"
        )
        print(
            f"teacher.cache is {kind!r}: a table of the teacher's {cache.what}, {size_of(need.table)}, {rest}:"
            f" {store.folder}",
            flush=True,
        )
        cache.look_up(store, crops, teacher_variables)
    else:
        rest_size, free = size * (experiment.steps - there), distributed.first(free_disk, recording.folder)
        if rest_size > free:
            too_large = f"a recording takes {size_of(rest_size)}, and {size_of(free)} of the disk are free"
            if kind == "recording" or top_k:
                raise InputError(f"teacher.cache is {kind!r}: {too_large}; expected 'none'")
            print(f"teacher.cache is 'auto', but the teacher runs in every step: {too_large}", flush=True)
            return None
        rest = (
            "and none is asked for"
            if there == experiment.steps
            else f"the others will be, {size_of(need.recording)} in all"
        )
        print(
            f"teacher.cache is {kind!r}: the teacher's {cache.what} at {there} of {experiment.steps} steps are recorded"
            f" for this seed, data, augmentation and batch size, {rest}: {recording.folder}",
            flush=True,
        )
        cache.record(recording, teacher_variables)
    if top_k:
        print(cache.error_of_top_k(teacher_variables), flush=True)
    return cache


def of_evaluations(experiment: Experiment, teacher_variables: Variables) -> Store | None:
    """Where the logits of evaluated images are kept that a teacher says; None without a `teacher.cache`."""
    teacher, config = experiment.teacher, experiment.config
    if config["teacher"]["cache"] == "none" or teacher is None or teacher.is_average or _is_apart(experiment):
        return None
    about = _of_teacher(experiment, teacher_variables) | {"dataset": experiment.identity["dataset"]}
    return Store(os.path.join(experiment.runs_folder, "teachers", "evaluations"), about)


def _is_apart(experiment: Experiment) -> bool:
    """Whether the processes that train one run would each have its own copy of what is kept."""
    return distributed.count() > 1 and remote.is_remote(experiment.runs_folder)


def readable(experiment: Experiment, feed: Feed) -> TeacherCache | str:
    """The cache of as little as the method reads; why not, where that cannot be kept."""
    reason = ""
    for fields in FIELDS:
        if reason and "logits" not in fields:
            break
        cache = TeacherCache(experiment, feed, fields)
        try:
            if cache.trace():
                return cache
        except Exception as error:  # also of a method of one's own, that reads what is not there
            reason = one_line(error).partition("; expected")[0]
    return f"only its logits and embedding are kept, and {reason}"


def _of_teacher(experiment: Experiment, teacher_variables: Variables) -> dict[str, Any]:
    """What all that a teacher says depends on. One that was trained again need not be the same to the last bit."""
    sections = checks.teacher_sections(experiment.config["teacher"])
    used: list[tuple[Mapping[str, Any], str]] = [(teachers.KINDS, section["kind"]) for section in sections]
    used += [(models.NETWORKS, section["config"]["model"]["name"]) for section in sections if section.get("config")]
    return {
        "teacher": experiment.identity["teacher"],
        "code": [file["sha256"] for file in registry.files_of(used)],
        "variables": digest(*map(np.asarray, jax.tree.leaves(teacher_variables))),
        "precision": experiment.config["precision"],
        "versions": {name: importlib.metadata.version(name) for name in ("kd_jax", "jax")},
    }


def _of_table(experiment: Experiment, crops: Sequence[int] | None) -> dict[str, Any]:
    """What a table depends on beside the teacher."""
    dataset = experiment.identity["dataset"]
    return {
        "dataset": {
            key: value
            for key, value in dataset.items()
            if key not in ("sampling", "augment", "least_area", "extra_views")
        },
        "views": len(crops or ()),
    }


def _of_recording(experiment: Experiment) -> dict[str, Any]:
    """What a recording depends on beside the teacher."""
    config = experiment.config
    rest = ("last_batch",) if experiment.epoch.rest else ()  # without one, the batches are the same
    keys = ("batch_size", "mixup", "cutmix", "accumulate", *rest)
    return {
        "dataset": experiment.identity["dataset"],
        "seed": config["seed"],
        "train": {key: config["train"][key] for key in keys},
        "random": [str(getattr(jax.config, name)) for name in RANDOM],
    }


def free_disk(folder: str) -> int:
    """Free bytes of the disk on which a folder lies, or will."""
    folder = remote.local(folder)
    while not os.path.exists(folder):
        folder = os.path.dirname(os.path.abspath(folder))
    return shutil.disk_usage(folder).free


def size_of(count: int) -> str:
    """Bytes, for people."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20)):
        if count >= size:
            return f"{count / size:,.1f} {unit}"
    return f"{count / 2**10:,.1f} KiB"
