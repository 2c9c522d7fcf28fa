"""What happens to images inside the step: crop and flip by one number, mixup, and for each network resize, normalize.

A crop is one of 9 x 9 crops of the image padded by an eighth of its size (4 of 32 pixels), flipped or not:
162 in all, so that what a teacher says of each can be tabulated.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from kd_jax.errors import choose
from kd_jax.randaugment import randaugment
from kd_jax.types import Array, Batch, RawBatch

OFFSETS = 9
CROPS = OFFSETS * OFFSETS * 2
CENTER = (OFFSETS * (OFFSETS // 2) + OFFSETS // 2) * 2  # the crop that is the image itself
KINDS = ("none", "crop", "crop_flip", "randaugment")  # the last is crop_flip, then RandAugment


def random_crops(rng: Array, count: int, kind: str) -> Array:
    """[count] int32 crop numbers, uniform over those of one of KINDS."""
    if choose("dataset.augment", kind, KINDS) == "none":
        return jnp.full((count,), CENTER, jnp.int32)
    crops = jax.random.randint(rng, (count,), 0, CROPS, jnp.int32)
    return crops // 2 * 2 if kind == "crop" else crops


def listed(kinds: Sequence[str]) -> tuple[int, ...] | None:
    """All numbers that `random_crops` draws for some of KINDS; None where more than a crop is drawn."""
    if "randaugment" in kinds:
        return None
    if "crop_flip" in kinds:
        return tuple(range(CROPS))
    return tuple(range(0, CROPS, 2)) if "crop" in kinds else (CENTER,)


def take_crops(images: Array, crops: Array) -> Array:
    """Crops images [B, H, W, C] as `crops` [B] say, with zeros beyond the border, and flips the odd ones.

    A TPU gathers pixels in a loop over the images, and takes 30 times longer for it than to choose among the nine
    offsets of each axis. A CPU chooses 17 times slower than it gathers.
    """
    return jax.lax.platform_dependent(images, crops, tpu=_crops_by_choice, default=_crops_by_gather)


def _crops_by_gather(images: Array, crops: Array) -> Array:
    rows, columns = (
        jnp.asarray(offsets)[number][:, None] + jnp.arange(size)
        for offsets, number, size in zip(_offsets(images), _numbers(crops), images.shape[1:3], strict=True)
    )
    columns = jnp.where((crops % 2 == 1)[:, None], columns[:, ::-1], columns)
    pads = [(size // 8,) * 2 for size in images.shape[1:3]]
    padded = jnp.pad(images, ((0, 0), *pads, (0, 0)))
    return padded[jnp.arange(len(images))[:, None, None], rows[:, :, None], columns[:, None]]


def _crops_by_choice(images: Array, crops: Array) -> Array:
    x = images
    for axis, offsets, number in zip((1, 2), _offsets(images), _numbers(crops), strict=True):
        pads = [(images.shape[i] // 8,) * 2 if i == axis else (0, 0) for i in range(4)]
        padded = jnp.pad(x, pads)
        moved = [jax.lax.slice_in_dim(padded, start, start + x.shape[axis], axis=axis) for start in offsets.tolist()]
        x = jax.lax.select_n(jnp.broadcast_to(number[:, None, None, None], x.shape), *moved)
    return jnp.where((crops % 2 == 1)[:, None, None, None], x[:, :, ::-1], x)


def _offsets(images: Array) -> tuple[np.ndarray, ...]:
    """The offsets [9] of rows and of columns in the padded image."""
    pads = [size // 8 for size in images.shape[1:3]]
    return tuple(np.round(np.arange(OFFSETS) * 2 * pad / (OFFSETS - 1)).astype(np.int32) for pad in pads)


def _numbers(crops: Array) -> tuple[Array, Array]:
    """Which of the offsets [B] the rows and the columns of each image have."""
    return crops // 2 // OFFSETS, crops // 2 % OFFSETS


def prepare(images: Array, *, size: int, mean: np.ndarray, std: np.ndarray, dtype: DTypeLike = jnp.float32) -> Array:
    """Pixels [B, h, w, C], from 0 to 255 -> normalized images [B, size, size, C] of `dtype`.

    `mean` and `std` [C] are of pixels in [0, 1].
    """
    compute = jnp.promote_types(dtype, jnp.float32)
    x = (images.astype(compute) / 255 - jnp.asarray(mean, compute)) / jnp.asarray(std, compute)
    if images.shape[1:3] != (size, size):
        x = jax.image.resize(x, (len(x), size, size, x.shape[-1]), "linear")
    return x.astype(dtype)


def mix(rng: Array, batch: Batch, alpha: float) -> Batch:
    """Mixup of each image and its target with another of the batch, with one Beta(alpha, alpha) coefficient per batch.

    Zhang et al., "mixup: Beyond Empirical Risk Minimization", ICLR 2018. An image mixed with an unlabeled one is
    unlabeled; otherwise it keeps its label.
    """
    rng_share, rng_order = jax.random.split(rng)
    share = jax.random.beta(rng_share, alpha, alpha, dtype=batch.targets.dtype)
    order = jax.random.permutation(rng_order, len(batch.labels))
    labeled = (batch.labels >= 0) & (batch.labels[order] >= 0)
    images = share * batch.images + (1 - share) * batch.images[order]  # pixels, which are numbers from here on
    targets = (share * batch.targets + (1 - share) * batch.targets[order]) * labeled[:, None]
    return batch._replace(
        images=images,
        targets=targets.astype(batch.targets.dtype),
        labels=jnp.where(labeled, batch.labels, -1),
    )


def create(
    *,
    num_classes: int,
    kinds: Sequence[str] = ("none",),
    label_smoothing: float = 0.0,
    mixup: float = 0.0,
    dtype: DTypeLike = jnp.float32,
) -> Callable[[Array, RawBatch], tuple[Batch, ...]]:
    """Returns augment(rng, raw) -> one Batch of pixels for each of `kinds`, the views of the images.

    Mixup takes the same pairs and shares in every view. `dtype` is that of the computation, and of the targets where it
    is wider than float32.
    """
    for kind in kinds:
        choose("dataset.augment", kind, KINDS)

    def augment(rng: Array, raw: RawBatch) -> tuple[Batch, ...]:
        rng_crop, rng_mix = jax.random.split(rng)
        return tuple(
            view(kind, rng_crop if i == 0 else jax.random.fold_in(rng_crop, i), rng_mix, raw)
            for i, kind in enumerate(kinds)
        )

    def view(kind: str, rng: Array, rng_mix: Array, raw: RawBatch) -> Batch:
        crops = random_crops(rng, len(raw.labels), kind)
        images = raw.images if kind == "none" else take_crops(raw.images, crops)
        if kind == "randaugment":
            images = randaugment(jax.random.fold_in(rng, 1), images)
        targets = jax.nn.one_hot(raw.labels, num_classes, dtype=jnp.promote_types(dtype, jnp.float32))
        if label_smoothing:
            smooth = (1 - label_smoothing) * targets + label_smoothing / num_classes
            targets = jnp.where(raw.labels[:, None] >= 0, smooth, 0.0)
        batch = Batch(images, raw.labels, targets, raw.ids, crops)
        return mix(rng_mix, batch, mixup) if mixup else batch

    return augment
