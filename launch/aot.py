"""What the compiler says of a config's training step on a TPU or GPU that is not there, as Markdown.

usage: python -m launch.aot [--config=NAME[:ARGUMENT]] [--topology=v5e:4x4|h100] [--batch=N] [KEY=VALUE ...]
           [--images=45000] [--shape=32x32x3] [--classes=10] [--steps=1] [--json=FILE] [--hlo=FILE]

A topology is a TPU's (v4, v5e, v5p or v6e, and its chips: v5e:1x1 is one; needs `pip install 'kd_jax[aot]'`), or h100,
or h100:8 for eight (needs `kd_jax[cuda]`). The data is a stand-in of the given shape, and no weights are read. A key is
one of kd_jax/keys.py.

Nothing runs, so every figure is an estimate. A TPU's step takes the cycles that the compiler expects of each fusion,
and the collectives by their bytes. For a GPU there is no such model: its figure is a bound, the least that memory,
arithmetic and the launch of each kernel allow. Of a conditional the cheapest branch counts; the collectives of the
others stand apart.
"""

import argparse
import collections
import contextlib
import importlib.util
import json
import math
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from launch import hlo

ENVIRONMENT = {  # so that libtpu neither looks for a TPU nor asks a metadata server, nor keeps others from compiling
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
SCOPES = ("augmentation", "teacher", "student", "method", "optimizer")  # of kd_jax/steps.py
RARE = "in a branch that is not the cheapest"
KINDS = ("v4", "v5e", "v5p", "v6e", "h100")
LAUNCH = 1e-6  # seconds, of a kernel
HANDSHAKE = 2e-6  # seconds, of a collective


class Exchanged(NamedTuple):
    """What data parallel training sums over the chips in a step: exact of gradients, and an upper bound of the rest."""

    gradients: int  # bytes, those of the norms' scales and biases among them
    statistics: int  # bytes of the batch statistics on the way forward; on the way back they are gradients
    norms: int  # that take statistics


class Chip(NamedTuple):
    """What a chip can do."""

    teraflops: float  # in bfloat16
    memory: float  # GB/s
    links: float  # GB/s, of all in one direction
    clock: float | None  # GHz; None for a GPU


CHIPS = {
    "TPU v4": Chip(275, 1228, 300, 1.05),
    "TPU v5": Chip(459, 2765, 600, 1.75),
    "TPU v5 lite": Chip(197, 819, 200, 1.5),
    "TPU v6 lite": Chip(918, 1640, 448, 1.75),
    "NVIDIA H100 80GB HBM3": Chip(989, 3352, 450, None),
}


def report(
    config: Mapping[str, Any],
    topology: str,
    *,
    images: int = 45_000,
    shape: tuple[int, ...] = (32, 32, 3),
    classes: int = 10,
    steps: int = 1,
    program: str = "",
) -> dict[str, Any]:
    """Compiles a config's training step, and returns what `markdown` prints.

    The environment has to be ENVIRONMENT before JAX is imported, as `main` sees to.

    Args:
      config: a complete tree, whose teacher is none or a config.
      topology: of devices, see the module.
      images, shape, classes: of the data's stand-in.
      steps: of a call.
      program: a file for the HLO.
    Raises:
      InputError: for a wrong config, and where the compiler is not installed.
    """
    import jax

    from kd_jax.errors import InputError, choose

    kind = topology.partition(":")[0]
    choose("the topology", kind, KINDS)
    gpu = kind == "h100"
    library, extra = ("jax_cuda13_plugin", "cuda") if gpu else ("libtpu", "aot")
    if not importlib.util.find_spec(library):
        raise InputError(f"topology {topology!r} needs {library}; expected it installed: pip install 'kd_jax[{extra}]'")
    made = create(config, devices(topology), images=images, shape=shape, classes=classes)
    # There is no GPU to try the kernels of Triton on.
    compiled = made.lower(steps).compile({"xla_gpu_enable_triton_gemm": False} if gpu else None)
    text, memory = compiled.as_text(), compiled.memory_analysis()
    if program:
        Path(program).write_text(text)
    device, batch = made.mesh.devices.flat[0].device_kind, made.config["train"]["batch_size"]
    parts_of_memory = ("argument", "output", "alias", "temp")
    size = {name: getattr(memory, f"{name}_size_in_bytes") for name in parts_of_memory}
    size["peak"] = size["argument"] + size["output"] - size["alias"] + size["temp"]
    cost = {} if gpu else compiled.cost_analysis()
    flops = cost.get("flops", 0.0)
    found = analyze(
        text, CHIPS[device], chips=made.mesh.size, steps=steps, images=images * math.prod(shape), flops=flops
    )
    return {
        "config": made.config["name"],
        "topology": topology,
        "device": device,
        "chips": made.mesh.size,
        "batch": batch,
        "steps_per_call": steps,
        "jax": jax.__version__,
        "memory": size,
        "exchanged": exchanged(made, bfloat16=gpu and made.config["precision"] == "bfloat16")._asdict(),
        "bytes_accessed": cost.get("bytes accessed", 0.0),
        "images_per_second_per_chip": batch / made.mesh.size / found["ms"] * 1e3,
        **found,
    }


def create(
    config: Mapping[str, Any], devices: Sequence[Any], *, images: int, shape: tuple[int, ...], classes: int
) -> Any:
    """The experiment of a config whose teacher is none or a config, on a stand-in of its data, for devices."""
    from kd_jax import experiment
    from kd_jax.config.checks import plain, teacher_sections

    tree = plain(config)
    parts = [tree]
    for part in parts:
        part["model"]["pretrained"] = ""
        part["dataset"] |= {"name": "", "path": ""}
        parts += [section["config"] for section in teacher_sections(part["teacher"]) if section.get("config")]
    with contextlib.redirect_stdout(sys.stderr):  # what it says of the data is no part of a report
        return experiment.create(tree, source=stand_in(images, shape, classes), devices=devices)


def exchanged(experiment: Any, *, bfloat16: bool = False) -> Exchanged:
    """See `Exchanged`, of an experiment's shapes. In `bfloat16` a GPU sums the gradients of kernels, docs/speed.md."""
    import jax

    state = experiment.state_shapes()
    trained = {**state.params, "student": experiment.components.optimizer.split(state.params["student"])[0]}
    gradients = sum(x.size * (2 if bfloat16 and x.ndim > 1 else x.dtype.itemsize) for x in jax.tree.leaves(trained))
    means_and_variances = jax.tree.leaves(state.stats["student"])
    return Exchanged(
        gradients, sum(x.size * x.dtype.itemsize for x in means_and_variances), len(means_and_variances) // 2
    )


def stand_in(images: int, shape: tuple[int, ...], classes: int) -> Any:
    """A data set of black images [images, *shape]."""
    import numpy as np

    from kd_jax.data import Source
    from kd_jax.types import Split

    def split(count: int) -> Split:
        black = np.broadcast_to(np.uint8(0), (count, *shape))
        return Split(black, (np.arange(count) % classes).astype(np.int32))

    names = tuple(map(str, range(classes)))
    return Source(split(images), split(10 * classes), names, "stand-in", 0, "stand-in", split(10 * classes))


def devices(topology: str) -> list[Any]:
    """The devices of a topology that is not there."""
    from jax.experimental import topologies

    kind, _, size = topology.partition(":")
    options: dict[str, Any] = {}
    if kind == "h100":
        target = Path(__file__).with_name("h100.txtpb").read_text()
        options |= {"topology": f"1x1x{size or 1}", "target_config": target}
        return topologies.get_topology_desc(platform="cuda", topology_name=kind, **options).devices
    if re.fullmatch("(1x?)+", size):
        options["chips_per_host_bounds"] = (1, 1, 1)
    if kind in ("v4", "v5p"):
        options["chip_config_name"] = "megacore"
    return topologies.get_topology_desc(platform="tpu", topology_name=topology, **options).devices


def analyze(text: str, chip: Chip, *, chips: int, steps: int, images: int, flops: float = 0.0) -> dict[str, Any]:
    """What a program's HLO says of a step.

    Args:
      text: the HLO.
      chip: each of `chips`.
      steps: that the program runs.
      images: bytes of the image set.
      flops: of a step on a chip, where the compiler counts them.
    """
    milliseconds, kernels = 0.0, 0.0
    scopes, copies = collections.Counter[str](), collections.Counter(count=0.0, bytes=0.0, ms=0.0)
    collectives: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    computations, entry = hlo.parse(text)
    for run in hlo.executed(computations, entry):
        op, times, own = run.op, run.times / steps, 0.0
        if op.collective:
            moved = hlo.nbytes(op.shape)
            way = (2 if op.collective == "all-reduce" else 1) * (1 - 1 / chips)
            own = 1e3 * (way * moved / (chip.links * 1e9) + HANDSHAKE)
            kind = op.collective if run.usual else f"{op.collective} {RARE}"
            collectives[kind].update(count=times, bytes=times * moved, ms=times * own)
        elif chip.clock:
            own = op.cycles / (chip.clock * 1e6)
        elif op.is_kernel:
            own, of_kernel = kernel(run, chip)
            flops += of_kernel * times * run.usual
        if not run.usual:
            continue
        milliseconds += times * own
        kernels += times * op.is_kernel
        scopes["collectives" if op.collective else scope(op)] += times * own
        if op.is_kernel and (whole := max((x for kind, x in hlo.sizes(op.shape) if kind == "u8"), default=0)) >= images:
            copies.update(count=times, bytes=times * whole, ms=times * own)
    return {
        "ms": milliseconds,
        "flops": flops,
        "mfu": flops / (milliseconds * chip.teraflops * 1e9),
        "kernels": kernels,
        "scopes": dict(scopes.most_common()),
        "copies_of_the_images": dict(copies),
        "collectives": {kind: dict(counted) for kind, counted in sorted(collectives.items())},
        "kinds_of_collectives": sorted({op.collective for ops in computations.values() for op in ops} - {None}),
    }


def kernel(run: hlo.Run, chip: Chip) -> tuple[float, float]:
    """(milliseconds at least, FLOPs) of a kernel of a GPU. Of FLOPs, those of cuDNN's convolutions are counted."""
    operands, flops = run.operands(), 0.0
    if call := run.op.attribute(r"__cudnn\$conv(\w+)"):
        roles = {"BackwardFilter": (operands[1], run.op.shape), "BackwardInput": tuple(operands[:2])}
        maps, weights = roles.get(call, (run.op.shape, operands[1]))
        flops = 2 * math.prod(hlo.dims(maps)[:-1]) * math.prod(hlo.dims(weights))
    moved = sum(map(hlo.nbytes, (run.op.shape, *operands)))
    return 1e3 * max(moved / (chip.memory * 1e9), flops / (chip.teraflops * 1e12), LAUNCH), flops


def scope(op: hlo.Op) -> str:
    """The part of the step that an op belongs to, by its name."""
    name = op.attribute(r'op_name="([^"]*)"') or ""
    found = re.search(rf"\b({'|'.join(SCOPES)})[)/]", name)
    return (found[1] if found else "other") + (" backward" if found and "transpose(" in name else "")


def markdown(result: Mapping[str, Any]) -> str:
    """A report as Markdown."""
    how = "the compiler's estimate" if CHIPS[result["device"]].clock else "a bound"
    mib = {name: f"{size / 2**20:,.0f} MiB" for name, size in result["memory"].items()}
    rows = {
        f"ms a step ({how})": f"{result['ms']:.2f}",
        f"images/s a chip ({how})": f"{result['images_per_second_per_chip']:,.0f}",
        f"model FLOP utilization ({how})": f"{100 * result['mfu']:.1f}%",
        "kernels a step": f"{result['kernels']:,.0f}",
        "memory a chip": f"{mib['peak']}; arguments {mib['argument']}, temporary {mib['temp']}",
    }
    for name, x in {"copies of the image set": result["copies_of_the_images"], **result["collectives"]}.items():
        rows[name] = f"{x['count']:g}; {x['bytes'] / 2**20:,.2f} MiB, {x['ms']:.2f} ms"
    rows["what the chips exchange"] = exchange(result)
    for name, ms in result["scopes"].items():
        rows[f"share of {name}"] = f"{100 * ms / result['ms']:.1f}%; {ms:.2f} ms"
    title = (
        f"Estimates of the compiler, nothing was run: {result['config']} on {result['topology']}"
        f" ({result['chips']} x {result['device']}), batch {result['batch']}, JAX {result['jax']}"
    )
    return "\n".join([title, "", "| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())])


def exchange(result: Mapping[str, Any]) -> str:
    """What travels between the chips in a usual step, and what kinds of collectives the whole program does not have."""
    found = []
    for kind, x in result["collectives"].items():
        if not kind.endswith(RARE):
            found.append(f"{kind} {x['count']:g}, {x['bytes']:,.0f} bytes")
        if kind == "all-reduce":
            gradients = result["exchanged"]["gradients"]
            found.append(f"of these gradients {gradients:,}, statistics and counts {x['bytes'] - gradients:,.0f}")
    none = [kind for kind in hlo.COLLECTIVES if kind not in result["kinds_of_collectives"]]
    return "; ".join([*found, f"not in the program: {', '.join(none)}"])


def add_config(parser: argparse.ArgumentParser) -> None:
    """The flags that `read_config` reads."""
    parser.add_argument("--config", default="kd")
    parser.add_argument("--batch", type=int, default=0, help="train.batch_size, of the teacher's config too")
    parser.add_argument("--images", type=int, default=45_000)
    parser.add_argument("--shape", default="32x32x3")
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("changes", nargs="*", metavar="KEY=VALUE")


def read_config(given: argparse.Namespace) -> tuple[Any, dict[str, Any]]:
    """(the config's tree, `create`'s arguments for its data)."""
    from kd_jax import cli, config
    from kd_jax.errors import InputError

    name, _, argument = given.config.partition(":")
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*){2}", given.shape):
        raise InputError(f"--shape is {given.shape!r}; expected height, width and channels, such as 32x32x3")
    shape = tuple(int(x) for x in given.shape.split("x"))
    tree = config.experiment(name).get_config(argument)
    changes = {key: cli.parsed(value) for key, _, value in (change.partition("=") for change in given.changes)}
    both = ("", "teacher.config.") if tree.teacher.kind == "config" else ("",)  # the devices divide both batches
    changes |= {f"{part}train.batch_size": given.batch for part in both if given.batch}
    tree.update_from_flattened_dict(changes)
    return tree, {"images": given.images, "shape": shape, "classes": given.classes}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_config(parser)
    parser.add_argument("--topology", default="v5e:4x4")
    parser.add_argument("--steps", type=int, default=1, help="of a call")
    parser.add_argument("--json", help="a file for the figures")
    parser.add_argument("--hlo", default="", help="a file for the compiled program")
    given = parser.parse_args(arguments)
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from kd_jax.errors import InputError

    try:
        tree, data = read_config(given)
        result = report(tree, given.topology, **data, steps=given.steps, program=given.hlo)
    except (InputError, KeyError, TypeError, ValueError) as error:
        print(f"error: {error.args[0]}", file=sys.stderr)
        sys.exit(2)
    if given.json:
        Path(given.json).write_text(json.dumps(result, indent=1) + "\n")
    print(markdown(result))


if __name__ == "__main__":
    main()
