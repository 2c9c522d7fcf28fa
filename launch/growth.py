"""Measures how cost grows on this machine, and draws it; prints Markdown.

usage: python -m launch.growth [--to=docs/growth.png] [--rounds=5]

* The time of a training step, of ResNet-20 alone, by the batch.
* The memory of every loss between images, with its gradient, by the batch: what XLA's buffers need beside arguments and
  results, on 64 channels or, of maps, 8x8 of 16.
* The time to build a teacher's table (`teacher.cache=views`), of a narrow ResNet-8, by the images.
* The time of a start, to the end of the first step, by the images, once its programs are compiled.
"""

import argparse
import datetime
import os
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np

from kd_jax import experiment, losses, teacher_cache
from kd_jax.allocation import keep_memory
from kd_jax.compilation import keep_programs
from launch.contestants import Ours, Step, config_of, random_source

BATCHES = (32, 64, 128, 256, 512, 1024)
LARGE = (256, 512, 1024, 2048, 4096)  # batches of the losses
IMAGES = (500, 1000, 2000)
SETS = (2000, 10_000, 50_000)
MAPS = ("sp",)  # losses that read maps; the others read embeddings or logits
RELATIONS = ("rkd_distance", "rkd_angle", "sp", "pkt", "cc", "dist", "skd")
ALONE, DISTILLED = Step("resnet20", None, 32, 128), Step("resnet8", "resnet8", 32, 100, width=0.25)

Curve = dict[int, float]


def step_times(folder: Path, rounds: int) -> Curve:
    """Seconds of a step by batch; all batches in each round."""
    contestants = {
        batch: Ours(config_of(ALONE, batch, "float32", folder, {}), random_source(3 * batch), folder)
        for batch in BATCHES
    }
    for one in contestants.values():
        one.step(2)
    found = [{batch: one.step(3) for batch, one in contestants.items()} for _ in range(rounds)]
    return {batch: statistics.median(x[batch] for x in found) for batch in contestants}


def loss_memory(name: str) -> Curve:
    """MiB by batch."""
    function, found = getattr(losses, name), {}
    for batch in LARGE:
        x = jax.ShapeDtypeStruct((batch, 8, 8, 16) if name in MAPS else (batch, 64), jnp.float32)
        compiled = jax.jit(jax.grad(lambda a, b: jnp.sum(function(a, b)))).lower(x, x).compile()
        found[batch] = compiled.memory_analysis().temp_size_in_bytes / 2**20
    return found


def table_times(folder: Path) -> Curve:
    """Seconds by images."""
    changes = {"teacher.cache": "views", "dataset.holdout": 0.0}
    config = config_of(DISTILLED, DISTILLED.batch, "float32", folder, changes)

    def build(images: int) -> float:
        with tempfile.TemporaryDirectory() as runs_folder:
            made = experiment.create(config, source=random_source(images), runs_folder=runs_folder, traced=False)
            variables, feed = made.place(made.teacher.load()[0]), made.feed()
            begin = time.perf_counter()
            teacher_cache.create(made, feed, variables)
            return time.perf_counter() - begin

    for images in IMAGES:  # compiles
        build(images)
    return {images: build(images) for images in IMAGES}


def start_times(folder: Path, rounds: int) -> Curve:
    """Seconds by images of the set."""
    sets = {images: random_source(images) for images in SETS}

    def start(images: int) -> float:
        jax.clear_caches()  # the programs are then read from the disk, as in a new process
        begin = time.perf_counter()
        Ours(config_of(ALONE, ALONE.batch, "float32", folder, {}), sets[images], folder).step(1)
        return time.perf_counter() - begin

    for images in SETS:
        start(images)
    found = [{images: start(images) for images in SETS} for _ in range(rounds)]
    return {images: statistics.median(x[images] for x in found) for images in SETS}


def slope(curve: Mapping[int, float]) -> float:
    """The power that the curve grows with, between its last two points; NaN for a curve of zeros."""
    (a, x), (b, y) = list(curve.items())[-2:]
    if not x:
        return float("nan")
    return float(np.log(y / x) / np.log(b / a))


def draw(panels: Mapping[str, Mapping[str, Curve]], path: str) -> None:
    """Draws curves by panel, with logarithmic axes of whole decades; what is zero is left out."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(panels), figsize=(4.2 * len(panels), 3.6), layout="constrained")
    for axis, (title, curves) in zip(axes, panels.items(), strict=True):
        drawn = {name: curve for name, curve in curves.items() if all(curve.values())}
        for name, curve in drawn.items():
            axis.loglog(curve.keys(), curve.values(), marker="o", label=name)
        values, points = [y for curve in drawn.values() for y in curve.values()], list(next(iter(drawn.values())))
        axis.set_ylim(10 ** np.floor(np.log10(min(values))), 10 ** np.ceil(np.log10(max(values))))
        axis.set_xticks(points, [f"{x:,}" for x in points])
        axis.minorticks_off()
        axis.set_title(title, fontsize=10)
        axis.grid(alpha=0.3)
        if len(drawn) > 1:
            axis.legend(fontsize=7)
    figure.savefig(path, dpi=110)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--to", default="docs/growth.png")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args(argv)
    keep_programs()
    keep_memory()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        panels: dict[str, dict[str, Curve]] = {
            "seconds of a step, by the batch": {"ResNet-20": step_times(folder, arguments.rounds)},
            "MiB of a loss, by the batch": {name: loss_memory(name) for name in RELATIONS},
            "seconds of a table, by the images": {"ResNet-8": table_times(folder)},
            "seconds of a start, by the images": {"ResNet-20": start_times(folder, arguments.rounds)},
        }
    draw(panels, arguments.to)
    device = jax.local_devices()[0].device_kind
    print(f"{datetime.date.today()}, {device}, {os.cpu_count()} cores, jax {jax.__version__}\n")
    print("| what | of | figures | power at the end |\n| --- | --- | --- | --- |")
    for title, curves in panels.items():
        for name, curve in curves.items():
            figures = ", ".join(f"{x:,}: {y:.3g}" for x, y in curve.items())
            print(f"| {title} | {name} | {figures} | {slope(curve):.2f} |")


if __name__ == "__main__":
    main()
