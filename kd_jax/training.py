"""The loop, in a fixed order: step, log, evaluate, save. A run that was killed goes on from its last checkpoint."""

import contextlib
import math
import os
import signal
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from kd_jax import data, experiment, metrics, runs, sharding, steps, weights
from kd_jax.checkpoint import Checkpoints
from kd_jax.errors import InputError, Preempted, TrainingError
from kd_jax.experiment import Experiment
from kd_jax.logging import metrics_file
from kd_jax.logging.progress import Progress
from kd_jax.types import MethodVariables, TrainState, Variables, student_logits


def train_and_evaluate(
    config: Mapping[str, Any], workdir: str | None = None, *, runs_folder: str = "runs"
) -> TrainState:
    """Trains as a config says, its teacher first when that is missing, and writes `result.json`.

    Args:
      config: a complete tree (see kd_jax/config/base.py).
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
    missing = False
    if teacher and teacher.experiment:
        runs.check(teacher.folder, teacher.experiment.identity)
        missing = not runs.has_result(teacher.folder)
    loaded = None if missing else _load_teacher(made)  # before anything is written: it may be damaged
    with runs.locked(folder, wait=wait):
        if not os.path.exists(os.path.join(folder, "config.json")):
            saved = {"config": made.config, "identity": made.identity, "hash": made.digest}
            runs.write_json(
                os.path.join(folder, "config.json"), {**saved, "data": experiment.describe_data(made.dataset)}
            )
        if teacher and teacher.experiment and missing:
            print(f"training the teacher {teacher.experiment.config['model']['name']}: {teacher.folder}")
            run(teacher.experiment, teacher.folder, wait=True)
        return _train(made, folder, *(loaded or _load_teacher(made)))


def _load_teacher(made: Experiment) -> tuple[Variables, dict[str, Any] | None]:
    """The teacher's variables, and its result, which is printed; that of weights is measured here."""
    teacher = made.teacher
    if not teacher:
        return {}, None
    if teacher.variables is None:
        variables, result = weights.read_run(teacher.folder)[0], runs.read_json(teacher.folder, "result.json")
    else:
        variables = teacher.variables
        method = made.parts.method._replace(predict=student_logits)
        alone = made._replace(parts=made.parts._replace(student=teacher.network, teacher=None, method=method))
        measured = Evaluator(alone, {}).measure(made.place(variables), MethodVariables({}, {}), made.dataset.test)
        result = {"name": os.path.basename(teacher.folder), "test": measured}
    print(f"teacher {result['name']}: {_describe(result)}  {teacher.folder}", flush=True)
    return made.place(variables), result


