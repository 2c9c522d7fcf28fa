"""Which images the grid shows, what its cells hold, and the picture."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.figure import Figure

from kd_jax.explaining import grid

LABELS = np.array([2, 0, 0, 1, 1, 2])


def choose(correct, disagreement=(0, 0, 0, 0, 0, 0)):
    return grid.choose_images(np.array(correct, bool), np.array(disagreement, float), LABELS, 6)


def test_a_class_shows_its_first_image_that_both_get_right_else_its_first():
    correct = [[0, 1, 1, 1, 0, 1], [1, 0, 1, 0, 1, 1]]
    assert choose(correct) == {"one of each class": [2, 3, 5]}


def test_up_to_a_third_are_images_where_the_students_differ_most():
    disagreement = [0.1, -1, 0.5, 0.2, 0.9, 0.3]
    chosen = choose(np.ones((3, 6)), disagreement)
    assert chosen["where the student differs most from the first compared"] == [4, 2]


def test_an_image_that_the_teacher_gets_wrong_does_not_count_as_different():
    correct = np.ones((3, 6))
    correct[0, 4] = 0
    chosen = choose(correct, [0.1, -1, 0.5, 0.2, 0.9, 0.3])
    assert chosen["where the student differs most from the first compared"] == [2, 5]


def test_an_image_with_a_map_of_zeros_does_not_count_as_different():
    chosen = choose(np.ones((3, 6)), [-1] * 6)
    assert list(chosen) == ["one of each class"]


def test_too_many_classes_are_thinned_evenly():
    labels = np.arange(100)
    chosen = grid.choose_images(np.ones((2, 100), bool), np.zeros(100), labels, 4)
    assert chosen == {"one of each of 4 classes": [0, 33, 66, 99]}


@pytest.mark.parametrize("channels", [1, 3])
def test_an_overlay_is_brighter_where_the_map_is_larger(channels):
    maps = jnp.array([[[0.0, 1.0, 2.0, 5.0]]])
    pixels = jax.jit(grid.overlay)(jnp.full((1, 1, 4, channels), 0.5), maps)
    assert pixels.shape == (1, 1, 4, 3)
    assert (np.diff(np.asarray(pixels).sum(-1)) > 0).all()
    assert 0 <= pixels.min() <= pixels.max() <= 1


@pytest.fixture(scope="module")
def row():
    """The cells of one image of class 1 at position 7: itself, a wrong network's, and a right one's."""
    images, labels = np.full((1, 32, 48, 1), 51, np.uint8), np.array([1])
    maps = [np.zeros((1, 4, 6), np.float32), np.arange(24, dtype=np.float32).reshape(1, 4, 6)]
    probabilities = [np.array([[0.75, 0.25]]), np.array([[0.125, 0.875]])]
    return grid.cells([7], images, labels, maps, probabilities, ["cat", "a dog of some breed"])[0]


def test_the_first_cell_is_the_image_with_its_class_and_position(row):
    assert row[0].caption == "a dog of som…  #7"
    np.testing.assert_allclose(row[0].pixels, np.full((96, 144, 1), 0.2), rtol=1e-6)


def test_a_cell_shows_the_prediction_and_marks_it_if_wrong(row):
    assert [(cell.caption, cell.correct) for cell in row[1:]] == [("✗ cat 75%", False), ("a dog of som… 88%", True)]


def test_a_cell_of_a_map_of_zeros_is_the_darkest_color_over_the_image(row):
    np.testing.assert_allclose(row[1].pixels, np.broadcast_to((0.2 + grid.COLORS[0]) / 2, (96, 144, 3)), rtol=1e-5)


def test_the_grid_has_a_row_for_each_image_and_a_column_for_each_title(row):
    pixels = grid.draw({"a": 2, "b": 1}, ["image", "x", "y"], [row, row, row], "note")
    height = 3 * (grid.CELL + grid.CAPTION) + 2 * grid.HEADING + grid.HEADER + grid.FOOTER
    width = 3 * grid.CELL + 2 * grid.GAP + 2 * grid.MARGIN
    assert pixels.dtype == np.uint8
    np.testing.assert_allclose(pixels.shape, (grid.DPI * height, grid.DPI * width, 3), atol=1)


def test_a_long_title_is_wrapped_and_whole(monkeypatch):
    written = []
    text = Figure.text
    monkeypatch.setattr(Figure, "text", lambda *args, **options: written.append(args[3]) or text(*args, **options))
    cell = grid.Cell(np.zeros((8, 8, 1)), "0")
    title = "student\n" + "a-name-of-many-words-" * 5
    high = grid.draw({"images": 1}, [title, "image"], [[cell, cell]], "note")
    lines = written[0].split("\n")
    assert "".join(lines) == title.replace("\n", "")
    assert max(map(len, lines)) <= 20
    assert len(high) > len(grid.draw({"images": 1}, ["student", "image"], [[cell, cell]], "note"))


def test_a_name_that_is_not_utf8_is_drawn():
    cell = grid.Cell(np.zeros((4, 4, 1)), grid.shortened("caf\udce9", 13))
    assert cell.caption == "caf\\udce9"
    assert grid.draw({"images": 1}, [grid.shortened("a\udcff", 9)], [[cell]], "note").dtype == np.uint8
