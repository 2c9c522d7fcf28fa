"""Records the maps of the PyTorch package grad-cam, in float64, into gradcam.npz beside this file.

    python -m tests.record_gradcam

Recorded with grad-cam 1.5.7, torch 2.13.0 and torchvision 0.28.0 (CPU). The package brings a map to the size of the
image and to a range of [0, 1]; the map before that is recorded, and for one network what it becomes too.
"""

from pathlib import Path

import numpy as np
import torch

from tests.models import fixed, record_resnet

NAMES = ("resnet18", "resnet50")
STAGES = {-1: "layer4", -2: "layer3"}
COUNT, SIZE = 3, 96  # images, pixels
SCALED = (12, 7)  # width and height of a map that the package resized


def record(model: torch.nn.Module, name: str) -> dict[str, np.ndarray]:
    """The maps [COUNT, h, w] of both variants at the last two stages. Image i's are for the class that ranks i-th."""
    from pytorch_grad_cam import GradCAM, GradCAMPlusPlus
    from pytorch_grad_cam.utils.image import scale_cam_image
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    images = record_resnet.nchw("gradcam", COUNT, SIZE)
    with torch.no_grad():
        labels = model(images).argsort(-1, descending=True).diagonal().numpy()
    recorded = {f"{name} labels": labels}
    for variant, cam_type in (("gradcam", GradCAM), ("gradcam++", GradCAMPlusPlus)):
        for stage, layer in STAGES.items():
            with cam_type(model, [getattr(model, layer)]) as cam:
                seen = []
                original = cam.get_cam_image

                def get_cam_image(*arguments, original=original, seen=seen):
                    seen.append(original(*arguments))
                    return seen[-1]

                cam.get_cam_image = get_cam_image
                cam(images, [ClassifierOutputTarget(label) for label in labels])
            (raw,) = seen
            recorded[f"{name} {variant} {stage}"] = np.maximum(raw, 0)
    if name == NAMES[0]:
        recorded["scaled"] = scale_cam_image(recorded[f"{name} gradcam -2"], SCALED)
    return recorded


if __name__ == "__main__":
    library = record_resnet.declare_operators()
    from torchvision import models

    torch.set_default_dtype(torch.float64)
    recorded = {}
    for name in NAMES:
        model = getattr(models, name)(num_classes=fixed.CLASSES)
        record_resnet.load_weights(model, running=True)
        recorded |= record(model.eval(), name)
    np.savez_compressed(Path(__file__).parent / "gradcam.npz", **recorded)
