"""Curves of one run as SVG text, drawn in no time and without a library: for a notebook, while it trains and after."""

import html
import math
from collections.abc import Iterable, Mapping, Sequence

from kd_jax.logging import metrics_file

WIDTH, HEIGHT = 340, 190
LEFT, RIGHT, TOP, BOTTOM = 52, 10, 22, 24  # margins
COLORS = ("#0072B2", "#D55E00")  # of Okabe and Ito (2008)
POINTS = 120  # of a curve, at most about

Curve = tuple[Sequence[float], Sequence[float]]  # x, y


def of_run(folder: str) -> str:
    """The loss and the accuracies over epochs, as far as a run's metrics.jsonl goes; "" before two points of any."""
    lines = metrics_file.read(folder, most=POINTS)
    loss = _curves(lines, {"training": "train/loss"})
    accuracy = _curves(lines, {"training": "train/accuracy", "validation": "validation/accuracy"})
    return "".join(svg(title, curves) for title, curves in (("loss", loss), ("accuracy", accuracy)) if curves)


def _curves(lines: Sequence[Mapping[str, float]], names: Mapping[str, str]) -> dict[str, Curve]:
    curves: dict[str, Curve] = {}
    for label, name in names.items():
        found = [line for line in lines if line.get(name) is not None and "epoch" in line]
        if len(found) > 1:
            curves[label] = ([line["epoch"] for line in found], [line[name] for line in found])
    return curves


def svg(title: str, curves: Mapping[str, Curve]) -> str:
    """A plot of up to two curves by name over epochs, in the colors of the page that it stands in."""
    low_x, high_x = _range(x for xs, _ in curves.values() for x in xs)
    low_y, high_y = _range(y for _, ys in curves.values() for y in ys)
    across, down = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
    drawn = [f'<path d="M{LEFT} {TOP}V{HEIGHT - BOTTOM}H{WIDTH - RIGHT}" stroke="currentColor" opacity=".5"/>']
    texts = [(LEFT, 14, "start", "currentColor", title)]
    texts += [(LEFT - 6, TOP + 8, "end", "currentColor", f"{high_y:.3g}")]
    texts += [(LEFT - 6, HEIGHT - BOTTOM, "end", "currentColor", f"{low_y:.3g}")]
    texts += [(LEFT, HEIGHT - 8, "start", "currentColor", f"{low_x:.3g}")]
    texts += [(WIDTH - RIGHT, HEIGHT - 8, "end", "currentColor", f"epoch {high_x:.3g}")]
    for number, (color, (name, (xs, ys))) in enumerate(zip(COLORS, curves.items(), strict=False)):
        points = " ".join(
            f"{LEFT + across * (x - low_x) / (high_x - low_x):.1f},"
            f"{HEIGHT - BOTTOM - down * (y - low_y) / (high_y - low_y):.1f}"
            for x, y in zip(xs, ys, strict=True)
        )
        dashes = ' stroke-dasharray="5 3"' if number else ""
        drawn.append(f'<polyline points="{points}" stroke="{color}" stroke-width="1.6"{dashes}/>')
        texts.append((WIDTH - RIGHT - 90 * (len(curves) - 1 - number), 14, "end", color, f"{name} {ys[-1]:.3g}"))
    drawn += [
        f'<text x="{x}" y="{y}" text-anchor="{anchor}" fill="{color}" stroke="none">{html.escape(text)}</text>'
        for x, y, anchor, color, text in texts
    ]
    return (
        f'<svg width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}" fill="none" role="img"'
        f' aria-label="{html.escape(title)}" font-family="sans-serif" font-size="11">{"".join(drawn)}</svg>'
    )


def _range(values: Iterable[float]) -> tuple[float, float]:
    """The lowest and the highest of finite values, which differ."""
    finite = [value for value in values if math.isfinite(value)]
    low, high = min(finite, default=0.0), max(finite, default=0.0)
    return (low, high) if high > low else (low, low + 1)
