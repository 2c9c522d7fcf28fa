"""Records what timm's ConvNeXts, ViTs and DeiTs compute, in float64, into timm.npz beside this file.

    python -m tests.models.record_timm

Recorded with torch 2.13.0 (CPU) and timm 1.0.31. The tests need no PyTorch.
"""

import functools
from pathlib import Path

import numpy as np
import torch

from tests.models import fixed
from tests.models.record_resnet import declare_operators, load_weights, nchw

SIZES = ("tiny", "small", "base")
CONVNEXTS = ("convnext_atto", "convnext_tiny")
TRANSFORMERS = (
    *(f"{kind}_{size}_patch16_224" for kind in ("vit", "deit") for size in SIZES),
    *(f"deit_{size}_distilled_patch16_224" for size in SIZES),
)
SIZE = 224
BLOCKS = (3, 6, 9, 11)  # whose inputs are maps of a transformer


def collect(model: torch.nn.Module) -> list[np.ndarray]:
    """What the next stage reads, of every stage: filled with maps [B, c, h, w] when the model runs."""
    maps: list[np.ndarray] = []
    if hasattr(model, "stages"):
        for stage in (model.stem, *model.stages):
            stage.register_forward_hook(lambda module, inputs, output: maps.append(output.numpy()))
        return maps

    def patches(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        tokens = inputs[0][:, model.num_prefix_tokens :]
        side = round(tokens.shape[1] ** 0.5)
        maps.append(tokens.transpose(1, 2).reshape(len(tokens), -1, side, side).numpy())

    for i in (0, *BLOCKS):
        model.blocks[i].register_forward_pre_hook(patches)
    return maps


def record(name: str, model: torch.nn.Module) -> dict[str, np.ndarray]:
    """What a model reports in inference mode, what it says in training mode, and the shapes of its weights."""
    shapes = load_weights(model, running=True)
    padded = np.array([(*shape, *(0,) * (4 - len(shape))) for shape in shapes.values()])
    found = {"keys": np.array(list(shapes)), "shapes": padded}
    maps, embeddings = collect(model), []
    head = model.head.fc if hasattr(model, "stages") else model.head
    head.register_forward_pre_hook(lambda module, inputs: embeddings.append(inputs[0].numpy()))
    with torch.no_grad():
        found["logits"] = model.eval()(nchw("evaluation", 1, SIZE)).numpy()
        found["embedding"] = embeddings[0]
        found["maps"] = np.stack([fixed.fingerprint(f"map {i}", x) for i, x in enumerate(maps)])
        model.train()
        if "distilled" in name:
            model.set_distilled_training()
        said = model(nchw("training", fixed.BATCH, SIZE))
        found["training logits"] = np.stack([x.numpy() for x in said] if "distilled" in name else [said.numpy()])
    return {f"{name} {key}": value for key, value in found.items()}


if __name__ == "__main__":
    library = declare_operators()
    import timm

    torch.set_default_dtype(torch.float64)
    create = functools.partial(timm.create_model, pretrained=False)
    recorded, counts = {}, []
    for name in (*CONVNEXTS, *TRANSFORMERS):
        recorded |= record(name, create(name, num_classes=fixed.CLASSES))
        numbers = [sum(x.numel() for x in create(name, num_classes=k).parameters()) for k in (1000, fixed.CLASSES)]
        counts.append(numbers)
    recorded |= {"counts": np.array(counts)}  # of 1000 and of fixed.CLASSES classes
    # Other sizes of the images: one that no stride divides, and one for other patches.
    for key, size, options in (("convnext_atto", 75, {}), ("vit_tiny_patch16_224", 32, {"patch_size": 4})):
        options |= {"img_size": size} if options else {}
        model = create(key, num_classes=fixed.CLASSES, **options).eval()
        shapes = load_weights(model, running=True)
        with torch.no_grad():
            recorded[f"{key} logits {size}"] = model(nchw("evaluation", 1, size)).numpy()
        if options:
            recorded[f"{key} positions {size}"] = np.array(shapes["pos_embed"])
    np.savez_compressed(Path(__file__).parent / "timm.npz", **recorded)
