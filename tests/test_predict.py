"""Classifying images with a finished run, batch by batch."""

import jax
import numpy as np
import pytest
from PIL import Image

from kd_jax import loaded, predict
from kd_jax.errors import InputError


@pytest.fixture
def brightness(monkeypatch):
    """A run whose logits are an image's mean level and its complement, and the shapes that were traced."""
    shapes = []

    def logits(images):
        shapes.append(images.shape)
        level = images.astype(np.float32).mean((1, 2, 3)) / 255
        return jax.numpy.stack([1 - level, level], axis=-1)

    run = loaded.LoadedRun(None, None, None, ("dark", "caf\udce9"), (4, 4, 3), logits, None, "")
    monkeypatch.setattr(loaded, "load", lambda folder: run)
    monkeypatch.setattr(predict, "BATCH", 4)
    return shapes


@pytest.fixture
def paths(tmp_path):
    """Six gray images, each brighter than the one before."""
    for level in range(6):
        Image.new("L", (4, 4), 50 * level).save(tmp_path / f"{level}.png")
    return [str(tmp_path / f"{level}.png") for level in range(6)]


def test_probabilities_are_those_of_each_image(brightness, paths):
    found = [dict(ranked)["dark"] for ranked in predict.predict("run", paths)]
    levels = np.arange(6) * 50 / 255
    np.testing.assert_allclose(found, 1 / (1 + np.exp(2 * levels - 1)), rtol=1e-5)


def test_all_batches_are_of_one_compiled_size(brightness, paths):
    list(predict.predict("run", paths))
    assert brightness == [(4, 4, 4, 3)]


def test_images_are_read_batch_by_batch(brightness, paths):
    results = predict.predict("run", paths)
    first = [next(results) for _ in range(4)]
    with open(paths[5], "wb"):
        pass  # empty: no image any more
    assert len(first) == 4
    with pytest.raises(InputError, match=r"5\.png cannot be read as an image"):
        next(results)


def test_a_missing_image_is_named_before_any_is_classified(brightness, paths):
    with pytest.raises(InputError, match=r"nowhere\.png cannot be read as an image: No such file"):
        next(predict.predict("run", [*paths, "nowhere.png"]))


def test_names_that_are_not_utf8_are_printed(brightness, paths, monkeypatch, capsys, tmp_path):
    path = str(tmp_path / "a\udcff.png")
    Image.new("L", (4, 4)).save(path)
    monkeypatch.setattr(predict, "cli", type("Flags", (), {"WORKDIR": type("Flag", (), {"value": "run"})}))
    monkeypatch.setattr(predict, "TOP", type("Flag", (), {"value": 2}))
    predict.main([path])
    assert capsys.readouterr().out == f"{tmp_path}/a\\udcff.png: dark 73.1%, caf\\udce9 26.9%\n"
