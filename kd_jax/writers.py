"""Where a run's numbers go: metrics.jsonl, TensorBoard and the log (through CLU), W&B, and a progress line for people.

The only importer of clu.metric_writers, and so of TensorFlow, and of wandb. Where the first two are missing the rest
still works; W&B is used when the config's log.wandb names a project, and must then be there.
"""

import contextlib
import hashlib
import json
import math
import os
import secrets
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

import numpy as np

from kd_jax import runs
from kd_jax.quiet_tensorflow import import_tensorflow
from kd_jax.types import InputError, choose


class Writer:
    """Writes scalars by step. After a restart the lines behind the restored step are cut off and written again."""

    def __init__(self, folder: str, step: int, saved: Mapping[str, Any] | None = None):
        """Opens the files of a run that goes on from `step`; `saved`: its config and hash, as in config.json."""
        path = os.path.join(folder, "metrics.jsonl")
        kept = [line for line in read(folder) if line["step"] <= step]
        self.seconds = kept[-1]["seconds"] if kept else 0.0  # that earlier processes spent on this run
        self._start = time.monotonic()
        with open(path + ".tmp", "w") as file:
            file.writelines(json.dumps(line) + "\n" for line in kept)
        os.replace(path + ".tmp", path)
        self._file = open(path, "a")  # noqa: SIM115
        self._mirror = _Mirror(folder, step, saved)
        self._clu = _clu_writer(folder, "metrics go to metrics.jsonl and the terminal")

    def elapsed(self) -> float:
        """Seconds spent on this run, those before a restart included."""
        return self.seconds + time.monotonic() - self._start

    def write(self, step: int, scalars: Mapping[str, float | None]) -> None:
        """Adds a line to metrics.jsonl and the scalars that are numbers to TensorBoard and W&B."""
        numbers = {name: value for name, value in scalars.items() if value is not None}
        line = {"step": step, "seconds": round(self.elapsed(), 3), **scalars}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        if self._clu:
            self._clu.write_scalars(step, numbers)
        self._mirror.write(step, numbers)

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Mirrors a run's result to W&B; the file is the loop's."""
        self._mirror.write_result(result)

    def close(self) -> None:
        self._file.close()
        self._mirror.close()
        if self._clu:
            self._clu.close()


def read(folder: str, most: int | None = None) -> list[dict]:
    """The lines of a run's metrics.jsonl, up to one that a killed process or a power cut left unreadable.

    With `most`, of a longer file only about so many lines of training and so many of validation, evenly spaced, and the
    last of each.
    """
    path = os.path.join(folder, "metrics.jsonl")
    lines: list[dict] = []
    if not os.path.exists(path):
        return lines
    with open(path, errors="replace") as file, contextlib.suppress(json.JSONDecodeError):
        for line in file if most is None else _thinned(file.readlines(), most):
            lines.append(json.loads(line))
    return lines


def write_image(folder: str, step: int, name: str, image: np.ndarray) -> None:
    """Adds an image [H, W, 3] uint8 to TensorBoard."""
    if clu := _clu_writer(folder, f"the image {name} goes to its file"):
        clu.write_images(step, {name: image[None]})
        clu.close()


def _thinned(lines: list[str], most: int) -> list[str]:
    kinds: dict[bool, list[int]] = {True: [], False: []}
    for index, line in enumerate(lines):
        kinds['"validation/' in line].append(index)
    kept = {index for kind in kinds.values() for index in kind[:: math.ceil(len(kind) / most) or 1] + kind[-1:]}
    return [lines[index] for index in sorted(kept)]


def _clu_writer(folder: str, instead: str):
    try:
        import_tensorflow()
        from clu import metric_writers
    except ImportError as error:
        name = error.name or "TensorFlow"
        print(f"{name} is not installed: {instead}, not to TensorBoard", flush=True)
        return None
    return metric_writers.MultiWriter([metric_writers.SummaryWriter(folder), metric_writers.LoggingWriter()])


OFFLINE = ("offline", "dryrun", "disabled")  # modes of W&B that need no login
MODES = ("online", "run", *OFFLINE)  # not "shared", which drops the steps that numbers are written at


def check_wandb(project: str) -> None:
    """Raises InputError when a run cannot be mirrored to a project of W&B. Writes nothing."""
    if not isinstance(project, str) or not project.strip() or len(project) > 128 or set(project) & set("/\\#?%:"):
        raise InputError(
            f"log.wandb is {project!r}; expected a project of W&B: up to 128 characters, not all blank, without"
            " / \\ # ? % :"
        )
    choose("WANDB_MODE", os.environ.get("WANDB_MODE", "online"), MODES)
    try:
        import wandb
    except ImportError:
        raise InputError(
            f"log.wandb is {project!r} and wandb is not installed; expected `pip install wandb`, or log.wandb ''"
        ) from None
    try:
        mode = wandb.setup().settings.mode
    except Exception as error:  # of pydantic, which wandb brings along: other variables WANDB_* are wrong
        raise InputError(f"log.wandb is {project!r} and W&B refuses its settings: {_one_line(error)}") from None
    if mode in OFFLINE:
        return
    try:
        logged_in = wandb.login(prompt=False)
    except Exception as error:  # wandb's own, or of the network
        raise InputError(f"log.wandb is {project!r} and W&B refuses the login: {_one_line(error)}") from None
    if not logged_in:
        raise InputError(
            f"log.wandb is {project!r} and nobody is logged in; see `wandb login`, or set WANDB_MODE=offline"
        )


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _known(folder: str) -> dict[str, str]:
    """The "project" and "id" of the W&B run that mirrors the run in a folder, from its wandb.json; {} without one."""
    path = os.path.join(folder, "wandb.json")
    if not os.path.exists(path):
        return {}
    try:
        with open(path) as file:
            known = json.load(file)
        return {"project": known["project"], "id": known["id"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} cannot be read; expected the project and id of a W&B run: {error}") from None


def _former_id(folder: str, saved: Mapping[str, Any]) -> str:
    """The id of the W&B run of a run that began before there was a wandb.json."""
    return hashlib.sha256(f"{saved['hash']} {os.path.abspath(folder)}".encode()).hexdigest()[:16]


def _open(folder: str, project: str, id: str, saved: Mapping[str, Any]) -> Any:
    import wandb

    return wandb.init(
        project=project,
        name=saved["config"]["name"],
        id=id,
        resume="allow",
        reinit="create_new",  # not the run of a teacher, or of the caller, that is still open
        dir=folder,
        config={"hash": saved["hash"], **saved["config"]},
        settings=wandb.Settings(
            console="off",  # the progress line is for the terminal
            quiet=True,  # where the W&B run is, not its history and summary once more
            finish_timeout=300,  # seconds for what is not uploaded yet; `wandb sync` uploads the rest
        ),
    )


class _Mirror:
    """The W&B run that mirrors a run, if it is mirrored. What fails there is one line, and ends the mirror alone."""

    def __init__(self, folder: str, step: int, saved: Mapping[str, Any] | None):
        """Opens the W&B run of log.wandb, the same one after a restart, and notes in wandb.json which that is."""
        self._run: Any = None
        project = saved["config"]["log"].get("wandb") if saved else ""  # a config of an older version lacks the key
        if not saved or not project:
            return
        with self._guarded():
            known = _known(folder)
            id = known.get("id") or (_former_id(folder, saved) if step else secrets.token_hex(8))
            self._run = _open(folder, project, id, saved)
            if not self._run.disabled and known != {"project": project, "id": id}:
                runs.write_json(os.path.join(folder, "wandb.json"), {"project": project, "id": id})

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        with self._guarded():
            if self._run:
                self._run.log(numbers, step=step)

    def write_result(self, result: Mapping[str, Any]) -> None:
        with self._guarded():
            if self._run:
                self._run.summary.update({"result": result})

    def close(self) -> None:
        with self._guarded():
            if self._run:
                self._run.finish()

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # wandb's own, of the network, of wandb's process that died
            print(f"W&B fails, and the run goes on without it: {_one_line(error)}", flush=True)
            broken, self._run = self._run, None
            if broken:
                with contextlib.suppress(Exception):
                    broken.finish(exit_code=1)


def mirror_image(folder: str, name: str, path: str) -> None:
    """Adds an image's file to the W&B run of a finished run that has one; where that fails, prints a line.

    It stands behind the run's last step: W&B drops what is not, and an offline run starts at step 0 again.
    """
    saved = runs.read_json(folder, "config.json")
    try:
        former = {"project": saved["config"]["log"].get("wandb"), "id": _former_id(folder, saved)}
        known = _known(folder) or former
        if not known["project"]:
            return
        check_wandb(known["project"])
        import wandb

        run = _open(folder, known["project"], known["id"], saved)
        try:
            last = max((line["step"] for line in read(folder, most=1)), default=0)
            run.log({name: wandb.Image(path)}, step=max(last + 1, run.starting_step))
        finally:
            run.finish()
    except Exception as error:  # see _Mirror
        print(f"{path} does not go to W&B: {_one_line(error)}", flush=True)


class _Line:
    """One line on a terminal that overwrites itself; in a file, a line now and then."""

    INTERVAL = 10.0  # seconds between lines of a file

    def __init__(self) -> None:
        self._interactive = sys.stderr.isatty()
        self._printed = 0.0

    def show(self, text: str, now: float, *, last: bool) -> None:
        """Shows the text, unless it goes to a file, a line was written just before, and it is not the last."""
        if not self._interactive and now - self._printed < self.INTERVAL and not last:
            return
        self._printed = now
        end = "" if self._interactive else "\n"
        print(("\r\033[K" if self._interactive else "") + text, end=end, file=sys.stderr, flush=True)

    def close(self) -> None:
        if self._interactive and self._printed:
            print(file=sys.stderr, flush=True)


T = TypeVar("T")


def counted(batches: Iterable[T], size: int, total: int) -> Iterator[T]:
    """Yields batches of `size` images, and shows how many of `total` are done, images per second and the time left."""
    line, begin = _Line(), 0.0
    with contextlib.closing(line):
        for count, batch in enumerate(batches, start=1):
            yield batch
            now, done = time.monotonic(), min(count * size, total)
            speed = ""
            if count == 1:  # the time before is compilation
                begin = now
            else:
                rate = (count - 1) * size / max(now - begin, 1e-9)
                speed = f"  {rate:,.0f} images/s  {duration((total - done) / rate)} left"
            line.show(f"{done}/{total} images{speed}", now, last=done == total)


class Progress:
    """The line of a training run."""

    def __init__(self, total: int, batch_size: int):
        """`total`: steps of the run."""
        self._total, self._batch_size = total, batch_size
        self._line = _Line()
        self._mark: tuple[int, float] | None = None  # none before the first line: that time is compilation
        self._steps, self._seconds = 0, 0.0

    def pause(self, step: int) -> None:
        """Work other than training ends here: the time before does not count."""
        self._mark = (step, time.monotonic())

    def images_per_second(self) -> float | None:
        """Of training alone, without compilation and evaluation; None before two lines."""
        return round(self._steps * self._batch_size / self._seconds, 1) if self._steps else None

    def show(self, step: int, epoch: int, scalars: Mapping[str, float]) -> None:
        """Prints step, loss and its terms, images per second and the time left."""
        now = time.monotonic()
        speed = ""
        if self._mark and step > self._mark[0]:
            steps, seconds = step - self._mark[0], now - self._mark[1]
            self._steps, self._seconds = self._steps + steps, self._seconds + seconds
            left = (self._total - step) * seconds / steps
            speed = f"  {steps * self._batch_size / seconds:,.0f} images/s  {duration(left)} left"
        self._mark = (step, now)
        terms = ", ".join(f"{n.removeprefix('loss/')} {v:.4g}" for n, v in scalars.items() if n.startswith("loss/"))
        text = f"step {step}/{self._total}  epoch {epoch}  loss {scalars['loss']:.4g} ({terms}){speed}"
        self._line.show(text, now, last=step >= self._total)

    def close(self) -> None:
        self._line.close()


def duration(seconds: float) -> str:
    """Seconds for a person: "9s", "2m05s", "1h02m"."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds}s"
    minutes, seconds = divmod(seconds, 60)
    return f"{minutes}m{seconds:02}s" if minutes < 60 else f"{minutes // 60}h{minutes % 60:02}m"
