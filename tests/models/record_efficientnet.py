"""Records what timm's EfficientNets, MobileNets and RegNets compute, in float64, into efficientnet.npz beside this.

    python -m tests.models.record_efficientnet

Recorded with torch 2.13.0 (CPU), torchvision 0.28.0 and timm 1.0.31. The tests need no PyTorch.
"""

from pathlib import Path

import numpy as np
import torch

from tests.models import fixed
from tests.models.record_resnet import declare_operators
from tests.models.record_zoo import record

SIZE = 72  # of images: on the way down its half, quarter and eighth are 36, 18 and 9
NAMES = (
    *("mobilenetv2_100", "mobilenetv3_small_100", "mobilenetv3_large_100", "efficientnet_b0"),
    *(f"{prefix}efficientnet_lite{i}" for prefix in ("", "tf_") for i in range(3)),
    *(f"regnety_{size}" for size in ("002", "004", "008", "016", "032", "160")),
)


def taps(model: torch.nn.Module) -> tuple[list[str], list[str], str]:
    """The modules that give the maps, those that read the preactivations ("": the map), and the last layer."""
    if not hasattr(model, "conv_stem"):
        stages = [list(getattr(model, f"s{i}").named_children()) for i in range(1, 5)]
        reading = [f"s{i}.{blocks[-1][0]}.act3" for i, blocks in enumerate(stages, start=1)]
        return ["stem", "s1", "s2", "s3", "s4"], ["stem.bn.act", *reading], "head.fc"
    maps = [info["module"] for info in model.feature_info if info["reduction"] > 2]
    reading = [""] * len(maps)
    if hasattr(model, "norm_head"):  # MobileNetV3
        reading[-1] = f"{maps[-1]}.0.bn1.act"
    return ["bn1", *maps], ["bn1.act", *reading], "classifier"


def watched(model: torch.nn.Module):
    """The `features` that `record` asks for."""
    maps, reading, last = taps(model)
    modules, seen = dict(model.named_modules()), {}
    for name in maps:
        modules[name].register_forward_hook(lambda m, i, output, name=name: seen.update({name: output.clone()}))
    for name in (*filter(None, reading), last):
        modules[name].register_forward_pre_hook(lambda m, i, name=name: seen.update({name: i[0].clone()}))

    def features(images, before):
        logits = model(images)
        chosen = [b if before and b else a for a, b in zip(maps, reading, strict=True)]
        return [*(seen[name] for name in chosen), seen[last]], logits

    return features


if __name__ == "__main__":
    library = declare_operators()
    import timm

    torch.set_default_dtype(torch.float64)
    recorded = {}
    for name in NAMES:
        model = timm.create_model(name, num_classes=fixed.CLASSES)
        recorded |= record(name, model, SIZE, watched(model))
        embedding = recorded[f"{name} embedding"]
        recorded[f"{name} embedding"] = fixed.fingerprint("embedding", embedding)
    np.savez_compressed(Path(__file__).parent / "efficientnet.npz", **recorded)
