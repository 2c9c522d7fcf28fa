"""ResNets against PyTorch's, in float64: recorded by record_resnet.py, from weights that both derive alike."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from kd_jax import methods, models, optim, steps
from kd_jax.config import base
from kd_jax.types import Batch, Hyper, RawBatch
from tests.models import fixed

RECORDED = np.load(Path(__file__).parent / "resnet.npz")


def path(key):
    """Where kd_jax keeps what PyTorch calls `key`: ("params" or "batch_stats", modules..., name)."""
    *modules, name = key.split(".")
    is_norm = modules[-1].startswith("bn") or modules[-2:] == ["downsample", "1"]
    own = {"running_mean": "mean", "running_var": "var", "bias": "bias", "weight": "scale" if is_norm else "kernel"}[
        name
    ]
    if modules[0].startswith("layer"):
        modules = [f"{modules[0]}_{modules[1]}", "_".join(modules[2:])]
    return ("batch_stats" if own in ("mean", "var") else "params", *modules, own)


def to_flax(value):
    return value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T


def to_torch(value):
    return np.asarray(value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T)


def recorded_variables(name):
    """The weights and the running statistics of the recorded network in inference mode."""
    keys, padded = RECORDED[f"{name} keys"], RECORDED[f"{name} shapes"]
    shapes = {str(key): tuple(int(n) for n in shape if n) for key, shape in zip(keys, padded, strict=True)}
    return unflatten_dict({path(key): to_flax(fixed.weight(key, shape)) for key, shape in shapes.items()})


# They differ from ResNet-50 in their depth alone, and take several times as long.
DEEP = ("resnet101", "resnet152")
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in DEEP]


@pytest.mark.parametrize("name", [*(name for name in fixed.NAMES if name not in DEEP), *SLOW])
def test_stage_maps_embedding_and_logits_in_inference_mode_are_pytorchs(name):
    network = models.create(name, fixed.CLASSES)
    apply = jax.jit(
        lambda v, x: network.apply(v, x, train=False)[0], compiler_options={"xla_backend_optimization_level": 2}
    )
    variables = jax.tree.map(np.float32, recorded_variables(name))
    for size in fixed.SIZES:
        out = apply(variables, fixed.images("evaluation", 1, size).astype(np.float32))
        logits = RECORDED[f"{name} logits {size}"]
        np.testing.assert_allclose(out.logits, logits, atol=1e-4 * np.abs(logits).max())
        maps = [np.asarray(x, np.float64).transpose(0, 3, 1, 2) for x in out.features] + [np.float64(out.embedding)]
        for i, (x, expected) in enumerate(zip(maps, RECORDED[f"{name} maps {size}"], strict=True)):
            # The second of the three numbers is the map's norm.
            np.testing.assert_allclose(fixed.fingerprint(f"map {i}", x), expected, atol=1e-4 * expected[1])


def test_ten_sgd_steps_in_training_mode_end_where_pytorchs_do():
    with jax.enable_x64(True):
        network = models.create("resnet18", fixed.CLASSES, dtype=jnp.float64)
        start = recorded_variables("resnet18")
        stats = jax.tree.map(jnp.zeros_like, start["batch_stats"])
        ones = {path: leaf + (path[-1] == "var") for path, leaf in flatten_dict(stats).items()}
        options = base.get_config().optimizer.to_dict() | {
            "momentum": fixed.MOMENTUM,
            "schedule": "constant",
            "warmup_epochs": 0.0,
        }
        optimizer = optim.create(options, {"cross_entropy": {}}, steps=fixed.STEPS, steps_per_epoch=fixed.STEPS)

        def augment(rng, raw):
            return (Batch(raw.images, raw.labels, jax.nn.one_hot(raw.labels, fixed.CLASSES), raw.ids, raw.ids),)

        method = methods.create({"cross_entropy": {}})
        components = steps.Components(network, None, method, optimizer, augment, lambda x: x)
        params = {"student": start["params"], "cross_entropy": {}}
        state = steps.TrainState(
            step=jnp.int32(0),
            params=params,
            stats={"student": unflatten_dict(ones), "cross_entropy": {}},
            optimizer_state=optimizer.init(params),
            ema=None,
            rng=jax.random.key(0),
        )
        groups = ("student", "cross_entropy")
        hyper = Hyper(
            dict.fromkeys(groups, jnp.float64(fixed.LEARNING_RATE)),
            dict.fromkeys(groups, jnp.float64(fixed.WEIGHT_DECAY)),
            {},
        )
        step = jax.jit(
            functools.partial(steps.train_step, components=components, options=steps.StepOptions(1, fixed.STEPS)),
            compiler_options={"xla_backend_optimization_level": 2},  # five times as fast as at the tests' 0
        )
        losses = []
        for index in range(fixed.STEPS):
            raw = RawBatch(fixed.images(f"step {index}"), fixed.labels(f"step {index}"), jnp.arange(fixed.BATCH))
            state, scalars = step(state, {}, raw, hyper)
            losses.append(float(scalars["loss"]))
        variables = {"params": state.params["student"], "batch_stats": state.stats["student"]}
        logits = jax.jit(lambda v, x: network.apply(v, x, train=False)[0].logits)(variables, fixed.images("evaluation"))

    close = functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-6)
    close(losses, RECORDED["losses"])
    close(logits, RECORDED["logits"])
    flat = flatten_dict(variables)
    assert len(flat) == len(RECORDED["keys"])
    for key, expected in zip(RECORDED["keys"].tolist(), RECORDED["fingerprints"], strict=True):
        close(fixed.fingerprint(key, to_torch(flat[path(key)])), expected, err_msg=key)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("resnet18", 11_689_512),
        ("resnet34", 21_797_672),
        ("resnet50", 25_557_032),
        ("resnet101", 44_549_160),
        ("resnet152", 60_192_808),
    ],
)
def test_the_number_of_parameters_is_the_published_one(name, count):
    shapes = jax.eval_shape(models.create(name, 1000).init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    assert sum(x.size for x in jax.tree.leaves(shapes["params"])) == count
