"""The fixed, class-balanced choice of images."""

import numpy as np
import pytest

from kd_jax.data.split import Split, select, stratified_split, with_test

BALANCED = np.tile(np.arange(3), 10).astype(np.int32)
UNEVEN = np.repeat(np.arange(3), (50, 20, 5)).astype(np.int32)


@pytest.mark.parametrize("fraction", [0, 0.1, 0.5, 0.9])
def test_every_image_is_in_exactly_one_part(fraction):
    held, rest = stratified_split(UNEVEN, fraction)
    np.testing.assert_array_equal(np.sort(np.concatenate([held, rest])), np.arange(len(UNEVEN)))


def test_the_held_part_takes_the_rounded_fraction_of_each_class():
    held, _ = stratified_split(UNEVEN, 0.1)
    np.testing.assert_array_equal(np.bincount(UNEVEN[held]), [5, 2, 1])


@pytest.mark.parametrize("count", range(1, 28))
def test_the_first_images_of_the_rest_are_balanced(count):
    _, rest = stratified_split(BALANCED, 0.1)
    counts = np.bincount(BALANCED[rest[:count]], minlength=3)
    assert counts.max() - counts.min() <= 1


def test_uneven_classes_stay_balanced_after_holding_out_until_one_runs_out():
    _, rest = stratified_split(UNEVEN, 0.2)
    np.testing.assert_array_equal(np.bincount(UNEVEN[rest[:12]]), [4, 4, 4])


def test_a_larger_fraction_holds_out_the_same_images_and_more():
    assert set(stratified_split(UNEVEN, 0.1)[0]) < set(stratified_split(UNEVEN, 0.4)[0])


def test_the_choice_is_the_recorded_one():
    # Another choice would give validation images to runs whose teachers have trained on them.
    held, _ = stratified_split(BALANCED, 0.2)
    assert sorted(held.tolist()) == [6, 8, 10, 11, 16, 24]


def test_a_fifth_of_each_class_becomes_the_test_set():
    labels = np.repeat(np.arange(2), 10).astype(np.int32)
    images = np.arange(20, dtype=np.uint8).reshape(20, 1, 1, 1)
    train, test = with_test(Split(images, labels))
    np.testing.assert_array_equal(np.bincount(test.labels), [2, 2])
    np.testing.assert_array_equal(np.sort(np.concatenate([train.images, test.images]).ravel()), np.arange(20))


def test_selecting_in_place_is_selecting():
    random = np.random.default_rng(0)
    for order in (random.permutation(50), np.arange(50), np.roll(np.arange(50), 1)):
        images, labels = random.integers(0, 256, (50, 2, 2, 1), dtype=np.uint8), np.arange(50)
        expected = images[order]
        got = select(Split(images, labels), order, in_place=True)
        np.testing.assert_array_equal(got.images, expected)
        np.testing.assert_array_equal(got.labels, order)
        assert np.shares_memory(got.images, images)
