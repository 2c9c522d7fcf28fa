"""A run that nothing happened to, and what it takes to run it again."""

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

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


class Skipped(Exception):
    """This machine lacks what a fault takes."""


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


def command(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", f"kd_jax.{name}", *arguments],
        capture_output=True,
        text=True,
    )
