"""Processes that train one run, on loopback; and a program for a pair of them, which says what each saw."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
ENVIRONMENT = os.environ | {"XLA_FLAGS": "--xla_backend_optimization_level=0", "PYTHONUNBUFFERED": "1"}  # one device


def start(module, *arguments, count=2, own=(), **environment):
    """Processes of a module, of which each has some arguments of its `own`."""
    port = free_port()
    return [
        process(
            *(module, *arguments, *(own[number] if own else ())),
            *(f"--coordinator=127.0.0.1:{port}", f"--processes={count}", f"--process_id={number}"),
            **environment,
        )
        for number in range(count)
    ]


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def process(module, *arguments, before=(), **environment):
    """A process of a module, or of a program that is given as text."""
    return subprocess.Popen(
        [*before, sys.executable, "-c" if " " in module else "-m", module, *map(str, arguments)],
        cwd=ROOT,
        env=ENVIRONMENT | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(processes, seconds=240):
    """[(exit status, stdout, stderr)], but for what XLA says of its connections."""
    found = [(*process.communicate(timeout=seconds), process.returncode) for process in processes]
    return [(status, "".join(x for x in out.splitlines(True) if "[Gloo]" not in x), err) for out, err, status in found]


def place(arguments):
    """(coordinator, processes, process_id) of the last three arguments of `start`."""
    coordinator, *numbers = (argument.partition("=")[2] for argument in arguments)
    return coordinator, *map(int, numbers)


def seen():
    """What a process sees of what the processes tell each other."""
    import jax
    import numpy as np

    from kd_jax import distributed, sharding
    from kd_jax.errors import InputError, TrainingError

    own = jax.process_index()

    def fails(kind, text, on):
        if own in on:
            raise kind(text)
        return own

    def error(function, *arguments, **options):
        try:
            return function(*arguments, **options)
        except Exception as found:
            return [type(found).__name__, str(found), getattr(found, "__notes__", [])]

    mesh = sharding.mesh()
    agreed = distributed.Agreement(mesh)
    on_all = sharding.put(np.arange(3), sharding.replicated(mesh))
    divided = sharding.put(np.arange(4), sharding.split(mesh))
    return {
        "count": distributed.count(),
        "first": distributed.first(lambda: own + 10),
        "first that fails": error(distributed.first, lambda: fails(InputError, "no folder", [0, 1])),
        "together": distributed.together(lambda: own),
        "sent": distributed.sent(lambda: {"a": np.arange(3.0) + own, "b": (on_all, "text", None)}),
        "sent that fails": error(distributed.sent, lambda: fails(InputError, "no file", [0])),
        "inside together": distributed.together(lambda: distributed.first(lambda: own)),
        "fails on one": error(distributed.together, lambda: fails(InputError, "no data", [1])),
        "fails on the first": error(distributed.together, lambda: fails(TrainingError, "no disk", [0])),
        "differs": error(distributed.together, lambda: own, same=str),
        "after all that": distributed.first(lambda: own),
        "agreement": [agreed(number) for number in ((0, 15 * own, 0, 2 * (1 - own), 0))],
        "on all": np.asarray(on_all).tolist(),
        "own part": [np.asarray(shard.data).tolist() for shard in divided.addressable_shards],
    }


def main():
    from kd_jax import distributed

    with distributed.group(*place(sys.argv[1:])) if sys.argv[1:] else distributed.group():
        found = seen()
    print(json.dumps(found, default=lambda array: array.tolist()))


if __name__ == "__main__":
    main()
