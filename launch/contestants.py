"""What the benchmark lets run against one another: variants of kd_jax, and the process of PyTorch beside it."""

import contextlib
import functools
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

import kd_jax
from kd_jax import evaluation, experiment, gradcam, models, teacher_cache
from kd_jax.config import base
from kd_jax.config.published import PUBLISHED
from kd_jax.config.tree import ConfigDict
from kd_jax.data import memory
from kd_jax.logging import metrics_file
from kd_jax.models import torch_names
from kd_jax.types import Batch

CLASSES, PIXELS = 10, 32  # of the stored images
EPOCHS = 3  # of the run from end to end
# "kept" is "fair" with the memory that kd_jax has on a CPU, see kd_jax/allocation.py.
PEERS = {"fair": "PyTorch", "kept": "PyTorch, memory kept", "usual": "PyTorch as usual"}
TOP = Path(__file__).resolve().parents[1]


class Step(NamedTuple):
    """A training step, of KD where there is a teacher."""

    student: str
    teacher: str | None
    size: int  # pixels that the networks read
    batch: int
    width: float = 1.0


def timed(function: Callable[..., Any], *arguments: Any) -> float:
    """Seconds of a call, until its result is there."""
    begin = time.perf_counter()
    jax.block_until_ready(function(*arguments))
    return time.perf_counter() - begin


