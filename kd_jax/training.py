"""The loop, in a fixed order: step, log, evaluate, save. A run that was killed goes on from its last checkpoint."""

import contextlib
import functools
import html
import math
import os
import signal
import threading
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from kd_jax import evaluation, metrics, registry, runs, steps, tracing
from kd_jax.checkpoint import Checkpoints
from kd_jax.data import memory
from kd_jax.errors import Preempted, TrainingError
from kd_jax.evaluation import Evaluator
from kd_jax.experiment import Experiment, create
from kd_jax.identity import config_json, versions
from kd_jax.logging import metrics_file
from kd_jax.logging.progress import Progress
from kd_jax.types import Batch, MethodVariables, Network, Outputs, TrainState, Variables, student_logits


class Result(NamedTuple):
    """A run that has finished."""

    accuracy: float  # on the test set, in [0, 1]
    folder: str
    state: TrainState  # that was evaluated
    result: dict[str, Any]  # what result.json holds

    def _repr_html_(self) -> str:
        """A few lines for a notebook."""
        result, test = self.result, self.result["test"]
        rows = {"test accuracy": f"{100 * self.accuracy:.2f}% of {test['images']:,} images"}
        if result["teacher"]:
            rows["teacher"] = f"{result['teacher']['name']}, {100 * result['teacher']['accuracy']:.2f}%"
            rows["agreement"] = "" if test["agreement"] is None else f"{100 * test['agreement']:.2f}%"
        rows["network"] = f"{result['model']}, {result['parameters']:,} parameters"
        rows["trained"] = f"{result['steps']:,} steps in {result['seconds']:,.0f} s on {result['device']}"
        rows["folder"] = self.folder
        cells = (f"<tr><th>{html.escape(k)}</th><td>{html.escape(v)}</td></tr>" for k, v in rows.items() if v)
        return f"<table>{''.join(cells)}</table>"


def train(
    config: Mapping[str, Any],
    workdir: str | os.PathLike[str] | None = None,
    *,
    data: memory.Data | None = None,
    runs_folder: str | os.PathLike[str] = "runs",
) -> Result:
    """Trains as a config says, its teacher first when that is missing, and writes `result.json`.

    Args:
      config: a complete tree (see kd_jax/keys.py).
      workdir: the run's folder; by default one under `runs_folder`, named after the config. Where it holds part of
        the same run, that run goes on.
      data: images that a program has already, in the place of those that the config names: a `Source` (see
        `data.memory.from_arrays`), or ((images, labels), (images, labels)) to train and to test on.
      runs_folder: where the folders of runs and of teachers lie.
    Raises:
      InputError: the config, the data or the folder is wrong; nothing was written.
      TrainingError: the loss is not finite. Preempted: SIGTERM came, and the state is saved.
    """
    registry.end_import()
    experiment = create(config, source=memory.source_of(data), runs_folder=os.fspath(runs_folder))
    folder = workdir or default_folder(experiment, os.fspath(runs_folder))
    return run(experiment, os.fspath(folder))


def default_folder(experiment: Experiment, runs_folder: str) -> str:
    """The folder <runs>/<name>-<hash8> of a run."""
    return os.path.join(runs_folder, f"{experiment.config['name']}-{experiment.digest[:8]}")


def run(experiment: Experiment, folder: str, *, wait: bool = False) -> Result:
    """Runs an experiment in a folder, or goes on with it. `wait`: for another process that runs the same one."""
    runs.check(folder, experiment.identity)
    missing = _missing_teacher(experiment)
    loaded = None if missing else _load_teacher(experiment)  # before anything is written: it may be damaged
    with runs.locked(folder, wait=wait):
        path = os.path.join(folder, "config.json")
        if not os.path.exists(path):
            runs.write_json(path, config_json(experiment))
        if missing:
            untrained, source = missing
            print(f"training the teacher {untrained.config['model']['name']}: {source}")
            run(untrained, source, wait=True)
        return _train(experiment, folder, *(loaded or _load_teacher(experiment)))


def _missing_teacher(experiment: Experiment) -> tuple[Experiment, str] | None:
    """The run that has to be trained before the teacher can be loaded, and its folder."""
    teacher = experiment.teacher
    if not teacher or teacher.untrained is None:
        return None
    runs.check(teacher.source, teacher.untrained.identity)
    return None if runs.has_result(teacher.source) else (teacher.untrained, teacher.source)


def _load_teacher(experiment: Experiment) -> tuple[Variables, dict[str, Any] | None]:
    """The teacher's variables, and its result, which is printed; without a run it is measured here."""
    teacher = experiment.teacher
    if not teacher:
        return {}, None
    loaded, result = teacher.load()
    variables = experiment.place(loaded)
    if result is None:
        result = {"name": teacher.name, "test": _measure_teacher(experiment, variables)}
    print(f"teacher {result['name']}: {_describe(result)}  {teacher.source}", flush=True)
    return variables, result


