"""Evaluation of a state, and of a run that has finished."""

import functools
import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from kd_jax import data as datasets
from kd_jax import (
    distributed,
    eval_steps,
    experiment,
    metrics,
    runs,
    sharding,
    steps,
    teacher_cache,
    teachers,
    terminal,
    weights,
)
from kd_jax.data import memory, resident, stream
from kd_jax.errors import InputError, one_line
from kd_jax.experiment import Experiment
from kd_jax.logging.progress import working
from kd_jax.types import Array, MethodVariables, RawBatch, Split, TrainState, Variables


class _Placed(NamedTuple):
    """A split on the devices."""

    split: Split  # on the host, kept alive as it is known by its identity
    on_devices: Callable[[], Iterable[Split | RawBatch]]  # for each call: the same one, or the batch that it evaluates
    calls: list[tuple[Array, Array, eval_steps.Said | None]]  # ids, mask, what the teacher says


class Evaluator:
    """Metrics over a whole split; the splits, and what the teacher says of them, stay on the devices."""

    def __init__(self, experiment: Experiment, teacher_variables: Variables) -> None:
        self._experiment, self._teacher_variables = experiment, teacher_variables
        teach = functools.partial(eval_steps.teach_evaluation, num_classes=len(experiment.dataset.class_names))
        self._steps, self._teach = experiment.jit(eval_steps.eval_steps), experiment.jit(teach)
        self._placed: dict[int, _Placed] = {}
        self._kept = teacher_cache.of_evaluations(experiment, teacher_variables)

    def __call__(self, variables: Variables, method: MethodVariables, split: Split) -> dict[str, Any]:
        """Metrics by name, see `metrics.summarize`."""
        return metrics.summarize(self.total(variables, method, split))

    def total(self, variables: Variables, method: MethodVariables, split: Split) -> dict[str, np.ndarray]:
        """The sums of `metrics.sums` over a split, added up on the devices."""
        placed = self._placed_of(split)
        each = (
            self._steps(variables, method, read, *call)
            for read, call in zip(placed.on_devices(), placed.calls, strict=True)
        )
        return jax.device_get(functools.reduce(functools.partial(jax.tree.map, jax.numpy.add), each))

    def of_teacher(self, split: Split) -> dict[str, Any]:
        """Metrics of the teacher by name; None for all that it or the images have no classes for."""
        each = [taught or {} for *_, taught in self._placed_of(split).calls]
        if "logits" not in each[0]:
            return metrics.summarize({"images": np.asarray(len(split.labels))})
        logits = [np.asarray(taught["logits"]) for taught in each]
        whole = np.concatenate([part.reshape(-1, part.shape[-1]) for part in logits])[: len(split.labels)]
        of_all = jax.jit(metrics.sums)(whole, split.labels, np.ones(len(split.labels), bool), None, {})
        return metrics.summarize(jax.device_get(of_all))

    def _placed_of(self, split: Split) -> _Placed:
        if id(split) not in self._placed:
            self._placed[id(split)] = self._place(split)
        return self._placed[id(split)]

    def _place(self, split: Split) -> _Placed:
        """The teacher is asked here, once: what it says of an image that is not augmented does not change."""
        made, count = self._experiment, len(split.labels)
        each = calls(made, count, one_by_one=stream.is_streamed(split))
        on_devices: Callable[[], Iterable[Split | RawBatch]]
        if stream.is_streamed(split):
            on_devices = functools.partial(stream.evaluated, split, _ids_and_mask(made, count)[0], made.mesh)
        else:
            on_devices = functools.partial(itertools.repeat, resident.put(split, made.mesh), len(each))
        if made.teacher is None or made.teacher.is_average:
            return _Placed(split, on_devices, [(ids, mask, None) for ids, mask in each])
        names = {id(made.dataset.test): "test", id(made.dataset.validation): "validation"}
        name = names.get(id(split), "")  # of others nothing is kept
        store = self._kept if name else None
        files = {"logits": name, "embedding": f"{name}_embedding"}
        there = distributed.first(lambda: [f for f in files if store and store.read(files[f], 0) is not None])
        kept = {field: store.array(files[field], 0) for field in there} if store else {}
        if not kept:
            said = [
                self._teach(self._teacher_variables, read, ids)
                for read, (ids, _) in zip(on_devices(), each, strict=True)
            ]
            for field in said[0] if store else ():
                assert store is not None
                whole = np.concatenate([np.asarray(part[field]).reshape(-1, part[field].shape[-1]) for part in said])
                try:
                    if distributed.is_first():
                        store.write(files[field], 0, whole[:count])
                except OSError as error:
                    terminal.say(f"what the teacher says of {name} images is not kept: {one_line(error)}")
        else:
            ids = (own for own, _ in _calls_on_host(made, count, stream.is_streamed(split)))
            said = [{field: made.place(array[own]) for field, array in kept.items()} for own in ids]
        return _Placed(split, on_devices, [(*call, taught) for call, taught in zip(each, said, strict=True)])


