"""Plots are SVG that fits into any page."""

import re
import xml.etree.ElementTree

import numpy as np
import pytest

from kd_jax.reporting import plots

SERIES = [plots.Series(style, [0, 1, 2], [0.1, 0.2, style], [0, 0, 0], [1, 1, 1]) for style in range(7)]
TITLE = "a < b & $\\frac \u732b"


@pytest.fixture(scope="module", params=["lines", "points", "matrix", "ranks"])
def svg(request):
    if request.param == "matrix":
        return plots.matrix(TITLE, ["<b>", "$\\frac$", "\ud800"], np.eye(3))
    if request.param == "ranks":
        return plots.ranks(TITLE, ["<b>", "$\\frac$", "\ud800"], [1.0, 2.0, 3.0], 1.5, [(0, 1), (1, 2)])
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


def test_bars_of_ranks_that_share_a_row_stand_side_by_side(monkeypatch):
    kept = []
    monkeypatch.setattr(plots, "_svg", lambda figure, title: kept.append(figure))
    plots.ranks("ranks", list("abcde"), [1.0, 2.0, 3.0, 4.0, 5.0], 1.0, [(0, 1), (1, 2), (3, 4)])
    bars = [line for line in kept[0].axes[0].lines if line.get_linewidth() == 2.2]
    places = [bar.get_xdata()[0] for bar in bars]
    assert [tuple(np.round(bar.get_ydata())) for bar in bars] == [(0, 1), (1, 2), (3, 4)]
    assert places[0] == places[2] < places[1]
