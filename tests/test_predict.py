"""Classifying images with a finished run, batch by batch."""

import csv
import io
import json
import os
import re
import sys
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from PIL import Image

from kd_jax import loaded, predict
from kd_jax.errors import InputError, TrainingError
from kd_jax.logging import progress


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


@pytest.fixture
def command(brightness, monkeypatch, capsys):
    """Calls the command with flags in the place of the command line's, and returns what it prints."""

    def call(*arguments, top=2, json=False, csv=False):
        monkeypatch.setattr(predict.cli, "WORKDIR", SimpleNamespace(value="run"))
        monkeypatch.setattr(predict.cli, "JSON", SimpleNamespace(value=json))
        for name, value in {"TOP": top, "CSV": csv}.items():
            monkeypatch.setattr(predict, name, SimpleNamespace(value=value))
        predict.main([str(argument) for argument in arguments])
        return capsys.readouterr().out

    return call


def test_names_that_are_not_utf8_are_printed(command, tmp_path):
    path = str(tmp_path / "a\udcff.png")
    Image.new("L", (4, 4)).save(path)
    assert command(path) == f"{tmp_path}/a\\udcff.png: dark 73.1%, caf\\udce9 26.9%\n"
    assert json.loads(command(path, json=True))["path"] == f"{tmp_path}/a\\udcff.png"


@pytest.fixture
def tree(tmp_path):
    """A folder of images, in it others, what is hidden, what is no image, and a name that looks like a pattern."""
    for name in ("b.png", "a.PNG", "c/d.jpg", "c/e/f.png", "[b].png", ".hidden.png", ".hidden/x.png", "[c]/g.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("L", (4, 4)).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    return tmp_path


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        (".", ["[b].png", "[c]/g.png", "a.PNG", "b.png", "c/d.jpg", "c/e/f.png"]),
        ("c", ["c/d.jpg", "c/e/f.png"]),
        ("*.png", ["[b].png", "b.png"]),
        ("**/*.png", ["[b].png", "[c]/g.png", "b.png", "c/e/f.png"]),
        ("c/**", ["c/d.jpg", "c/e/f.png"]),
        ("[b].png", ["[b].png"]),
        ("[c]", ["[c]/g.png"]),
        ("notes.txt", ["notes.txt"]),
        ("n*", ["notes.txt"]),
    ],
)
def test_an_argument_is_a_file_a_folder_or_a_pattern(tree, argument, expected):
    found = predict.find([str(tree / argument)])
    assert [os.path.relpath(path, tree) for path in found] == expected


def test_arguments_keep_their_order(tree):
    assert predict.find([str(tree / "c"), str(tree / "b.png")])[::2] == [str(tree / "c/d.jpg"), str(tree / "b.png")]


@pytest.mark.parametrize("argument", ["nowhere.png", "*.gif", "empty"])
def test_an_argument_that_names_nothing_is_refused(tree, argument):
    (tree / "empty").mkdir()
    with pytest.raises(InputError, match=re.escape(f"{tree / argument} names no image; expected a file, a folder")):
        predict.find([str(tree / "b.png"), str(tree / argument)])


def test_a_line_of_json_for_each_image(command, paths):
    lines = [json.loads(line) for line in command(*paths, json=True, top=1).splitlines()]
    assert [line["path"] for line in lines] == paths
    assert [line["classes"][0]["class"] for line in lines] == ["dark"] * 3 + ["caf\\udce9"] * 3
    assert lines[0]["classes"] == [{"class": "dark", "probability": pytest.approx(1 / (1 + np.exp(-1)), abs=1e-6)}]


def test_a_table_is_read_as_it_was_meant(command, tmp_path):
    path = tmp_path / 'a, "b".png'
    Image.new("L", (4, 4)).save(path)
    header, row = csv.reader(io.StringIO(command(path, csv=True)))
    assert header == ["path", "class_1", "probability_1", "class_2", "probability_2"]
    assert row[:2] == [str(path), "dark"]
    assert float(row[2]) + float(row[4]) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("form", ["json", "csv", ""])
def test_an_image_that_cannot_be_read_is_passed_over(command, paths, capsys, form):
    with open(paths[1], "wb"):
        pass
    with pytest.raises(TrainingError, match="1 of 6 images cannot be read"):
        command(*paths, **({form: True} if form else {}))
    said = capsys.readouterr()
    assert [f"{i}.png" in said.out for i in range(6)] == [True, False, True, True, True, True]
    assert said.err.startswith(f"{paths[1]} cannot be read as an image: ")


def test_where_no_image_can_be_read_that_is_bad_input(command, tmp_path):
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(InputError, match="1 of 1 images cannot be read; expected image files"):
        command(tmp_path / "notes.txt")


def test_two_forms_at_once_are_refused(command, paths):
    with pytest.raises(InputError, match="both --json and --csv are given"):
        command(*paths, json=True, csv=True)


def test_many_images_are_counted_beside_a_file_and_not_beside_a_pipe(command, paths, capsys, monkeypatch, tmp_path):
    counts = []
    monkeypatch.setattr(progress, "counted", lambda batches, size, total: counts.append(total) or batches)
    command(*paths)
    with open(tmp_path / "out.txt", "w") as file:
        monkeypatch.setattr(sys, "stdout", file)
        command(*paths[:4])
        with pytest.raises(TrainingError):  # the last is counted too
            command(*paths, __file__)
    assert counts == [7]
