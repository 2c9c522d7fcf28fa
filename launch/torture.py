"""Tries to lose or to falsify a run: kills, signals, damaged files, a full disk, odd weights, odd config values.

usage: python launch/torture.py [--long] [--only=NAME,...] [--to=FOLDER]

Every try has its own random numbers, by its number, so that it can be repeated. What was tried stands in FOLDER, by
default runs/torture; the same command goes on where it was stopped. A table ends it, and exit status 1 where anything
was lost. docs/reliability.md holds the table of --long.

Kills, signals and full disks hit real processes, each a tiny network that is taught by another; the rest runs in this
process, through what the commands call, and now and then through the command. They run on the CPU; on a GPU with

    JAX_PLATFORMS=cuda XLA_FLAGS= XLA_PYTHON_CLIENT_PREALLOCATE=false python launch/torture.py --only=kills,signals
"""

import argparse
import contextlib
import importlib.util
import io
import json
import os
import pickle
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# As tests/conftest.py, whose programs are compiled the same way.
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=2 --xla_backend_optimization_level=0")
os.environ.setdefault("NPROC", "8")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", os.path.expanduser("~/.cache/kd_jax/torture"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

TOP = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(TOP))
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(TOP), os.environ.get("PYTHONPATH"))))  # of the commands

CONFIG = """
from kd_jax.config import base


def tiny(name, width):
    config = base.get_config()
    config.update_from_flattened_dict({
        "name": name, "model.width": width, "dataset.image_size": 8, "dataset.train_images": 128,
        "train.batch_size": 16, "train.epochs": 12, "log.every_steps": 3,
    })
    return config


def get_config():
    config = base.with_teacher(tiny("student", 0.125), tiny("teacher", 0.25))
    config.teacher.config.train.epochs = 6
    config.method.kd = {"weight": 0.9}
    config.deterministic = True  # on a GPU
    config.evaluate.select = "best-validation"
    return config
"""
# Fails every write behind a number of bytes, as a full quota does, in the files of one folder.
SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>
static long left = -1;
static int refuse(int fd, size_t count) {
  char link[64], path[4096];
  if (left < 0) left = atol(getenv("TORTURE_BYTES"));
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t length = readlink(link, path, sizeof path - 1);
  if (length < 0) return 0;
  path[length] = 0;
  if (strncmp(path, getenv("TORTURE_FOLDER"), strlen(getenv("TORTURE_FOLDER")))) return 0;
  if ((long)count > left) { errno = atoi(getenv("TORTURE_ERRNO")); return 1; }
  left -= count;
  return 0;
}
#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
ssize_t write(int fd, const void *b, size_t n) { return refuse(fd, n) ? -1 : NEXT(write)(fd, b, n); }
ssize_t pwrite(int fd, const void *b, size_t n, off_t o) { return refuse(fd, n) ? -1 : NEXT(pwrite)(fd, b, n, o); }
ssize_t pwrite64(int fd, const void *b, size_t n, off_t o) { return refuse(fd, n) ? -1 : NEXT(pwrite64)(fd, b, n, o); }
ssize_t writev(int fd, const struct iovec *v, int n) {
  size_t count = 0;
  for (int i = 0; i < n; i++) count += v[i].iov_len;
  return refuse(fd, count) ? -1 : NEXT(writev)(fd, v, n);
}
"""


class Skipped(Exception):
    """This machine lacks what a fault takes."""


class Fault(NamedTuple):
    """A way to lose or to falsify a run."""

    how: str
    promise: str
    tries: int  # of a quick look
    long: int
    block: int  # tries of one call of `attempt`
    attempt: Callable[["Bench", random.Random, int], list[str]]  # (bench, random, tries) -> what was lost


class Bench:
    """A run that nothing happened to, and what it takes to run it again."""

    def __init__(self, folder: Path):
        self.folder, self.whole = folder, folder / "whole"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.py").write_text(CONFIG)
        seconds = folder / "seconds"
        if not seconds.exists():
            for _ in range(2):  # the second time with what the first compiled
                shutil.rmtree(self.whole, ignore_errors=True)
                start = time.monotonic()
                if wrong := self.finish(self.whole):
                    sys.exit(f"the run that nothing happens to fails: {wrong[0]}")
            seconds.write_text(str(time.monotonic() - start))
        self.seconds = float(seconds.read_text())
        self.expected = self.read(self.whole)

    def start(self, folder: Path, **environment: str) -> subprocess.Popen[str]:
        """The command that trains, its output in a file beside its run."""
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / "out", "a") as out:
            return subprocess.Popen(
                self.command(folder),
                stdout=out,
                stderr=subprocess.STDOUT,
                text=True,
                env=os.environ | {"PYTHONUNBUFFERED": "1"} | environment,
            )

    def command(self, folder: Path) -> list[str]:
        flags = (f"--config={self.folder}/config.py", f"--workdir={folder}/run", f"--runs={folder}/runs")
        return [sys.executable, "-m", "kd_jax.main", *flags]

    def finish(self, folder: Path) -> list[str]:
        """Runs the command to its end; what is wrong with how it ended."""
        code = self.start(folder).wait()
        return [] if code == 0 else [f"exit status {code}: {said(folder)[-300:]}"]

    def read(self, folder: Path) -> dict[str, Any]:
        """All that a run and its teacher leave behind, but for times."""
        import numpy as np

        from kd_jax import checkpoint, runs
        from kd_jax.logging import metrics_file

        found: dict[str, Any] = {}
        for run in (folder / "run", *(folder / "runs" / "teachers").iterdir()):
            if run.suffix == ".log":
                continue
            result = runs.read_json(str(run), "result.json")
            name = result["name"]
            found[f"{name}'s result"] = {
                key: result[key] for key in ("test", "validation", "checkpoint", "steps", "config_hash")
            }
            found[f"{name}'s metrics"] = [
                {key: value for key, value in line.items() if key != "seconds"} for line in metrics_file.read(str(run))
            ]
            tree = checkpoint.load_tree(str(run / "checkpoints"), result["checkpoint"])
            found[f"{name}'s state"] = [
                np.asarray(leaf).tobytes() for _, leaf in sorted(leaves(tree)) if hasattr(leaf, "dtype")
            ]
        return found

    def differences(self, folder: Path) -> list[str]:
        """What a run does not share with the one that nothing happened to."""
        found = self.read(folder)
        return [f"{name} differs" for name, value in self.expected.items() if found.get(name) != value]

    @contextlib.contextmanager
    def scratch(self, like: Path | None = None) -> Iterator[Path]:
        """A folder for one try, kept where it fails."""
        folder = self.folder / f"try-{os.getpid()}-{time.monotonic_ns()}"
        if like:
            shutil.copytree(like, folder)
        yield folder
        shutil.rmtree(folder)


def leaves(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from leaves(value, f"{path}/{key}")
    elif isinstance(tree, list | tuple):
        for index, value in enumerate(tree):
            yield from leaves(value, f"{path}/{index}")
    elif tree is not None:
        import jax

        yield path, jax.random.key_data(tree) if jax.dtypes.issubdtype(tree.dtype, jax.dtypes.prng_key) else tree


def said(folder: Path) -> str:
    return (folder / "out").read_text(errors="replace") if (folder / "out").exists() else ""


def wait_for_moment(bench: Bench, random: random.Random, process: subprocess.Popen[str], folder: Path) -> None:
    """Waits for any moment of a process; for a third of the tries it is one at which a checkpoint is being saved."""
    kind, end = random.randrange(3), time.monotonic() + random.uniform(0.1, bench.seconds)
    saving = random.choice(["run/checkpoints/.*.tmp*", "runs/teachers/*/checkpoints/.*.tmp*"])
    student = folder / "run" / "metrics.jsonl"
    if kind == 1:
        end = time.monotonic() + bench.seconds
    while process.poll() is None and time.monotonic() < end:
        if kind == 1 and next(folder.glob(saving), None):
            time.sleep(random.uniform(0, 0.05))
            return
        if kind == 2 and student.exists():
            time.sleep(random.uniform(0, bench.seconds / 4))
            return
        time.sleep(0.002)


def kills(bench: Bench, random: random.Random, tries: int) -> list[str]:
    """A run that is killed so many times ends as the one that was not."""
    with bench.scratch() as folder:
        for _ in range(tries):
            process = bench.start(folder)
            wait_for_moment(bench, random, process, folder)
            process.kill()
            process.wait()
        lost = bench.finish(folder) or bench.differences(folder)
        if lost:
            shutil.copytree(folder, bench.folder / "lost", dirs_exist_ok=True)
        return lost


def signals(bench: Bench, random: random.Random, tries: int) -> list[str]:
    """A run that is asked to stop so many times says where it goes on, goes on there, and ends as the others."""
    lost = []
    with bench.scratch() as folder:
        for _ in range(tries):
            number, code = random.choice([(signal.SIGTERM, 143), (signal.SIGINT, 130)])
            before = len(said(folder))
            process = bench.start(folder)
            while process.poll() is None and len(said(folder)) == before:  # until the command has begun
                time.sleep(0.01)
            wait_for_moment(bench, random, process, folder)
            process.send_signal(number)
            ended, text = process.wait(), said(folder)[before:]
            if ended == 0 and "test accuracy" in text.splitlines()[-1]:
                continue  # it was as good as done
            if ended != code or "the same command" not in text.splitlines()[-1]:
                lost.append(f"signal {number}: exit status {ended}: {text[-300:]}")
            if stopped := re.search(r"stopped at step (\d+) of", text):
                before = len(said(folder))
                process = bench.start(folder)
                while process.poll() is None and "going on with" not in said(folder)[before:]:
                    time.sleep(0.01)
                process.kill()
                process.wait()
                if f"from step {stopped[1]} to" not in said(folder)[before:]:
                    lost.append(f"stopped at {stopped[1]}, went on: {said(folder)[before:][-300:]}")
        return lost + (bench.finish(folder) or bench.differences(folder))


def damage(random: random.Random, path: Path) -> str:
    """Flips a bit of a file, cuts it, or removes it."""
    content = path.read_bytes()
    kind = random.choice(["flip", "flip", "flip", "cut", "remove"]) if content else "remove"
    at = random.randrange(len(content)) if content else 0
    if kind == "flip":
        path.write_bytes(content[:at] + bytes([content[at] ^ 1 << random.randrange(8)]) + content[at + 1 :])
    elif kind == "cut":
        path.write_bytes(content[:at])
    else:
        path.unlink()
    return f"{kind} of {path.name} at {at} of {len(content)}"


def numbers(folder: Path) -> dict[str, Any]:
    """What every command that reads a run makes of it."""
    from kd_jax import evaluation, report

    run, to = str(folder / "run"), folder / "report"
    report.report([run], str(to))
    return {
        "evaluate": evaluation.evaluate_run(run, runs_folder=str(folder / "runs")),
        "report": re.sub("try-[0-9-]+|whole", "", (to / "report.md").read_text()),
    }


def flips(bench: Bench, random: random.Random, tries: int) -> list[str]:
    """Damage to any file of a run is named, or changes no number."""
    from kd_jax import checksums
    from kd_jax.errors import InputError

    lost = []
    with bench.scratch(bench.whole) as folder:
        whole = numbers(folder)
    files = sorted(path for path in bench.whole.rglob("*") if path.is_file())
    files = [path for path in files if path.name not in ("out", ".lock") and "tfevents" not in path.name]
    for _ in range(tries):
        checksums._said.clear()
        text = io.StringIO()
        with bench.scratch(bench.whole) as folder:
            what = damage(random, folder / random.choice(files).relative_to(bench.whole))
            with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
                try:
                    found = numbers(folder)
                except InputError:
                    continue
                except Exception as error:
                    lost.append(f"{what}: {type(error).__name__}: {error}")
                    continue
        named = r"damaged|without checksums|left out|cannot be|Without a|holds \d+ of"
        if found != whole and not re.search(named, text.getvalue() + found["report"]):
            lost.append(f"{what}: other numbers, and not a word")
    return lost


def flips_before_the_end(bench: Bench, random: random.Random, tries: int) -> list[str]:
    """Damage to a run that was killed before its result is named, or it ends as the one that nothing happened to."""
    from kd_jax import checksums, training
    from kd_jax.errors import InputError

    lost = []
    config = json.loads((bench.whole / "run" / "config.json").read_text())["config"]
    files = sorted(path for path in (bench.whole / "run").rglob("*") if path.is_file())
    files = [path for path in files if path.name not in (".lock", "result.json") and "tfevents" not in path.name]
    for _ in range(tries):
        checksums._said.clear()
        text = io.StringIO()
        with bench.scratch(bench.whole) as folder:
            (folder / "run" / "result.json").unlink()
            what = damage(random, folder / random.choice(files).relative_to(bench.whole))
            with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
                try:
                    training.train(config, folder / "run", runs_folder=folder / "runs")
                    differences = bench.differences(folder)
                except InputError:
                    continue
                except Exception as error:
                    lost.append(f"{what}: {type(error).__name__}: {error}")
                    continue
        if differences and not re.search(r"damaged|without checksums|cannot be|holds \d+ of", text.getvalue()):
            lost.append(f"{what}: {', '.join(differences)}, and not a word")
        if "student's result differs" in differences:
            lost.append(f"{what}: another result")
    return lost


def flips_of_the_command(bench: Bench, random: random.Random, tries: int) -> list[str]:
    """The same through `python -m kd_jax.evaluate`."""
    lost = []
    checkpoint = json.loads((bench.whole / "run" / "result.json").read_text())["checkpoint"]
    files = [path for path in (bench.whole / "run" / "checkpoints" / str(checkpoint)).rglob("*") if path.is_file()]
    files += [bench.whole / "run" / name for name in ("config.json", "result.json")]
    for _ in range(tries):
        with bench.scratch(bench.whole) as folder:
            what = damage(random, folder / random.choice(sorted(files)).relative_to(bench.whole))
            done = command("evaluate", f"--workdir={folder}/run", f"--runs={folder}/runs")
            if done.returncode == 0 and "without checksums" not in done.stderr:
                test = {k: v for k, v in json.loads(done.stdout).items() if k != "workdir"}
                if test != bench.expected["student's result"]["test"]:
                    lost.append(f"{what}: other numbers, and not a word")
            elif done.returncode not in (0, 2) or "Traceback" in done.stderr:
                lost.append(f"{what}: {done.stderr[-300:]}")
    return lost


def command(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", f"kd_jax.{name}", *arguments],
        capture_output=True,
        text=True,
    )


def network() -> tuple[Any, Any, dict[str, Any]]:
    """A network, the shapes of its variables, and a state dict of it."""
    import jax
    import jax.numpy as jnp

    from kd_jax import models
    from kd_jax.models import torch_names

    made = models.create("resnet8", 10, width=0.125)
    shapes = jax.eval_shape(made.init, jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
    variables = jax.jit(made.init)(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
    return made, shapes, torch_names.to_state_dict(variables, made)


def mutated(random: random.Random, content: bytes, head: int) -> bytes:
    """A few bytes changed, most of them among the first `head`, or a piece cut out, doubled or put in."""
    changed = bytearray(content)
    for _ in range(random.choice([1, 1, 1, 2, 4, 16])):
        at = random.randrange(min(head, len(changed)) if random.random() < 0.8 else len(changed))
        kind, size = random.randrange(5), random.randrange(1, 17)
        if kind < 2:
            changed[at] = random.randrange(256)
        elif kind == 2:
            del changed[at : at + size]
        elif kind == 3:
            changed[at:at] = changed[at : at + size]
        else:
            changed[at:at] = random.randbytes(size)
        if not changed:
            break
    return bytes(changed)


def weights_files(
    bench: Bench, random: random.Random, tries: int, name: str, content: bytes, head: int, canary: Path
) -> list[str]:
    """Files that are not whole weights are refused; what is accepted is finite and of the network's shapes."""
    import numpy as np

    from kd_jax import weights
    from kd_jax.errors import InputError

    made, shapes, _ = network()
    lost = []
    path = Path("/dev/shm" if os.path.isdir("/dev/shm") else bench.folder, f"torture-{os.getpid()}-{name}")
    for _ in range(tries):
        bad = mutated(random, content, head)
        path.write_bytes(bad)
        try:
            variables = weights.load(path, shapes, made).variables
            if not all(np.isfinite(x).all() for _, x in leaves(variables)):
                lost.append(f"accepted, and not finite: {bad[:200]!r}")
        except InputError as error:
            if "\n" in str(error):
                lost.append(f"more than one line: {error}")
        except Exception as error:
            lost.append(f"{type(error).__name__}: {error}"[:300])
            shutil.copy(path, bench.folder / f"lost-{name}")
        if canary.exists():
            lost.append("a file ran code")
            canary.unlink()
    path.unlink(missing_ok=True)
    return lost


