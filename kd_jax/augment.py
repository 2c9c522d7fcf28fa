"""Augmentation of images inside the step: crop and flip by one view number, RandAugment, resize, normalize, mixup.

A view is one of 9 x 9 crops of the image padded by an eighth of its size (4 of 32 pixels), flipped or not:
162 in all, so that what a teacher says of every view can be tabulated.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from kd_jax.errors import choose
from kd_jax.randaugment import randaugment
from kd_jax.types import Batch

OFFSETS = 9
VIEWS = OFFSETS * OFFSETS * 2
CENTER = (OFFSETS * (OFFSETS // 2) + OFFSETS // 2) * 2  # the view that is the image itself
KINDS = ("none", "crop", "crop_flip", "randaugment")  # the last is crop_flip, then RandAugment


def random_views(rng: jax.Array, count: int, kind: str) -> jax.Array:
    """[count] int32 view numbers, uniform over those of one of KINDS."""
    if choose("dataset.augment", kind, KINDS) == "none":
        return jnp.full((count,), CENTER, jnp.int32)
    views = jax.random.randint(rng, (count,), 0, VIEWS, jnp.int32)
    return views // 2 * 2 if kind == "crop" else views


def take_views(images: jax.Array, views: jax.Array) -> jax.Array:
    """Crops images [B, H, W, C] by their views [B], with zeros outside the image, and flips those with odd views."""
    height, width = images.shape[1:3]
    pads = (height // 8, width // 8)
    offsets = [jnp.asarray(np.round(np.arange(OFFSETS) * 2 * pad / (OFFSETS - 1)).astype(np.int32)) for pad in pads]
    padded = jnp.pad(images, ((0, 0), *((pad, pad) for pad in pads), (0, 0)))
    top, left = offsets[0][views // 2 // OFFSETS], offsets[1][views // 2 % OFFSETS]

    def crop(image: jax.Array, y: jax.Array, x: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice(image, (y, x, jnp.zeros_like(y)), (height, width, image.shape[-1]))

    cropped = jax.vmap(crop)(padded, top, left)
    return jnp.where((views % 2 == 1)[:, None, None, None], cropped[:, :, ::-1], cropped)


def prepare(images: jax.Array, *, size: int, mean: np.ndarray, std: np.ndarray, dtype=jnp.float32) -> jax.Array:
    """uint8 images [B, h, w, C] -> normalized [B, size, size, C] of `dtype`; mean and std [C] of pixels in [0, 1]."""
    compute = jnp.promote_types(dtype, jnp.float32)
    x = (images.astype(compute) / 255 - jnp.asarray(mean, compute)) / jnp.asarray(std, compute)
    if images.shape[1:3] != (size, size):
        x = jax.image.resize(x, (len(x), size, size, x.shape[-1]), "linear")
    return x.astype(dtype)


def mix(rng: jax.Array, batch: Batch, alpha: float) -> Batch:
    """Mixup of each image and its target with another of the batch, with one Beta(alpha, alpha) coefficient per batch.

    Zhang et al., "mixup: Beyond Empirical Risk Minimization", ICLR 2018. An image mixed with an unlabeled one is
    unlabeled; otherwise it keeps its label.
    """
    rng_share, rng_order = jax.random.split(rng)
    share = jax.random.beta(rng_share, alpha, alpha, dtype=batch.targets.dtype)
    order = jax.random.permutation(rng_order, len(batch.labels))
    labeled = (batch.labels >= 0) & (batch.labels[order] >= 0)
    images = share * batch.images + (1 - share) * batch.images[order]
    targets = (share * batch.targets + (1 - share) * batch.targets[order]) * labeled[:, None]
    return batch._replace(
        images=images.astype(batch.images.dtype),
        targets=targets.astype(batch.targets.dtype),
        labels=jnp.where(labeled, batch.labels, -1),
    )


def create(
    *,
    size: int,
    mean: np.ndarray,
    std: np.ndarray,
    num_classes: int,
    kind: str = "none",
    label_smoothing: float = 0.0,
    mixup: float = 0.0,
    dtype=jnp.float32,
) -> Callable[..., Batch]:
    """Returns augment(rng, images uint8 [B, h, w, C], labels [B], index [B]) -> Batch."""
    choose("dataset.augment", kind, KINDS)

    def augment(rng: jax.Array, images: jax.Array, labels: jax.Array, index: jax.Array) -> Batch:
        rng_view, rng_mix = jax.random.split(rng)
        views = random_views(rng_view, len(labels), kind)
        if kind != "none":
            images = take_views(images, views)
        if kind == "randaugment":
            images = randaugment(jax.random.fold_in(rng, 2), images)
        targets = jax.nn.one_hot(labels, num_classes, dtype=jnp.promote_types(dtype, jnp.float32))
        if label_smoothing:
            smooth = (1 - label_smoothing) * targets + label_smoothing / num_classes
            targets = jnp.where(labels[:, None] >= 0, smooth, 0.0)
        batch = Batch(prepare(images, size=size, mean=mean, std=std, dtype=dtype), labels, targets, index, views)
        return mix(rng_mix, batch, mixup) if mixup else batch

    return augment
