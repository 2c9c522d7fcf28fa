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
import json
import os
import random
import sys
import time
from collections.abc import Callable
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

from launch.faults import files, processes, values, weights  # noqa: E402
from launch.faults.bench import Bench, Skipped  # noqa: E402


class Fault(NamedTuple):
    """A way to lose or to falsify a run."""

    how: str
    promise: str
    tries: int  # of a quick look
    long: int
    block: int  # tries of one call of `attempt`
    attempt: Callable[[Bench, random.Random, int], list[str]]  # (bench, random, tries) -> what was lost


FAULTS = {
    "kills": Fault(
        "SIGKILL at any moment, a third while saving",
        "the same command ends as if nothing had happened",
        10,
        100,
        5,
        processes.kills,
    ),
    "signals": Fault(
        "SIGTERM or Ctrl-C at any moment",
        "saved, said from which step it goes on, and nothing lost",
        5,
        50,
        5,
        processes.signals,
    ),
    "flips": Fault(
        "a bit flipped, a file cut or removed, any file of a run",
        "named, or no number changes",
        50,
        1000,
        50,
        files.flips,
    ),
    "flips-unfinished": Fault(
        "the same in a run that was killed before its result, then the same command",
        "named, and never another result",
        5,
        100,
        10,
        files.flips_before_the_end,
    ),
    "flips-command": Fault(
        "the same through the command", "named, or no number changes", 2, 20, 5, files.flips_of_the_command
    ),
    "safetensors": Fault(
        "mutated safetensors",
        "refused in one line, or finite weights of the right shapes",
        20_000,
        1_000_000,
        20_000,
        weights.safetensors,
    ),
    "pth": Fault(
        "mutated .pth files, and pickles with code", "refused in one line; no code runs", 500, 20_000, 1000, weights.pth
    ),
    "weights-command": Fault(
        "mutated safetensors through the command",
        "refused in one line, nothing written",
        2,
        20,
        5,
        weights.weights_of_the_command,
    ),
    "full-disk": Fault(
        "a disk with too little room, at 8 levels", "one line; goes on when there is room", 3, 8, 8, processes.full_disk
    ),
    "failing-writes": Fault(
        "a quota that is used up, a disk that fails",
        "one line; goes on when there is room",
        2,
        8,
        4,
        processes.failing_writes,
    ),
    "values": Fault("odd values in a config", "refused in one line, or they work", 100, 1200, 1200, values.odd_values),
    "values-command": Fault(
        "the same through the command", "refused in one line, or they work", 2, 20, 5, values.odd_values_of_the_command
    ),
    "saves": Fault("many saves in one process", "no thread and no open file stays", 50, 1000, 1000, files.many_saves),
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
