"""Reading single images, and bringing many to one size."""

import struct
import tracemalloc

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

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


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_transparent_is_white(tmp_path, mode):
    image = Image.new(mode, (8, 8), 0 if mode == "P" else (0,) * len(mode))
    image.save(tmp_path / "a.png", **({"transparency": 0} if mode == "P" else {}))
    assert (read_image(tmp_path / "a.png", 8, 3) == 255).all()


def test_half_transparent_black_is_gray(tmp_path):
    Image.new("RGBA", (8, 8), (0, 0, 0, 51)).save(tmp_path / "a.png")
    assert (read_image(tmp_path / "a.png", 8, 3) == 204).all()


@pytest.mark.parametrize("largest", [15, 255, 1023, 65535])
def test_pgm_levels_are_scaled_by_their_range(tmp_path, largest):
    levels = np.array([0, largest // 2, largest] * 3, ">u2" if largest > 255 else "u1")
    (tmp_path / "a.pgm").write_bytes(b"P5 3 3 %d\n" % largest + levels.tobytes())
    expected = 255 * levels[:3].astype(float) / largest
    np.testing.assert_allclose(read_image(tmp_path / "a.pgm", 3, 1)[0, :, 0], expected, atol=1)


def test_a_tiff_of_twelve_bits_is_scaled_by_its_range(tmp_path):
    ifd = [(256, 4), (257, 1), (258, 12), (259, 1), (262, 1), (273, 122), (277, 1), (278, 1), (279, 6)]
    entries = b"".join(struct.pack("<HHII", tag, 3, 1, value) for tag, value in ifd)
    head = b"II*\0" + struct.pack("<IH", 8, len(ifd)) + entries + bytes(4)
    assert len(head) == 122
    packed = bytes([0xFF, 0xF8, 0x00, 0x40, 0x00, 0x00])  # 0xFFF, 0x800, 0x400, 0
    (tmp_path / "a.tif").write_bytes(head + packed)
    with Image.open(tmp_path / "a.tif") as image:
        assert np.asarray(image).tolist() == [[4095, 2048, 1024, 0]]
    assert images._decode(tmp_path / "a.tif", 8, 1, lambda image, _: np.asarray(image)).tolist() == [[255, 128, 64, 0]]


def test_a_long_text_in_a_png_refuses_no_pixels(tmp_path):
    info = PngImagePlugin.PngInfo()
    info.add_text("comment", "x" * (2 * PngImagePlugin.MAX_TEXT_CHUNK), zip=True)
    Image.fromarray(GRADIENT).save(tmp_path / "a.png", pnginfo=info)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png", 8, 3), GRADIENT)


def test_one_large_image_is_decoded_at_a_time(tmp_path, monkeypatch):
    Image.fromarray(GRADIENT).save(tmp_path / "a.png")
    monkeypatch.setattr(images, "LARGE", 10)
    locked = images._decode(tmp_path / "a.png", 8, 3, lambda image, size: np.array(images._one_large_image.locked()))
    assert locked
    assert not images._one_large_image.locked()


@pytest.mark.parametrize(
    ("groups", "files", "left"),
    [
        (
            "0::/job",
            {"job/memory.max": "5000", "job/memory.current": "2000", "job/memory.stat": "inactive_file 500"},
            3500,
        ),
        ("0::/job", {"memory.max": "900", "memory.current": "100", "memory.stat": "", "job/memory.max": "max"}, 800),
        (
            "4:memory:/outside",
            {
                "memory/memory.limit_in_bytes": "7000",
                "memory/memory.usage_in_bytes": "6000",
                "memory/memory.stat": "inactive_file 1\ntotal_inactive_file 250",
            },
            1250,
        ),
    ],
    ids=["version 2", "the group above", "version 1"],
)
def test_free_memory_is_at_most_what_a_container_has_left(tmp_path, groups, files, left):
    for name, text in {f"sys/fs/cgroup/{name}": text for name, text in files.items()}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(f"1:cpu:/x\n{groups}\n")
    (tmp_path / "proc/meminfo").write_text("MemAvailable:  1000 kB\n")
    assert images.available_memory(tmp_path) == left


def test_free_memory_without_a_container_is_what_linux_says(tmp_path):
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal: 9 kB\nMemAvailable:    1000 kB\n")
    assert images.available_memory(tmp_path) == 1024000


def test_collecting_makes_no_second_copy():
    count, side = 200, 100
    tracemalloc.start()
    images.collect((np.zeros((side, side, 3), np.uint8) for _ in range(count)), count=count, size=side)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.1 * count * side * side * 3


def test_images_of_several_sizes_keep_their_order_and_pixels():
    several = [np.full((side, side, 1), 10 * side, np.uint8) for side in (4, 4, 6, 8, 4)]
    assert images.collect(several, count=9, size=8)[:, 0, 0, 0].tolist() == [40, 40, 60, 80, 40]


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
