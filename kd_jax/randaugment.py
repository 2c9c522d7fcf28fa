"""RandAugment of image batches, inside jit.

Cubuk et al., "RandAugment: Practical Automated Data Augmentation with a Reduced Search Space", CVPR Workshops 2020. The
operations, their strengths at magnitudes 0 to 30 and the random signs are torchvision's; FixMatch draws the magnitude
too. Pixels are those of Pillow, by nearest neighbor, with zeros outside the image.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

SHIFT = 150 / 331  # at most, of the image's size


def randaugment(rng: jax.Array, images: jax.Array, *, operations: int = 2, magnitude: float = 10.0) -> jax.Array:
    """Applies random operations to every image, drawn uniformly with replacement.

    Args:
      images: [B, H, W, C] uint8, C 1 (gray) or 3 (RGB), H and W at least 3.
      operations: the number of operations per image.
      magnitude: of every operation, in [0, 30]. The sign of those with two directions is random.
    Returns:
      [B, H, W, C] uint8.
    """
    rng_choice, rng_sign = jax.random.split(rng)
    choices = jax.random.randint(rng_choice, (len(images), operations), 0, len(OPERATIONS))
    levels = jax.random.rademacher(rng_sign, choices.shape, jnp.float32) * magnitude / 30
    # A CPU is ten times faster when it computes only what was drawn. On an accelerator, and for images that are split
    # over devices, it is faster to apply all operations to all images and to select.
    return jax.lax.platform_dependent(images, choices, levels, cpu=_one_by_one, default=_all_at_once)


def _one_by_one(images: jax.Array, choices: jax.Array, levels: jax.Array) -> jax.Array:
    return jax.lax.map(lambda each: _apply(*each), (images, choices, levels))


def _all_at_once(images: jax.Array, choices: jax.Array, levels: jax.Array) -> jax.Array:
    return jax.vmap(_apply)(images, choices, levels)


def _apply(image: jax.Array, choices: jax.Array, levels: jax.Array) -> jax.Array:
    """The operations that `choices` [n] number, one after another, each at its level [n]."""
    for choice, level in zip(choices, levels, strict=True):
        image = jax.lax.switch(choice, list(OPERATIONS.values()), image, level)
    return image


def _auto_contrast(image: jax.Array) -> jax.Array:
    low, high = (f(image, (0, 1), keepdims=True).astype(jnp.float32) for f in (jnp.min, jnp.max))
    scale = 255 / jnp.maximum(high - low, 1)
    return jnp.where(high > low, _to_uint8(image * scale - low * scale), image)


def _equalize(image: jax.Array) -> jax.Array:
    def equalize_channel(channel: jax.Array) -> jax.Array:
        counts = jnp.zeros(256, jnp.int32).at[channel].add(1)
        step = (channel.size - counts[channel.max()]) // 255
        below = jnp.cumsum(counts) - counts
        table = jnp.minimum((step // 2 + below) // jnp.maximum(step, 1), 255).astype(jnp.uint8)
        return jnp.where(step > 0, table[channel], channel)

    return jax.vmap(equalize_channel, -1, -1)(image)


def _posterize(image: jax.Array, level: jax.Array) -> jax.Array:
    dropped_bits = jnp.round(4 * jnp.abs(level)).astype(jnp.uint8)
    return image >> dropped_bits << dropped_bits


def _blend(degenerate: jax.Array | int, image: jax.Array, level: jax.Array) -> jax.Array:
    return _to_uint8(degenerate + (1 + 0.9 * level) * (image.astype(jnp.float32) - degenerate))


def _gray(image: jax.Array) -> jax.Array:
    """Luma [H, W, 1] int32 of ITU-R BT.601, in the fixed-point arithmetic of Pillow."""
    x = image.astype(jnp.int32)
    luma = (x * np.array([[[19595, 38470, 7471]]], np.int32)).sum(-1, keepdims=True)
    return x if x.shape[-1] == 1 else (luma + 0x8000) >> 16


def _smooth(image: jax.Array) -> jax.Array:
    """The image [H, W, C] int32 smoothed by the filter (1 1 1; 1 5 1; 1 1 1) / 13, but for its border."""
    x = image.astype(jnp.int32)
    window = jnp.stack([jnp.roll(x, (i, j), (0, 1)) for i in (-1, 0, 1) for j in (-1, 0, 1)])
    return x.at[1:-1, 1:-1].set(((window.sum(0, dtype=jnp.int32) + 4 * x + 6) // 13)[1:-1, 1:-1])


def _to_uint8(x: jax.Array) -> jax.Array:
    return jnp.clip(x, 0, 255).astype(jnp.uint8)


def _affine(image: jax.Array, matrix: Sequence[Sequence[jax.typing.ArrayLike]]) -> jax.Array:
    """Takes for (x, y) the pixel that contains the matrix [2, 3] times (x, y, 1)."""
    height, width = image.shape[:2]
    y, x = jnp.arange(height)[:, None] + 0.5, jnp.arange(width)[None] + 0.5
    column, row = (jnp.floor(a * x + b * y + c).astype(jnp.int32) for a, b, c in matrix)
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    return jnp.where(inside[..., None], image[row, column], 0)


def _rotation(image: jax.Array, level: jax.Array) -> Sequence[Sequence[jax.Array]]:
    """The matrix of a rotation about the center, by up to 30 degrees."""
    y, x = (size / 2 for size in image.shape[:2])
    cos, sin = jnp.cos(level * np.pi / 6), jnp.sin(level * np.pi / 6)
    return (cos, -sin, x - cos * x + sin * y), (sin, cos, y - sin * x - cos * y)


# Each maps an image [H, W, C] uint8 and a level in [-1, 1] to an image; where there is one direction, |level| counts.
OPERATIONS: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "identity": lambda image, level: image,
    "auto_contrast": lambda image, level: _auto_contrast(image),
    "equalize": lambda image, level: _equalize(image),
    "posterize": _posterize,
    "solarize": lambda image, level: jnp.where(image < 255 * (1 - jnp.abs(level)), image, 255 - image),
    "brightness": lambda image, level: _blend(0, image, level),
    "color": lambda image, level: _blend(_gray(image), image, level),
    "contrast": lambda image, level: _blend(jnp.floor(_gray(image).mean() + 0.5), image, level),
    "sharpness": lambda image, level: _blend(_smooth(image), image, level),
    "shear_x": lambda image, level: _affine(image, ((1, 0.3 * level, 0), (0, 1, 0))),
    "shear_y": lambda image, level: _affine(image, ((1, 0, 0), (0.3 * level, 1, 0))),
    "translate_x": lambda image, level: _affine(image, ((1, 0, jnp.trunc(SHIFT * image.shape[1] * level)), (0, 1, 0))),
    "translate_y": lambda image, level: _affine(image, ((1, 0, 0), (0, 1, jnp.trunc(SHIFT * image.shape[0] * level)))),
    "rotate": lambda image, level: _affine(image, _rotation(image, level)),
}
