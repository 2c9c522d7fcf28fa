"""Measures kd_jax on this machine, and PyTorch beside it in the same run; prints Markdown.

usage: python -m launch.benchmark [--steps=NAME,...] [--batches=128,...] [--precision=float32] [--torch=PYTHON]
                                  [--measures=NAME,...] [--rounds=5] [--seconds=2] [--images=N] [--workers=N]
                                  [--results=FILE]
       python -m launch.benchmark --aot=v5e:4x4|h100

The steps are those of `STEPS`, on random images of 32 pixels that the step crops, flips and resizes. In every round
each contestant runs its training step for about --seconds, one after another, synchronized, after a warm-up; figures
are medians over the rounds. Contestants are the `VARIANTS` of kd_jax and the peers of launch/torch_peer.py: PyTorch as
an expert would write it, on a CPU also with the memory that kd_jax has, and as people run it, in float32. --torch is
an interpreter that has PyTorch, by default this one; without PyTorch they are left out. --aot prints what the compiler
says of kd's step on a machine that is not there, see launch/aot.py.

Every figure is also a line of --results, with versions, hardware and date; lines are added. What is measured:

* step: images per second of the compiled step alone. MFU is what its networks have to compute (the forward passes as
  XLA counts them, three times that of what is trained) by the device's peak. The roofline is the longer of what the
  program's operations take at the peak and what its memory traffic, as XLA counts both, takes at the peak bandwidth;
  its share is that by the measured time. With a recorded teacher the step is the student's, and reads from the disk
  what the teacher says. Memory is what the compiled step needs; of PyTorch the most on a GPU.
* teacher: the time of the teacher's forward pass alone, by that of the step.
* evaluation, gradcam: images per second of the validation that a run makes, the teacher asked before, and of Grad-CAM
  maps of the student.
* end_to_end: a run of `kd_jax.train` with an evaluation and a checkpoint after every epoch, from the end of its first
  epoch to that of its last, and what part of it was spent in steps; beside the step alone before and after it.
* start_up: seconds of a process from its start to the end of its first step, without and with what an earlier one
  compiled.
"""

import argparse
import contextlib
import datetime
import functools
import importlib.metadata
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from kd_jax.allocation import keep_memory
from launch.contestants import PEERS, TOP, Ours, Step, Torch, config_of, open_torch, random_source, timed

STEPS = {
    "resnet56-resnet20": Step("resnet20", "resnet56", 32, 128),
    "resnet20": Step("resnet20", None, 32, 128),
    "resnet18": Step("resnet18", None, 128, 32),
    "resnet50-resnet18": Step("resnet18", "resnet50", 128, 32),
    "resnet32x4-resnet8x4": Step("resnet8x4", "resnet32x4", 32, 64),
}
# How kd_jax is run: what differs in the config.
VARIANTS: dict[str, dict[str, Any]] = {
    "kd_jax": {},
    "recorded teacher": {"teacher.cache": "recording"},
    "student alone": {"teacher.kind": "none"},
}
MEASURES = ("step", "teacher", "evaluation", "gradcam", "end_to_end", "start_up")

# By the start of the device's kind: (FLOP/s in bfloat16, in float32 as XLA multiplies by default, bytes/s), as the
# makers publish them, without sparsity. GPUs multiply float32 in TF32, TPUs in bfloat16.
PEAKS = {
    "NVIDIA H200": (989e12, 495e12, 4.8e12),
    "NVIDIA H100": (989e12, 495e12, 3.35e12),
    "NVIDIA A100": (312e12, 156e12, 2.0e12),
    "TPU v6": (918e12, 918e12, 1.64e12),
    "TPU v5 lite": (197e12, 197e12, 0.82e12),
    "TPU v5e": (197e12, 197e12, 0.82e12),
    "TPU v5": (459e12, 459e12, 2.77e12),
    "TPU v4": (275e12, 275e12, 1.23e12),
}


class Peak(NamedTuple):
    """What a device can do at most."""

    flops: float  # a second
    bytes: float  # a second
    source: str


def device_peak(precision: str) -> Peak | None:
    """The published peak of the devices of this machine together; that of a CPU is measured. None: not known."""
    devices = jax.local_devices()
    if devices[0].platform == "cpu":
        x, y = jnp.ones((2048, 2048), precision), jnp.ones(2**26, jnp.float32)
        product, change = jax.jit(lambda x: x @ x), jax.jit(lambda y: y + 1)
        flops = 2 * len(x) ** 3 / min(timed(product, x) for _ in range(5))
        return Peak(flops, 2 * y.nbytes / min(timed(change, y) for _ in range(5)), "measured by a matrix product")
    for kind, (half, single, bandwidth) in PEAKS.items():
        if devices[0].device_kind.startswith(kind):
            flops = half if precision == "bfloat16" else single
            return Peak(flops * len(devices), bandwidth * len(devices), "as published")
    return None


