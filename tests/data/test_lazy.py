"""Images that are read when they are asked for."""

import numpy as np
import pytest

from kd_jax.data import images as images_of_files
from kd_jax.data import lazy

PIXELS = np.random.default_rng(0).integers(0, 256, (10, 4, 4, 3), np.uint8)


@pytest.fixture
def images():
    """(ten images, the numbers of those that were read)."""
    read = []

    def one(item):
        read.append(item)
        return PIXELS[item]

    return lazy.Images(one, list(range(10)), (4, 4, 3)), read


@pytest.mark.parametrize("index", [slice(2, 5), slice(None, None, -1), np.array([7, 0, 7]), np.arange(10) % 3 == 1])
def test_what_is_chosen_is_what_an_array_would_give(images, index):
    np.testing.assert_array_equal(np.asarray(images[0][index]), PIXELS[index])


def test_a_choice_of_a_choice(images):
    np.testing.assert_array_equal(np.asarray(images[0][5:][np.array([3, 1])][1:]), PIXELS[5:][[3, 1]][1:])


def test_only_what_is_asked_for_is_read(images):
    all_of_them, read = images
    np.asarray(all_of_them[2:8][np.array([4, 1])])
    assert sorted(read) == [3, 6]


def test_nothing_is_read_for_the_shape(images):
    all_of_them, read = images
    chosen = all_of_them[1:4]
    assert (chosen.shape, len(chosen), chosen.dtype, read) == ((3, 4, 4, 3), 3, np.uint8, [])


@pytest.mark.parametrize(
    ("stream", "size", "needed"),
    [("always", 0, True), ("never", 2**60, False), ("auto", 99, False), ("auto", 101, True)],
)
def test_images_stream_where_memory_has_no_room(monkeypatch, stream, size, needed):
    monkeypatch.setattr(images_of_files, "available_memory", lambda: 200)  # half of which is room for images
    assert lazy.are_needed(stream, size) == needed


def test_the_devices_memory_counts_where_it_is_known(monkeypatch):
    class Device:
        def memory_stats(self):
            return {"bytes_limit": 50}

    monkeypatch.setattr(lazy.jax, "local_devices", lambda: [Device()])
    monkeypatch.setattr(images_of_files, "available_memory", lambda: 200)
    assert lazy.room() == 25