def _train(made: Experiment, folder: str, teacher_variables: Variables, teacher_result) -> TrainState:
    config, total, split = made.config, made.steps, made.dataset.validation
    init, train_steps = made.jit(steps.init_state), made.jit(steps.train_steps, donate_argnums=0)
    train_data, hyper = made.images(made.dataset.train), made.place(made.hyper)
    evaluate = Evaluator(made, teacher_variables)
    checkpoints = Checkpoints(os.path.join(folder, "checkpoints"), keep=config["checkpoint"]["keep"])
    state = init(np.uint32(config["seed"]), teacher_variables, train_data)
    if runs.has_result(folder):
        result = runs.read_json(folder, "result.json")
        with contextlib.closing(checkpoints):
            state = checkpoints.load(result["checkpoint"], state)
        print(f"finished already: {_describe(result)}  {folder}", flush=True)
        if project := config["log"].get("wandb"):
            print(f"nothing new for W&B's {project!r}: a run is mirrored while it trains; another --workdir trains it")
        return state
    if step := checkpoints.latest() or 0:
        state = checkpoints.load(step, state)
    elif made.pretrained:
        state = steps.start_from(state, made.place(made.pretrained))

    print(f"{'going on with' if step else 'training'} {config['model']['name']} from step {step} to {total}: {folder}")
    writer, window = metrics_file.Writer(folder, step, {"config": config, "hash": made.digest}), _Window()
    progress = Progress(total, config["train"]["batch_size"])
    with contextlib.closing(checkpoints), contextlib.closing(writer), contextlib.closing(progress), _sigterm() as stop:
        for index, end in _calls(made, step):
            begin, step = step, end
            state, scalars = train_steps(state, teacher_variables, train_data, index, hyper)
            window.add(len(index), scalars)
            epoch = step / made.steps_per_epoch
            # Whole epochs done, where one ends here. The last step counts as an end.
            ended = math.ceil(epoch) if step == total or step % made.steps_per_epoch == 0 else 0

            def due(every: int, ended: int = ended, step: int = step) -> bool:
                return bool(ended) and (ended % every == 0 or step == total)

            evaluates = bool(split) and due(config["evaluate"]["every_epochs"])
            saves = due(config["checkpoint"]["every_epochs"])
            every = config["log"]["every_steps"]
            # Before an evaluation or a checkpoint too: the flush stops a run whose loss is not finite.
            if step // every > begin // every or evaluates or saves or step == total:
                means = window.flush(step)
                writer.write(step, {"epoch": epoch} | _prefixed("train", means))
                progress.show(step, math.ceil(epoch), means)
            accuracy = None
            if split and evaluates:
                measured = evaluate(state, split)
                accuracy = measured["accuracy"]
                writer.write(step, {"epoch": epoch} | _prefixed("validation", measured))
            rated = accuracy is not None and config["evaluate"]["select"] == "best-validation"
            if rated or saves:
                checkpoints.save(state, step, accuracy)
            if evaluates or saves:
                progress.pause(step)
            if stop.is_set() and step < total:
                window.flush(step)
                checkpoints.save(state, step, None)
                raise Preempted(f"stopped at step {step} of {total}; the same command goes on from there")

        checkpoints.wait()
        if config["evaluate"]["select"] == "best-validation":
            step = checkpoints.best() or step
            state = checkpoints.load(step, state)
        total_of_test = evaluate.total(*_evaluated(state), made.dataset.test)
        result = {
            "name": config["name"],
            "model": config["model"]["name"],
            "seed": config["seed"],
            "config_hash": made.digest,
            "teacher": teacher_result
            and {"name": teacher_result["name"], "accuracy": teacher_result["test"]["accuracy"]},
            "test": metrics.summarize(total_of_test),
            "validation": evaluate(state, split) if split else None,
            "selected": config["evaluate"]["select"],
            "checkpoint": step,
            "steps": total,
            "epochs": total / made.steps_per_epoch,
            "parameters": sum(x.size for x in jax.tree.leaves(state.params["student"])),
            "seconds": round(writer.elapsed(), 2),
            "images_per_second": progress.images_per_second(),
            "device": f"{made.mesh.size} x {made.mesh.devices.flat[0].device_kind}",
            "deterministic": config["deterministic"] or jax.default_backend() == "cpu",
            "versions": experiment.versions(),
        }
        # Before the writer closes, which takes as long as W&B takes.
        runs.write_json(os.path.join(folder, "test_details.json"), metrics.details(total_of_test), indent=None)
        runs.write_json(os.path.join(folder, "result.json"), result)
        writer.write_result(result)
    print(f"{result['model']}: {_describe(result)}  {folder}", flush=True)
    return state


