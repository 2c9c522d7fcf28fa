"""Checkpoints: the latest and the best of a run, written in the background. The only importer of Orbax.

A checkpoint is a folder named by its step: what Orbax writes, and `checkpoint.json` with the SHA-256 of each of these
files, the best checkpoint so far, and what else the run has to remember. It is written under another name and then
renamed, so a process that is killed at any moment leaves whole checkpoints only.

Of many processes that train one run, all have the same state: the first writes and reads, and the others get what it
has read. They need no folder in common.
"""

import concurrent.futures
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import orbax.checkpoint as orbax
from orbax.checkpoint import v1 as ocp

from kd_jax import checksums, distributed, remote, runs, sharding
from kd_jax.errors import InputError, TrainingError, first_few, one_line
from kd_jax.types import TrainState

RECORD = "checkpoint.json"
DAMAGED = ".damaged"  # what a checkpoint that does not match its digests is called from then on

# What goes wrong is raised by the next call; Orbax logs it before, with many tracebacks.
logging.getLogger("absl").addFilter(lambda record: "orbax" not in record.pathname)
logging.getLogger("asyncio").addFilter(lambda record: "orbax" not in record.getMessage())


class Restored(NamedTuple):
    """A state that goes on."""

    state: TrainState
    step: int
    extra: dict[str, Any]  # as it was saved


class Best(NamedTuple):
    """The checkpoint with the highest rating on the validation split so far, the earliest of equals."""

    step: int
    rating: float  # by `evaluate.metric`


