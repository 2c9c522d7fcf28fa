"""What a training step should take on 1 to 256 chips, computed and not measured, as Markdown.

usage: python -m launch.scaling [--config=NAME[:ARGUMENT]] [--batch=4096] [--chips=1,4,16,64,256] [--machine=v5e]
           [--report=FILE | --mfu=0.3] [--images=45000] [--shape=32x32x3] [--classes=10] [KEY=VALUE ...]

The batch is that of all chips together (strong scaling). The bytes that the chips exchange come from a trace, which
takes seconds: those of gradients are exact. The time of computing comes from a report of `launch.aot --json=FILE` of
the same config and kind of chip, or from the trace's FLOPs at a share of the peak, --mfu, which is an assumption.

Assumptions:

* Computing takes a part in proportion to the images of a chip, and one that every chip has whole: the update of the
  parameters, at the speed of the memory. In truth few images use a chip less well: from a report of few chips many look
  too fast, and from one of many chips few look too slow, so that the efficiency is flattered either way.
* An all-reduce is a ring's, at the full speed of all links of a chip: `all_reduce`. Where some chips are joined by
  slower links than others, these set the pace. Nothing else uses the links.
* Every normalization exchanges its statistics once on the way forward and once on the way back, and the next layer
  waits for them. The gradients travel in one exchange, which at best hides behind all of the computing: "overlapped".
* No chip waits for another, for its data, or for the host, and the memory of one holds its images.
"""

import argparse
import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from launch import aot

MOST = 256  # chips


class Links(NamedTuple):
    """What joins up to `chips` chips."""

    chips: int
    bandwidth: float  # bytes/s out of a chip
    latency: float  # seconds a hop
    axes: int  # of a torus; 0 for a switch


class Machine(NamedTuple):
    """A kind of chip, and what joins it to others of its kind."""

    device: str  # as JAX names it
    flops: float  # FLOP/s in bfloat16
    memory: float  # bytes/s
    links: tuple[Links, ...]  # from few chips to many


class Step(NamedTuple):
    """A step at one number of chips."""

    images: float  # of a chip
    seconds: float  # of computing
    fixed: float  # seconds of these that do not depend on the images


class Exchange(NamedTuple):
    """What the chips sum in a step: a number of all-reduces, of so many bytes together."""

    nbytes: float
    count: float


class Row(NamedTuple):
    """A step on a number of chips. Times in seconds."""

    chips: int
    images: int  # of a chip
    sent: float  # bytes that leave a chip
    computing: float
    exchanging: float
    plain: float  # the step, where nothing overlaps
    overlapped: float
    efficiency: float  # the time of one chip / (chips * the time of these), where nothing overlaps
    efficiency_overlapped: float


# TPUs, peak and memory: docs.cloud.google.com/tpu/docs/v4, v5e and v5p. Links, all of a chip in one direction, and a
# microsecond a hop: jax-ml.github.io/scaling-book, "How to Think About TPUs" and "Sharded Matrices". By the same book a
# v5e has links around an axis of 16, a v4 or v5p around axes of multiples of 4; without them half the speed is left.
# H100 SXM: nvidia.com/en-us/data-center/h100 (989 TFLOP/s dense, 3.35 TB/s, NVLink with 900 GB/s in both directions).
# Between machines of eight: a ConnectX-7 of 400 Gb/s for each (docs.nvidia.com/dgx/dgxh100-user-guide), or Ethernet of
# 1000 Gb/s for eight, Google's A3 High (docs.cloud.google.com/compute/docs/gpus/gpu-network-bandwidth). Latencies of
# NCCL: 6 us for two H100 on NVLink, 5 us for a hop through a network (github.com/NVIDIA/nccl, issues 1259 and 1334).
MICROSECOND = 1e-6
NVLINK = Links(8, 450e9, 3 * MICROSECOND, 0)
MACHINES = {
    "v4": Machine("TPU v4", 275e12, 1200e9, (Links(32, 135e9, MICROSECOND, 3), Links(MOST, 270e9, MICROSECOND, 3))),
    "v5e": Machine(
        "TPU v5 lite", 197e12, 819e9, (Links(128, 100e9, MICROSECOND, 2), Links(MOST, 200e9, MICROSECOND, 2))
    ),
    "v5p": Machine("TPU v5", 459e12, 2765e9, (Links(32, 300e9, MICROSECOND, 3), Links(MOST, 600e9, MICROSECOND, 3))),
    "h100": Machine("NVIDIA H100 80GB HBM3", 989e12, 3350e9, (NVLINK, Links(MOST, 50e9, 5 * MICROSECOND, 0))),
    "h100-ethernet": Machine(
        "NVIDIA H100 80GB HBM3", 989e12, 3350e9, (NVLINK, Links(MOST, 15.6e9, 5 * MICROSECOND, 0))
    ),
}


