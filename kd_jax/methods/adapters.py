"""Adapters that bring what the student reports to the shape of what its teacher reports."""

from typing import Any

import flax.linen as nn
import jax

from kd_jax.losses.arrays import average_down
from kd_jax.models.layers import BatchNorm
from kd_jax.types import Array

LARGEST_KERNEL = 5  # of a regressor


class Regressor(nn.Module):
    """A convolution, batch norm and ReLU from maps [B, h, w, c] to `shape` (i, j, d), as RepDistiller chooses it.

    Half the size: 3x3 with a stride of 2. Twice: 4x4, transposed, with a stride of 2. A little smaller: a kernel of the
    difference, without padding. Any other size is resized first, and the kernel is 1x1.
    """

    shape: tuple[int, ...]  # (i, j, d)
    activation: bool = True  # False: the ReLU is left out

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        *size, features = self.shape
        common: dict[str, Any] = {"use_bias": False, "param_dtype": x.dtype, "name": "conv"}
        if all(own == 2 * other for own, other in zip(x.shape[1:3], size, strict=True)):
            x = nn.Conv(features, (3, 3), strides=2, padding=1, **common)(x)
        elif all(2 * own == other for own, other in zip(x.shape[1:3], size, strict=True)):
            x = nn.ConvTranspose(features, (4, 4), strides=(2, 2), padding="SAME", **common)(x)
        else:
            kernel = tuple(1 + own - other for own, other in zip(x.shape[1:3], size, strict=True))
            if not all(1 <= length <= LARGEST_KERNEL for length in kernel):
                x, kernel = resized(x, size), (1, 1)
            x = nn.Conv(features, kernel, padding="VALID", **common)(x)
        x = BatchNorm(name="bn")(x, train=train)
        return nn.relu(x) if self.activation else x


def resized(x: Array, size: Any) -> Array:
    """Maps [B, h, w, c] at [B, *size, c]: averaged where that is smaller, interpolated linearly where it is larger."""
    x = average_down(x, tuple(map(min, x.shape[1:3], size)))
    return jax.image.resize(x, (len(x), *size, x.shape[-1]), "linear")