class Checkpoints:
    """The checkpoints in a folder, each named by its step.

    Where there are some already, `restore` comes before the first `save`. Nothing is written before that.
    """

    def __init__(self, folder: str, *, keep: int = 1):
        """Keeps the `keep` latest, and the one with the highest rating."""
        self._folder, self._keep = Path(os.path.abspath(distributed.first(remote.local, folder))), keep
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "checkpoints")
        self._writing: concurrent.futures.Future[None] | None = None
        self._before: tuple[set[int], Best | None] = (set(), None)  # what was saved, and the best, before that
        self._saved = set(distributed.first(_saved, self._folder))
        self._best: Best | None = None
        self._ready = not self._saved  # whether the best of what is there is known

    def steps(self) -> list[int]:
        """The steps that are saved, in order."""
        return sorted(self._saved)

    def best(self) -> int | None:
        """The step with the highest rating, of what was restored and saved; None where there is none."""
        return self._best and self._best.step

    def save(
        self, state: TrainState, step: int, rating: float | None = None, extra: Mapping[str, Any] | None = None
    ) -> None:
        """Starts to save a state, unless that step is saved already; what goes wrong is raised by the next call.

        Nothing here waits for the devices. In the background the state is checked and written.

        Args:
          state: is copied, as the next step donates its buffers.
          step: of the state.
          rating: on the validation split, where that was measured.
          extra: what JSON can hold, for `restore`.
        Raises:
          What an earlier save raised: TrainingError when a number in its state was not finite.
        """
        if step in self._saved:
            return
        assert self._ready, "what is there is restored before more is saved"
        self.wait()
        self._before = set(self._saved), self._best
        if rating is not None and (self._best is None or rating > self._best.rating):
            self._best = Best(step, rating)
        self._saved.add(step)
        superseded = self._saved - {*self.steps()[-self._keep :], self.best()}
        self._saved -= superseded
        record = {"step": step, "best": self._best, "extra": dict(extra or {})}
        copy, finite = _copied(state)
        self._writing = self._thread.submit(self._write, copy, finite, record, superseded)

    def load(self, step: int, like: TrainState) -> TrainState:
        """Loads a step into the structure, types and shardings of `like`; raises InputError when it is not whole."""
        self.wait()
        return self._load(step, like)

    def restore(self, like: TrainState) -> Restored | None:
        """Loads the newest checkpoint that is whole, with the best before it, and says what a damaged one costs.

        None where there is no checkpoint.

        Raises:
          InputError: when no checkpoint is whole, or the best is not that of an older state.
        """
        newest, damaged = max(self._saved, default=0), []
        for step in reversed(self.steps()):
            try:
                record, best = distributed.first(self._verified, step)
                state = self._load(step, like, record)
            except InputError as error:
                damaged.append((step, error))
                continue
            for bad, reason in damaged:
                distributed.first(self._set_aside, bad)
                self._saved.remove(bad)
                print(f"{reason}; step {step} is used instead", flush=True)
            if damaged:
                print(f"{newest - step} steps have to be trained again", flush=True)
            self._best, self._ready = Best(*best) if best else None, True
            return Restored(state, step, record.get("extra", {}))
        if damaged:
            raise damaged[0][1]
        return None

    def wait(self) -> None:
        """Waits until all is written, and raises what went wrong: that save then never was."""
        writing, self._writing = self._writing, None
        if writing:
            try:
                distributed.together(writing.result)
            except BaseException:
                self._saved, self._best = self._before
                raise

    def close(self) -> None:
        """Waits until all is written, and ends the background thread."""
        try:
            self.wait()
        finally:
            self._thread.shutdown()

    def _verified(self, step: int) -> tuple[dict[str, Any], Best | None]:
        """(the record of a step that is whole, the best checkpoint when it was saved)."""
        record = _verified(self._folder / str(step))
        return record, self._best_of(step, record)

    def _best_of(self, step: int, record: Mapping[str, Any]) -> Best | None:
        """The best checkpoint when a step was saved; raises InputError where that is not whole any more."""
        if not record:  # of an older version
            accuracies = {old: _older_accuracy(self._folder / str(old)) for old in self.steps()}
            rated = {old: accuracy for old, accuracy in accuracies.items() if accuracy is not None}
            best = max(rated, key=lambda old: (rated[old], -old), default=None)
            return None if best is None else Best(best, rated[best])
        if record["best"] is None:
            return None
        best_of_then = Best(*record["best"])
        if best_of_then.step != step:
            try:
                _verified(self._folder / str(best_of_then.step))
            except InputError as error:
                raise InputError(
                    f"{error}; it is the best so far, without which step {step} is of no use: to train from the start,"
                    f" remove {self._folder}"
                ) from None
        return best_of_then

    def _load(self, step: int, like: TrainState, record: Mapping[str, Any] | None = None) -> TrainState:
        """A step's state; `record`: what `_verified` returned of it, where it was called."""
        path, alone = self._folder / str(step), distributed.count() == 1
        abstract = jax.tree.map(_abstract if alone else _on_one_device, like)
        loaded = distributed.sent(lambda: _read(path, abstract, _verified(path) if record is None else record))
        if alone:
            return loaded
        return jax.tree.map(lambda x, there: sharding.put(x, there.sharding), loaded, like)

    def _write(
        self, state: TrainState, finite: Mapping[str, jax.Array], record: dict[str, Any], superseded: Iterable[int]
    ) -> None:
        """Writes a state, and gives it its record and its name."""
        _check_finite(finite, record["step"])
        if not distributed.is_first():
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        _clear(self._folder)
        partial = self._folder / f".{record['step']}.tmp"
        try:
            _save(partial, state)
            files = {path.relative_to(partial).as_posix(): _digest(path) for path in _files(partial)}
            runs.write_json(str(partial / RECORD), {**record, "files": files})
            partial.rename(self._folder / str(record["step"]))
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        for step in superseded:
            _remove(self._folder / str(step))

    def _set_aside(self, step: int) -> None:
        """Keeps a damaged checkpoint under another name."""
        aside = self._folder / f"{step}{DAMAGED}"
        shutil.rmtree(aside, ignore_errors=True)
        (self._folder / str(step)).rename(aside)


def check_whole(folder: str) -> None:
    """Raises InputError when a checkpoint in a folder is damaged."""
    place = Path(os.path.abspath(remote.local(folder)))
    for step in _saved(place):
        _verified(place / str(step))


def load_tree(folder: str, step: int) -> dict[str, Any]:
    """The whole state of a step as nested dictionaries, on one device, wherever it was saved from."""
    path = Path(os.path.abspath(remote.local(folder)), str(step))
    record = _verified(path)
    return _read(path, lambda: jax.tree.map(_on_one_device, ocp.metadata(path).metadata), record)


def _check_finite(finite: Mapping[str, jax.Array], step: int) -> None:
    """Raises TrainingError when a number of a state is not finite, so that no such state is saved."""
    if bad := [where for where, good in jax.device_get(finite).items() if not good]:
        raise TrainingError(
            f"{first_few(bad)} is not finite at step {step}; the last checkpoint before it is kept."
            " Try a lower optimizer.learning_rate, or train.clip"
        )


