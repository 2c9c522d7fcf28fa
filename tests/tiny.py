"""The smallest runs that show a point, shared by the tests of the step and of the loop."""

import functools
import json
import os
import signal
from typing import Annotated

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from kd_jax import experiment, models, networks, steps, teachers
from kd_jax.config import base
from kd_jax.data import memory
from kd_jax.keys import WIDTH
from kd_jax.models import cifar_resnet, layers, resnet
from kd_jax.teachers.network import network_teacher
from kd_jax.types import Network, Outputs, Teacher

CLASSES = 4
IMAGES = 48
CHANGES = {
    "name": "tiny",
    "dataset.image_size": 8,
    "dataset.train_images": 64,
    "model.width": 1 / 8,
    "train.batch_size": 16,
    "train.epochs": 3,
    "log.every_steps": 2,
}
METHODS = {
    "cross_entropy": {"cross_entropy": {}},
    "kd": {"cross_entropy": {"weight": 0.1}, "kd": {"weight": 0.9}},
    "adversarial": {"cross_entropy": {}, "adversarial": {"weight": 0.3, "hidden": [8]}},
    # One of each kind: a loss, an adapter, a memory, a game. The game grows rounding fast on random images.
    "kinds": {
        "kd": {},
        "fitnet": {"stage": 1},
        "crd": {"features": 4, "negatives": 8},
        "adversarial": {"weight": 0.3, "hidden": [8]},
    },
}


def _resnet6(
    num_classes: int,
    *,
    stem: str = "cifar",
    width: Annotated[float, WIDTH] = 1.0,
    head: str = "linear",
    shortcut: str = "conv",
    frozen_backbone: bool = False,
    dtype=jnp.float32,
) -> Network:
    """A ResNet-8 without its last stage, which is traced and compiled in little more than half of the time."""
    stem_width, *stage_widths = layers.scaled(cifar_resnet.NARROW[:3], width)
    module = resnet.ResNet(
        num_classes,
        block=resnet.BasicBlock,
        stage_sizes=(1, 1),
        stem_width=stem_width,
        stage_widths=tuple(stage_widths),
        stem=stem,
        head=head,
        shortcut=shortcut,
        frozen_backbone=frozen_backbone,
        dtype=dtype,
    )
    return resnet.network(module, last="linear")


models.register("resnet6", _resnet6)


def _linear(num_classes: int, **_) -> Network:
    """Softmax regression on the pixels, which begins at zero."""

    def init(rng, images):
        params = {"kernel": jnp.zeros((images[0].size, num_classes)), "bias": jnp.zeros(num_classes)}
        return {"params": {"linear": params}, "batch_stats": {}}

    def apply(variables, images, *, train, rng=None, perturbations=None):
        linear = variables["params"]["linear"]
        logits = images.reshape(len(images), -1) @ linear["kernel"] + linear["bias"]
        return Outputs(logits=logits, embedding=logits), {}

    return Network(init, apply, head=("linear",), num_classes=num_classes)


models.register("linear", _linear)


def config(**overrides) -> dict:
    """A run of twelve steps, four to an epoch, on 8x8 digits; a key of `overrides` is "section.key"."""
    whole = base.get_config()
    whole.update_from_flattened_dict(CHANGES | {"model.name": "resnet6"} | overrides)
    return whole.to_dict()


def taught(**overrides) -> dict:
    """The same run, distilled from a network of its kind by KD."""
    whole = config(**overrides)
    shared = {key: value for key, value in overrides.items() if key in ("dataset.holdout", "dataset.train_images")}
    teacher = config(**shared, **{"name": "tiny-teacher", "model.width": 1 / 4})
    whole["teacher"] |= {"kind": "config", "config": teacher}
    whole["method"] = METHODS["kd"]
    return whole


def train(whole: dict, folder, name="run"):
    """Trains in a folder of runs: the state at the end, and result.json."""
    from kd_jax import runs, training  # Orbax is slow to import

    state = training.train(whole, folder / name, runs_folder=folder).state
    return state, runs.read_json(str(folder / name), "result.json")


def interrupt(monkeypatch, at, number=signal.SIGTERM):
    """Sends a signal after a step of training."""
    from kd_jax import training  # as above

    class Interrupted(training.Window):
        steps = 0

        def add(self, count, scalars):
            super().add(count, scalars)
            Interrupted.steps += count
            if Interrupted.steps == at:
                os.kill(os.getpid(), number)

    monkeypatch.setattr(training, "Window", Interrupted)


class Always(nn.Module):
    """A method that predicts class 2 for every image, with a logit of 9."""

    needs_teacher = False

    def __call__(self, context):
        return context.student.logits.mean()

    def predict(self, outputs):
        return jnp.zeros_like(outputs.logits).at[:, 2].set(9.0)


