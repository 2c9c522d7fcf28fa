"""What happens to images inside the step: crops, flips, cutout, and for each network resizing and normalization.

A crop is one of 9 x 9 crops of the image padded by an eighth of its size (4 of 32 pixels), flipped or not:
162 in all, so that what a teacher says of each can be tabulated.
"""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from kd_jax import mixing
from kd_jax.errors import choose
from kd_jax.randaugment import randaugment
from kd_jax.types import Array, Batch, RawBatch

OFFSETS = 9
CROPS = OFFSETS * OFFSETS * 2
CENTER = (OFFSETS * (OFFSETS // 2) + OFFSETS // 2) * 2  # the crop that is the image itself
# "randaugment" is crop_flip, then RandAugment; "resized_crop" has its own crop and flip.
KINDS = ("none", "crop", "crop_flip", "randaugment", "resized_crop")
LISTED = ("none", "crop", "crop_flip")  # whose views are crops that have a number, and nothing else
LOG_RATIO, TRIES = math.log(4 / 3), 10  # of a resized crop: the aspect at most, and draws until one fits


def random_crops(rng: Array, count: int, kind: str) -> Array:
    """[count] int32 crop numbers, uniform over those of one of KINDS."""
    if choose("dataset.augment", kind, KINDS) in ("none", "resized_crop"):
        return jnp.full((count,), CENTER, jnp.int32)
    crops = jax.random.randint(rng, (count,), 0, CROPS, jnp.int32)
    return crops // 2 * 2 if kind == "crop" else crops


def listed(kinds: Sequence[str]) -> tuple[int, ...] | None:
    """All numbers that `random_crops` draws for some of KINDS; None where more than a crop is drawn."""
    if not set(kinds) <= set(LISTED):
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
        x = jax.image.resize(x, (x.shape[0], size, size, x.shape[-1]), "linear")
    return x.astype(dtype)


def resized_crops(rng: Array, images: Array, least_area: float) -> Array:
    """A random rectangle of each image, enlarged to the whole, and flipped or not.

    As in torchvision's RandomResizedCrop, which is that of Szegedy et al., "Going Deeper with Convolutions", CVPR 2015.

    Args:
      images: [B, H, W, C].
      least_area: see `rectangles`.
    Returns:
      [B, H, W, C] float32.
    """
    rng_rectangle, rng_flip = jax.random.split(rng)
    count, *lengths = images.shape[:3]
    x = enlarge(images, *rectangles(rng_rectangle, count, lengths, least_area))
    flipped = jax.random.bernoulli(rng_flip, shape=(count,))
    return jnp.where(flipped[:, None, None, None], x[:, :, ::-1], x)


def rectangles(rng: Array, count: int, lengths: Sequence[int], least_area: float) -> tuple[Array, Array]:
    """Random rectangles in images of `lengths` (H, W).

    The area is a share of the image's, uniform in [least_area, 1], the aspect ratio log-uniform in [3/4, 4/3]. Of ten
    draws the first that fits counts, and if none does, the whole image.

    Returns:
      (first row and column [B, 2], height and width [B, 2]), whole numbers in float32.
    """
    rng_area, rng_ratio, rng_place = jax.random.split(rng, 3)
    area = lengths[0] * lengths[1] * jax.random.uniform(rng_area, (TRIES, count), minval=least_area)
    ratio = jnp.exp(jax.random.uniform(rng_ratio, (TRIES, count), minval=-LOG_RATIO, maxval=LOG_RATIO))
    sides = jnp.round(jnp.sqrt(area[..., None] * jnp.stack([1 / ratio, ratio], -1)))
    whole = jnp.asarray(lengths, sides.dtype)
    fits = ((sides >= 1) & (sides <= whole)).all(-1)
    size = jnp.where(fits.any(0)[:, None], sides[fits.argmax(0), jnp.arange(count)], whole)
    return jnp.floor(jax.random.uniform(rng_place, (count, 2)) * (whole - size + 1)), size


def enlarge(images: Array, first: Array, size: Array) -> Array:
    """The `rectangles` (first [B, 2], size [B, 2]) of images, interpolated linearly to the size of the images."""
    x = images.astype(jnp.float32)
    for i, product in enumerate(("bts,bswc->btwc", "bts,bhsc->bhtc")):  # of matrices, as a TPU gathers slowly
        length, own = images.shape[1 + i], size[:, i, None]
        at = (jnp.arange(length) + 0.5) * own / length - 0.5  # in the rectangle, [B, length]
        at = first[:, i, None] + jnp.clip(at, 0, own - 1)
        weights = jnp.maximum(0, 1 - jnp.abs(at[:, :, None] - jnp.arange(length)))  # [B, to, from]
        x = jnp.einsum(product, weights, x, precision="highest")
    return x


def cutout(rng: Array, images: Array, share: float, fill: np.ndarray) -> Array:
    """A square of each image filled: centered at any of its pixels, and cut off at the border.

    DeVries and Taylor, "Improved Regularization of Convolutional Neural Networks with Cutout", 2017.

    Args:
      images: [B, H, W, C].
      share: of the square's side by the image's, above 0.
      fill: [C], in the scale of the images.
    """
    count, *lengths = images.shape[:3]
    inside = jnp.ones((count, 1, 1), bool)
    for i, length in enumerate(lengths):
        center = jax.random.randint(jax.random.fold_in(rng, i), (count, 1), 0, length)
        side = round(share * length)
        at = jnp.arange(length) - center + side // 2
        within = (at >= 0) & (at < side)
        inside = inside & (within[:, :, None] if i == 0 else within[:, None, :])
    return jnp.where(inside[..., None], jnp.asarray(fill).astype(images.dtype), images)


def create(
    *,
    num_classes: int,
    kinds: Sequence[str] = ("none",),
    label_smoothing: float = 0.0,
    least_area: float = 0.08,
    cutout_share: float = 0.0,
    fill: np.ndarray | None = None,
    mixup: float = 0.0,
    cutmix: float = 0.0,
    class_weights: np.ndarray | None = None,
    dtype: DTypeLike = jnp.float32,
) -> Callable[[Array, RawBatch], tuple[Batch, ...]]:
    """Returns augment(rng, raw) -> one Batch of pixels for each of `kinds`, the views of the images.

    Args:
      num_classes: K.
      kinds: of each view.
      label_smoothing: share of a target that all classes get.
      least_area: of "resized_crop", see `resized_crops`.
      cutout_share, fill: see `cutout`; a share of 0 cuts nothing out.
      mixup, cutmix: the alpha of each, 0 for none; with both, either is drawn for each batch. They take the same pairs
        and shares in every view.
      class_weights: [K], what an image of each class counts for in terms that read labels, see `balance`; None for 1.
      dtype: of the computation, and of the targets where it is wider than float32.
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
        images = raw.images
        if kind == "resized_crop":
            images = resized_crops(rng, images, least_area)
        elif kind != "none":
            images = take_crops(images, crops)
        if kind == "randaugment":
            images = randaugment(jax.random.fold_in(rng, 1), images)
        if cutout_share:
            assert fill is not None, "what is cut out is filled"
            images = cutout(jax.random.fold_in(rng, 2), images, cutout_share, fill)
        targets = jax.nn.one_hot(raw.labels, num_classes, dtype=jnp.promote_types(dtype, jnp.float32))
        if label_smoothing:
            smooth = (1 - label_smoothing) * targets + label_smoothing / num_classes
            targets = jnp.where(raw.labels[:, None] >= 0, smooth, 0.0)
        weights = None if class_weights is None else jnp.asarray(class_weights, targets.dtype)[raw.labels]
        batch = Batch(images, raw.labels, targets, raw.ids, crops, weights)
        return mix(rng_mix, batch)

    def mix(rng: Array, batch: Batch) -> Batch:
        if not (mixup and cutmix):
            return mixing.mixup(rng, batch, mixup) if mixup else mixing.cutmix(rng, batch, cutmix) if cutmix else batch
        wide = batch._replace(images=batch.images.astype(jnp.float32))
        return jax.lax.cond(
            jax.random.bernoulli(jax.random.fold_in(rng, 1)),
            lambda: mixing.mixup(rng, wide, mixup),
            lambda: mixing.cutmix(rng, wide, cutmix),
        )

    return augment