@jax.jit
def _copied(state: TrainState) -> tuple[TrainState, dict[str, jax.Array]]:
    """A copy of a state, and whether all of its numbers are finite, by group."""
    trees = {
        **{f"the parameters of {group}": tree for group, tree in state.params.items()},
        **{f"the statistics of {group}": tree for group, tree in state.stats.items()},
        "the moving average": state.ema,
        "the optimizer's state": state.optimizer_state,
    }

    def all_finite(tree: Any) -> jax.Array:
        numbers = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.inexact)]
        return jnp.array([jnp.isfinite(x).all() for x in numbers], bool).all()

    return jax.tree.map(jnp.copy, state), {where: all_finite(tree) for where, tree in trees.items()}


def _saved(folder: Path) -> list[int]:
    """The steps of the checkpoints in a folder, damaged or not; what a killed process left is none."""
    if not folder.is_dir():
        return []
    return [int(path.name) for path in folder.iterdir() if path.name.isdecimal() and not _is_unfinished(path)]


def _is_unfinished(path: Path) -> bool:
    """Whether a folder is what a killed process left: half written, half deleted (by an older version), or empty."""
    if not path.is_dir():
        return False
    written = any((path / name).exists() for name in (RECORD, "_CHECKPOINT_METADATA"))
    return path.name.endswith(".tmp") or "orbax-checkpoint-tmp" in path.name or (path.name.isdecimal() and not written)


def _older_accuracy(path: Path) -> float | None:
    """The validation accuracy of a checkpoint of an older version."""
    try:
        return json.loads((path / "metrics" / "metrics").read_text())["accuracy"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _clear(folder: Path) -> None:
    """Removes what a killed process left."""
    for path in folder.iterdir():
        if _is_unfinished(path):
            shutil.rmtree(path, ignore_errors=True)


def _remove(path: Path) -> None:
    """Removes a checkpoint: at no moment is there a part of one under its name."""
    partial = path.with_name(f".{path.name}.tmp")
    path.rename(partial)
    shutil.rmtree(partial, ignore_errors=True)


def _verified(path: Path) -> dict[str, Any]:
    """What a checkpoint's record says; {} for one of an older version. Raises InputError when a file is damaged."""
    if path.is_dir() and not (path / RECORD).exists() and not _has_older_record(path):
        checksums.say_unchecked(str(path))
        return {}
    try:
        record = json.loads((path / RECORD).read_text())
        if not checksums.take(record) or record["step"] != int(path.name) or "best" not in record:
            raise ValueError(f"{RECORD} is not that of this step")
        for name, digest in record["files"].items():
            if _digest(path / name) != digest:
                raise ValueError(f"{name} in it does not match its digest")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _damaged(path, error) from None
    return record


def _has_older_record(path: Path) -> bool:
    """Whether a checkpoint before this one has a record, so that no older version can have saved this one."""
    return any(
        (other / RECORD).exists()
        for other in path.parent.iterdir()
        if other.name.isdecimal() and int(other.name) < int(path.name)
    )


def _read(path: Path, abstract: Any, record: Mapping[str, Any]) -> Any:
    """Loads a checkpoint. Only without digests may an error be one of a damaged file."""
    try:
        context = ocp.Context()
        for name, value in _alone().items():
            setattr(context.multiprocessing, name, value)
        with context:
            return ocp.load(path, abstract() if callable(abstract) else abstract)
    except Exception as error:  # of no class of its own where a file is cut in the middle
        if record:
            raise
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> InputError:
    reason = one_line(error).partition(" See full TensorStore")[0][:160]
    return InputError(f"{path} cannot be read; expected a whole checkpoint, or none: {reason}")


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _alone() -> dict[str, Any]:
    """Options of Orbax: this process waits for no other."""
    own = jax.process_index()
    return {"primary_host": own, "active_processes": {own}, "barrier_sync_key_prefix": f"process{own}"}


def _save(path: Path, tree: Any) -> None:
    """Writes a tree of arrays that lie on every device, this process alone: of Orbax's interfaces the older one can."""
    options = orbax.options.MultiprocessingOptions(**_alone())
    arrays = orbax.type_handlers.ArrayHandler(use_replica_parallel=False)  # with it each process would write a part
    handler = orbax.CompositeCheckpointHandler(
        state=orbax.PyTreeCheckpointHandler(
            multiprocessing_options=options,
            type_handler_registry=orbax.type_handlers.create_type_handler_registry((jax.Array, arrays)),
        ),
        composite_options=orbax.CompositeOptions(multiprocessing_options=options),
    )
    with orbax.Checkpointer(handler, multiprocessing_options=options) as checkpointer:
        checkpointer.save(path, orbax.args.Composite(state=orbax.args.PyTreeSave(tree)))


def _on_one_device(x: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=jax.sharding.SingleDeviceSharding(jax.local_devices()[0]))


def _abstract(x: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
