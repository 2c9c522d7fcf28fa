"""Records what PyTorch's ResNets compute, in float64, into resnet.npz beside this file. The tests need no PyTorch.

    python -m tests.models.record_resnet

Recorded with torch 2.13.0 and torchvision 0.28.0 (CPU). Where torchvision's compiled operators are missing, its models
import all the same once the names of the operators are declared, as `declare_operators` does.
"""

import contextlib
import re
from importlib import metadata
from pathlib import Path

import numpy as np
import torch

from tests.models import fixed


def declare_operators() -> torch.library.Library | None:
    """Declares every operator that torchvision registers a shape function for, where its own cannot be loaded.

    That is so of a torchvision that was built for CUDA beside a PyTorch for CPUs. Keep what is returned.
    """
    folder = metadata.distribution("torchvision").locate_file("torchvision")
    with contextlib.suppress(OSError):
        torch.ops.load_library(str(next(folder.glob("_C*.so"))))
        return None
    library = torch.library.Library("torchvision", "DEF")
    source = (folder / "_meta_registrations.py").read_text()
    for name in set(re.findall(r'register_(?:meta|fake)\("(?:torchvision::)?(\w+)"', source)):
        library.define(f"{name}(Tensor x) -> Tensor")
    return library


def load_weights(model: torch.nn.Module, running: bool) -> dict[str, tuple[int, ...]]:
    """Gives a model the fixed weights, and with `running` the fixed running statistics; returns the shapes."""
    state = model.state_dict()
    shapes = {key: tuple(value.shape) for key, value in state.items() if not key.endswith("num_batches_tracked")}
    for key, shape in shapes.items():
        if running or "running" not in key:
            state[key] = torch.from_numpy(np.array(fixed.weight(key, shape)))
    model.load_state_dict(state)
    return shapes


def nchw(name: str, count: int = fixed.BATCH, size: int = fixed.SIZE) -> torch.Tensor:
    return torch.from_numpy(fixed.images(name, count, size).transpose(0, 3, 1, 2).copy())


def record_training(models) -> dict[str, np.ndarray]:
    """Ten SGD steps of a ResNet-18 in training mode."""
    model = models.resnet18(num_classes=fixed.CLASSES)
    shapes = load_weights(model, running=False)
    optimizer = torch.optim.SGD(
        model.parameters(), fixed.LEARNING_RATE, momentum=fixed.MOMENTUM, weight_decay=fixed.WEIGHT_DECAY
    )
    losses = []
    model.train()
    for step in range(fixed.STEPS):
        target = torch.from_numpy(fixed.labels(f"step {step}"))
        loss = torch.nn.functional.cross_entropy(model(nchw(f"step {step}")), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    model.eval()
    state = {key: value.numpy() for key, value in model.state_dict().items() if key in shapes}
    return {
        "losses": np.array(losses),
        "keys": np.array(list(shapes)),
        "fingerprints": np.stack([fixed.fingerprint(key, value) for key, value in state.items()]),
        "logits": model(nchw("evaluation")).detach().numpy(),
    }


def record_inference(models, name: str) -> dict[str, np.ndarray]:
    """What a network reports in inference mode, with running statistics that matter, and the shapes of its weights."""
    model = getattr(models, name)(num_classes=fixed.CLASSES)
    shapes = load_weights(model, running=True)
    padded = np.array([(*shape, *(0,) * (4 - len(shape))) for shape in shapes.values()])
    recorded = {f"{name} keys": np.array(list(shapes)), f"{name} shapes": padded}
    maps: list[np.ndarray] = []
    for stage in (model.maxpool, model.layer1, model.layer2, model.layer3, model.layer4):
        stage.register_forward_hook(lambda module, inputs, output: maps.append(output.numpy()))
    for size in fixed.SIZES:
        maps.clear()
        with torch.no_grad():
            recorded[f"{name} logits {size}"] = model.eval()(nchw("evaluation", 1, size)).numpy()
        maps.append(maps[-1].mean((2, 3)))  # the embedding
        recorded[f"{name} maps {size}"] = np.stack([fixed.fingerprint(f"map {i}", x) for i, x in enumerate(maps)])
    return recorded


if __name__ == "__main__":
    library = declare_operators()
    from torchvision import models

    torch.set_default_dtype(torch.float64)
    recorded = record_training(models)
    for name in fixed.NAMES:
        recorded |= record_inference(models, name)
    np.savez_compressed(Path(__file__).parent / "resnet.npz", **recorded)
