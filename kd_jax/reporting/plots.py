"""Plots as SVG text that stands in a page: readable on light and on dark, and told apart without color.

Text and axes take the page's color. Series have the colors of Okabe and Ito (2008), without black and yellow, which
one of the two backgrounds hides, and each has a marker of its own.
"""

import io
import itertools
import re
import textwrap
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

STYLES = (  # (color, marker)
    ("#888888", "o"),
    ("#D55E00", "s"),
    ("#0072B2", "^"),
    ("#009E73", "D"),
    ("#CC79A7", "v"),
    ("#E69F00", "P"),
    ("#56B4E9", "X"),
)
WIDTH, HEIGHT = 4.5, 3.1  # inches
TEXT, GRID = "#010203", "#040506"  # stand for the page's colors, until the text of the SVG is made
MARKS = 8  # about so many on a line
_numbers = itertools.count()


class Series(NamedTuple):
    """One line, or one cloud of points."""

    style: int  # of STYLES
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None  # of a band around y
    high: Sequence[float] | None = None


def lines(title: str, x: str, y: str, series: Sequence[Series], *, diagonal: bool = False) -> str:
    """Lines with a band each; `diagonal` adds the line of equal x and y, from 0 to 1."""
    figure, axes = _figure(title, x, y)
    if diagonal:
        axes.plot([0, 1], [0, 1], color=TEXT, linewidth=0.8, linestyle=(0, (4, 4)))
        axes.set(xlim=(0, 1), ylim=(0, 1))
    for one in series:
        color, marker = STYLES[one.style]
        every = max(1, len(one.x) // MARKS)
        axes.plot(one.x, one.y, color=color, marker=marker, markersize=5, linewidth=1.6, markevery=every)
        if one.low is not None and one.high is not None:
            axes.fill_between(one.x, one.low, one.high, color=color, alpha=0.18, linewidth=0)
    return _svg(figure, title)


def points(title: str, x: str, y: str, series: Sequence[Series], *, log: bool = False) -> str:
    """A cloud of points for each series; `log`: positive x, on a logarithmic axis where they are far apart."""
    from matplotlib.ticker import LogLocator, NullLocator

    figure, axes = _figure(title, x, y)
    places = [value for one in series for value in one.x]
    if log and max(places) > 3 * min(places) > 0:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if max(places) < 200 * min(places) else (1,)))
        axes.xaxis.set_minor_locator(NullLocator())
    if log:
        axes.xaxis.set_major_formatter(lambda value, _: _number(value))
    for one in series:
        color, marker = STYLES[one.style]
        axes.plot(one.x, one.y, color=color, marker=marker, markersize=6, linestyle="none", alpha=0.85)
    return _svg(figure, title)


def matrix(title: str, names: Sequence[str], shares: np.ndarray) -> str:
    """A confusion matrix. `shares`: [N, N], a row's fractions by column; its numbers are printed in per cent."""
    from matplotlib.colors import to_rgba

    size = WIDTH
    figure, axes = _figure(title, "predicted", "label", height=size)
    pixels = np.zeros((*shares.shape, 4))
    pixels[...] = to_rgba(STYLES[2][0])
    pixels[..., 3] = 0.6 * np.sqrt(np.clip(shares, 0, 1))  # the root, so that rare mistakes are seen too
    count = len(names)
    axes.grid(False)
    axes.pcolormesh(np.arange(count + 1) - 0.5, np.arange(count + 1) - 0.5, pixels, edgecolor="none")
    axes.set(xlim=(-0.5, count - 0.5), ylim=(count - 0.5, -0.5))
    short = [_cut(name, 16) for name in names]
    axes.set_xticks(range(count), short, rotation=90, parse_math=False)
    axes.set_yticks(range(count), short, parse_math=False)
    axes.tick_params(length=0)
    for row, column in np.ndindex(*shares.shape):
        percent = int(100 * shares[row, column] + 0.5)
        if percent:
            axes.text(column, row, str(percent), ha="center", va="center", fontsize=8, color=TEXT)
    return _svg(figure, title)