def whole_safetensors() -> tuple[bytes, int]:
    """A file of the network's weights, and the length of its header."""
    from safetensors.numpy import save

    content = save({key: array.copy() for key, array in network()[2].items()})
    return content, 8 + int.from_bytes(content[:8], "little")


def safetensors(bench: Bench, random: random.Random, tries: int) -> list[str]:
    return weights_files(bench, random, tries, "w.safetensors", *whole_safetensors(), bench.folder / "canary")


class _RunsCode:
    def __init__(self, canary: Path):
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.close, (os.open(self.canary, os.O_CREAT | os.O_WRONLY),)


def pth(bench: Bench, random: random.Random, tries: int) -> list[str]:
    if not importlib.util.find_spec("torch"):
        raise Skipped("PyTorch is not installed")
    import torch

    canary, lost = bench.folder / "canary", []
    state_dict = {key: torch.from_numpy(array.copy()) for key, array in network()[2].items()}
    for seed, new in enumerate((True, False)):  # a zip file, and the format before 1.6
        buffer = io.BytesIO()
        torch.save(state_dict, buffer, _use_new_zipfile_serialization=new)
        content = buffer.getvalue()
        if new:
            content = _stored(content, random)
        count = tries // 2 + (tries % 2) * seed
        lost += weights_files(bench, random, count, "w.pth", content, len(content) // 3, canary)
    for _ in range(max(tries // 100, 1)):  # and pickles that would run code
        path = bench.folder / "code.pth"
        path.write_bytes(pickle.dumps({"state_dict": _RunsCode(canary), **{k: None for k in state_dict}}))
        canary.unlink(missing_ok=True)  # which was made by writing it
        made, shapes, _ = network()
        from kd_jax import weights
        from kd_jax.errors import InputError

        with contextlib.suppress(InputError):
            weights.load(path, shapes, made)
            lost.append("a pickle with code was accepted")
        if canary.exists():
            lost.append("a pickle ran its code")
    return lost


def _stored(content: bytes, random: random.Random) -> bytes:
    """The same zip file with its small pickle first, so that most mutations hit what is parsed."""
    with zipfile.ZipFile(io.BytesIO(content)) as old:
        names = sorted(old.namelist(), key=lambda name: not name.endswith("data.pkl"))
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as new:
            for name in names:
                new.writestr(name, old.read(name))
    return buffer.getvalue()


def weights_of_the_command(bench: Bench, random: random.Random, tries: int) -> list[str]:
    """The same through the command that trains from them."""
    (content, head), lost = whole_safetensors(), []
    for number in range(tries):
        with bench.scratch() as folder:
            folder.mkdir()
            (folder / "w.safetensors").write_bytes(mutated(random, content, head))
            done = command(
                "main",
                "--config=student:smoke",
                f"--workdir={folder}/run",
                "--config.model.width=0.125",
                f"--config.model.pretrained={folder}/w.safetensors",
                "--config.train.steps=1",
            )
            if done.returncode == 2 and "w.safetensors" not in done.stderr and "the weights" not in done.stderr:
                lost.append(f"{number}: refused for another reason: {done.stderr[-300:]}")
            if done.returncode not in (0, 2) or "Traceback" in done.stderr:
                lost.append(f"{number}: {done.stderr[-300:]}")
            if done.returncode == 2 and (folder / "run").exists():
                lost.append(f"{number}: refused, and yet written")
    return lost


def full_disk(bench: Bench, random: random.Random, tries: int) -> list[str]:
    """A disk of so many bytes: the run ends with one line, and goes on when there is room."""
    if os.geteuid() or not shutil.which("mount"):
        raise Skipped("only root can mount a small disk")
    lost = []
    for level in range(tries):
        with bench.scratch() as folder:
            disk = folder / "disk"
            disk.mkdir(parents=True)
            size = (16 << 10) * 2**level if level < 6 else random.randrange(64 << 10, 512 << 10)
            subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", disk], check=True)
            try:
                lost += _ends_in_one_line(bench, disk, "the disk is full")
                subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
                lost += [f"{size} bytes: {x}" for x in bench.finish(disk) or bench.differences(disk)]
            finally:
                subprocess.run(["umount", "-l", disk], check=True)
    return lost


def _ends_in_one_line(bench: Bench, folder: Path, expected: str, **environment: str) -> list[str]:
    log = folder.parent / "log"  # not on the disk that is full
    with open(log, "w") as out:
        code = subprocess.Popen(
            bench.command(folder),
            stdout=out,
            stderr=subprocess.STDOUT,
            env=os.environ | environment,
        ).wait()
    text = log.read_text()
    if code == 0:
        return []
    last = text.splitlines()[-1] if text else ""
    wrong = code != 1 or "Traceback" in text or expected not in last
    return [f"exit status {code}: {text[-400:]}"] if wrong else []


def failing_writes(bench: Bench, random: random.Random, tries: int) -> list[str]:
    """Writes that fail behind so many bytes, for a quota or a broken disk."""
    if not shutil.which("cc"):
        raise Skipped("there is no C compiler for the library that makes writes fail")
    shim = bench.folder / "shim.so"
    (bench.folder / "shim.c").write_text(SHIM)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", shim, bench.folder / "shim.c", "-ldl"], check=True)
    lost = []
    for number in range(tries):
        with bench.scratch() as folder:
            (folder / "disk").mkdir(parents=True)
            error, text = ((122, "the disk quota is used up"), (5, "the disk fails"))[number % 2]
            limits = {"TORTURE_BYTES": str(random.randrange(1 << 10, 1 << 19)), "TORTURE_ERRNO": str(error)}
            preload = {"LD_PRELOAD": str(shim), "TORTURE_FOLDER": str((folder / "disk").resolve())}
            lost += _ends_in_one_line(bench, folder / "disk", text, **limits, **preload)
            lost += [f"{limits}: {x}" for x in bench.finish(folder / "disk") or bench.differences(folder / "disk")]
    return lost


def odd_values(bench: Bench, random: random.Random, tries: int) -> list[str]:
    """Every odd value of a config is refused in one line, or works."""
    from kd_jax import experiment
    from kd_jax.errors import InputError
    from tests.odd_values import odd_configs

    lost = []
    cases = list(odd_configs())
    for what, config in cases if tries >= len(cases) else random.sample(cases, tries):
        text = io.StringIO()
        try:
            with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
                experiment.create(config, runs_folder=str(bench.folder / "none"))
        except InputError as error:
            if "\n" in str(error):
                lost.append(f"{what}: more than one line: {error}"[:300])
        except BaseException as error:
            lost.append(f"{what}: {type(error).__name__}: {error}"[:300])
    return lost


def odd_values_of_the_command(bench: Bench, random: random.Random, tries: int) -> list[str]:
    lost = []
    keys = ("train.epochs", "train.batch_size", "model.width", "optimizer.learning_rate", "dataset.image_size", "seed")
    values = ("-1", "0", "1.5", "nan", "inf", "x", "", "None", "1e30", "(1,2)", "true", "1000000000000000000000")
    for _ in range(tries):
        key, value = random.choice(keys), random.choice(values)
        with bench.scratch() as folder:
            flags = (f"--workdir={folder}/run", f"--runs={folder}/runs", "--config.train.steps=1")
            done = command("main", f"--config={bench.folder}/config.py", *flags, f"--config.{key}={value}")
            folder.mkdir(exist_ok=True)
            if done.returncode not in (0, 1, 2) or "Traceback" in done.stderr:
                lost.append(f"{key}={value}: {done.stderr[-300:]}")
    return lost


def many_saves(bench: Bench, random: random.Random, tries: int) -> list[str]:
    """Saving leaves no thread and no file open."""
    import jax

    from kd_jax import experiment, steps
    from kd_jax.checkpoint import Checkpoints

    config = json.loads((bench.whole / "run" / "config.json").read_text())["config"]
    made = experiment.create(config, runs_folder=str(bench.whole / "runs"))
    feed = made.feed()
    state = made.jit(steps.init_state)(0, made.place(made.teacher.load()[0]), feed.example, feed.labels)
    jax.block_until_ready(state)

    def used() -> tuple[int, int]:
        return threading.active_count(), len(os.listdir("/proc/self/fd"))

    with bench.scratch() as folder, contextlib.closing(Checkpoints(str(folder))) as checkpoints:
        checkpoints.save(state, 1)
        checkpoints.wait()
        before = used()
        for step in range(2, tries + 2):
            checkpoints.save(state, step)
        checkpoints.wait()
        after = used()
    return [] if after == before else [f"(threads, open files) were {before} and are {after}"]


FAULTS = {
    "kills": Fault(
        "SIGKILL at any moment, a third while saving",
        "the same command ends as if nothing had happened",
        10,
        100,
        5,
        kills,
    ),
    "signals": Fault(
        "SIGTERM or Ctrl-C at any moment", "saved, said from which step it goes on, and nothing lost", 5, 50, 5, signals
    ),
    "flips": Fault(
        "a bit flipped, a file cut or removed, any file of a run", "named, or no number changes", 50, 1000, 50, flips
    ),
    "flips-unfinished": Fault(
        "the same in a run that was killed before its result, then the same command",
        "named, and never another result",
        5,
        100,
        10,
        flips_before_the_end,
    ),
    "flips-command": Fault(
        "the same through the command", "named, or no number changes", 2, 20, 5, flips_of_the_command
    ),
    "safetensors": Fault(
        "mutated safetensors",
        "refused in one line, or finite weights of the right shapes",
        20_000,
        1_000_000,
        20_000,
        safetensors,
    ),
    "pth": Fault(
        "mutated .pth files, and pickles with code", "refused in one line; no code runs", 500, 20_000, 1000, pth
    ),
    "weights-command": Fault(
        "mutated safetensors through the command",
        "refused in one line, nothing written",
        2,
        20,
        5,
        weights_of_the_command,
    ),
    "full-disk": Fault(
        "a disk with too little room, at 8 levels", "one line; goes on when there is room", 3, 8, 8, full_disk
    ),
    "failing-writes": Fault(
        "a quota that is used up, a disk that fails", "one line; goes on when there is room", 2, 8, 4, failing_writes
    ),
    "values": Fault("odd values in a config", "refused in one line, or they work", 100, 1200, 1200, odd_values),
    "values-command": Fault(
        "the same through the command", "refused in one line, or they work", 2, 20, 5, odd_values_of_the_command
    ),
    "saves": Fault("many saves in one process", "no thread and no open file stays", 50, 1000, 1000, many_saves),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--long", action="store_true", help="all tries; hours")
    parser.add_argument("--only", default=",".join(FAULTS), help="names of faults, separated by commas")
    parser.add_argument("--to", default="runs/torture", type=Path, help="folder")
    arguments = parser.parse_args()
    names = arguments.only.split(",")
    if unknown := [name for name in names if name not in FAULTS]:
        parser.error(f"--only is {', '.join(unknown)}; expected some of: {', '.join(FAULTS)}")
    bench = Bench(arguments.to.resolve())
    state = arguments.to / ("long.json" if arguments.long else "short.json")
    done: dict[str, dict[str, Any]] = json.loads(state.read_text()) if state.exists() else {}
    for name in names:
        fault = FAULTS[name]
        total = fault.long if arguments.long else fault.tries
        entry = done.setdefault(name, {"tries": 0, "lost": [], "seconds": 0.0})
        while entry["tries"] < total and "skipped" not in entry:
            block = min(fault.block, total - entry["tries"])
            start = time.monotonic()
            try:
                entry["lost"] += fault.attempt(bench, random.Random(f"{name} {entry['tries']}"), block)
                entry["tries"] += block
            except Skipped as reason:
                entry["skipped"] = str(reason)
            entry["seconds"] += time.monotonic() - start
            state.write_text(json.dumps(done, indent=1))
            print(
                f"{name}: {entry['tries']} of {total} tries, {len(entry['lost'])} lost, {entry['seconds']:.0f} s",
                flush=True,
            )
    print("\n| fault | how caused | what is promised | tries | lost |\n| --- | --- | --- | --- | --- |")
    for name in names:
        fault, entry = FAULTS[name], done[name]
        tries = entry.get("skipped") or f"{entry['tries']:,}"
        print(f"| {name} | {fault.how} | {fault.promise} | {tries} | {len(entry['lost'])} |")
    for name in names:
        for line in done[name]["lost"][:20]:
            print(f"{name}: {line}")
    return int(any(done[name]["lost"] for name in names))


if __name__ == "__main__":
    sys.exit(main())
