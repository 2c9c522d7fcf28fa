"""What is drawn of runs: curves, calibration, confusions, fidelity to the teacher."""

import statistics
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from kd_jax import runs
from kd_jax.errors import InputError
from kd_jax.logging import metrics_file
from kd_jax.reporting import plots
from kd_jax.reporting.finished import LARGEST, Run, is_number
from kd_jax.reporting.groups import Group, baseline, by_data
from kd_jax.reporting.page import Block, Figures, Table

DRAWN = 3 * len(plots.STYLES)  # groups, at most
POINTS = 120  # of a curve, at most about
SMALL_BIN = 10  # images; a calibration bin of fewer says nothing
CLASSES = 12  # of a confusion matrix, at most


class Drawn(NamedTuple):
    """Groups of one test set that are drawn into the same plots."""

    data: str
    groups: Sequence[Group]  # each in the style of its position
    details: Sequence[dict[str, np.ndarray] | None]  # of each, the sum of its runs' test_details.json


def pages(groups: Sequence[Group]) -> Iterator[Drawn]:
    """The first DRAWN groups, so many to a page as there are styles, each page of one test set."""
    for data, members in by_data(groups[:DRAWN]).items():
        for start in range(0, len(members), len(plots.STYLES)):
            page = members[start : start + len(plots.STYLES)]
            yield Drawn(data, page, [_details(group) for group in page])


def curves(page: Drawn) -> list[Block]:
    """Accuracy and every loss term over epochs, mean over seeds with a band from the lowest to the highest."""
    values: dict[str, dict[int, dict[float, list[float]]]] = {}  # by scalar, style and epoch
    lacking = []
    for style, group in enumerate(page.groups):
        for run in group.runs:
            lines = _lines(run)
            if not lines:
                lacking.append(run.folder)
            for line in lines:
                for name, value in line.items():
                    if is_number(value):
                        points = values.setdefault(name, {}).setdefault(style, {})
                        points.setdefault(line["epoch"], []).append(value)
    titles = {
        "train/accuracy": ("accuracy on training batches", "accuracy"),
        "validation/accuracy": ("accuracy on the validation split", "accuracy"),
        "train/loss": ("loss, the sum of its terms", "loss"),
        "validation/nll": ("negative log-likelihood on the validation split", "nats"),
    }
    for name in sorted(values):
        if name.startswith("train/loss/"):
            titles[name] = (f"loss term {name.removeprefix('train/loss/')}, as weighted", "loss")
    svgs = []
    for name, (title, y) in titles.items():
        series = []
        for style, points in sorted(values.get(name, {}).items()):
            epochs = sorted(points)
            mean, low, high = ([f(points[e]) for e in epochs] for f in (statistics.fmean, min, max))
            series.append(plots.Series(style, epochs, mean, low, high))
        if any(len(one.x) > 1 for one in series):  # a run without validation on the way has one point, at its end
            svgs.append(plots.lines(title, "epoch", y, series))
    said = "Mean over the seeds; the band reaches from the lowest to the highest."
    blocks: list[Block] = [f"{page.data}. {said}", Figures(svgs, _legend(page))] if svgs else []
    if lacking:
        blocks.append(f"Without a line of metrics.jsonl that can be read, and so not drawn: {', '.join(lacking)}.")
    return blocks


def calibration(page: Drawn) -> list[Block]:
    """Accuracy against confidence, over the bins of the calibration error."""
    series, lacking = [], []
    for style, (group, total) in enumerate(zip(page.groups, page.details, strict=True)):
        if total is None:
            lacking.append(group.label)
            continue
        kept = total["bin_count"] >= SMALL_BIN
        count = total["bin_count"][kept]
        series.append(plots.Series(style, total["bin_confidence"][kept] / count, total["bin_correct"][kept] / count))
    blocks: list[Block] = []
    if series:
        svg = plots.lines("calibration on the test set", "confidence", "accuracy", series, diagonal=True)
        said = f"Below the dashed line a network is too sure of itself. Bins of under {SMALL_BIN} images are left out."
        blocks = [f"{page.data}. {said}", Figures([svg], _legend(page, {one.style for one in series}))]
    return blocks + _lacking(lacking)


