"""Results of a benchmark that are made up; no network is trained."""

import numpy as np

from kd_jax import config
from kd_jax.reporting.benchmark import Given

CONTROLS = config.experiment("benchmark").CONTROLS
METHODS = ("cross_entropy", "kd", "dkd", "dist", "mlkd")
PAIRS = ("resnet56-resnet20", "vgg13-vgg8")


def result(accuracy, *, best=None, on="validation", taught=0.724, errors=0.6, speed=1000.0, **others):
    """The result.json of a run; accuracies are fractions."""
    chosen = best and {"on": on, "step": 90, "epoch": 200.0, "test": {"accuracy": best}, "validation": None}
    return {
        "name": "x",
        "model": "resnet20",
        "teacher": taught and {"name": "teacher", "accuracy": taught},
        "test": {"accuracy": accuracy, "images": 10_000, "agreement_on_errors": errors},
        "selected": "both",
        "best": chosen,
        "test_every_epoch": on == "test",
        "epochs": 240.0,
        "checkpoint": 100,
        "parameters": 278_324,
        "method_parameters": 0,
        "train_images": 45_000,
        "images_per_second": speed,
        "peak_memory": 512 * 2**20,
        "seconds": 1.0,
        "device": "1 x H100",
    } | others


def random(methods=METHODS, pairs=PAIRS, seeds=3, on="validation", controls=CONTROLS):
    """Results of every row, with gains that are the methods' own and noise of 0.2 points."""
    rng = np.random.default_rng(0)
    gains = dict(zip(methods, 1.5 + rng.normal(size=len(methods)), strict=True)) | {"cross_entropy": 0.0, "kd": 1.5}
    gains |= {"teacher": 3.5, "again": 0.0, "random_teacher": -0.3, "kd_twice": 1.9}
    found = {}
    for method in [*methods, *controls]:
        for place, pair in enumerate(pairs):
            found[f"{pair},{method}"] = {
                seed: result(
                    (69.0 + place + gains[method] + rng.normal(scale=0.2)) / 100,
                    best=(69.2 + place + gains[method]) / 100,
                    on=on,
                    taught=None if method in ("cross_entropy", "again", "teacher") else 0.724 + place / 100,
                    errors=None if method in ("cross_entropy", "again", "teacher") else 0.55 + gains[method] / 40,
                    speed=1000 / (1 + len(method) / 10) + 30 * rng.normal(),
                    method_parameters=1000 * len(method) if method not in ("kd", "cross_entropy") else 0,
                )
                for seed in range(seeds)
            }
    return found


def given(results, seeds=3, preset="honest", **others):
    return Given("cifar100", results, range(seeds), CONTROLS, CONTROLS, preset, **others)
