"""Crops, flips, resizing, normalization, cutout, mixup and CutMix against numpy and Pillow."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from kd_jax import augment, mixing
from kd_jax.errors import InputError
from kd_jax.types import Batch, RawBatch

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(1, 256, (6, 32, 32, 3), dtype=np.uint8)
MEAN, STD = np.array([0.4, 0.5, 0.6], np.float32), np.array([0.2, 0.25, 0.3], np.float32)


prepare = jax.jit(augment.prepare, static_argnames="size")


@pytest.fixture(params=[augment._crops_by_gather, augment._crops_by_choice], ids=["gather", "choice"])
def take_crops(request):
    """Each form of `augment.take_crops`; which one it takes depends on the platform."""
    return jax.jit(request.param)


def view(image, number):
    """The crop and flip of a 32x32 image that a view number stands for, from an image padded by 4 zeros."""
    padded = np.pad(image, ((4, 4), (4, 4), (0, 0)))
    top, left, flip = number // 18, number // 2 % 9, number % 2
    crop = padded[top : top + 32, left : left + 32]
    return crop[:, ::-1] if flip else crop


def test_every_view_is_its_crop_and_flip(take_crops):
    views = np.arange(augment.CROPS)
    taken = take_crops(np.broadcast_to(IMAGES[:1], (162, 32, 32, 3)), views)
    np.testing.assert_array_equal(taken, np.stack([view(IMAGES[0], number) for number in views]))


def test_the_border_is_an_eighth_of_each_side(take_crops):
    image = RNG.integers(1, 256, (64, 32, 1), dtype=np.uint8)
    padded = np.pad(image, ((8, 8), (4, 4), (0, 0)))
    views = np.array([0, 18 * 3 + 2 * 5, 160])
    expected = [padded[top : top + 64, left : left + 32] for top, left in [(0, 0), (6, 5), (16, 8)]]
    np.testing.assert_array_equal(take_crops(np.stack([image] * 3), views), expected)


@pytest.mark.parametrize("shape", [(32, 32, 3), (7, 45, 2)])
def test_the_central_view_is_the_image(take_crops, shape):
    images = np.resize(IMAGES, (6, *shape))
    np.testing.assert_array_equal(take_crops(images, np.full(6, augment.CENTER)), images)


@pytest.mark.parametrize(("platform", "form"), [("cpu", "gather"), ("cuda", "gather"), ("tpu", "choice")])
def test_only_a_tpu_chooses_among_whole_images(platform, form):
    crops = np.zeros(6, np.int32)
    exported = jax.export.export(jax.jit(augment.take_crops), platforms=[platform])(IMAGES, crops)
    assert ("stablehlo.gather" in exported.mlir_module()) == (form == "gather")


@pytest.mark.parametrize(
    ("kind", "views"),
    [
        ("none", {augment.CENTER}),
        ("crop", set(range(0, 162, 2))),
        ("crop_flip", set(range(162))),
        ("randaugment", set(range(162))),
    ],
)
def test_random_crops_cover_those_of_their_kind(kind, views):
    drawn = jax.jit(augment.random_crops, static_argnums=(1, 2))(jax.random.key(0), 5000, kind)
    assert set(np.asarray(drawn).tolist()) == views


def test_an_unknown_kind_is_named_with_the_choices():
    with pytest.raises(InputError, match=r"dataset\.augment is 'flip'; expected one of: crop, crop_flip, none, rand"):
        create(kinds=("flip",))


def test_preparing_normalizes_pixels_in_unit_range():
    prepared = prepare(IMAGES, size=32, mean=MEAN, std=STD)
    np.testing.assert_allclose(prepared, (IMAGES / 255.0 - MEAN) / STD, rtol=1e-6, atol=1e-6)


def test_resizing_keeps_a_linear_ramp_linear():
    ramp = np.broadcast_to(np.arange(0, 160, 5, dtype=np.uint8)[:, None, None], (32, 32, 1))[None]
    resized = prepare(ramp, size=64, mean=np.zeros(1), std=np.full(1, 1 / 255))
    assert resized.shape == (1, 64, 64, 1)
    # Pixel i of 64 lies at (i + 0.5) / 2 - 0.5 of 32.
    expected = 5 * ((np.arange(64) + 0.5) / 2 - 0.5)
    np.testing.assert_allclose(resized[0, 2:-2, 7, 0], expected[2:-2], rtol=1e-5)


def create(**options):
    return augment.create(**{"num_classes": 4} | options)


LABELS, INDEX = np.array([0, 1, 2, 3, -1, 0], np.int32), np.arange(6, dtype=np.int32)


def one(rng, **options):
    """The batch of the first view."""
    return views(rng, **options)[0]


def views(rng, **options):
    return jax.jit(create(**options))(rng, RawBatch(IMAGES, LABELS, INDEX))


def test_a_further_view_is_another_crop_of_the_same_images():
    first, second = views(jax.random.key(0), kinds=("crop", "crop"))
    assert not np.array_equal(first.crop, second.crop)
    np.testing.assert_array_equal(first.ids, second.ids)
    alone = one(jax.random.key(0), kinds=("crop",))
    np.testing.assert_array_equal(first.images, alone.images)


def test_mixup_mixes_every_view_with_the_same_partners():
    first, second = views(jax.random.key(0), kinds=("none", "none"), mixup=0.5)
    np.testing.assert_array_equal(first.images, second.images)


def test_the_crop_that_was_taken_is_reported():
    batch = one(jax.random.key(1), kinds=("crop_flip",))
    expected = np.stack([view(image, number) for image, number in zip(IMAGES, np.asarray(batch.crop), strict=True)])
    np.testing.assert_array_equal(batch.images, expected)


def test_randaugment_follows_the_crop_and_flip(monkeypatch):
    monkeypatch.setattr(augment, "randaugment", lambda rng, images: 255 - images)
    batch = one(jax.random.key(1), kinds=("randaugment",))
    cropped = np.stack([view(image, number) for image, number in zip(IMAGES, np.asarray(batch.crop), strict=True)])
    np.testing.assert_array_equal(batch.images, 255 - cropped)


def test_augmentation_is_a_function_of_its_key():
    first, same, other = (one(jax.random.key(k), kinds=("crop_flip",)) for k in (1, 1, 2))
    np.testing.assert_array_equal(first.images, same.images)
    assert not np.array_equal(first.images, other.images)


def test_smoothed_targets_stay_zero_without_a_label():
    batch = one(jax.random.key(0), label_smoothing=0.2)
    expected = np.where((LABELS >= 0)[:, None], 0.8 * np.eye(4)[LABELS] + 0.05, 0)
    np.testing.assert_allclose(batch.targets, expected, rtol=1e-6)


@pytest.mark.parametrize("how", ["mixup", "cutmix"])
def test_the_weights_of_classes_are_mixed_as_their_targets(how):
    by_class = np.array([0.5, 1.0, 2.0, 4.0])
    batch = one(jax.random.key(3), class_weights=by_class, **{how: 0.7})
    labeled = np.asarray(batch.labels) >= 0
    expected = np.asarray(batch.targets)[labeled] @ by_class
    np.testing.assert_allclose(np.asarray(batch.weights)[labeled], expected, rtol=1e-6)
    assert not np.isin(expected, by_class).all()


def test_smoothing_leaves_the_weight_of_an_image_as_it_is():
    batch = one(jax.random.key(0), class_weights=np.array([0.5, 1.0, 2.0, 4.0]), label_smoothing=0.2)
    np.testing.assert_array_equal(batch.weights[LABELS >= 0], [0.5, 1.0, 2.0, 4.0, 0.5])
    assert one(jax.random.key(0)).weights is None


def test_targets_are_at_least_float32_and_pixels_as_they_are_stored_until_they_are_mixed():
    plain, mixed = (one(jax.random.key(0), dtype=jnp.bfloat16, mixup=alpha) for alpha in (0.0, 0.5))
    assert (plain.images.dtype, plain.targets.dtype) == (jnp.uint8, jnp.float32)
    assert (mixed.images.dtype, mixed.targets.dtype) == (jnp.float32, jnp.float32)
    assert prepare(mixed.images, size=32, mean=MEAN, std=STD).dtype == jnp.float32


@pytest.fixture(scope="module")
def mixed():
    """A mixed batch, its share and the order of the partners. Image i has its light at pixel i, so both can be seen."""
    targets = np.eye(4)[LABELS] * (LABELS >= 0)[:, None]
    batch = Batch(
        np.eye(6, dtype=np.float32).reshape(6, 1, 6, 1),
        *map(jnp.asarray, (LABELS, targets.astype(np.float32), INDEX, INDEX)),
    )
    after = jax.jit(mixing.mixup, static_argnums=2)(jax.random.key(3), batch, 0.8)
    lights = np.asarray(after.images, np.float64).reshape(6, 6)
    others = lights * (1 - np.eye(6))
    order = np.where(others.any(-1), others.argmax(-1), np.arange(6))
    share = next(lights[i, i] for i, j in enumerate(order) if i != j)
    return after, lights, share, order


def test_mixup_mixes_every_image_with_one_share_and_a_partner_of_its_own(mixed):
    _, lights, share, order = mixed
    assert 0 < share < 1
    assert sorted(order) == list(range(6))
    np.testing.assert_allclose(lights, share * np.eye(6) + (1 - share) * np.eye(6)[order], atol=1e-6)


@pytest.mark.parametrize("alpha", [0.3, 2.0])
def test_the_share_of_mixup_is_a_draw_of_beta(alpha):
    labels = jnp.zeros(2, jnp.int32)
    lights = jnp.eye(2).reshape(2, 1, 2, 1)
    batch = Batch(lights, labels, jnp.ones((2, 4)), labels, labels)
    mixed = jax.jit(jax.vmap(lambda key: mixing.mixup(key, batch, alpha).images[0].reshape(2)))
    lights = np.asarray(mixed(jax.random.split(jax.random.key(0), 4000)), np.float64)
    shares = lights[lights[:, 1] > 0, 0]  # where the partner is the other image
    # Mean and variance of Beta(alpha, alpha), within five deviations.
    variance = 1 / (4 * (2 * alpha + 1))
    assert abs(shares.mean() - 0.5) < 5 * np.sqrt(variance / len(shares))
    assert abs(shares.var() - variance) < 5 * variance * np.sqrt(2 / len(shares))


def test_mixup_mixes_targets_as_it_mixes_images(mixed):
    after, _, share, order = mixed
    targets = np.eye(4)[LABELS]
    both = (LABELS >= 0) & (LABELS[order] >= 0)
    expected = (share * targets + (1 - share) * targets[order]) * both[:, None]
    np.testing.assert_allclose(after.targets, expected, atol=1e-6)


def test_an_image_mixed_with_one_that_has_no_label_has_none(mixed):
    after, _, _, order = mixed
    np.testing.assert_array_equal(after.labels, np.where((LABELS >= 0) & (LABELS[order] >= 0), LABELS, -1))


@pytest.fixture(scope="module")
def drawn():
    """Many rectangles in images of 24x32 pixels."""
    draw = jax.jit(augment.rectangles, static_argnums=(1, 2, 3))
    return [np.asarray(x, np.float64) for x in draw(jax.random.key(0), 20_000, (24, 32), 0.08)]


def test_a_rectangle_lies_in_the_image(drawn):
    first, size = drawn
    assert (first >= 0).all()
    assert (size >= 1).all()
    assert (first + size <= [24, 32]).all()
    np.testing.assert_array_equal(first, np.floor(first))
    room = np.array([24, 32]) - size
    roomy = (room >= 4).all(-1)
    shares = first[roomy] / room[roomy]  # uniform over the places there are
    assert np.abs(shares.mean(0) - 0.5).max() < 0.02
    assert (shares.min(0) == 0).all()
    assert (shares.max(0) == 1).all()


def test_the_area_and_aspect_of_a_rectangle_are_those_of_torchvision(drawn):
    size = drawn[1]
    area, ratio = size.prod(-1) / (24 * 32), size[:, 1] / size[:, 0]
    small = area < 0.6  # every draw of such an area fits, so their shares are uniform
    counts, _ = np.histogram(area[small], np.linspace(0.1, 0.6, 6))
    assert counts.max() < 1.15 * counts.min()
    assert area.min() > 0.07
    # Sides are rounded, which moves the ratio of a small rectangle by a tenth.
    assert (np.abs(np.log(ratio[area > 0.2])) < np.log(4 / 3) + 0.12).all()
    middle = np.log(ratio[small & (area > 0.2)])
    np.testing.assert_allclose(middle.var(), (2 * np.log(4 / 3)) ** 2 / 12, rtol=0.1)  # of a uniform one


def test_an_image_into_which_nothing_fits_is_taken_whole():
    draw = jax.jit(augment.rectangles, static_argnums=(1, 2, 3))
    first, size = draw(jax.random.key(0), 50, (4, 400), 1.0)
    np.testing.assert_array_equal(size, np.broadcast_to([4, 400], (50, 2)))
    np.testing.assert_array_equal(first, 0)


def test_a_rectangle_is_enlarged_as_pillow_enlarges_it():
    images = RNG.integers(0, 256, (4, 24, 32, 3), dtype=np.uint8)
    first, size = np.array([[0, 0], [3, 5], [10, 20], [23, 0]]), np.array([[24, 32], [7, 11], [14, 12], [1, 1]])
    got = jax.jit(augment.enlarge)(images, jnp.float32(first), jnp.float32(size))
    for image, (row, column), (height, width), own in zip(images, first, size, got, strict=True):
        box = (column, row, column + width, row + height)
        for channel in range(3):
            whole = Image.fromarray(image[..., channel].astype(np.float32))
            expected = whole.crop(box).resize((32, 24), Image.Resampling.BILINEAR)
            np.testing.assert_allclose(own[..., channel], np.asarray(expected), atol=1e-3)


def test_resized_crops_are_flipped_or_not():
    ramp = np.broadcast_to(np.arange(32, dtype=np.uint8)[None, None, :, None], (400, 32, 32, 1))
    got = np.asarray(jax.jit(augment.resized_crops, static_argnums=2)(jax.random.key(0), ramp, 0.5), np.float64)
    rises = np.sign(got[:, 0, -1, 0] - got[:, 0, 0, 0])
    assert 150 < (rises > 0).sum() < 250


def test_a_square_of_its_size_is_cut_out_at_any_place():
    images = np.ones((3000, 8, 12, 1), np.uint8)
    got = np.asarray(jax.jit(augment.cutout, static_argnums=2)(jax.random.key(0), images, 0.5, np.array([7.4])))
    assert set(np.unique(got)) == {1, 7}
    hole = got[..., 0] == 7
    rows, columns = hole.any(2), hole.any(1)
    np.testing.assert_array_equal(hole, rows[:, :, None] & columns[:, None, :])
    heights, widths = rows.sum(1), columns.sum(1)
    assert (heights.max(), widths.max()) == (4, 6)
    # A pixel is cut out where the center is within half a side: of the middle ones by 4 of 8, and 6 of 12.
    np.testing.assert_allclose(hole[:, 4, 6].mean(), 4 / 8 * 6 / 12, atol=0.04)
    np.testing.assert_allclose(hole[:, 0, 0].mean(), 3 / 8 * 4 / 12, atol=0.03)


def cutmixed(key, alpha=1.0, count=16):
    """A batch whose images are their numbers, mixed."""
    numbers = np.arange(count)
    images = jnp.broadcast_to(jnp.uint8(numbers)[:, None, None, None], (count, 20, 30, 1))
    labels = jnp.int32(numbers % 4)
    batch = Batch(images, labels, jnp.eye(4)[labels], labels, labels)
    return mixing.cutmix(key, batch, alpha)


def test_cutmix_puts_one_rectangle_of_a_partner_into_every_image_and_mixes_targets_by_its_area():
    mixed = jax.jit(cutmixed)(jax.random.key(6))
    images = np.asarray(mixed.images)[..., 0]
    numbers = np.arange(16)
    other = images != numbers[:, None, None]
    holes = other[other.any((1, 2))]
    assert (holes == holes[0]).all()
    rows, columns = holes[0].any(1), holes[0].any(0)
    np.testing.assert_array_equal(holes[0], rows[:, None] & columns)
    partner = images.reshape(16, -1)[np.arange(16), other.reshape(16, -1).argmax(1)]
    assert 0 < holes[0].mean() < 1
    one_hot = np.eye(4)
    expected = (1 - holes[0].mean()) * one_hot[numbers % 4] + holes[0].mean() * one_hot[partner % 4]
    np.testing.assert_allclose(mixed.targets, expected, atol=1e-6)


@pytest.mark.parametrize("alpha", [0.5, 2.0])
def test_the_area_of_cutmix_is_a_draw_of_beta_before_the_border_cuts_it(alpha):
    mixed = jax.jit(jax.vmap(lambda key: cutmixed(key, alpha, 2).images[..., 0]))
    holes = np.asarray(mixed(jax.random.split(jax.random.key(0), 6000)))[:, 0] == 1
    holes = holes[holes.any((1, 2))]
    inside = holes[~(holes[:, 0].any(1) | holes[:, -1].any(1) | holes[:, :, 0].any(1) | holes[:, :, -1].any(1))]
    heights, widths = inside.any(2).sum(1), inside.any(1).sum(1)
    assert (np.abs(heights / 20 - widths / 30) < 0.11).all()  # its proportions are the image's
    # The density of areas near 0 of Beta(0.5, 0.5) is larger than in the middle, of Beta(2, 2) smaller.
    small, middle = (heights <= 6).sum(), ((heights > 6) & (heights <= 12)).sum()
    assert (small > middle) == (alpha == 0.5)


def test_a_batch_is_mixed_by_either_where_both_are_given():
    images = np.broadcast_to(np.arange(6)[:, None, None, None] * 40, (6, 16, 16, 1)).astype(np.uint8)
    mix = jax.jit(create(mixup=1.0, cutmix=1.0))
    kinds = []
    for seed in range(40):
        (batch,) = mix(jax.random.key(seed), RawBatch(images, np.zeros(6, np.int32), INDEX))
        kinds.append(not np.isin(np.asarray(batch.images), images).all())  # mixup makes new values
    assert 8 < sum(kinds) < 32


@pytest.mark.parametrize(
    ("options", "changed"),
    [
        ({"kinds": ("resized_crop",), "least_area": 0.2}, True),
        ({"cutout_share": 0.5, "fill": np.array([1.0, 2.0, 3.0])}, True),
        ({"cutmix": 1.0}, True),
        ({}, False),
    ],
)
def test_each_option_changes_the_images(options, changed):
    assert np.array_equal(one(jax.random.key(2), **options).images, IMAGES) is not changed