def random_source(images: int) -> memory.Source:
    """Random images: to train on, and a tenth as many to test on."""
    rng = np.random.default_rng(0)

    def arrays(count: int) -> tuple[np.ndarray, np.ndarray]:
        return rng.integers(0, 256, (count, PIXELS, PIXELS, 3), np.uint8), np.arange(count) % CLASSES

    return memory.from_arrays(arrays(images), arrays(max(images // 10, 3 * CLASSES)))


def config_of(step: Step, batch: int, precision: str, folder: Path, changes: Mapping[str, Any]) -> dict[str, Any]:
    """The config of a step. The weights of its teacher, which are random, are written into the folder."""
    config = base.alone(base.get_config())
    config.model.name, config.model.width = step.student, step.width
    if step.teacher and changes.get("teacher.kind") != "none":
        teacher = base.alone(base.get_config())
        teacher.model.name, teacher.model.width = step.teacher, step.width
        base.with_teacher(config, teacher)
        config.teacher.kind, config.teacher.path = "weights", str(folder / f"{step.teacher}.safetensors")
        config.method = ConfigDict(PUBLISHED["kd"].cifar100)
        if not os.path.exists(config.teacher.path):
            network = models.create(step.teacher, CLASSES, width=step.width)
            variables = jax.jit(network.init)(jax.random.key(0), jnp.zeros((2, step.size, step.size, 3)))
            save_file(torch_names.to_state_dict(variables, network), config.teacher.path)
    changed = {
        "name": "benchmark",
        "precision": precision,
        "dataset.source": "memory",
        "dataset.image_size": step.size,
        "dataset.augment": "crop_flip",
        "train.batch_size": batch,
        "train.epochs": EPOCHS,
        **changes,
    }
    config.update_from_flattened_dict(changed)
    return config.to_dict()


class Ours:
    """A variant of kd_jax: a compiled training step, and what surrounds it."""

    def __init__(self, config: dict[str, Any], source: memory.Source, folder: Path) -> None:
        self.config, self.source, self.runs_folder = config, source, str(folder / "runs")
        self.made = made = experiment.create(config, source=source, runs_folder=self.runs_folder)
        self.teacher_variables = made.place(made.teacher.load()[0]) if made.teacher else {}
        feed = made.feed()
        self.state = made.init_state(np.uint32(0), self.teacher_variables, feed.example, feed.labels)
        rows, self.per_call = next(feed.calls(0))
        jitted, asked = made.steps_of(feed), self.teacher_variables
        self._rows = lambda: rows
        if cache := teacher_cache.create(made, feed, self.teacher_variables):
            jitted, asked, begin = cache.train_steps, {}, 0
            for own, end in feed.calls(0):
                if begin < feed.steps_per_epoch:
                    cache.rows(own, begin, end)
                begin = end
            cache.close()
            self._rows = lambda: cache.rows(rows, 0, self.per_call)  # reads them each time, as a run does
        self._others = (feed.constants, made.place(made.hyper), feed.labels)
        self._asked = asked
        self._jitted, self._call = jitted, jitted.lower(self.state, *self._inputs()).compile()

    def _inputs(self, rows: Any = None) -> tuple[Any, ...]:
        constants, hyper, labels = self._others
        return self._asked, constants, self._rows() if rows is None else rows, hyper, labels

    @property
    def batch(self) -> int:
        return self.config["train"]["batch_size"]

    def step(self, count: int) -> float:
        """Seconds of a step, of about `count`."""
        calls = math.ceil(count / self.per_call)
        jax.block_until_ready(self.state)
        begin = time.perf_counter()
        for _ in range(calls):
            self.state, _ = self._call(self.state, *self._inputs())
        jax.block_until_ready(self.state)
        return (time.perf_counter() - begin) / (calls * self.per_call)

    def memory(self) -> float | None:
        """MiB that the compiled step needs."""
        found = self._call.memory_analysis()
        if found is None:
            return None
        new = found.output_size_in_bytes - found.alias_size_in_bytes
        return (found.argument_size_in_bytes + found.temp_size_in_bytes + new) / 2**20

    def costs(self) -> dict[str, float]:
        """Of the program of one step, FLOPs and bytes of memory traffic on all devices."""
        program = self._call
        if self.per_call > 1:  # costs of a loop are not those of all its steps
            one = jax.tree.map(lambda x: x[:1], self._rows())
            program = self._jitted.lower(self.state, *self._inputs(one)).compile()
        found = program.cost_analysis() or {}
        return {name: found.get(name, 0.0) * self.made.mesh.size for name in ("flops", "bytes accessed")}

    def model_flops(self) -> float:
        """FLOPs an image that cannot be left out: 3 forward passes of the student, 1 of a teacher that is asked."""
        components, images = self.made.components, self._images(self.batch)
        variables = evaluation.evaluated(self.state)[0]
        networks = [(3, components.student, variables)]
        if self._asked and self.made.teacher and self.made.teacher.network:
            networks.append((1, self.made.teacher.network, self.teacher_variables))
        total = 0.0
        for times, network, own in networks:
            forward = jax.jit(lambda v, x, network=network: network.apply(v, x, train=False)[0].logits)
            total += times * (forward.lower(own, images).cost_analysis() or {}).get("flops", math.nan)
        return total / len(images)

    def teacher(self) -> Callable[[], float] | None:
        """Seconds of the teacher's forward pass on a batch, as a function."""
        teacher = self.made.teacher
        if not teacher:
            return None
        images, ids = self._images(self.batch), jnp.arange(self.batch)
        batch = Batch(images, ids % CLASSES, jax.nn.one_hot(ids % CLASSES, CLASSES), ids, jnp.zeros_like(ids))
        forward = jax.jit(lambda v, batch: teacher.apply(v, batch, jax.random.key(0), True).logits)
        return functools.partial(timed, forward, self.teacher_variables, batch)

    def evaluation(self) -> Callable[[], float]:
        """Seconds an image of an evaluation, as a function."""
        evaluate, split = evaluation.Evaluator(self.made, self.teacher_variables), self.made.dataset.validation
        assert split is not None, "a part of the images is held out"
        return lambda: timed(evaluate.total, *evaluation.evaluated(self.state), split) / len(split.labels)

    def gradcam(self) -> Callable[[], float]:
        """Seconds an image of the student's Grad-CAM maps, as a function."""
        images = self._images(self.batch)
        maps = jax.jit(functools.partial(gradcam.gradcam, self.made.components.student))
        arguments = (evaluation.evaluated(self.state)[0], images, jnp.arange(len(images)) % CLASSES)
        return lambda: timed(maps, *arguments) / len(images)

    def end_to_end(self) -> dict[str, float]:
        """Images per second of whole epochs of a run, and what its result says of the time in steps."""
        with tempfile.TemporaryDirectory() as folder:
            for name in ("recorded", "run") if self.config["teacher"]["cache"] == "recording" else ("run",):
                workdir = os.path.join(folder, name)
                done = kd_jax.train(self.config, workdir, data=self.source, runs_folder=folder)
            ends = [line for line in metrics_file.read(done.folder) if "validation/accuracy" in line]
        count = (ends[-1]["step"] - ends[0]["step"]) * self.batch
        found = {"value": count / (ends[-1]["seconds"] - ends[0]["seconds"])}
        return found | {name: done.result[name] for name in ("images_per_second", "share_in_steps")}

    def _images(self, count: int) -> jax.Array:
        return jax.jit(self.made.components.prepare)(self.made.dataset.train.images[:count])


class Torch:
    """A process of launch/torch_peer.py."""

    def __init__(self, python: str, peer: str) -> None:
        command = [python, str(TOP / "launch" / "torch_peer.py"), peer]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.versions = self.ask("versions")

    def ask(self, do: str, **request: Any) -> dict[str, Any]:
        """What the process answers; raises RuntimeError where it failed."""
        assert self._process.stdin, "it is a pipe"
        assert self._process.stdout, "it is a pipe"
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps({"do": do, **request}), file=self._process.stdin, flush=True)
        answer = json.loads(self._process.stdout.readline() or '{"error": "it has ended"}')
        if "error" in answer:
            raise RuntimeError(f"PyTorch's process: {answer['error']}")
        return answer

    def open(self, step: Step, config: Mapping[str, Any], images: int, workers: int) -> dict[str, int]:
        """Builds the step of a config, and returns how many parameters its networks have."""
        terms = PUBLISHED["kd"].cifar100
        return self.ask(
            "open",
            student=step.student,
            teacher=step.teacher,
            width=step.width,
            size=step.size,
            classes=CLASSES,
            batch=config["train"]["batch_size"],
            evaluation_batch=config["evaluate"]["batch_size"],
            precision=config["precision"],
            temperature=terms["kd"]["temperature"],
            weights=[terms["cross_entropy"]["weight"], terms["kd"]["weight"]],
            images=images,
            workers=workers,
        )

    def step(self, count: int) -> float:
        """Seconds of a step, of `count`."""
        return self.ask("step", count=count)["seconds"] / count

    def close(self) -> None:
        """Ends the process."""
        with self._process:  # closes its pipes, and waits
            pass


def open_torch(python: str) -> dict[str, Torch]:
    """PyTorch's process of each peer; none, and a line says so, where the interpreter has no PyTorch."""
    if subprocess.run([python, "-c", "import torch"], stderr=subprocess.DEVNULL).returncode:
        print(f"{python} has no PyTorch, so its columns are left out; expected --torch=PYTHON", file=sys.stderr)
        return {}
    return {peer: Torch(python, peer) for peer in PEERS if peer != "kept" or jax.default_backend() == "cpu"}
