"""The loop, in a fixed order: step, log, evaluate, save. A run that was killed goes on from its last checkpoint."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from kd_jax import data, experiment, metrics, runs, sharding, steps, writers
from kd_jax.checkpoint import Checkpoints
from kd_jax.experiment import Experiment
from kd_jax.types import InputError, MethodVariables, TrainingError, TrainState, Variables


class Preempted(Exception):
    """The process was asked to stop (SIGTERM), and its state is saved."""


def train_and_evaluate(
    config: Mapping[str, Any], workdir: str | None = None, *, runs_folder: str = "runs"
) -> TrainState:
    """Trains as a config says, its teacher first when that is missing, and writes `result.json`.

    Args:
      config: a complete tree (see configs/base.py).
      workdir: the run's folder; by default one under `runs_folder`, named after the config. Where it holds part of
        the same run, that run goes on.
      runs_folder: where the folders of runs and of teachers lie.
    Returns:
      The state that was evaluated.
    Raises:
      InputError: the config, the data or the folder is wrong; nothing was written.
      TrainingError: the loss is not finite. Preempted: SIGTERM came, and the state is saved.
    """
    made = experiment.create(config, runs_folder=runs_folder)
    return run(made, workdir or default_folder(made, runs_folder))


def default_folder(made: Experiment, runs_folder: str) -> str:
    """<runs>/<name>-<hash8>."""
    return os.path.join(runs_folder, f"{made.config['name']}-{made.digest[:8]}")


def run(made: Experiment, folder: str, *, wait: bool = False) -> TrainState:
    """Runs an experiment in a folder, or goes on with it. `wait`: for another process that runs the same one."""
    runs.check(folder, made.identity)
    teacher = made.teacher
    if teacher and teacher.experiment:
        runs.check(teacher.folder, teacher.experiment.identity)
    with runs.locked(folder, wait=wait):
        if not os.path.exists(os.path.join(folder, "config.json")):
            saved = {"config": made.config, "identity": made.identity, "hash": made.digest}
            runs.write_json(
                os.path.join(folder, "config.json"), {**saved, "data": experiment.describe_data(made.dataset)}
            )
        teacher_variables: Variables = {}
        teacher_result = None
        if teacher:
            if not runs.has_result(teacher.folder):
                assert teacher.experiment is not None
                print(f"training the teacher {teacher.experiment.config['model']['name']}: {teacher.folder}")
                run(teacher.experiment, teacher.folder, wait=True)
            teacher_variables = made.place(experiment.load(teacher.folder)[1])
            teacher_result = runs.read_json(teacher.folder, "result.json")
            print(f"teacher {teacher_result['name']}: {_describe(teacher_result)}  {teacher.folder}", flush=True)
        return _train(made, folder, teacher_variables, teacher_result)


def _train(made: Experiment, folder: str, teacher_variables: Variables, teacher_result) -> TrainState:
    config, batch_size = made.config, made.config["train"]["batch_size"]
    init = made.jit(steps.init_state)
    train_steps = made.jit(steps.train_steps, donate_argnums=0)
    train_data, hyper = made.images(made.dataset.train), made.place(made.hyper)
    order_sharding = NamedSharding(made.mesh, PartitionSpec(None, sharding.AXIS))
    evaluate = Evaluator(made, teacher_variables)

    state = init(np.uint32(config["seed"]), teacher_variables, train_data)
    checkpoints = Checkpoints(os.path.join(folder, "checkpoints"), keep=config["checkpoint"]["keep"])
    step = checkpoints.latest() or 0
    if step:
        state = checkpoints.load(step, state)
    if runs.has_result(folder):
        print(f"finished already: {_describe(runs.read_json(folder, 'result.json'))}  {folder}", flush=True)
        checkpoints.close()
        return state

    name = config["model"]["name"]
    print(f"{'going on with' if step else 'training'} {name} for {made.steps} steps: {folder}", flush=True)
    writer = writers.Writer(folder, step)
    progress = writers.Progress(made.steps, step, batch_size)
    window, speed = _Window(), _Speed(batch_size)
    with contextlib.closing(checkpoints), contextlib.closing(writer), contextlib.closing(progress):
        with _sigterm() as stop:
            while step < made.steps:
                epoch, position = divmod(step, made.steps_per_epoch)
                if position == 0 or window.order is None:
                    order = data.epoch_order(config["seed"], epoch, len(made.dataset.train.labels))
                    window.order = order[: made.steps_per_epoch * batch_size].reshape(-1, batch_size)
                # Calls end at multiples of steps_per_call and at the epoch's end, wherever the run was restarted.
                end = min(
                    position + made.steps_per_call - position % made.steps_per_call,
                    made.steps_per_epoch,
                    position + made.steps - step,
                )
                index = jax.device_put(window.order[position:end], order_sharding)
                state, scalars = train_steps(state, teacher_variables, train_data, index, hyper)
                window.add(end - position, scalars)
                step += end - position
                epoch_ends = end == made.steps_per_epoch or step == made.steps

                every = config["log"]["every_steps"]
                if epoch_ends or step // every > (step - (end - position)) // every:
                    means = window.flush(step)
                    speed.add(step)
                    writer.write(step, {"epoch": step / made.steps_per_epoch} | _prefixed("train", means))
                    progress.show(step, epoch + 1, means)
                last = step == made.steps
                done = epoch + 1 if epoch_ends else 0
                accuracy = None
                evaluates = done and (last or done % config["evaluate"]["every_epochs"] == 0)
                if evaluates and made.dataset.validation:
                    measured = evaluate(state, made.dataset.validation)
                    accuracy = measured["accuracy"]
                    writer.write(step, {"epoch": step / made.steps_per_epoch} | _prefixed("validation", measured))
                saves = done and (last or done % config["checkpoint"]["every_epochs"] == 0)
                if saves or (accuracy is not None and config["evaluate"]["select"] == "best-validation"):
                    checkpoints.save(state, step, accuracy)
                if evaluates or saves:
                    progress.pause(step)
                    speed.pause(step)
                if stop.is_set() and not last:
                    window.flush(step)
                    checkpoints.save(state, step, None)
                    raise Preempted(f"stopped at step {step} of {made.steps}; the same command goes on from there")

        if config["evaluate"]["select"] == "best-validation":
            checkpoints.close()
            checkpoints = Checkpoints(os.path.join(folder, "checkpoints"), keep=config["checkpoint"]["keep"])
            best = checkpoints.best()
            assert best is not None
            state, step = checkpoints.load(best, state), best
        validation = evaluate(state, made.dataset.validation) if made.dataset.validation else None
        result = {
            "name": config["name"],
            "model": name,
            "seed": config["seed"],
            "config_hash": made.digest,
            "teacher": teacher_result
            and {"name": teacher_result["name"], "accuracy": teacher_result["test"]["accuracy"]},
            "test": evaluate(state, made.dataset.test),
            "validation": validation,
            "selected": config["evaluate"]["select"],
            "checkpoint": step,
            "steps": made.steps,
            "epochs": made.steps / made.steps_per_epoch,
            "parameters": sum(x.size for x in jax.tree.leaves(state.params["student"])),
            "seconds": round(writer.elapsed(), 2),
            "images_per_second": speed.images_per_second(),
            "device": f"{made.mesh.size} x {made.mesh.devices.flat[0].device_kind}",
            "deterministic": config["deterministic"] or jax.default_backend() == "cpu",
            "versions": experiment.versions(),
        }
    # Only now is the checkpoint that the result names on the disk.
    runs.write_json(os.path.join(folder, "result.json"), result)
    print(f"{name}: {_describe(result)}  {folder}", flush=True)
    return state


class Evaluator:
    """Metrics of a state over a whole split; the splits stay on the device."""

    def __init__(self, made: Experiment, teacher_variables: Variables):
        self._made, self._teacher_variables = made, teacher_variables
        self._step = made.jit(steps.eval_step)
        self._placed: dict[int, steps.Images] = {}

    def __call__(self, state: TrainState, split: data.Split) -> dict[str, float | int | None]:
        """See `metrics.summarize`. With an average of the student, that is what is evaluated."""
        variables = state.ema or {"params": state.params["student"], "batch_stats": state.stats["student"]}
        method_variables = MethodVariables(state.params["method"], state.stats["method"])
        return self.measure(variables, method_variables, split)

    def measure(self, variables: Variables, method_variables: MethodVariables, split: data.Split):
        made = self._made
        images = self._placed.setdefault(id(split), None) or made.images(split)
        self._placed[id(split)] = images
        count = len(split.labels)
        size = min(made.config["evaluate"]["batch_size"], count)
        size += -size % made.mesh.size
        total = None
        for start in range(0, count, size):
            index = np.arange(start, start + size, dtype=np.int32)
            batch = jax.device_put((np.minimum(index, count - 1), index < count), sharding.split(made.mesh))
            sums = self._step(variables, method_variables, self._teacher_variables, images, *batch)
            total = sums if total is None else jax.tree.map(jax.numpy.add, total, sums)
        return metrics.summarize(jax.device_get(total))


class _Window:
    """Scalars since the last log line, left on the device until they are needed."""

    def __init__(self):
        self.order: np.ndarray | None = None
        self._count, self._sums = 0, []

    def add(self, count: int, scalars: Mapping[str, jax.Array]) -> None:
        self._count += count
        self._sums.append(scalars)

    def flush(self, step: int) -> dict[str, float]:
        """Means over the window; raises TrainingError when the loss is not finite, before such a state is saved."""
        sums = jax.device_get(self._sums)
        means = {name: float(sum(s[name] for s in sums)) / self._count for name in sums[0]} if sums else {}
        self._count, self._sums = 0, []
        bad = [name for name, value in means.items() if not np.isfinite(value)]
        if bad:
            raise TrainingError(
                f"{', '.join(bad)} is not finite by step {step}; the last checkpoint before it is kept."
                " Try a lower optimizer.learning_rate, or train.clip"
            )
        return means


class _Speed:
    """Images per second of training alone: without the first window, which compiles, and without evaluation."""

    def __init__(self, batch_size: int):
        self._batch_size, self._images, self._seconds = batch_size, 0, 0.0
        self._mark: tuple[int, float] | None = None

    def add(self, step: int) -> None:
        now = time.monotonic()
        if self._mark:
            self._images += (step - self._mark[0]) * self._batch_size
            self._seconds += now - self._mark[1]
        self._mark = (step, now)

    def pause(self, step: int) -> None:
        self._mark = (step, time.monotonic())

    def images_per_second(self) -> float | None:
        return round(self._images / self._seconds, 1) if self._seconds else None


@contextlib.contextmanager
def _sigterm() -> Iterator[threading.Event]:
    """An event that SIGTERM sets; outside of the main thread, where no signal arrives, it stays unset."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    previous = signal.signal(signal.SIGTERM, lambda *_: event.set())
    try:
        yield event
    finally:
        signal.signal(signal.SIGTERM, previous)


def _prefixed(prefix: str, scalars: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{prefix}/{name}": value for name, value in scalars.items()}


def _describe(result: Mapping[str, Any]) -> str:
    test = result["test"]
    return f"test accuracy {100 * test['accuracy']:.2f}% of {test['images']} images"


__all__ = ["Evaluator", "InputError", "Preempted", "default_folder", "run", "train_and_evaluate"]