def _measure_teacher(experiment: Experiment, variables: Variables) -> dict[str, Any]:
    """The metrics of a teacher on the test set."""
    teacher = experiment.teacher
    assert teacher is not None

    def apply(variables: Variables, images: jax.Array, **_: Any) -> tuple[Outputs, Any]:
        labels = jax.numpy.zeros(len(images), int)
        batch = Batch(images, labels, labels, labels, labels)
        return teacher.apply(variables, batch, rng=jax.random.key(0), train=False), {}

    components = experiment.components._replace(
        student=Network(experiment.components.student.init, apply),
        teacher=None,
        method=experiment.components.method._replace(predict=student_logits),
    )
    alone = experiment._replace(components=components)
    return Evaluator(alone, {})(variables, MethodVariables({}, {}), experiment.dataset.test)


def _train(
    experiment: Experiment, folder: str, teacher_variables: Variables, teacher_result: dict[str, Any] | None
) -> Result:
    config, total, validation = experiment.config, experiment.steps, experiment.dataset.validation
    feed, hyper = experiment.feed(), experiment.place(experiment.hyper)
    init = experiment.jit(steps.init_state, fast_compile=True)
    train_steps = experiment.jit(functools.partial(steps.train_steps, fetch=feed.fetch), donate_argnums=0)
    evaluate = Evaluator(experiment, teacher_variables)
    checkpoints = Checkpoints(os.path.join(folder, "checkpoints"), keep=config["checkpoint"]["keep"])
    state = init(np.uint32(config["seed"]), teacher_variables, feed.example, feed.labels)
    if runs.has_result(folder):
        result = runs.read_json(folder, "result.json")
        with contextlib.closing(checkpoints):
            state = checkpoints.load(result["checkpoint"], state)
        print(f"finished already: {_describe(result)}  {folder}", flush=True)
        if project := config["log"]["wandb"]:
            print(f"nothing new for W&B's {project!r}: a run is mirrored while it trains; another --workdir trains it")
        return Result(result["test"]["accuracy"], folder, state, result)
    if step := checkpoints.latest() or 0:
        state = checkpoints.load(step, state)
    elif experiment.pretrained:
        state = steps.start_from(state, experiment.place(experiment.pretrained))

    per_epoch = feed.steps_per_epoch
    for term in tracing.terms_that_never_count(config["method"], steps=total, steps_per_epoch=per_epoch):
        print(f"method.{term}.epochs begin after the run's {total / per_epoch:g}: the term counts nothing in it")
    print(f"{'going on with' if step else 'training'} {config['model']['name']} from step {step} to {total}: {folder}")
    writer, window = metrics_file.Writer(folder, step, {"config": config, "hash": experiment.digest}), Window()
    progress = Progress(total, config["train"]["batch_size"])
    with contextlib.closing(checkpoints), contextlib.closing(writer), contextlib.closing(progress), _sigterm() as stop:
        for rows, end in feed.calls(step):
            begin, step = step, end
            state, scalars = train_steps(state, teacher_variables, feed.constants, rows, hyper, feed.labels)
            window.add(step - begin, scalars)
            epoch = step / feed.steps_per_epoch
            # Whole epochs done, where one ends here. The last step counts as an end.
            ended = math.ceil(epoch) if step == total or step % feed.steps_per_epoch == 0 else 0

            def due(every: int, ended: int = ended, step: int = step) -> bool:
                return bool(ended) and (ended % every == 0 or step == total)

            evaluates = bool(validation) and due(config["evaluate"]["every_epochs"])
            saves = due(config["checkpoint"]["every_epochs"])
            every = config["log"]["every_steps"]
            # Before an evaluation or a checkpoint too: the flush stops a run whose loss is not finite.
            if step // every > begin // every or evaluates or saves or step == total:
                means = window.flush(step)
                writer.write(step, {"epoch": epoch} | _prefixed("train", means))
                progress.show(step, math.ceil(epoch), means)
            accuracy = None
            if validation and evaluates:
                measured = evaluate(*evaluation.evaluated(state), validation)
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
        total_of_test = evaluate.total(*evaluation.evaluated(state), experiment.dataset.test)
        result = {
            "name": config["name"],
            "model": config["model"]["name"],
            "seed": config["seed"],
            "config_hash": experiment.digest,
            "teacher": teacher_result
            and {"name": teacher_result["name"], "accuracy": teacher_result["test"]["accuracy"]},
            "test": metrics.summarize(total_of_test),
            "validation": evaluate(*evaluation.evaluated(state), validation) if validation else None,
            "selected": config["evaluate"]["select"],
            "checkpoint": step,
            "steps": total,
            "epochs": total / feed.steps_per_epoch,
            "parameters": sum(x.size for x in jax.tree.leaves(state.params["student"])),
            "seconds": round(writer.elapsed(), 2),
            "images_per_second": progress.images_per_second(),
            "device": f"{experiment.mesh.size} x {experiment.mesh.devices.flat[0].device_kind}",
            "deterministic": config["deterministic"] or jax.default_backend() == "cpu",
            "versions": versions(),
        }
        # Before the writer closes, which takes as long as W&B takes.
        runs.write_json(os.path.join(folder, "test_details.json"), metrics.details(total_of_test), indent=None)
        runs.write_json(os.path.join(folder, "result.json"), result)
        writer.write_result(result)
    print(f"{result['model']}: {_describe(result)}  {folder}", flush=True)
    return Result(result["test"]["accuracy"], folder, state, result)


class Window:
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