def _random_teacher(setting) -> Teacher:
    """A kind of teacher that nobody trained: a network of four channels with random weights."""
    config = {**setting.config, "model": {"name": "resnet6", "width": 1 / 4, "freeze": "none", "pretrained": ""}}
    network = networks.create(config, len(setting.dataset.class_names))
    images = jnp.zeros((2, 8, 8, 1), networks.PRECISIONS[config["precision"]])
    return Teacher(
        apply=network_teacher(network, setting.config["teacher"]["mode"]),
        load=lambda: (jax.jit(network.init)(jax.random.key(7), images), None),
        shapes=jax.eval_shape(network.init, jax.random.key(7), images),
        name="random",
        source="nowhere",
        network=network,
    )


teachers.register("random", _random_teacher, lambda section: {"random": 7}, listed=True)


def source(seed: int = 0):
    """Random images [48, 8, 8, 1] of four classes to train on, and eight to test on."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (IMAGES + 8, 8, 8, 1), dtype=np.uint8)
    labels = np.arange(IMAGES + 8, dtype=np.int32) % CLASSES
    return memory.from_arrays((images[:IMAGES], labels[:IMAGES]), (images[IMAGES:], labels[IMAGES:]))


SMALL = {
    "dataset.train_images": 0,
    "dataset.holdout": 0.0,
    "optimizer.learning_rate": 0.05,
    "optimizer.warmup_epochs": 0.0,
    "train.steps": 100,
    "teacher.kind": "random",
}


def create(terms: dict, *, devices: int = 1, **overrides) -> experiment.Experiment:
    """A ResNet-8 with two channels taught by one with four, on 48 random images."""
    whole = config(**SMALL | overrides) | {"method": terms}
    # Traced where it is compiled.
    return experiment.create(whole, source=source(), devices=jax.devices()[:devices], traced=False)


def trace(made: experiment.Experiment) -> None:
    """Traces the step, as `experiment.create` does where it is not told otherwise."""
    made.trace()


@functools.cache
def _compiled(key: str, x64: bool):
    """The experiment of `create`'s arguments, with its compiled functions."""
    terms, devices, overrides = json.loads(key)
    made = create(terms, devices=devices, **overrides)
    feed = made.feed()
    return (
        made,
        feed,
        made.jit(steps.init_state, fast_compile=True),
        made.jit(functools.partial(steps.train_steps, fetch=feed.fetch)),
        made.place(made.teacher.load()[0]),
    )


def forget() -> None:
    """Drops every compiled program: a process in which too many lie runs out of memory mappings, and ends."""
    _compiled.cache_clear()
    jax.clear_caches()


class Run:
    """A compiled run of a few steps. Runs of the same arguments share their programs."""

    def __init__(self, terms: dict, *, devices: int = 1, seed: int = 0, **overrides):
        key = json.dumps([terms, devices, overrides], sort_keys=True)
        x64 = bool(jax.config.jax_enable_x64)
        self.experiment, self.feed, init, self.compiled, self.teacher = _compiled(key, x64)
        self.hyper = self.experiment.place(self.experiment.hyper)
        self.state = init(np.uint32(seed), self.teacher, self.feed.example, self.feed.labels)
        self.scalars = None

    def rows(self, first: int, count: int = 1):
        """The ids [count, 16] of some steps: another order in each."""
        sharding = next(self.feed.calls(0))[0].sharding
        order = np.random.default_rng(1).permuted(np.tile(np.arange(IMAGES, dtype=np.int32), (100, 1)), axis=1)
        return jax.device_put(order[first : first + count, :16], sharding)

    def images(self, step: int):
        """The images [16, 8, 8, 1] of a step, before augmentation."""
        return self.experiment.dataset.train.images[np.asarray(self.rows(step)[0])]

    def call(self, rows):
        """Takes the steps of `rows` in one call, and returns the state."""
        self.state, self.scalars = self.compiled(
            self.state, self.teacher, self.feed.constants, rows, self.hyper, self.feed.labels
        )
        return self.state

    def step(self, count: int = 1):
        """Takes `count` steps, one per call, and returns the state."""
        for _ in range(count):
            self.call(self.rows(int(self.state.step) % 100))
        return self.state

    def lower(self):
        """The step, for its cost."""
        return self.compiled.lower(
            self.state, self.teacher, self.feed.constants, self.rows(0), self.hyper, self.feed.labels
        )

    @property
    def student(self):
        return {"params": self.state.params["student"], "batch_stats": self.state.stats["student"]}


def largest_difference(a, b) -> float:
    """The largest absolute difference between two trees of arrays."""
    differences = jax.tree.map(
        lambda x, y: np.abs(np.asarray(x, np.float64) - np.asarray(y, np.float64)).max(initial=0), a, b
    )
    return float(max(jax.tree.leaves(differences), default=0.0))


def identical(a, b) -> bool:
    """Whether two trees of arrays are the same bit for bit."""
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))
