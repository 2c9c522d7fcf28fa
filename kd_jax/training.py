"""The loop, in a fixed order: step, log, evaluate, save. A run that was killed goes on from its last checkpoint."""

import contextlib
import html
import math
import os
from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from kd_jax import (
    allocation,
    distributed,
    extending,
    metrics,
    registry,
    remote,
    runs,
    sharding,
    steps,
    stopping,
    teacher_cache,
    tracing,
)
from kd_jax.checkpoint import Checkpoints
from kd_jax.data import memory
from kd_jax.errors import Preempted, TrainingError
from kd_jax.evaluation import Evaluator, evaluated
from kd_jax.experiment import Experiment, create
from kd_jax.identity import config_json, versions
from kd_jax.logging import curves, metrics_file, mirrors
from kd_jax.logging.progress import Progress
from kd_jax.types import (
    Feed,
    Split,
    TrainState,
    Variables,
)

MOST_INITIAL = 0.1  # of an average of weights may be what a run starts from, before a line says so


class Result(NamedTuple):
    """A run that has finished."""

    accuracy: float | None  # on the test set, in [0, 1]; None where the images have no labels
    folder: str
    state: TrainState  # that was evaluated
    result: dict[str, Any]  # what result.json holds

    def __repr__(self) -> str:
        """Without the arrays, which fill screens."""
        return f"Result(accuracy={self.accuracy}, folder={self.folder!r})"

    def _repr_html_(self) -> str:
        """A few lines for a notebook, and the curves of training."""
        result, test = self.result, self.result["test"]
        rows = {"test": _describe(result)}
        if self.accuracy is not None:
            rows = {"test accuracy": f"{100 * self.accuracy:.2f}% of {test['images']:,} images"}
        if best := result.get("best"):
            of_best = f"{100 * best['test']['accuracy']:.2f}% at epoch {best['epoch']:g}"
            rows[f"the best on the {best['on']} split"] = of_best
        if result["teacher"]:
            rows["teacher"] = result["teacher"]["name"]
            if (accuracy := result["teacher"]["accuracy"]) is not None:
                rows["teacher"] += f", {100 * accuracy:.2f}%"
            rows["agreement"] = "" if test["agreement"] is None else f"{100 * test['agreement']:.2f}%"
        rows["network"] = f"{result['model']}, {result['parameters']:,} parameters"
        rows["trained"] = f"{result['steps']:,} steps in {result['seconds']:,.0f} s on {result['device']}"
        rows["folder"] = self.folder
        cells = (f"<tr><th>{html.escape(k)}</th><td>{html.escape(v)}</td></tr>" for k, v in rows.items() if v)
        return f"<table>{''.join(cells)}</table><div>{curves.of_run(self.folder)}</div>"


def train(
    config: Mapping[str, Any],
    workdir: str | os.PathLike[str] | None = None,
    *,
    data: memory.Data | None = None,
    runs_folder: str | os.PathLike[str] = "runs",
    extend: str | os.PathLike[str] | None = None,
) -> Result:
    """Trains as a config says, its teacher first when that is missing, and writes `result.json`.

    Args:
      config: a complete tree (see kd_jax/keys.py).
      workdir: the run's folder; by default one under `runs_folder`, named after the config. Where it holds part of
        the same run, that run goes on.
      data: images that a program has already, in the place of those that the config names: a `Source` (see
        `data.memory.from_arrays`), or ((images, labels), (images, labels)) to train and to test on.
      runs_folder: where the folders of runs and of teachers lie.
      extend: the folder of a finished run of the same config but for a smaller length, from whose last checkpoint this
        one goes on. It ends as one that was trained from the start.
    Raises:
      InputError: the config, the data or the folder is wrong; nothing was written.
      TrainingError: the loss is not finite.
      Preempted: SIGTERM came, and the state is saved. KeyboardInterrupt: the same by Ctrl-C; a second one does not
        wait for that.
    """
    registry.end_import()
    with stopping.listening():
        own = os.path.expanduser(runs_folder)
        experiment = distributed.together(
            lambda: create(config, source=memory.source_of(data), runs_folder=own), same=lambda made: made.digest
        )
        folder = workdir or default_folder(experiment, own)
        return run(experiment, os.path.expanduser(folder), extend=os.path.expanduser(extend) if extend else None)