def evaluated(state: TrainState) -> tuple[Variables, MethodVariables]:
    """The variables of a state that its evaluation sees: the student's averaged ones, if the run keeps them."""
    variables = state.ema or {"params": state.params["student"], "batch_stats": state.stats["student"]}
    return variables, steps.method_variables(state.params, state.stats)


def calls(experiment: Experiment, count: int, *, one_by_one: bool = False) -> list[tuple[Array, Array]]:
    """(ids [n, B], mask [n, B]) of every call that an evaluation of `count` images takes, see `batches`.

    One call takes all of them; on a CPU, where convolutions inside a loop are many times slower, and `one_by_one`, each
    takes one.
    """
    of_batch = NamedSharding(experiment.mesh, PartitionSpec(None, sharding.AXIS))
    return [sharding.put(call, of_batch) for call in _calls_on_host(experiment, count, one_by_one)]


def batches(experiment: Experiment, count: int) -> Iterator[tuple[Array, Array]]:
    """(ids [B], mask [B] that is False for padding) of `count` images in their order, split over the devices."""
    for batch in zip(*_ids_and_mask(experiment, count), strict=True):
        yield sharding.put(batch, sharding.split(experiment.mesh))


def _calls_on_host(experiment: Experiment, count: int, one_by_one: bool) -> list[tuple[np.ndarray, np.ndarray]]:
    ids, mask = _ids_and_mask(experiment, count)
    per_call = 1 if one_by_one or sharding.platform(experiment.mesh) == "cpu" else len(ids)
    return [(ids[i : i + per_call], mask[i : i + per_call]) for i in range(0, len(ids), per_call)]


def _ids_and_mask(experiment: Experiment, count: int) -> tuple[np.ndarray, np.ndarray]:
    """ids [n, B], and mask [n, B] that is False for padding."""
    size = min(experiment.config["evaluate"]["batch_size"], count)
    size += -size % experiment.mesh.size
    ids = np.arange(-(-count // size) * size, dtype=np.int32).reshape(-1, size)
    return np.minimum(ids, count - 1), ids < count


class Restored(NamedTuple):
    """A finished run as it was evaluated, on the devices."""

    experiment: Experiment  # without a teacher where the teacher's run is gone
    variables: Variables
    method: MethodVariables
    teacher_variables: Variables


def restore(
    folder: str | os.PathLike[str],
    *,
    path: str | os.PathLike[str] | None = None,
    data: memory.Data | None = None,
    runs_folder: str | os.PathLike[str] = "runs",
) -> Restored:
    """Restores a finished run for evaluation.

    Args:
      folder: of the run.
      path: where the data lies now; None for where it lay.
      data: of a run on arrays, as `kd_jax.train` took it.
      runs_folder: where the runs of teachers lie.
    Raises:
      InputError: when the folder holds no finished run, or the data is not what it was trained on.
    """
    folder, runs_folder = os.path.expanduser(folder), os.path.expanduser(runs_folder)
    saved = runs.read_config(folder)
    variables, method = weights.read_run(folder)
    config = saved["config"]
    config["model"]["pretrained"] = ""  # where training started from need not exist any more
    config["dataset"]["class_names"] = ""  # the run knows them
    config["dataset"]["path"] = os.path.expanduser(path) if path else config["dataset"]["path"]
    config["teacher"] = teachers.finished(saved, folder, runs_folder)
    source = memory.source_of(data)
    fingerprints = (source.fingerprint,) if source else datasets.fingerprints(config["dataset"])
    if saved["data"]["fingerprint"] not in fingerprints:
        raise InputError(f"the data is not what {folder!r} was trained on; expected the same images, see `path`")
    restored = experiment.create(config, source=source, runs_folder=runs_folder, finished=saved["data"])
    teacher_variables = restored.teacher.load()[0] if restored.teacher else {}
    return Restored(restored, *restored.place((variables, method, teacher_variables)))


def evaluate_run(
    folder: str | os.PathLike[str],
    *,
    path: str | os.PathLike[str] | None = None,
    data: memory.Data | None = None,
    runs_folder: str | os.PathLike[str] = "runs",
    per_class: bool = False,
) -> dict[str, Any]:
    """Metrics of a finished run on its test set; those that compare with a teacher need the teacher's run.

    With `per_class` also "classes", see `metrics.per_class`. See `restore` for the other arguments and errors.
    """
    run = restore(folder, path=path, data=data, runs_folder=runs_folder)
    dataset = run.experiment.dataset
    if per_class and not dataset.class_names:
        raise InputError(
            f"{os.fspath(folder)!r} was trained without labels and knows no classes; expected no per_class"
        )
    with working(f"evaluating {len(dataset.test.labels):,} images ..."):
        total = Evaluator(run.experiment, run.teacher_variables).total(run.variables, run.method, dataset.test)
    classes = {"classes": metrics.per_class(total, dataset.class_names)} if per_class else {}
    return {**metrics.summarize(total), **classes}
