"""Files of weights that are damaged, or are something else."""

import contextlib
import importlib.util
import io
import os
import pickle
import random
import shutil
import zipfile
from pathlib import Path
from typing import Any

from launch.faults.bench import Bench, Skipped, command, leaves


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
