"""Records what the networks of distillation benchmarks compute in PyTorch, in float64, into zoo.npz beside this file.

    python -m tests.models.record_zoo REPDISTILLER MDISTILLER

The arguments are checkouts of HobbitLong/RepDistiller at b84f547c5db6a35318d4671d7d5c4de74c822403, for all networks but
MobileNetV1, and of megvii-research/mdistiller at a08d46f10d6102bd6e3f258ca5ac880b020ea259. Recorded with torch 2.13.0
(CPU). The tests need no PyTorch.
"""

import importlib
import sys
from pathlib import Path

import numpy as np
import torch

from tests.models import fixed
from tests.models.record_resnet import load_weights, nchw

RESNETS = (
    "resnet8",
    "resnet14",
    "resnet20",
    "resnet32",
    "resnet44",
    "resnet56",
    "resnet110",
    "resnet8x4",
    "resnet32x4",
)
NAMES = {  # ours: RepDistiller's
    **{name: name for name in (*RESNETS, "vgg8", "vgg11", "vgg13", "vgg16", "vgg19")},
    "resnet50": "ResNet50",
    "mobilenetv2_half": "MobileNetV2",
    "shufflenetv1": "ShuffleV1",
    "shufflenetv2": "ShuffleV2",
}
WIDE = {  # depth and factor on the channels
    "wrn_16_1": (16, 1),
    "wrn_16_2": (16, 2),
    "wrn_16_8": (16, 8),
    "wrn_28_10": (28, 10),
    "wrn_40_1": (40, 1),
    "wrn_40_2": (40, 2),
    "wrn_40_4": (40, 4),
}


def record(name: str, model: torch.nn.Module, size: int, features) -> dict[str, np.ndarray]:
    """What a model reports in inference mode, what it says in training mode, and the shapes of its weights.

    Args:
      features: (images, whether before the last ReLU) -> ([map, ..., embedding], logits).
    """
    shapes = load_weights(model, running=True)
    padded = np.array([(*shape, *(0,) * (4 - len(shape))) for shape in shapes.values()])
    found = {"keys": np.array(list(shapes)), "shapes": padded}
    model.eval()
    with torch.no_grad():
        images = nchw("evaluation", 1, size)
        (*maps, embedding), logits = features(images, False)
        (*preactivations, _), _ = features(images, True)
        found |= {"logits": logits.numpy(), "embedding": embedding.numpy().reshape(1, -1)}
        for title, arrays in (("maps", maps), ("preactivations", preactivations)):
            prints = [fixed.fingerprint(f"map {i}", x.numpy()) for i, x in enumerate(arrays)]
            found[title] = np.stack(prints)
        model.train()
        found["training logits"] = features(nchw("training", fixed.BATCH, size), False)[1].numpy()
    state = {key: value.numpy() for key, value in model.state_dict().items() if "running" in key}
    found["statistics"] = np.stack([fixed.fingerprint(key, value) for key, value in state.items()])
    return {f"{name} {key}": value for key, value in found.items()}


def package(checkout: str, name: str):
    """A package of a checkout, imported from there."""
    sys.path.insert(0, checkout)
    for module in [key for key in sys.modules if key.split(".")[0] == name.split(".")[0]]:
        del sys.modules[module]
    return importlib.import_module(name)


if __name__ == "__main__":
    torch.set_default_dtype(torch.float64)
    repdistiller, mdistiller = sys.argv[1:]
    recorded = {}
    theirs = package(repdistiller, "models")
    models = {name: theirs.model_dict[of_theirs](num_classes=fixed.CLASSES) for name, of_theirs in NAMES.items()}
    for name, (depth, factor) in WIDE.items():
        models[name] = theirs.wrn.WideResNet(depth=depth, widen_factor=factor, num_classes=fixed.CLASSES)
    for name, model in models.items():
        recorded |= record(name, model, 32, lambda x, preact, m=model: m(x, is_feat=True, preact=preact))

    mobilenet = package(mdistiller, "mdistiller.models.imagenet.mobilenetv1").MobileNetV1()
    mobilenet.fc = torch.nn.Linear(1024, fixed.CLASSES)

    def features(images, preact):
        logits, found = mobilenet(images)
        return [*found["preact_feats" if preact else "feats"], found["pooled_feat"]], logits

    recorded |= record("mobilenetv1", mobilenet, 224, features)
    np.savez_compressed(Path(__file__).parent / "zoo.npz", **recorded)