def ranks(
    title: str, names: Sequence[str], means: Sequence[float], critical: float, groups: Sequence[tuple[int, int]]
) -> str:
    """Mean ranks and their critical difference, a row for each name; a bar at the right joins those of a group.

    Args:
      means: the ranks of `names`, ascending.
      critical: the difference that tells two apart, drawn above.
      groups: (first, last) of the names that are not told apart.
    """
    figure, axes = _figure(title, "average rank", "", height=1.1 + 0.17 * len(names))
    color, marker = STYLES[2]
    rows, start, middle = range(len(names)), means[0], means[0] + critical / 2
    end = max(means[-1], start + critical)
    axes.hlines(rows, start, means, color=GRID, linewidth=0.8)
    axes.plot(means, rows, color=color, marker=marker, markersize=6, linestyle="none")
    axes.errorbar(middle, -1.2, xerr=critical / 2, color=TEXT, capsize=3, linewidth=1.2)
    axes.text(middle, -1.5, f"critical difference {critical:.2f}", ha="center", va="bottom", color=TEXT)
    lanes: list[int] = []  # the last row of each that has bars
    for first, last in groups:
        lane = next((i for i, row in enumerate(lanes) if row < first), len(lanes))
        lanes[lane : lane + 1] = [last]
        place = end + (end - start) * (0.06 + 0.04 * lane)
        axes.plot([place] * 2, [first - 0.25, last + 0.25], color=TEXT, linewidth=2.2)
    ticks = [tick for tick in axes.get_xticks() if start - 0.5 <= tick <= end]
    axes.set(ylim=(len(names) - 0.5, -2.7), xticks=ticks)
    axes.spines["bottom"].set_bounds(start, end)
    axes.set_yticks(rows, [_cut(name, 24) for name in names], parse_math=False)
    axes.tick_params(axis="y", length=0)
    axes.grid(False, axis="y")
    return _svg(figure, title)


def _number(value: float) -> str:
    """A number of an axis, as 20k or 1.5M."""
    for unit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= unit:
            return f"{value / unit:.4g}{letter}"
    return f"{value:.4g}"


def mark(style: int) -> str:
    """The line and the marker of a style, for a legend."""
    from matplotlib.markers import MarkerStyle

    color, marker = STYLES[style]
    own = MarkerStyle(marker)
    shape: Any = own.get_path().transformed(own.get_transform()).to_polygons(closed_only=True)
    outline = "".join("M" + "L".join(f"{14 + 9 * x:.1f},{6 - 9 * y:.1f}" for x, y in part) + "Z" for part in shape)
    return (
        '<svg width="28" height="12" viewBox="0 0 28 12" aria-hidden="true">'
        f'<path d="M0,6H28" stroke="{color}" stroke-width="2"/><path d="{outline}" fill="{color}"/></svg>'
    )


def _figure(title: str, x: str, y: str, height: float = HEIGHT) -> tuple[Any, Any]:
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({"font.size": 9, "text.parse_math": False, "axes.titlesize": 10}):
        figure = Figure((WIDTH, height), layout="constrained")
        axes = figure.subplots()
        axes.set_title("\n".join(textwrap.wrap(_drawable(title), 52)), color=TEXT, loc="left")
        axes.set_xlabel(x, color=TEXT)
        axes.set_ylabel(y, color=TEXT)
    axes.patch.set_alpha(0)
    axes.grid(color=GRID, linewidth=0.5)
    axes.tick_params(color=GRID, labelcolor=TEXT)
    for side in axes.spines.values():
        side.set_color(GRID)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _svg(figure: Any, title: str) -> str:
    """The figure's SVG element, with names of its own inside the page."""
    from html import escape

    from matplotlib import rc_context

    file = io.StringIO()
    settings: Any = {"svg.fonttype": "none", "svg.hashsalt": "kd_jax", "text.parse_math": False}
    with rc_context(settings), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a letter that the font of the layout lacks; the browser has its own
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    text = file.getvalue()
    text = re.sub(r"<(metadata|style).*?</\1>", "", text[text.index("<svg") :], flags=re.DOTALL)
    prefix = f"plot{next(_numbers)}-"
    text = re.sub(r'\bid="', f'id="{prefix}', text)
    text = re.sub(r'(href="|url\()#', rf"\1#{prefix}", text)
    text = text.replace(TEXT, "currentColor").replace(GRID, "var(--line)")
    text = re.sub(r"font(-family)?: ([^;\"']*?)'[^;\"]*sans-serif", r"font\1: \2inherit", text)
    head, rest = text.split(">", 1)
    box = re.search(r'viewBox="[^"]*"', head)
    label = escape(title)
    return f'<svg {box[0] if box else ""} role="img" aria-label="{label}" xmlns:xlink="http://www.w3.org/1999/xlink">{rest}'


def _drawable(text: str) -> str:
    """Text on one line, without lone surrogates."""
    return " ".join(text.encode(errors="replace").decode().split())


def _cut(text: str, length: int) -> str:
    """Text on one line, cut off where it is longer."""
    text = _drawable(text)
    return text if len(text) <= length else text[: length - 1] + "…"