def default_folder(experiment: Experiment, runs_folder: str) -> str:
    """The folder <runs>/<name>-<hash8> of a run."""
    return os.path.join(runs_folder, f"{experiment.config['name']}-{experiment.digest[:8]}")


def run(
    experiment: Experiment, folder: str, *, wait: bool = False, role: str = "", extend: str | None = None
) -> Result:
    """Runs an experiment in a folder, or goes on with it.

    `wait`: for another process that runs the same one. `role`: of the network, for people, as in "the teacher ".
    """
    distributed.first(runs.check, folder, experiment.identity)
    if distributed.first(runs.has_result, folder):
        return _finished(experiment, folder)
    if extend:
        distributed.first(extending.check, experiment, extend, folder)
    missing = experiment.missing_teachers()
    loaded = None if missing else _load_teacher(experiment)  # before anything is written: it may be damaged
    with stopping.listening() as request, contextlib.ExitStack() as stack:
        distributed.first(stack.enter_context, runs.locked(folder, wait=wait))
        if distributed.first(runs.has_result, folder):  # of the process that was waited for
            return _finished(experiment, folder)
        distributed.first(_write_config, experiment, folder)
        for untrained, source in missing:
            run(untrained, source, wait=True, role="the teacher ")
            distributed.together(request.check)
        if extend:
            distributed.first(extending.copy, extend, folder)
        with _closed_by_first(stack, request), contextlib.ExitStack() as own:
            said = [source for _, source in missing]  # with their accuracies, when they were trained
            return _train(experiment, folder, *(loaded or _load_teacher(experiment, said)), request, own, role)


@contextlib.contextmanager
def _closed_by_first(stack: contextlib.ExitStack, request: stopping.Request) -> Iterator[None]:
    """All wait until the first process has closed a stack: where one ends, JAX ends the others in half a minute.

    What an object store lacks is written then, which may take longer.
    """
    try:
        yield
    except (TrainingError, Preempted, KeyboardInterrupt):  # which all raise
        with request.deferred():
            distributed.first(stack.close)
        raise
    with request.deferred():
        distributed.first(stack.close)


def _write_config(experiment: Experiment, folder: str) -> None:
    if not os.path.exists(os.path.join(remote.local(folder), "config.json")):
        runs.write_json(os.path.join(folder, "config.json"), config_json(experiment))


def _finished(experiment: Experiment, folder: str) -> Result:
    """The result of a run that has finished; nothing is written."""
    result = distributed.first(runs.read_json, folder, "result.json")
    with contextlib.closing(Checkpoints(os.path.join(folder, "checkpoints"))) as checkpoints:
        state = checkpoints.load(result["checkpoint"], experiment.state_shapes())
    print(f"finished already: {_describe(result)}  {folder}", flush=True)
    for key, place in mirrors.wanted(experiment.config["log"]).items():
        name = mirrors.SERVICES[key].name
        print(f"nothing new for {name}'s {place!r}: a run is mirrored while it trains; another --workdir trains it")
    return Result(result["test"]["accuracy"], folder, state, result)


def _load_teacher(
    experiment: Experiment, said: Collection[str] = ()
) -> tuple[Variables, Evaluator, dict[str, Any] | None]:
    """The teacher's variables, the evaluator, and its result; without a run it is measured here.

    A line says the result, but of the runs in `said`, which have said it.
    """
    teacher = experiment.teacher
    if not teacher or teacher.is_average:
        return {}, Evaluator(experiment, {}), None
    loaded, result = distributed.sent(teacher.load)
    variables = experiment.place(loaded)
    evaluate = Evaluator(experiment, variables)
    if result is None:
        found = _checked(evaluate.of_teacher(experiment.dataset.test), f"for the teacher {teacher.name}")
        result = {"name": teacher.name, "test": found}
    if teacher.source not in said:
        what = "it teaches its embedding" if result["test"]["accuracy"] is None else _describe(result)
        print(f"teacher {result['name']}: {what}  {teacher.source}", flush=True)
    return variables, evaluate, result