def _calls(made: Experiment, step: int) -> Iterator[tuple[jax.Array, int]]:
    """(indices [n, B] of a call's images, the step after it), from `step` to the end.

    Calls end at multiples of steps_per_call and at an epoch's end, so they are the same wherever a run restarted.
    """
    batch_size, length = made.config["train"]["batch_size"], made.steps_per_epoch
    order_sharding = NamedSharding(made.mesh, PartitionSpec(None, sharding.AXIS))
    for epoch in range(step // length, math.ceil(made.steps / length)):
        order = data.epoch_order(made.config["seed"], epoch, len(made.dataset.train.labels))
        order = order[: length * batch_size].reshape(length, batch_size)
        start, last = max(step - epoch * length, 0), min(length, made.steps - epoch * length)
        while start < last:
            end = min(start - start % made.steps_per_call + made.steps_per_call, last)
            yield jax.device_put(order[start:end], order_sharding), epoch * length + end
            start = end


def evaluate_run(folder: str, *, path: str | None = None, runs_folder: str = "runs") -> dict[str, Any]:
    """Metrics of a finished run on its test set; those that compare with a teacher need the teacher's run.

    Args:
      folder: of the run.
      path: where the data lies now; None for where it lay.
      runs_folder: where the runs of teachers lie.
    Raises:
      InputError: when the folder holds no finished run, or the data is not what it was trained on.
    """
    made, variables, method_variables, teacher_variables = restore(folder, path=path, runs_folder=runs_folder)
    return Evaluator(made, teacher_variables).measure(variables, method_variables, made.dataset.test)


def restore(
    folder: str, *, path: str | None = None, runs_folder: str = "runs"
) -> tuple[Experiment, Variables, MethodVariables, Variables]:
    """A finished run as it was evaluated: (experiment, the student's variables, the method's, the teacher's).

    The experiment has no teacher where the teacher's run is gone. For the arguments and errors see `evaluate_run`.
    """
    saved = runs.read_json(folder, "config.json")
    variables, method_variables = weights.read_run(folder)
    config, identity = saved["config"], saved["identity"]
    config["model"]["pretrained"] = ""  # where training started from need not be there any more
    config["dataset"]["path"] = path or config["dataset"]["path"]
    teacher = config["teacher"]
    if teacher["kind"] == "config":
        teacher["path"] = experiment.teacher_folder(runs.digest(identity["teacher"]["run"]), runs_folder)
    if teacher["kind"] in ("config", "run"):
        teacher["kind"] = "run" if runs.has_result(teacher["path"]) else "none"
    made = experiment.create(config, runs_folder=runs_folder, training=False)
    if made.dataset.fingerprint != saved["data"]["fingerprint"]:
        raise InputError(f"the data is not what {folder!r} was trained on; expected the same images, see --path")
    teacher_variables: Variables = {}
    if made.teacher:
        teacher_variables = made.place(made.teacher.variables or weights.read_run(made.teacher.folder)[0])
    variables, method_variables = made.place((variables, method_variables))
    return made, variables, method_variables, teacher_variables


def batches(made: Experiment, count: int) -> Iterator[tuple[jax.Array, jax.Array]]:
    """(indices [B], mask [B] that is False for padding) of `count` images in their order, split over the devices."""
    size = min(made.config["evaluate"]["batch_size"], count)
    size += -size % made.mesh.size
    for start in range(0, count, size):
        index = np.arange(start, start + size, dtype=np.int32)
        yield jax.device_put((np.minimum(index, count - 1), index < count), sharding.split(made.mesh))


class Evaluator:
    """Metrics of a state over a whole split; the splits stay on the device."""

    def __init__(self, made: Experiment, teacher_variables: Variables):
        self._made, self._teacher_variables = made, teacher_variables
        self._step = made.jit(steps.eval_step)
        self._placed: dict[int, steps.Images] = {}

    def __call__(self, state: TrainState, split: data.Split) -> dict[str, float | int | None]:
        """See `metrics.summarize`. With an average of the student, that is what is evaluated."""
        return self.measure(*_evaluated(state), split)

    def measure(self, variables: Variables, method_variables: MethodVariables, split: data.Split):
        """The same for variables that are not a state's."""
        return metrics.summarize(self.total(variables, method_variables, split))

    def total(
        self, variables: Variables, method_variables: MethodVariables, split: data.Split
    ) -> dict[str, np.ndarray]:
        """The sums of `metrics.sums` over a split."""
        made = self._made
        if id(split) not in self._placed:
            self._placed[id(split)] = made.images(split)
        images = self._placed[id(split)]
        total = None
        for batch in batches(made, len(split.labels)):
            sums = self._step(variables, method_variables, self._teacher_variables, images, *batch)
            total = sums if total is None else jax.tree.map(jax.numpy.add, total, sums)
        return jax.device_get(total)


def _evaluated(state: TrainState) -> tuple[Variables, MethodVariables]:
    """The variables of a state that its evaluation sees."""
    variables = state.ema or {"params": state.params["student"], "batch_stats": state.stats["student"]}
    return variables, MethodVariables(state.params["method"], state.stats["method"])


class _Window:
    """Scalars since the last log line, left on the device until they are needed."""

    def __init__(self) -> None:
        self._count = 0
        self._sums: list[Mapping[str, jax.Array]] = []

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
