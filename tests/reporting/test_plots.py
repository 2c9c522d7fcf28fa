"""Plots are SVG that fits into any page."""

import re
import xml.etree.ElementTree

import numpy as np
import pytest

from kd_jax.reporting import plots

SERIES = [plots.Series(style, [0, 1, 2], [0.1, 0.2, style], [0, 0, 0], [1, 1, 1]) for style in range(7)]
TITLE = "a < b & $\\frac \u732b"


@pytest.fixture(scope="module", params=["lines", "points", "matrix"])
def svg(request):
    if request.param == "matrix":
        return plots.matrix(TITLE, ["<b>", "$\\frac$", "\ud800"], np.eye(3))
    return getattr(plots, request.param)(TITLE, "epoch", "loss", SERIES)


def test_any_title_is_text(svg):
    root = xml.etree.ElementTree.fromstring(svg.replace("<svg", '<svg xmlns="http://www.w3.org/2000/svg"', 1))
    assert root.attrib["aria-label"] == TITLE
    assert TITLE in [element.text for element in root.iter() if element.tag.endswith("text")]


def test_text_and_axes_have_the_colors_of_the_page(svg):
    assert not re.search("#000000|#0102|#0405|#fff", svg)
    assert "currentColor" in svg
    assert "var(--line)" in svg


def test_two_plots_of_a_page_share_no_id():
    first, second = (set(re.findall(r'\bid="(.*?)"', plots.lines("loss", "epoch", "", SERIES))) for _ in range(2))
    assert first
    assert not first & second


def test_sizes_that_are_far_apart_are_on_a_logarithmic_axis_with_short_numbers():
    svg = plots.points("size", "parameters", "accuracy", [plots.Series(0, [2e4, 2e6], [0.5, 0.6])], log=True)
    assert re.findall(">([0-9.]+[kMG]?)</text>", svg)[:7] == ["20k", "50k", "100k", "200k", "500k", "1M", "2M"]


def test_a_long_title_is_whole():
    svg = plots.lines("resnet " * 20, "epoch", "", SERIES)
    assert sum(line.count("resnet") for line in re.findall(">([^<]*)</text>", svg)) == 20


def test_each_style_has_a_color_and_a_marker_of_its_own():
    assert [len(set(column)) for column in zip(*plots.STYLES, strict=True)] == [len(plots.STYLES)] * 2