def _train(
    experiment: Experiment,
    folder: str,
    teacher_variables: Variables,
    evaluate: Evaluator,
    teacher_result: dict[str, Any] | None,
    request: stopping.Request,
    stack: contextlib.ExitStack,
    role: str,
) -> Result:
    """Trains in a locked folder; what has to be closed in the end goes onto `stack`."""
    config, total, validation = experiment.config, experiment.steps, experiment.dataset.validation
    select = config["evaluate"]["select"]
    feed, hyper = experiment.feed(), experiment.place(experiment.hyper)
    cache = teacher_cache.create(experiment, feed, teacher_variables)
    train_steps = cache.train_steps if cache else experiment.steps_of(feed)
    asked = {} if cache else teacher_variables
    agreed = distributed.Agreement(experiment.mesh)
    checkpoints = stack.enter_context(
        contextlib.closing(Checkpoints(os.path.join(folder, "checkpoints"), keep=config["checkpoint"]["keep"]))
    )
    state, step, before = _start(experiment, feed, checkpoints, teacher_variables)
    first = step
    window, best = Window(before.get("window")), before.get("best_on_test")
    request.goes_on = f" from step {step}"

    per_epoch = feed.steps_per_epoch
    for warning in _warnings(config, total, per_epoch):
        print(warning, flush=True)
    if reads_test := config["evaluate"]["test_every_epoch"]:
        print("evaluate.test_every_epoch: the test set is read in training, and selects nothing", flush=True)
    begins = "going on with" if step else "training"
    print(f"{begins} {role}{config['model']['name']} from step {step} to {total}: {folder}", flush=True)
    stack.enter_context(request.deferred())  # also while what stands below is closed
    if cache:
        stack.callback(cache.close)
    saved = {"config": config, "hash": experiment.digest}
    writer = stack.enter_context(
        contextlib.closing(
            metrics_file.Writer(folder, step, saved, written=before.get("lines", 0))
            if distributed.is_first()
            else metrics_file.Nowhere()
        )
    )
    progress = Progress(total, experiment.epoch, folder, step)
    compiled: set[tuple[int, ...]] = set()  # the shapes of calls that have been
    unlogged: list[tuple[int, Window]] = []  # the window that ended last, and at which step

    def log() -> None:
        """Waits for the last step of the window that has ended, and writes its line."""
        while unlogged:
            step, window = unlogged.pop()
            means = window.means(step)
            writer.write(step, {"epoch": step / per_epoch} | _prefixed("train", means))
            progress.show(step, means)

    def measure(split: Split, name: str, short: str, what: str) -> dict[str, Any]:
        """Evaluates the state at this step, and writes the line."""
        progress.evaluating(what)
        measured = _checked(evaluate(*evaluated(state), split), f"at step {step}")
        writer.write(step, {"epoch": step / per_epoch} | _prefixed(name, measured))
        progress.measured(measured["accuracy"], short)
        return measured

    def extra(**others: Any) -> dict[str, Any]:
        """What is saved beside a state."""
        return {"lines": writer.lines, **others} | ({"best_on_test": best} if best else {})

    with contextlib.closing(progress):
        for rows, end in feed.calls(step):
            begin, step = step, end
            if cache:
                rows = cache.rows(rows, begin, end)
            state, scalars = train_steps(state, asked, feed.constants, rows, hyper, feed.labels)
            if (shape := jax.tree.leaves(rows)[0].shape[:2]) not in compiled:
                compiled.add(shape)  # a smaller batch, and the last call of an epoch, have programs of their own
                progress.compiled()
            progress.started(step, scalars["loss"])
            log()  # of the window before this call, while its steps run
            window.add(step - begin, scalars)
            # Whole epochs done, where one ends here. The last step counts as an end.
            ended = -(-step // per_epoch) if step == total or step % per_epoch == 0 else 0

            def due(every: int, ended: int = ended, step: int = step) -> bool:
                return bool(ended) and (ended % every == 0 or step == total)

            evaluates = bool(validation or reads_test) and due(config["evaluate"]["every_epochs"])
            saves = due(config["checkpoint"]["every_epochs"])
            every = config["log"]["every_steps"]
            if step // every > begin // every or evaluates or saves or step == total:
                unlogged.append((step, window))
                window = Window()
            if evaluates or saves or step == total:
                log()  # before these: it stops a run whose loss is not finite
            rating, on_validation = None, None
            if validation and evaluates:
                on_validation = measure(validation, "validation", "val", "the validation split")
                rating = on_validation[config["evaluate"]["metric"]] if select != "last" else None
            if reads_test and evaluates:
                on_test = measure(experiment.dataset.test, "test", "test", "the test set")
                if best is None or on_test["accuracy"] > best["test"]["accuracy"]:
                    best = _best("test", step, per_epoch, {"test": on_test, "validation": on_validation})
            if rating is not None or saves:
                checkpoints.save(state, step, rating, extra=extra())
            if evaluates or saves:
                progress.pause(step)
            stop = agreed(request.signal or 0)
            if stop and step < total:
                request.signal = stop
                log()
                checkpoints.save(state, step, extra=extra(window=window.sums(step)))
                checkpoints.wait()
                progress.stopped(step)
                request.stop(f"stopped at step {step} of {total}; the same command goes on from there")

        checkpoints.wait()
        request.goes_on = f" from step {total}"
        if select == "best-validation" and (rated := checkpoints.best()):
            step, state = rated, checkpoints.load(rated, experiment.state_shapes())
        progress.evaluating("the test set")
        total_of_test, found = _measured(experiment, evaluate, state, step)
        if select == "both" and (rated := checkpoints.best()):
            of_best = found
            if rated != step:
                other = checkpoints.load(rated, experiment.state_shapes())
                of_best = _measured(experiment, evaluate, other, rated)[1]
            best = _best("validation", rated, per_epoch, of_best)
        result = {
            "name": config["name"],
            "model": config["model"]["name"],
            "seed": config["seed"],
            "config_hash": experiment.digest,
            "teacher": teacher_result
            and {"name": teacher_result["name"], "accuracy": teacher_result["test"]["accuracy"]},
            **_teacher_runs(experiment, cache, total - first),
            **found,
            "selected": select,
            "best": best,
            "test_every_epoch": reads_test,
            "checkpoint": step,
            "steps": total,
            "epochs": total / feed.steps_per_epoch,
            "parameters": _size(state.params["student"]),
            "method_parameters": _size(steps.method_variables(state.params, {}).params),
            "train_images": len(experiment.dataset.train.labels),
            "seconds": round(writer.elapsed(), 2),
            "images_per_second": progress.images_per_second(),
            "share_in_steps": progress.share_in_steps(),
            "peak_memory": allocation.peak(experiment.mesh.local_devices),
            "metrics_lines": writer.lines,
            "device": f"{experiment.mesh.size} x {experiment.mesh.devices.flat[0].device_kind}",
            "deterministic": config["deterministic"] or sharding.platform(experiment.mesh) == "cpu",
            "versions": versions(),
        }
        if distributed.is_first():  # before the writer closes, which takes as long as the mirrors take
            if names := experiment.dataset.class_names:
                details = metrics.details(total_of_test, names)
                runs.write_json(os.path.join(folder, "test_details.json"), details, indent=None)
            runs.write_json(os.path.join(folder, "result.json"), result)
            writer.write_result(result)
    print(f"{role}{result['model']}: {_describe(result)}  {folder}", flush=True)
    return Result(result["test"]["accuracy"], folder, state, result)


def _measured(
    experiment: Experiment, evaluate: Evaluator, state: TrainState, step: int
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """(sums over the test set, {"test": metrics, "validation": metrics or None}) of a checkpoint."""
    where, own, validation = f"for the checkpoint of step {step}", evaluated(state), experiment.dataset.validation
    total = evaluate.total(*own, experiment.dataset.test)
    return total, {
        "test": _checked(metrics.summarize(total), where),
        "validation": _checked(evaluate(*own, validation), where) if validation else None,
    }


def _best(on: str, step: int, per_epoch: int, measured: Mapping[str, Any]) -> dict[str, Any]:
    """`best` of result.json: the step that is the best on a split, and what it measures."""
    return {"on": on, "step": step, "epoch": step / per_epoch, **measured}


def _teacher_runs(experiment: Experiment, cache: teacher_cache.TeacherCache | None, steps: int) -> dict[str, Any]:
    """What was kept of the teacher in so many steps, and in which share of them it ran; None where nobody taught."""
    if experiment.teacher is None or not experiment.components.method.needs_teacher:
        return {"teacher_cache": None, "teacher_ran": None}
    if cache is None:
        return {"teacher_cache": "none", "teacher_ran": 1.0}
    return {"teacher_cache": cache.kind, "teacher_ran": cache.asked / max(steps, 1)}


def _size(tree: Any) -> int:
    return sum(x.size for x in jax.tree.leaves(tree))


def _start(
    experiment: Experiment, feed: Feed, checkpoints: Checkpoints, teacher_variables: Variables
) -> tuple[TrainState, int, Mapping[str, Any]]:
    """The state that a run goes on with or starts from, its step, and what was saved beside it."""
    if checkpoints.steps() and (restored := checkpoints.restore(experiment.state_shapes())):
        return restored.state, restored.step, restored.extra
    seed = np.uint32(experiment.config["seed"])
    state = experiment.init_state(seed, teacher_variables, feed.example, feed.labels)
    if experiment.pretrained:
        state = steps.start_from(state, experiment.place(experiment.pretrained))
    return state, 0, {}


def _warnings(config: Mapping[str, Any], total: int, per_epoch: int) -> Iterator[str]:
    """What of a config cannot be meant, though it can be done."""
    for term in tracing.terms_that_never_count(config["method"], steps=total, steps_per_epoch=per_epoch):
        yield f"method.{term}.epochs begin after the run's {total / per_epoch:g}: the term counts nothing in it"
    decay = config["train"]["ema"]
    if (initial := decay**total) > MOST_INITIAL:
        yield (
            f"train.ema is {decay:g}: after {total} steps, {100 * initial:.0f}% of the average is still what the run"
            f" starts from; for less than {100 * MOST_INITIAL:.0f}%, set at most {MOST_INITIAL ** (1 / total):.4f}"
        )


def _checked(measured: dict[str, Any], where: str) -> dict[str, Any]:
    """Metrics whose numbers are finite; raises TrainingError otherwise."""
    if bad := [name for name, value in measured.items() if value is not None and not math.isfinite(value)]:
        raise TrainingError(f"not finite {where}: {', '.join(bad)}; try a lower optimizer.learning_rate")
    return measured


class Window:
    """Scalars since the last log line, left on the device until they are needed."""

    def __init__(self, before: Mapping[str, Any] | None = None) -> None:
        """`before`: what `sums` gave when the run was stopped."""
        self._count = before["count"] if before else 0
        self._sums: list[Mapping[str, Any]] = [before["sums"]] if before and before["sums"] else []

    def add(self, count: int, scalars: Mapping[str, jax.Array]) -> None:
        self._count += count
        self._sums.append(scalars)

    def sums(self, step: int) -> dict[str, Any]:
        """{"count": of steps, "sums": by name}; raises TrainingError when one is not finite, before it is saved."""
        on_host = jax.device_get(self._sums)
        self._sums = [{name: float(sum(float(s[name]) for s in on_host)) for name in on_host[0]}] if on_host else []
        sums = self._sums[0] if self._sums else {}
        if bad := [name for name, value in sums.items() if not np.isfinite(value)]:
            raise TrainingError(
                f"{', '.join(bad)} is not finite by step {step}; the last checkpoint before it is kept."
                " Try a lower optimizer.learning_rate, or train.clip"
            )
        return {"count": self._count, "sums": sums}

    def means(self, step: int) -> dict[str, float]:
        """Means over the window; raises what `sums` raises."""
        of_window = self.sums(step)
        return {name: value / of_window["count"] for name, value in of_window["sums"].items()}


def _prefixed(prefix: str, scalars: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{prefix}/{name}": value for name, value in scalars.items()}


def _describe(result: Mapping[str, Any]) -> str:
    test = result["test"]
    said = [] if test["accuracy"] is None else [f"test accuracy {100 * test['accuracy']:.2f}%"]
    for name, value in test.items():
        if name.endswith("/accuracy"):
            said.append(f"{name.removesuffix('/accuracy')} {100 * value:.2f}%")
        elif "/" in name:
            said.append(f"{name} {value:.4f}")
    if best := result.get("best"):
        accuracy, epoch = 100 * best["test"]["accuracy"], best["epoch"]
        said[0] += f" ({accuracy:.2f}% at epoch {epoch:g}, the best on the {best['on']} split)"
    return f"{', '.join(said) or 'nothing measured'} of {test['images']} images"
