"""Weights and images that PyTorch and JAX derive alike from names, so that none need to be stored."""

import zlib

import numpy as np

BATCH, SIZE, STEPS, CLASSES = 4, 40, 10, 10
SIZES = (128, 224)  # of the images in inference mode
NAMES = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
LEARNING_RATE, MOMENTUM, WEIGHT_DECAY = 0.05, 0.9, 5e-4


def weight(key: str, shape: tuple[int, ...]) -> np.ndarray:
    """The float64 value of a PyTorch key: random, a function of the key alone."""
    x = np.random.default_rng(zlib.crc32(key.encode())).standard_normal(shape)
    if len(shape) > 1:
        return x * np.sqrt(2 / np.prod(shape[1:]))
    if key.endswith("running_var"):
        return np.exp(0.2 * x)
    is_scale = key.endswith("weight")
    return 0.1 * x + is_scale


def images(name: str, count: int = BATCH, size: int = SIZE) -> np.ndarray:
    """[count, size, size, 3] float64."""
    return np.random.default_rng(zlib.crc32(name.encode())).standard_normal((count, size, size, 3))


def labels(name: str) -> np.ndarray:
    """[BATCH] int64."""
    return np.random.default_rng(zlib.crc32(name.encode())).integers(0, CLASSES, BATCH)


def fingerprint(key: str, value: np.ndarray) -> np.ndarray:
    """Three numbers of one scale that stand for an array: sum over root of size, norm, product with a random one."""
    probe = np.random.default_rng(zlib.crc32(b"probe " + key.encode())).standard_normal(value.shape)
    return np.array([value.sum() / np.sqrt(value.size), np.sqrt(np.square(value).sum()), (value * probe).sum()])
