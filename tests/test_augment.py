"""Crops, flips, resizing, normalisation and mixup against numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax import augment
from kd_jax.types import Batch

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(1, 256, (6, 32, 32, 3), dtype=np.uint8)
MEAN, STD = np.array([0.4, 0.5, 0.6], np.float32), np.array([0.2, 0.25, 0.3], np.float32)


def view(image, number):
    """The crop and flip of a 32x32 image that a view number stands for, from an image padded by 4 zeros."""
    padded = np.pad(image, ((4, 4), (4, 4), (0, 0)))
    top, left, flip = number // 18, number // 2 % 9, number % 2
    crop = padded[top : top + 32, left : left + 32]
    return crop[:, ::-1] if flip else crop


def test_every_view_is_its_crop_and_flip():
    views = np.arange(augment.VIEWS)
    taken = augment.take_views(np.broadcast_to(IMAGES[:1], (162, 32, 32, 3)), views)
    np.testing.assert_array_equal(taken, np.stack([view(IMAGES[0], number) for number in views]))


def test_the_central_view_is_the_image():
    np.testing.assert_array_equal(augment.take_views(IMAGES, np.full(6, augment.CENTRE)), IMAGES)


@pytest.mark.parametrize(
    ("kind", "views"),
    [("none", {augment.CENTRE}), ("crop", set(range(0, 162, 2))), ("crop_flip", set(range(162)))],
)
def test_random_views_cover_those_of_their_kind(kind, views):
    assert set(np.asarray(augment.random_views(jax.random.key(0), 5000, kind)).tolist()) == views


def test_preparing_normalises_pixels_in_unit_range():
    prepared = augment.prepare(IMAGES, size=32, mean=MEAN, std=STD)
    np.testing.assert_allclose(prepared, (IMAGES / 255.0 - MEAN) / STD, rtol=1e-5, atol=1e-5)


def test_resizing_keeps_a_linear_ramp_linear():
    ramp = np.broadcast_to(np.arange(0, 160, 5, dtype=np.uint8)[:, None, None], (32, 32, 1))[None]
    resized = augment.prepare(ramp, size=64, mean=np.zeros(1), std=np.full(1, 1 / 255))
    assert resized.shape == (1, 64, 64, 1)
    # Pixel i of 64 lies at (i + 0.5) / 2 - 0.5 of 32.
    expected = 5 * ((np.arange(64) + 0.5) / 2 - 0.5)
    np.testing.assert_allclose(resized[0, 2:-2, 7, 0], expected[2:-2], rtol=1e-5)


def create(**options):
    return augment.create(**{"size": 32, "mean": MEAN, "std": STD, "num_classes": 4} | options)


LABELS, INDEX = np.array([0, 1, 2, 3, -1, 0], np.int32), np.arange(6, dtype=np.int32)


def test_the_view_that_was_taken_is_reported():
    batch = create(kind="crop_flip")(jax.random.key(1), IMAGES, LABELS, INDEX)
    expected = np.stack([view(image, number) for image, number in zip(IMAGES, np.asarray(batch.view), strict=True)])
    np.testing.assert_allclose(batch.images, (expected / 255.0 - MEAN) / STD, rtol=1e-5, atol=1e-5)


def test_augmentation_is_a_function_of_its_key():
    first, same, other = (create(kind="crop_flip")(jax.random.key(k), IMAGES, LABELS, INDEX) for k in (1, 1, 2))
    np.testing.assert_array_equal(first.images, same.images)
    assert not np.array_equal(first.images, other.images)


def test_smoothed_targets_share_a_part_among_all_classes_and_stay_zero_without_a_label():
    batch = create(label_smoothing=0.2)(jax.random.key(0), IMAGES, LABELS, INDEX)
    expected = np.where((LABELS >= 0)[:, None], 0.8 * np.eye(4)[LABELS] + 0.05, 0)
    np.testing.assert_allclose(batch.targets, expected, rtol=1e-6)


def test_bfloat16_images_keep_float32_targets():
    batch = create(dtype=jnp.bfloat16, mixup=0.5)(jax.random.key(0), IMAGES, LABELS, INDEX)
    assert (batch.images.dtype, batch.targets.dtype) == (jnp.bfloat16, jnp.float32)


@pytest.fixture(scope="module")
def mixed():
    """A mixed batch, its share and the order of its partners, found from images that are one pixel each."""
    pixels = 10.0 ** np.arange(6)
    labels = jnp.asarray([0, 1, 2, 3, -1, 0])
    targets = jnp.eye(4)[labels] * (labels >= 0)[:, None]
    batch = Batch(jnp.asarray(pixels, jnp.float32).reshape(6, 1, 1, 1), labels, targets, jnp.arange(6), jnp.arange(6))
    after = augment.mix(jax.random.key(3), batch, 0.8)
    got = np.asarray(after.images, np.float64).ravel()
    best = None
    for share in [got[0] / pixels[0]] if np.isclose(got[0], pixels[0]) else np.linspace(0.0005, 0.9995, 1000):
        nearest = [int(np.abs(share * pixels[i] + (1 - share) * pixels - got[i]).argmin()) for i in range(6)]
        error = max(abs(share * pixels[i] + (1 - share) * pixels[j] - got[i]) / got[i] for i, j in enumerate(nearest))
        best = min(best or (error, share, nearest), (error, share, nearest))
    return after, best[1], best[2]


def test_mixup_mixes_targets_with_the_share_and_the_partners_of_the_images(mixed):
    after, share, order = mixed
    assert sorted(order) == list(range(6))
    labels = np.array([0, 1, 2, 3, -1, 0])
    targets = np.eye(4)[labels] * (labels >= 0)[:, None]
    both = (labels >= 0) & (labels[order] >= 0)
    expected = (share * targets + (1 - share) * targets[order]) * both[:, None]
    np.testing.assert_allclose(after.targets, expected, atol=2e-3)


def test_an_image_mixed_with_one_that_has_no_label_has_none(mixed):
    after, _, order = mixed
    labels = np.array([0, 1, 2, 3, -1, 0])
    np.testing.assert_array_equal(after.labels, np.where((labels >= 0) & (labels[order] >= 0), labels, -1))
