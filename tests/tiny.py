"""The smallest networks and data that show a point, shared by the tests of the step."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from kd_jax import augment, methods, models, optim, sharding, steps, teachers
from kd_jax.config import base
from kd_jax.types import Hyper

CLASSES = 4
IMAGES = 48
PIXELS = {"size": 8, "mean": np.array([0.5]), "std": np.array([0.25])}
OPTIMIZER = base.get_config().optimizer.to_dict() | {"learning_rate": 0.05, "warmup_epochs": 0.0}
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
    "rkd_distance": {"cross_entropy": {}, "rkd_distance": {"weight": 25.0}},
    "rkd_angle": {"cross_entropy": {}, "rkd_angle": {"weight": 50.0}},
    "adversarial": {"cross_entropy": {}, "adversarial": {"weight": 0.3, "hidden": [8]}},
    "wasserstein": {"cross_entropy": {}, "adversarial": {"objective": "wasserstein", "weight": 0.3, "hidden": [8]}},
    "gradcam_alignment": {"cross_entropy": {}, "gradcam_alignment": {"stage": -2}},
    "turns": {"cross_entropy": {}, "adversarial": {"weight": 0.3, "hidden": [8], "turns": [3, 4]}},
}


def config(**overrides) -> dict:
    """A run of twelve steps, four to an epoch, on 8x8 digits; a key of `overrides` is "section.key"."""
    whole = base.get_config()
    whole.update_from_flattened_dict(CHANGES | overrides)
    return whole.to_dict()


def taught(**overrides) -> dict:
    """The same run, distilled from a network of its kind by KD."""
    whole = config(**overrides)
    shared = {key: value for key, value in overrides.items() if key in ("dataset.holdout", "dataset.train_images")}
    teacher = config(**shared, **{"name": "tiny-teacher", "model.width": 1 / 4})
    whole["teacher"] |= {"kind": "config", "config": teacher}
    whole["method"] = METHODS["kd"]
    return whole


def data(labelled: int = IMAGES) -> steps.Images:
    """Random images [48, 8, 8, 1] of four classes, of which the first `labelled` have a label."""
    rng = np.random.default_rng(0)
    labels = np.arange(IMAGES, dtype=np.int32) % CLASSES
    labels[labelled:] = -1
    return steps.Images(rng.integers(0, 256, (IMAGES, 8, 8, 1), dtype=np.uint8), labels)


def parts(
    terms: dict,
    *,
    devices: int = 1,
    dtype=jnp.float32,
    kind: str = "crop",
    mixup: float = 0.0,
    label_smoothing: float = 0.0,
    model: dict | None = None,
    optimizer: dict | None = None,
    length: int = 100,
    freeze: str = "none",
    clip: float = 0.0,
    **others,
) -> steps.Parts:
    """A ResNet-8 with two channels taught by one with four."""
    options = OPTIMIZER | (optimizer or {})
    mesh = sharding.mesh(jax.devices()[:devices])
    create = functools.partial(models.create, "resnet8", CLASSES, dtype=dtype)
    return steps.Parts(
        student=create(width=1 / 8, frozen_trunk=freeze == "encoder", **(model or {})),
        teacher=teachers.live(create(width=1 / 4)),
        method=methods.create(terms),
        optimizer=optim.create(options, options["method"], steps=length, steps_per_epoch=3, freeze=freeze, clip=clip),
        augment=augment.create(
            num_classes=CLASSES, kind=kind, mixup=mixup, label_smoothing=label_smoothing, dtype=dtype, **PIXELS
        ),
        prepare=functools.partial(augment.prepare, dtype=dtype, **PIXELS),
        batch_sharding=sharding.split(mesh),
        teacher_network=create(width=1 / 4),
        **others,
    )


def hyper(made: steps.Parts, learning_rate: float = 0.05) -> Hyper:
    weights = {term: jnp.float32(weight) for term, weight in made.method.weights.items()}
    return Hyper(jnp.float32(learning_rate), jnp.float32(5e-4), jnp.float32(1e-3), weights)


class Run:
    """A compiled run of a few steps, on the devices of its parts."""

    def __init__(self, made: steps.Parts, *, dtype=jnp.float32, labelled: int = IMAGES, seed: int = 0):
        everywhere = sharding.replicated(made.batch_sharding.mesh)
        place = functools.partial(jax.device_put, device=everywhere)
        teacher = models.create("resnet8", CLASSES, width=1 / 4, dtype=dtype)
        self.data = place(data(labelled))
        self.teacher = place(jax.jit(teacher.init)(jax.random.key(7), jnp.zeros((2, 8, 8, 1), dtype)))
        self.hyper = place(hyper(made))
        init = jax.jit(functools.partial(steps.init_state, parts=made), out_shardings=everywhere)
        self.state = init(np.uint32(seed), self.teacher, self.data)
        self._order_sharding = jax.sharding.NamedSharding(
            made.batch_sharding.mesh, jax.sharding.PartitionSpec(None, sharding.AXIS)
        )
        self.compiled = jax.jit(functools.partial(steps.train_steps, parts=made), out_shardings=everywhere)
        self.scalars = None

    def order(self, first: int, count: int = 1, batch_size: int = 16):
        order = np.random.default_rng(1).permuted(np.tile(np.arange(IMAGES, dtype=np.int32), (100, 1)), axis=1)
        return jax.device_put(order[first : first + count, :batch_size], self._order_sharding)

    def step(self, count: int = 1, batch_size: int = 16):
        """Takes `count` steps, one per call, and returns the state."""
        for _ in range(count):
            order = self.order(int(self.state.step), batch_size=batch_size)
            self.state, self.scalars = self.compiled(self.state, self.teacher, self.data, order, self.hyper)
        return self.state


def largest_difference(a, b) -> float:
    """The largest absolute difference between two trees of arrays."""
    differences = jax.tree.map(
        lambda x, y: np.abs(np.asarray(x, np.float64) - np.asarray(y, np.float64)).max(initial=0), a, b
    )
    return float(max(jax.tree.leaves(differences), default=0.0))


def identical(a, b) -> bool:
    """Whether two trees of arrays are the same bit for bit."""
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))
