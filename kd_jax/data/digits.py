"""1,797 handwritten digits of 8x8 gray pixels, which come with the package and need no download.

Optical Recognition of Handwritten Digits (Alpaydin and Kaynak, UCI Machine Learning Repository, 1998; CC BY 4.0), the
part that scikit-learn has too.
"""

import hashlib
from pathlib import Path

import numpy as np

from kd_jax.data.split import Source, with_test
from kd_jax.types import Split

FILE = Path(__file__).with_suffix(".npz")


def load(*, image_size: int = 8) -> Source:
    """Loads the digits, of which a fixed, class-balanced fifth is the test set.

    Args:
      image_size: in pixels; the images are 8x8, or smaller where this is below 8.

    Returns:
      Images [N, 8, 8, 1], gray, 0 to 255.
    """
    with np.load(FILE) as digits:  # gray levels from 0 to 16
        pixels = np.rint(digits["images"] * (255 / 16)).astype(np.uint8)[..., None]
        labels = digits["labels"].astype(np.int32)
    fingerprint = hashlib.sha256(pixels.tobytes() + labels.astype("<i4").tobytes()).hexdigest()
    train, test = with_test(Split(_at_most(pixels, image_size), labels))
    return Source(train, test, tuple("0123456789"), fingerprint, skipped=0, name="digits")


def _at_most(pixels: np.ndarray, size: int) -> np.ndarray:
    if size >= pixels.shape[1]:
        return pixels
    from kd_jax.data import images  # of Pillow, which a light installation lacks

    small = (images.shrink_to(images.to_image(image), size) for image in pixels)
    return images.collect(small, len(pixels), size)