def sent(nbytes: float, chips: int) -> float:
    """Bytes that leave each of the chips in a ring's all-reduce: 2 (N - 1) / N of all.

    A reduce-scatter and an all-gather of N - 1 steps each, in which 1 / N travels: Patarasuk and Yuan, "Bandwidth
    optimal all-reduce algorithms for clusters of workstations", 2009; NVIDIA/nccl-tests, doc/PERFORMANCE.md.
    """
    return 2 * (chips - 1) / chips * nbytes


def hops(chips: int, axes: int) -> float:
    """Steps of an all-reduce, one after another, that each take a latency.

    On a torus one ring after another along its axes of equal length, there and back: 2 axes (N^(1/axes) - 1), for one
    axis the ring's own 2 (N - 1). Through a switch a tree of pairs, which NCCL takes for few bytes: 2 log2 N
    (developer.nvidia.com/blog/massively-scale-deep-learning-training-nccl-2-4).
    """
    return 2 * axes * (chips ** (1 / axes) - 1) if axes else 2 * math.log2(chips)


def all_reduce(exchange: Exchange, chips: int, machine: Machine) -> float:
    """Seconds of an exchange: `sent` / bandwidth + count * `hops` * latency."""
    links = next(links for links in machine.links if links.chips >= chips)
    return sent(exchange.nbytes, chips) / links.bandwidth + exchange.count * hops(chips, links.axes) * links.latency


def computing(step: Step, images: float) -> float:
    """Seconds of computing for so many images of a chip."""
    return step.fixed + (step.seconds - step.fixed) * (images / step.images)


def check(batch: int, chips: int) -> None:
    """Raises InputError where the chips are not 1 to 256, or do not divide the batch."""
    from kd_jax.errors import InputError

    if not 1 <= chips <= MOST:
        raise InputError(f"--chips has {chips}; expected numbers from 1 to {MOST}")
    if batch < 1 or batch % chips:
        raise InputError(f"--batch is {batch}; expected a multiple of {chips}, the number of chips")


