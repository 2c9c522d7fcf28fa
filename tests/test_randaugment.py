"""Operations of RandAugment against Pillow, and how they are drawn."""

import functools
import math

import jax
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from kd_jax import randaugment

HEIGHT, WIDTH = 24, 32
LEVELS = np.array([-1, -1 / 3, -0.1, 0.2, 1 / 3, 0.9], np.float32)
GEOMETRIC = ("shear_x", "shear_y", "translate_x", "translate_y", "rotate")


def images(channels):
    """Noise, dark noise, two ramps, a constant image, noise of one bit: [6, HEIGHT, WIDTH, channels]."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (HEIGHT, WIDTH, channels))
    ramp = np.add.outer(np.arange(HEIGHT), 6 * np.arange(WIDTH))[..., None] + np.arange(channels)
    constant = np.full_like(noise, 77)
    return np.stack([noise, 40 + noise // 8, ramp, 255 - ramp, constant, noise // 128 * 255]).astype(np.uint8)


def affine(*coefficients):
    return lambda image, _: image.transform(image.size, Image.Transform.AFFINE, coefficients)


def translate(image, pixels_x, pixels_y):
    return affine(1, 0, math.trunc(pixels_x), 0, 1, math.trunc(pixels_y))(image, None)


PILLOW = {
    "identity": lambda image, level: image,
    "auto_contrast": lambda image, level: ImageOps.autocontrast(image),
    "equalize": lambda image, level: ImageOps.equalize(image),
    "posterize": lambda image, level: ImageOps.posterize(image, 8 - round(4 * abs(level))),
    "solarize": lambda image, level: ImageOps.solarize(image, 255 * (1 - abs(level))),
    "brightness": lambda image, level: ImageEnhance.Brightness(image).enhance(1 + 0.9 * level),
    "color": lambda image, level: ImageEnhance.Color(image).enhance(1 + 0.9 * level),
    "contrast": lambda image, level: ImageEnhance.Contrast(image).enhance(1 + 0.9 * level),
    "sharpness": lambda image, level: ImageEnhance.Sharpness(image).enhance(1 + 0.9 * level),
    "shear_x": lambda image, level: affine(1, 0.3 * level, 0, 0, 1, 0)(image, None),
    "shear_y": lambda image, level: affine(1, 0, 0, 0.3 * level, 1, 0)(image, None),
    "translate_x": lambda image, level: translate(image, 150 / 331 * WIDTH * level, 0),
    "translate_y": lambda image, level: translate(image, 0, 150 / 331 * HEIGHT * level),
    "rotate": lambda image, level: image.rotate(30 * level),
}


def pillow(name, image, level):
    """An operation of Pillow on an image [H, W, 1 or 3], as int."""
    result = PILLOW[name](Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image), float(level))
    return np.asarray(result, int).reshape(image.shape)


@functools.cache
def results(channels):
    """{operation: its results on all images}, in one program."""

    def apply(images, levels):
        return {name: jax.vmap(operation)(images, levels) for name, operation in randaugment.OPERATIONS.items()}

    return jax.jit(apply)(images(channels), LEVELS)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", [name for name in PILLOW if name not in GEOMETRIC])
def test_a_point_operation_is_pillows_up_to_one_gray_level(name, channels):
    expected = [pillow(name, image, level) for image, level in zip(images(channels), LEVELS, strict=True)]
    np.testing.assert_allclose(results(channels)[name].astype(int), expected, atol=1)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", GEOMETRIC)
def test_a_geometric_operation_is_pillows_but_for_rounding(name, channels):
    expected = [pillow(name, image, level) for image, level in zip(images(channels), LEVELS, strict=True)]
    differs = (results(channels)[name] != np.array(expected)).any(-1)
    assert differs.mean((1, 2)).max() < 0.01


def test_every_operation_has_a_reference():
    assert list(randaugment.OPERATIONS) == list(PILLOW)


@functools.cache
def augmented(seed=0):
    """256 copies of an image of noise, and the results of one operation of magnitude 10 on each."""
    copies = np.repeat((20 + 0.8 * images(3)[:1]).astype(np.uint8), 256, axis=0)
    return copies, np.asarray(draw()(jax.random.key(seed), copies))


@functools.cache
def draw(**options):
    return jax.jit(functools.partial(randaugment.randaugment, **{"operations": 1} | options))


def test_each_image_gets_its_own_operation_and_all_are_drawn():
    copies, after = augmented()
    references = {(n, s): pillow(n, copies[0], s / 3) for n in PILLOW for s in (-1, 1)}
    distances = np.array([[np.abs(image - x).mean() for x in references.values()] for image in after])
    assert distances.min(1).max() < 0.5
    drawn = {list(references)[i] for i in distances.argmin(1)}
    assert {name for name, _ in drawn} == set(PILLOW)
    assert {("rotate", -1), ("rotate", 1)} <= drawn


def test_augmentation_is_a_function_of_its_key():
    copies, after = augmented()
    np.testing.assert_array_equal(draw()(jax.random.key(0), copies), after)
    assert (augmented(1)[1] != after).any()


def test_two_operations_follow_each_other():
    copies, after = augmented()
    twice = np.asarray(draw(operations=2)(jax.random.key(0), copies))
    assert len(np.unique(twice, axis=0)) > 2 * len(np.unique(after, axis=0))


@pytest.mark.parametrize(("platform", "loops"), [("cpu", True), ("cuda", False), ("tpu", False)])
def test_only_a_cpu_takes_one_image_after_another(platform, loops):
    exported = jax.export.export(jax.jit(randaugment.randaugment), platforms=[platform])(jax.random.key(0), images(1))
    assert ("stablehlo.case" in exported.mlir_module().partition("stablehlo.while")[2]) == loops


def test_selecting_among_all_operations_gives_the_same_images(monkeypatch):
    copies, after = augmented()
    monkeypatch.setattr(randaugment, "_one_by_one", randaugment._all_at_once)
    selected = jax.jit(functools.partial(randaugment.randaugment, operations=1))(jax.random.key(0), copies)
    np.testing.assert_allclose(selected.astype(int), after, atol=1)
