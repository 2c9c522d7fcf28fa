"""Reading single images, and bringing many to one size."""

import numpy as np
import pytest
from PIL import Image

from kd_jax.data import images
from kd_jax.data.images import read_image
from kd_jax.errors import InputError

GRADIENT = np.arange(192, dtype=np.uint8).reshape(8, 8, 3)


def test_an_image_of_the_stored_size_is_read_unchanged(tmp_path):
    Image.fromarray(GRADIENT).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png", 8, 3), GRADIENT)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("shape", [(20, 50), (50, 20), (5, 5), (1, 300)])
def test_an_image_of_any_size_becomes_the_stored_size(tmp_path, shape, channels):
    Image.new("RGB", shape, (10, 20, 30)).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png", 8, channels).shape == (8, 8, channels)


def test_the_center_square_is_kept(tmp_path):
    pixels = np.zeros((4, 12, 3), np.uint8)
    pixels[:, 4:8] = 200
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert (read_image(tmp_path / "a.png", 4, 3) == 200).all()


def test_resizing_averages_the_pixels_it_removes(tmp_path):
    board = np.indices((64, 64)).sum(0) % 2 * 255
    Image.fromarray(board.astype(np.uint8)).save(tmp_path / "a.png")
    pixels = read_image(tmp_path / "a.png", 8, 1).astype(int)
    assert np.abs(pixels - 127).max() < 8


def test_a_rotated_photograph_is_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    Image.fromarray(GRADIENT).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png", 8, 3), np.rot90(GRADIENT, -1))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16"])
def test_every_common_kind_of_image_becomes_rgb(tmp_path, mode):
    Image.new(mode, (8, 8)).save(tmp_path / "a.tif")
    assert read_image(tmp_path / "a.tif", 8, 3).shape == (8, 8, 3)


def test_sixteen_bits_become_eight_without_clipping(tmp_path):
    Image.fromarray(np.full((8, 8), 128 * 256, np.uint16)).save(tmp_path / "a.png")
    assert (read_image(tmp_path / "a.png", 8, 1) == 128).all()


def test_a_palette_with_transparency_gives_no_warning(tmp_path):
    Image.new("P", (8, 8)).save(tmp_path / "a.png", transparency=b"\x00\x10")
    assert read_image(tmp_path / "a.png", 8, 3).shape == (8, 8, 3)


def test_a_large_jpeg_is_close_to_its_full_decoding(tmp_path):
    ramp = np.linspace(0, 255, 400).astype(np.uint8)
    Image.fromarray(np.broadcast_to(ramp, (400, 400)).copy()).save(tmp_path / "a.jpg", quality=95)
    expected = np.asarray(Image.open(tmp_path / "a.jpg").resize((16, 16), Image.Resampling.BILINEAR))
    difference = read_image(tmp_path / "a.jpg", 16, 1)[..., 0].astype(int) - expected
    assert np.abs(difference).max() <= 4


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".gif", ".bmp", ".webp", ".tif", ".ppm"])
def test_a_file_cut_short_is_named(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(InputError, match=f"{path} cannot be read as an image"):
        read_image(path, 64, 3)


@pytest.mark.parametrize("content", [b"", b"not an image", b"\x89PNG\r\n\x1a\n"])
def test_a_file_that_is_no_image_is_named(tmp_path, content):
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(InputError, match=r"a\.png cannot be read as an image"):
        read_image(tmp_path / "a.png", 8, 3)


def test_a_missing_file_is_named():
    with pytest.raises(InputError, match=r"nowhere\.png cannot be read as an image: No such file or directory"):
        read_image("nowhere.png", 8, 3)


def test_an_image_of_far_too_many_pixels_is_refused(tmp_path, monkeypatch):
    Image.new("L", (64, 64)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(InputError, match="exceeds limit"):
        read_image(tmp_path / "a.png", 8, 3)


def test_floating_point_pixels_are_refused(tmp_path):
    Image.new("F", (8, 8)).save(tmp_path / "a.tif")
    with pytest.raises(InputError, match="32 bits per channel"):
        read_image(tmp_path / "a.tif", 8, 3)


def test_images_of_one_size_are_stacked_as_they_are():
    assert images.collect([np.zeros((4, 4, 3), np.uint8)] * 2, count=2, size=8).shape == (2, 4, 4, 3)


def test_images_of_several_sizes_get_the_wanted_size():
    several = [np.zeros((side, side, 1), np.uint8) for side in (4, 6)]
    assert images.collect(several, count=2, size=8).shape == (2, 8, 8, 1)


def test_more_images_than_fit_in_memory_are_refused_at_the_first():
    def endless():
        yield np.zeros((1000, 1000, 3), np.uint8)
        pytest.fail("went on reading")

    with pytest.raises(InputError, match=r"1000x1000 pixels take .* GiB; .* lower dataset\.image_size"):
        images.collect(endless(), count=10**9, size=1000)