def row(step: Step, gradients: Exchange, statistics: Exchange, machine: Machine, *, batch: int, chips: int) -> Row:
    """A step of `batch` images on `chips` chips; for the assumptions see the module.

    Raises:
      InputError: see `check`.
    """
    check(batch, chips)
    own, of_gradients = computing(step, batch // chips), all_reduce(gradients, chips, machine)
    waited = all_reduce(statistics, chips, machine)
    plain, overlapped = own + of_gradients + waited, max(own, of_gradients) + waited
    alone = computing(step, batch)
    return Row(
        chips,
        batch // chips,
        sent(gradients.nbytes + statistics.nbytes, chips),
        own,
        of_gradients + waited,
        plain,
        overlapped,
        *(min(1.0, alone / (chips * seconds)) for seconds in (plain, overlapped)),  # 1 up to rounding
    )


def of_report(report: Mapping[str, Any], fixed: float) -> Step:
    """The computing of a report of `launch.aot`, without its exchanges."""
    exchanging = sum(x["ms"] for kind, x in report["collectives"].items() if not kind.endswith(aot.RARE))
    seconds = (report["ms"] - exchanging) / 1e3
    return Step(report["batch"] / report["chips"], seconds, min(fixed, seconds))


def markdown(title: str, rows: list[Row]) -> str:
    """The rows as Markdown; every heading says that its figures are computed."""
    heads = ("images a chip", "MiB sent by a chip", "ms computing", "ms exchanging", "ms a step", "efficiency")
    heads += ("ms a step, overlapped", "efficiency, overlapped")
    lines = [title, "", f"| chips | {' | '.join(f'computed: {head}' for head in heads)} |", "|---" * 9 + "|"]
    for x in rows:
        ms = [f"{1e3 * t:.2f}" for t in (x.computing, x.exchanging, x.plain, x.overlapped)]
        shares = f"{100 * x.efficiency:.1f}%", f"{100 * x.efficiency_overlapped:.1f}%"
        cells = (f"{x.images:,}", f"{x.sent / 2**20:.2f}", *ms[:3], shares[0], ms[3], shares[1])
        lines.append(f"| {x.chips} | {' | '.join(cells)} |")
    return "\n".join(lines)


def table(given: argparse.Namespace) -> str:
    """What the command prints.

    Raises:
      InputError: for wrong arguments.
    """
    import jax

    from kd_jax.errors import InputError, choose

    machine = choose("--machine", given.machine, MACHINES)
    try:
        chips = [int(x) for x in given.chips.split(",")]
    except ValueError:
        raise InputError(f"--chips is {given.chips!r}; expected numbers from 1 to {MOST}, such as 1,4,16") from None
    if not 0 < given.mfu <= 1:
        raise InputError(f"--mfu is {given.mfu}; expected a share of the peak, above 0 and at most 1")
    for count in chips:  # before what takes seconds
        check(given.batch, count)
    tree, data = aot.read_config(given)
    report = read(given.report, tree.name, machine) if given.report else None
    made = aot.create(tree, jax.devices()[:1], **data)
    gpu = machine.device.startswith("NVIDIA")
    found = aot.exchanged(made, bfloat16=gpu and made.config["precision"] == "bfloat16")
    state = made.state_shapes()
    moved = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves((state.params, state.optimizer_state)))
    fixed = (2 * moved + found.gradients) / machine.memory  # read and written, by what was summed
    if report:
        step = of_report(report, fixed)
        how = f"computing as compiled for {report['topology']}, batch {report['batch']}, {1e3 * step.seconds:.2f} ms"
    else:
        flops = made.lower().cost_analysis()["flops"]
        step = Step(given.batch, fixed + flops / (given.mfu * machine.flops), fixed)
        how = f"computing {flops / given.batch / 1e9:.2f} GFLOP an image at {100 * given.mfu:g}% of the peak, assumed"
    gradients, statistics = Exchange(found.gradients, 1), Exchange(found.statistics, 2 * found.norms)
    title = (
        f"Computed, not measured: {made.config['name']} on {given.machine}, batch {given.batch}; {how}; all-reduces of"
        f" {found.gradients:,} bytes of gradients, and in {2 * found.norms} of {found.statistics:,} of batch statistics"
    )
    return markdown(title, [row(step, gradients, statistics, machine, batch=given.batch, chips=n) for n in chips])


def read(path: str, config: str, machine: Machine) -> dict[str, Any]:
    """A report of `launch.aot`, of this config and kind of chip."""
    from kd_jax.errors import InputError, one_line

    try:
        report = json.loads(Path(path).read_text())
        given = report["config"], report["device"]
        if not of_report(report, 0.0).seconds > 0:
            raise ValueError("its step takes no time")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ZeroDivisionError) as error:
        raise InputError(f"--report is {path!r} ({one_line(error)}); expected what launch.aot --json wrote") from None
    if given != (config, machine.device):
        raise InputError(f"--report is of {' on '.join(given)}; expected one of {config} on {machine.device}")
    return report


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    aot.add_config(parser)
    parser.set_defaults(batch=4096)
    parser.add_argument("--chips", default="1,4,16,64,256")
    parser.add_argument("--machine", default="v5e", help=f"one of: {', '.join(MACHINES)}")
    parser.add_argument("--report", default="", help="what launch.aot --json wrote")
    parser.add_argument("--mfu", type=float, default=0.3, help="without a report: the share of the peak that computes")
    given = parser.parse_args(arguments)
    from kd_jax.errors import InputError

    try:
        print(table(given))
    except (InputError, KeyError, TypeError, ValueError) as error:
        print(f"error: {error.args[0]}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
