"""The handwritten digits of scikit-learn: 1,797 grey images of 8x8 pixels that need no download."""

import hashlib

import numpy as np

from kd_jax.data import images
from kd_jax.data.split import Source, Split, with_test


def load(*, image_size: int = 8) -> Source:
    """Loads the digits, of which a fixed, class-balanced fifth is the test set.

    Args:
      image_size: in pixels; the images are 8x8, or smaller where this is below 8.

    Returns:
      Images [N, 8, 8, 1], grey, 0 to 255.
    """
    from sklearn.datasets import load_digits  # slow to import, and of no use to other sources

    digits = load_digits()
    pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)[..., None]
    labels = digits.target.astype(np.int32)
    fingerprint = hashlib.sha256(pixels.tobytes() + labels.astype("<i4").tobytes()).hexdigest()
    small = (images.shrink(images.to_image(image), image_size) for image in pixels)
    train, test = with_test(Split(images.stack(small, len(pixels), image_size), labels))
    return Source(train, test, tuple(map(str, digits.target_names)), fingerprint, skipped=0)