class Bench(NamedTuple):
    """What all measurements share."""

    arguments: argparse.Namespace
    folder: Path  # for what is thrown away
    peak: Peak | None
    torch: Mapping[str, Torch]  # by peer
    stamp: dict[str, Any]

    def measure(self, name: str, batch: int) -> Iterator[dict[str, Any]]:
        """The lines of a step."""
        step, wanted = STEPS[name], self.arguments.measures
        images = max(self.arguments.images, math.ceil(2 * batch / 0.9))
        source = random_source(images)
        ours = {
            variant: Ours(config_of(step, batch, self.arguments.precision, self.folder, changes), source, self.folder)
            for variant, changes in VARIANTS.items()
            if step.teacher or not any(key.startswith("teacher.") for key in changes)
        }
        first = next(iter(ours.values()))
        contestants = {variant: one.step for variant, one in ours.items()}
        for peer, torch in self.torch.items():
            self._open(peer, step, first, images)
            contestants[peer] = torch.step

        def line(contestant: str, measure: str, value: float | None, **others: Any) -> dict[str, Any]:
            precision = "float32" if contestant == "usual" else self.arguments.precision
            known = {"step": name, "batch": batch, "precision": precision}
            return {**known, "contestant": contestant, "measure": measure, "value": value, **others, **self.stamp}

        seconds = self._rounds(contestants)
        whole = first.model_flops()
        for contestant, own in seconds.items():
            needed = ours[contestant].model_flops() if contestant in ours else whole
            speed = batch / statistics.median(own)
            others: dict[str, Any] = {"rounds": [round(batch / x, 2) for x in own], "model_flops": needed}
            if self.peak and (contestant != "usual" or self.arguments.precision == "float32"):
                others["mfu"] = speed * needed / self.peak.flops
            if contestant in ours:
                others |= {"mib": ours[contestant].memory(), **self._roofline(ours[contestant], own)}
            else:
                others["mib"] = self.torch[contestant].ask("memory")["mib"]
            yield line(contestant, "step", speed, **others)
        for variant, one in ours.items():
            of_step = statistics.median(seconds[variant])
            if "end_to_end" in wanted and variant != "student alone":
                count = self._count(of_step)
                before, run, after = one.step(count), one.end_to_end(), one.step(count)
                yield line(variant, "end_to_end", run.pop("value"), **run, step_alone=2 * batch / (before + after))
            if one is not first:
                continue
            if "teacher" in wanted and (forward := one.teacher()):
                yield line(variant, "teacher", self._median(forward) / of_step)
            if "evaluation" in wanted:
                yield line(variant, "evaluation", 1 / self._median(one.evaluation()))
            if "gradcam" in wanted:
                yield line(variant, "gradcam", 1 / self._median(one.gradcam()))
            if "start_up" in wanted and jax.default_backend() != "tpu":  # which has one process at a time
                cold, warm = self._start_up(one.config)
                yield line(variant, "start_up", cold, warm=warm)
        if self.torch and "evaluation" in wanted:
            size = first.config["evaluate"]["batch_size"]
            ask = functools.partial(self.torch["fair"].ask, "evaluation", count=1)
            yield line("fair", "evaluation", size / self._median(lambda: ask()["seconds"]))

    def _open(self, peer: str, step: Step, first: Ours, images: int) -> None:
        counted = self.torch[peer].open(step, first.config, images, self.arguments.workers)
        own = {"student": first.state.params["student"], "teacher": first.teacher_variables.get("params", {})}
        expected = {name: sum(x.size for x in jax.tree.leaves(tree)) for name, tree in own.items()}
        if counted != {name: count for name, count in expected.items() if count}:
            raise RuntimeError(f"PyTorch's networks have {counted} parameters, and kd_jax's {expected}")

    def _rounds(self, contestants: Mapping[str, Callable[[int], float]]) -> dict[str, list[float]]:
        """Seconds of a step in every round, by contestant: all in each, in turns, after a warm-up."""
        for step in contestants.values():
            step(1)
        counts = {name: self._count(step(2)) for name, step in contestants.items()}
        found: dict[str, list[float]] = {name: [] for name in contestants}
        for i in range(self.arguments.rounds):
            first = i % len(contestants)  # nobody always follows the same one
            for name, step in [*contestants.items()][first:] + [*contestants.items()][:first]:
                found[name].append(step(counts[name]))
        return found

    def _count(self, of_step: float) -> int:
        """How many steps take the time of a measurement."""
        return max(1, round(self.arguments.seconds / of_step))

    def _median(self, function: Callable[[], float]) -> float:
        """The median of some calls after one that compiles."""
        function()
        return statistics.median(function() for _ in range(self.arguments.rounds))

    def _roofline(self, ours: Ours, seconds: Sequence[float]) -> dict[str, float]:
        if not self.peak:
            return {}
        costs = ours.costs()
        least = max(costs["flops"] / self.peak.flops, costs["bytes accessed"] / self.peak.bytes)
        return {**costs, "roofline": least / statistics.median(seconds)}

    def _start_up(self, config: Mapping[str, Any]) -> tuple[float, float]:
        """Seconds of a process until its first step is done, without and with a cache of compiled programs."""
        (self.folder / "first_step.json").write_text(json.dumps(config))
        command = [sys.executable, "-m", "launch.benchmark", f"--first-step={self.folder / 'first_step.json'}"]
        with tempfile.TemporaryDirectory() as cache:
            own = {"JAX_COMPILATION_CACHE_DIR": cache, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
            seconds = []
            for _ in range(2):
                begin = time.perf_counter()
                subprocess.run(command, cwd=TOP, env={**os.environ, **own}, check=True)
                seconds.append(time.perf_counter() - begin)
        return seconds[0], seconds[1]


def markdown(lines: Sequence[Mapping[str, Any]], peak: Peak | None) -> str:
    """The tables of the lines of one run."""
    found = {(x["step"], x["batch"], x["contestant"], x["measure"]): x for x in lines}
    rows = list(dict.fromkeys((x["step"], x["batch"]) for x in lines))
    present = list(dict.fromkeys(x["contestant"] for x in lines))
    ours = [name for name in present if name in VARIANTS]

    def number(row: tuple[str, int], contestant: str, measure: str, key: str = "value", form: str = ",.0f") -> str:
        value = found.get((*row, contestant, measure), {}).get(key)
        return "-" if value is None else format(value, form)

    def ratio(row: tuple[str, int], contestant: str, other: str) -> str:
        both = [found.get((*row, name, "step"), {}).get("value") for name in (contestant, other)]
        return f"{both[0] / both[1]:.2f}" if all(both) else "-"

    speed: dict[str, Callable[[tuple[str, int]], str]] = {}
    for name in present:
        title = PEERS.get(name, name)
        speed[f"{title}, images/s"] = functools.partial(number, contestant=name, measure="step")
    for name in ours:
        for peer in (peer for peer in PEERS if peer in present):
            if name != "student alone":  # PyTorch asks a teacher
                speed[f"{name} / {PEERS[peer]}"] = functools.partial(ratio, contestant=name, other=peer)
    speed["recorded teacher / student alone"] = functools.partial(
        ratio, contestant="recorded teacher", other="student alone"
    )
    for name in (name for name in present if peak):
        speed[f"MFU of {PEERS.get(name, name)}"] = functools.partial(
            number, contestant=name, measure="step", key="mfu", form=".1%"
        )
    around: dict[str, Callable[[tuple[str, int]], str]] = {}
    for name in ours:
        of = f" ({name})" if len(ours) > 1 else ""
        for title, measure, key, form in (
            ("roofline", "step", "roofline", ".1%"),
            ("memory, MiB", "step", "mib", ",.0f"),
            ("teacher", "teacher", "value", ".0%"),
            ("evaluation, images/s", "evaluation", "value", ",.0f"),
            ("Grad-CAM, images/s", "gradcam", "value", ",.0f"),
            ("end to end, images/s", "end_to_end", "value", ",.0f"),
            ("in steps, images/s", "end_to_end", "images_per_second", ",.0f"),
            ("step alone beside it", "end_to_end", "step_alone", ",.0f"),
            ("share in steps", "end_to_end", "share_in_steps", ".1%"),
            ("first start, s", "start_up", "value", ".1f"),
            ("second start, s", "start_up", "warm", ".1f"),
        ):
            around[title + of] = functools.partial(number, contestant=name, measure=measure, key=key, form=form)
    for peer in (peer for peer in PEERS if peer in present):
        for title, measure, key in (("memory, MiB", "step", "mib"), ("evaluation, images/s", "evaluation", "value")):
            around[f"{title} ({PEERS[peer]})"] = functools.partial(number, contestant=peer, measure=measure, key=key)

    def table(columns: Mapping[str, Callable[[tuple[str, int]], str]]) -> str:
        cells = [[column(row) for column in columns.values()] for row in rows]
        kept = [i for i in range(len(columns)) if any(own[i] != "-" for own in cells)]
        head = ["step", "batch", *(list(columns)[i] for i in kept)]
        body = [[name, str(batch), *(own[i] for i in kept)] for (name, batch), own in zip(rows, cells, strict=True)]
        return "\n".join(f"| {' | '.join(own)} |" for own in (head, ["---"] * len(head), *body))

    stamp = lines[0]
    versions = ", ".join(f"{name} {version}" for name, version in stamp["versions"].items())
    most = f"peak {peak.flops / 1e12:,.2f} TFLOP/s, {peak.bytes / 1e9:,.0f} GB/s ({peak.source})" if peak else "no peak"
    told = f"{stamp['date']}, {stamp['hardware']}, {lines[0]['precision']}, {most}; {versions}."
    return f"{told}\n\n{table(speed)}\n\n{table(around)}"


def stamp(torches: Mapping[str, Torch]) -> dict[str, Any]:
    """When, where and by what is measured."""
    devices = jax.local_devices()
    versions = {"python": platform.python_version()}
    versions |= {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "flax", "optax")}
    if torches:
        torch = torches["fair"]
        versions["torch"] = (
            f"{torch.versions['torch']} ({torch.versions['device']}, {torch.versions['threads']} threads)"
        )
    return {
        "date": datetime.date.today().isoformat(),
        "hardware": f"{len(devices)} x {devices[0].device_kind}, {os.cpu_count()} cores",
        "versions": versions,
    }