def confusions(groups: Sequence[Group], pages: Sequence[Drawn]) -> list[Block]:
    """Which pairs of classes are confused most and least, and the matrices of the best group and of its baseline."""
    blocks: list[Block] = []
    for data in dict.fromkeys(page.data for page in pages):
        every = [pair for page in pages if page.data == data for pair in zip(page.groups, page.details, strict=True)]
        measured = [(group, total["confusion"]) for group, total in every if total]
        if measured:
            names = measured[0][0].runs[0].class_names
            rows = []
            for group, confusion in measured:
                pairs = _pairs(confusion)
                rows.append((group.label, _named(pairs[:3], names), _named(pairs[::-1][:3], names)))
            distilled = [group for group, _ in measured if not group.alone] or [group for group, _ in measured]
            best = max(distilled, key=lambda group: statistics.fmean(group.by_seed().values()))
            shown = [(g, confusion) for g, confusion in measured if g is best or g is baseline(best, groups)]
            chosen = _classes(_pairs(next(confusion for group, confusion in shown if group is best)), len(names))
            svgs = []
            for group, confusion in shown:
                shares = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
                svgs.append(plots.matrix(group.label, [names[i] for i in chosen], shares[np.ix_(chosen, chosen)]))
            part = f" The classes are those of its worst and best pairs, of {len(names)}."
            blocks += [
                f"{data}. A pair's number: of the images of its two classes, those taken for the other one.",
                Table(("", "confused most", "confused least"), rows, numbers=False),
                "The best of the recipes, and the same student alone where it was run, over all seeds; per cent of a"
                " label's images." + (part if len(chosen) < len(names) else ""),
                Figures(svgs),
            ]
        blocks += _lacking([group.label for group, total in every if not total])
    return blocks


def fidelity(page: Drawn) -> list[Block]:
    svgs, used = [], set()
    for name, x in (("agreement", "agreement with the teacher"), ("fidelity_kl", "KL from the teacher, nats")):
        series = []
        for style, group in enumerate(page.groups):
            tests = [r.result["test"] for r in group.runs if is_number(r.result["test"].get(name))]
            if tests:
                series.append(plots.Series(style, [t[name] for t in tests], [t["accuracy"] for t in tests]))
                used.add(style)
        if series:
            svgs.append(plots.points(f"{x.partition(',')[0]} and accuracy", x, "test accuracy", series))
    return (
        [f"{page.data}. A point is a run, measured against its own teacher.", Figures(svgs, _legend(page, used))]
        if svgs
        else []
    )


def _lines(run: Run) -> list[dict]:
    written = run.result.get("metrics_lines", 0)
    try:
        lines = metrics_file.read(run.folder, most=POINTS, written=written if is_number(written) else 0)
    except OSError:
        return []
    return [line for line in lines if isinstance(line, dict) and is_number(line.get("epoch"))]


def _details(group: Group) -> dict[str, np.ndarray] | None:
    """The sum of test_details.json over a group's runs; None where one has none that fits."""
    total: dict[str, np.ndarray] = {}
    for run in group.runs:
        try:
            details = runs.read_json(run.folder, "test_details.json")
            arrays = {key: np.array(details[key], float) for key in runs.RUN_FILE_KEYS["test_details.json"]}
            total = {key: total.get(key, 0) + value for key, value in arrays.items()}
        except (InputError, TypeError, ValueError, OverflowError):
            return None
        if not all(np.all((value >= 0) & (value < LARGEST)) for value in arrays.values()):
            return None
    classes = len(group.runs[0].class_names)
    bins = {total[key].shape for key in ("bin_confidence", "bin_correct", "bin_count")}
    return total if total["confusion"].shape == (classes, classes) and len(bins) == 1 else None


def _lacking(labels: Sequence[str]) -> list[Block]:
    if not labels:
        return []
    return [f"Without a whole test_details.json of every run, as in an older version: {', '.join(labels)}."]


def _pairs(confusion: np.ndarray) -> list[tuple[float, int, int]]:
    """(share confused, class, class) of pairs, the worst first; of equal ones the better known classes last.

    Of many classes only the worst pairs and the best.
    """
    images = confusion.sum(1)
    a, b = np.triu_indices(len(confusion), 1)
    shares = (confusion[a, b] + confusion[b, a]) / np.maximum(images[a] + images[b], 1)
    recall = np.diag(confusion) / np.maximum(images, 1)
    order = np.lexsort((recall[a] + recall[b], -shares))
    if len(order) > 100:
        order = np.concatenate([order[:50], order[-50:]])
    return [(float(shares[i]), int(a[i]), int(b[i])) for i in order]


def _named(pairs: Iterable[tuple[float, int, int]], names: Sequence[str]) -> str:
    return ", ".join(f"{names[a]} / {names[b]} {100 * share:.1f}%" for share, a, b in pairs)


def _classes(pairs: Sequence[tuple[float, int, int]], count: int) -> list[int]:
    """All classes where they are few; else those of the worst pairs and, for a third, of the best."""
    if count <= CLASSES:
        return list(range(count))
    chosen: dict[int, None] = {}
    for ranked, most in ((pairs, 2 * CLASSES // 3), (pairs[::-1], CLASSES)):
        for _, *both in ranked:
            if len(chosen.keys() | set(both)) > most:
                break
            chosen |= dict.fromkeys(both)
    return sorted(chosen)


def _legend(page: Drawn, styles: Iterable[int] | None = None) -> list[tuple[str, str]]:
    kept = set(range(len(plots.STYLES))) if styles is None else set(styles)
    return [(plots.mark(style), group.label) for style, group in enumerate(page.groups) if style in kept]
