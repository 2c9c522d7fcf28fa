"""Programs of small networks with random weights, and how each format is checked on them."""

import functools

import jax
import numpy as np

from kd_jax import exporting, models

SIZE = 32
FAMILIES = {
    "resnet18": {"width": 1 / 8},
    "resnet8": {"width": 1 / 4},
    "wrn_16_1": {"width": 1 / 2},
    "vgg8": {"width": 1 / 8},
    "mobilenetv1": {"width": 1 / 4},
    "mobilenetv2_100": {"width": 1 / 4},
    "mobilenetv3_small_100": {"width": 1 / 2},
    "shufflenetv1": {"width": 1 / 4},
    "shufflenetv2": {"width": 1 / 4},
    "efficientnet_b0": {"width": 1 / 4},
    "tf_efficientnet_lite0": {"width": 1 / 4},
    "regnety_002": {"width": 1 / 2},
    "convnext_atto": {"width": 1 / 4},
    "vit_tiny_patch16_224": {"width": 1 / 3, "depth": 5, "patch": 8},
    "deit_tiny_distilled_patch16_224": {"width": 1 / 3, "depth": 5, "patch": 8},
}
ABOUT = {"class_names": ["a", "b"], "mean": [0.5], "std": [0.25], "preprocess": "inside"}


def logits(name: str, size: int = SIZE, channels: int = 3, **options):
    """The function of a network with random weights and statistics, of pixels [B, size, size, channels]."""
    network = models.create(name, 10, **options)
    shapes = jax.eval_shape(network.init, jax.random.key(0), jax.ShapeDtypeStruct((2, size, size, channels), "float32"))
    rng = np.random.default_rng(0)

    def random(shape):
        if len(shape.shape) == 1:  # scales and variances are positive
            return rng.uniform(0.5, 1.5, shape.shape).astype("float32")
        return (rng.standard_normal(shape.shape) / np.sqrt(max(np.prod(shape.shape[:-1]), 1))).astype("float32")

    variables = jax.tree.map(random, shapes)
    return lambda x: network.apply(variables, x.astype("float32") / 255 - 0.5, train=False)[0].logits


@functools.cache
def program(name: str = "resnet8", size: int = 8, channels: int = 1) -> exporting.Program:
    options = FAMILIES[name] if name != "resnet8" else {"width": 1 / 8}
    return exporting.Program(logits(name, size, channels, **options), (size, size, channels), "uint8", ABOUT)


def images(of: exporting.Program, count: int = 5) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (count, *of.shape), np.uint8)
