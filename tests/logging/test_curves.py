"""Curves of one run, as SVG."""

import re
import xml.etree.ElementTree

import pytest

from kd_jax.logging import curves


def points(text):
    """[(x, y)] of each line that is drawn."""
    tree = xml.etree.ElementTree.fromstring(text)
    lines = (line.get("points").split() for line in tree.iter("polyline"))
    return [[tuple(map(float, point.split(","))) for point in line] for line in lines]


def test_a_curve_goes_from_corner_to_corner_with_its_numbers():
    text = curves.svg("loss", {"training": ([0, 1, 4], [2.0, 1.5, 1.0])})
    left, right = curves.LEFT, curves.WIDTH - curves.RIGHT
    top, bottom = curves.TOP, curves.HEIGHT - curves.BOTTOM
    assert points(text) == [[(left, top), (left + (right - left) / 4, (top + bottom) / 2), (right, bottom)]]
    assert re.findall(r">([^<]+)</text>", text) == ["loss", "2", "1", "0", "epoch 4", "training 1"]


def test_two_curves_have_one_scale_and_differ_without_color():
    text = curves.svg("accuracy", {"training": ([0, 1], [0.0, 1.0]), "validation": ([0, 1], [0.5, 0.5])})
    assert points(text)[1][0][1] == pytest.approx((curves.TOP + curves.HEIGHT - curves.BOTTOM) / 2)
    assert text.count("stroke-dasharray") == 1


def test_a_curve_that_is_flat_is_drawn():
    ((first, second),) = points(curves.svg("loss", {"training": ([0, 1], [3.0, 3.0])}))
    assert first[1] == second[1] == curves.HEIGHT - curves.BOTTOM


def test_a_title_is_text():
    assert 'aria-label="&lt;loss&gt;"' in curves.svg("<loss>", {})


def test_a_run_of_one_line_has_no_curve(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 2, "epoch": 1.0, "train/loss": 0.5}\n')
    assert curves.of_run(str(tmp_path)) == ""


def test_a_run_whose_folder_is_gone_has_no_curve(tmp_path):
    assert curves.of_run(str(tmp_path / "gone")) == ""


def test_accuracies_that_are_not_known_are_left_out(tmp_path):
    lines = [f'{{"step": {step}, "epoch": {step}, "train/loss": 0.5, "train/accuracy": null}}\n' for step in (1, 2)]
    (tmp_path / "metrics.jsonl").write_text("".join(lines))
    assert curves.of_run(str(tmp_path)).count("<svg") == 1
