"""Checkpoints: the latest and the best of a run, written in the background. The only importer of Orbax.

Orbax writes into a temporary folder and renames it, so a process killed at any moment leaves whole checkpoints only.
"""

import contextlib
import logging
import os
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from orbax.checkpoint import v1 as ocp

from kd_jax.errors import InputError
from kd_jax.types import TrainState

# What goes wrong in the background is raised by the next call; Orbax logs it before, with many tracebacks.
logging.getLogger("absl").addFilter(lambda record: "orbax" not in record.pathname)
logging.getLogger("asyncio").addFilter(lambda record: "orbax" not in record.getMessage())


class Checkpoints:
    """The checkpoints in a folder, each named by its step."""

    def __init__(self, folder: str, *, keep: int = 1):
        """Keeps the `keep` latest, and the one with the highest "accuracy" among its metrics."""
        policies = ocp.training.preservation_policies
        self._folder = os.path.abspath(folder)
        with _named(self._folder):
            self._checkpointer = ocp.training.Checkpointer(
                self._folder,
                save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
                preservation_policy=policies.AnyPreservationPolicy(
                    [
                        policies.LatestN(keep),
                        policies.BestN(get_metric_fn=_rank, n=1, keep_checkpoints_without_metrics=False),
                    ]
                ),
                cleanup_tmp_directories=True,
            )

    def latest(self) -> int | None:
        """The step of the latest checkpoint, or None."""
        latest = self._checkpointer.latest
        return None if latest is None else latest.step

    def best(self) -> int | None:
        """The step of the checkpoint with the highest validation accuracy, the earliest of equals, or None."""
        rated = [c for c in self._checkpointer.checkpoints if c.metrics]
        return max(rated, key=lambda c: _rank(c.metrics)).step if rated else None

    def save(self, state: TrainState, step: int, accuracy: float | None) -> None:
        """Starts to save `state`, unless that step is saved already. `accuracy`: on the validation split, or None."""
        if any(c.step == step for c in self._checkpointer.checkpoints):
            return
        # The next step donates the state's buffers while this one is still being written.
        state = jax.tree.map(jnp.copy, state)
        metrics = None if accuracy is None else {"accuracy": accuracy, "step": step}
        self._checkpointer.save_async(step, state, metrics=metrics)

    def load(self, step: int, like: TrainState) -> TrainState:
        """Loads a step into the structure, types and shardings of `like`; raises InputError when it is not whole."""
        with _named(os.path.join(self._folder, str(step))):
            return self._checkpointer.load(step, jax.tree.map(_abstract, like))

    def wait(self) -> None:
        """Waits until all is written."""
        self._checkpointer.wait()

    def close(self) -> None:
        """Waits until all is written, and ends the background threads."""
        self._checkpointer.close()


def _rank(metrics: dict[str, float]) -> Any:
    """By which checkpoints are kept and chosen: of equal ones the earliest, so that `keep` changes no result."""
    return metrics["accuracy"], -metrics["step"]


def _abstract(x: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)


def load_tree(folder: str, step: int) -> dict[str, Any]:
    """The whole state of a step as nested dictionaries, on one device, wherever it was saved from."""
    path = os.path.join(os.path.abspath(folder), str(step))
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

    def abstract(x: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here)

    with _named(path):
        return ocp.load(path, jax.tree.map(abstract, ocp.metadata(path).metadata))


@contextlib.contextmanager
def _named(path: str) -> Iterator[None]:
    """What Orbax and its file formats raise about a damaged checkpoint, as one line with its path."""
    try:
        yield
    except Exception as error:  # of no class of its own where a file is cut in the middle
        text = (str(error).splitlines() or [type(error).__name__])[0][:160]
        raise InputError(f"{path} cannot be read; expected a whole checkpoint, or none: {text}") from error