def first_step(path: str) -> None:
    """Takes one step of the config in a file."""
    config = json.loads(Path(path).read_text())
    with tempfile.TemporaryDirectory() as folder:
        Ours(config, random_source(math.ceil(2 * config["train"]["batch_size"] / 0.9)), Path(folder)).step(1)


def compiled_elsewhere(topology: str) -> None:
    """Prints what launch/aot.py says of configs/kd.py, in a process of its own, as its environment differs."""
    done = subprocess.run([sys.executable, "-m", "launch.aot", "--config=kd", f"--topology={topology}"], cwd=TOP)
    sys.exit(done.returncode)


def main(argv: Sequence[str] | None = None) -> None:
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.4")  # of a GPU, on which PyTorch and a start run too
    keep_memory()
    on_cpu = jax.default_backend() == "cpu"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)

    def listing(text: str) -> list[str]:
        return [part for part in text.split(",") if part]

    def chosen(known: Sequence[str], text: str) -> list[str]:
        if bad := [name for name in listing(text) if name not in known]:
            raise argparse.ArgumentTypeError(f"{bad[0]!r}; expected some of: {', '.join(known)}")
        if not listing(text):
            raise argparse.ArgumentTypeError(f"nothing; expected some of: {', '.join(known)}")
        return listing(text)

    def count(text: str) -> int:
        if not text.isdecimal() or not int(text):
            raise argparse.ArgumentTypeError(f"{text!r}; expected a number from 1 on")
        return int(text)

    def counts(text: str) -> list[int]:
        return [count(part) for part in listing(text)]

    parser.add_argument("--steps", type=functools.partial(chosen, tuple(STEPS)), default=list(STEPS))
    parser.add_argument("--batches", type=counts, default=[], help="by default each step's own")
    parser.add_argument("--measures", type=functools.partial(chosen, MEASURES), default=list(MEASURES))
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32" if on_cpu else "bfloat16")
    parser.add_argument("--torch", default=sys.executable, help="an interpreter that has PyTorch")
    parser.add_argument("--rounds", type=count, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of a measurement")
    parser.add_argument("--images", type=int, default=2_000 if on_cpu else 50_000, help="to train on")
    parser.add_argument("--workers", type=int, default=min(8, os.cpu_count() or 1), help="of PyTorch's DataLoader")
    parser.add_argument("--results", type=Path, help="a file that gets a JSON line for every figure")
    parser.add_argument("--aot", metavar="TOPOLOGY", help="the compiler's report for a machine that is not there")
    parser.add_argument("--first-step", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.first_step:
        return first_step(arguments.first_step)
    if arguments.aot:
        return compiled_elsewhere(arguments.aot)
    lines = []
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        torch = open_torch(arguments.torch)
        for process in torch.values():
            stack.enter_context(contextlib.closing(process))
        bench = Bench(arguments, folder, device_peak(arguments.precision), torch, stamp(torch))
        for name in arguments.steps:
            for batch in arguments.batches or [STEPS[name].batch]:
                for line in bench.measure(name, batch):
                    lines.append(line)
                    said = {key: line[key] for key in ("step", "batch", "contestant", "measure", "value")}
                    print(json.dumps(said), file=sys.stderr, flush=True)
                    if arguments.results:
                        with open(arguments.results, "a") as file:
                            file.write(json.dumps(line) + "\n")
    print(markdown(lines, bench.peak))


if __name__ == "__main__":
    main()
