"""What is drawn of runs: curves, calibration, confusions, fidelity to the teacher."""

import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from kd_jax import metrics, runs
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
PAIRS = 10  # of classes, that a page on one run lists
UNREAD = "Without a line of metrics.jsonl that can be read, and so not drawn"
SHORT = "Too short for curves: a curve takes two measurements, see log.every_steps and evaluate.every_epochs."
PAIR = "A pair's number: of the images of its two classes, the share that is taken for the other one."
# Style and label of its lines.
ONE_RUN = {"train": (2, "training batches"), "validation": (1, "validation split"), "test": (0, "test set")}


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


def curves(pages: Sequence[Drawn]) -> list[Block]:
    """Accuracy and every loss term, mean over seeds with a band from the lowest to the highest.

    Over epochs, or over steps where the epochs of the runs have different numbers of these.
    """
    lines = {run.folder: _lines(run) for page in pages for group in page.groups for run in group.runs}
    last = [found[-1] for found in lines.values() if found]
    lengths = {round(line["step"] / line["epoch"]) for line in last if line["epoch"]}
    x = "step" if len(lengths) > 1 else "epoch"
    drawn = [block for page in pages for block in _curves(page, lines, x)]
    return drawn or [SHORT] * any(lines.values())


def curves_of_one(run: Run) -> list[Block]:
    """What `curves` draws, of one run over epochs: training and what was evaluated in the same plots."""
    values: dict[str, dict[float, float]] = {}  # by scalar and epoch
    lines = _lines(run)
    for line in lines:
        for name, value in line.items():
            if is_number(value):
                values.setdefault(name, {})[line["epoch"]] = value
    plotted = {"accuracy": ("accuracy", [f"{part}/accuracy" for part in ONE_RUN])}
    plotted |= {title: (y, [name]) for name, (title, y) in _losses(values).items()}
    plotted["agreement with the teacher on the validation split"] = ("agreement", ["validation/agreement"])
    svgs, used = [], set()
    for title, (y, names) in plotted.items():
        drawn = [(ONE_RUN[name.partition("/")[0]][0], values[name]) for name in names if len(values.get(name, ())) > 1]
        series = [plots.Series(style, list(points), list(points.values())) for style, points in drawn]
        if series:
            svgs.append(plots.lines(title, "epoch", y, series))
            used |= {one.style for one in series}
    legend = [(plots.mark(style), label) for style, label in ONE_RUN.values() if style in used]
    if not svgs:
        return [SHORT if lines else f"{UNREAD}: {run.folder}."]
    return [Figures(svgs, legend)]


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
    if series and not any(len(one.x) for one in series):
        blocks = [f"{page.data}. Nothing is drawn: no bin of confidences has {SMALL_BIN} images."]
    elif series:
        svg = plots.lines("calibration on the test set", "confidence", "accuracy", series, diagonal=True)
        said = f"Below the dashed line a network is too sure of itself. Bins of under {SMALL_BIN} images are left out."
        blocks = [f"{page.data}. {said}", Figures([svg], legend(page, {one.style for one in series}))]
    return blocks + _lacking(lacking)


def confusions(groups: Sequence[Group], pages: Sequence[Drawn]) -> list[Block]:
    """Which pairs of classes are confused most, and the matrices of the best group and of its baseline."""
    blocks: list[Block] = []
    for data in dict.fromkeys(page.data for page in pages):
        every = [pair for page in pages if page.data == data for pair in zip(page.groups, page.details, strict=True)]
        measured = [(group, total["confusion"]) for group, total in every if total]
        if measured:
            names = measured[0][0].runs[0].class_names
            rows = [(group.label, _named(_pairs(confusion)[:3], names)) for group, confusion in measured]
            distilled = [group for group, _ in measured if not group.alone] or [group for group, _ in measured]
            best = max(distilled, key=lambda group: statistics.fmean(group.by_seed().values()))
            shown = [(g, confusion) for g, confusion in measured if g is best or g is baseline(best, groups)]
            chosen = _classes(_pairs(next(confusion for group, confusion in shown if group is best)), len(names))
            blocks += [
                f"{data}. {PAIR}",
                Table(("recipe", "confused most"), rows, numbers=False),
                "The best of the recipes, and the same student alone where it was run, over all seeds. "
                + _about_matrix(chosen, names),
                Figures([_matrix(group.label, confusion, chosen, names) for group, confusion in shown]),
            ]
        blocks += _lacking([group.label for group, total in every if not total])
    return blocks


def confusions_of_one(page: Drawn) -> list[Block]:
    """The pairs of classes that a run confuses most, and its matrix."""
    (group,), (total,) = page.groups, page.details
    if total is None:
        return _lacking([group.label])
    names, confusion = group.runs[0].class_names, total["confusion"]
    pairs = _pairs(confusion)
    rows = [
        (f"{names[a]} / {names[b]}", f"{100 * share:.1f}", f"{confusion[a, b]:,.0f}", f"{confusion[b, a]:,.0f}")
        for share, a, b in pairs[:PAIRS]
        if share
    ]
    header = ("classes", "confused, %", "first taken for second", "second taken for first")
    chosen = _classes(pairs, len(names))
    matrix = Figures([_matrix("confusion matrix", confusion, chosen, names)])
    listed: list[Block] = [PAIR, Table(header, rows)] if rows else []
    return [*listed, _about_matrix(chosen, names), matrix]


def classes_of_one(page: Drawn) -> list[Block]:
    """Recall, precision and F1 of every class of a run."""
    (group,), (total,) = page.groups, page.details
    if total is None:
        return []
    rows = [
        (name, f"{found['images']:,}", *(_percent(found[key]) for key in ("recall", "precision", "f1")))
        for name, found in metrics.per_class(total, group.runs[0].class_names).items()
    ]
    return [Table(("class", "images", "recall, %", "precision, %", "F1, %"), rows)]


def _percent(value: float | int | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"


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
        [f"{page.data}. A point is a run, measured against its own teacher.", Figures(svgs, legend(page, used))]
        if svgs
        else []
    )


def legend(page: Drawn, styles: Iterable[int] | None = None) -> list[tuple[str, str]]:
    """The marks of a page's groups, or of some styles among them."""
    kept = set(range(len(plots.STYLES))) if styles is None else set(styles)
    return [(plots.mark(style), group.label) for style, group in enumerate(page.groups) if style in kept]


def _curves(page: Drawn, lines: Mapping[str, Sequence[Mapping[str, Any]]], x: str) -> list[Block]:
    """The curves of one page over `x`. `lines`: of metrics.jsonl, by folder."""
    values: dict[str, dict[int, dict[float, list[float]]]] = {}  # by scalar, style and x
    for style, group in enumerate(page.groups):
        for line in (line for run in group.runs for line in lines[run.folder]):
            for name, value in line.items():
                if is_number(value):
                    values.setdefault(name, {}).setdefault(style, {}).setdefault(line[x], []).append(value)
    titles = {
        "train/accuracy": ("accuracy on training batches", "accuracy"),
        "validation/accuracy": ("accuracy on the validation split", "accuracy"),
        **_losses(values),
    }
    svgs = []
    for name, (title, y) in titles.items():
        series = []
        for style, points in sorted(values.get(name, {}).items()):
            at = sorted(points)
            mean, low, high = ([f(points[one]) for one in at] for f in (statistics.fmean, min, max))
            series.append(plots.Series(style, at, mean, low, high))
        if any(len(one.x) > 1 for one in series):  # a run without validation on the way has one point, at its end
            svgs.append(plots.lines(title, x, y, series))
    said = "Mean over the seeds; the band reaches from the lowest to the highest."
    if x == "step":
        said += " Over steps, as the runs differ in how many an epoch has."
    blocks: list[Block] = [f"{page.data}. {said}", Figures(svgs, legend(page))] if svgs else []
    if lacking := [run.folder for group in page.groups for run in group.runs if not lines[run.folder]]:
        blocks.append(f"{UNREAD}: {', '.join(lacking)}.")
    return blocks


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


def _losses(names: Iterable[str]) -> dict[str, tuple[str, str]]:
    """{scalar: (title, y axis)} of the loss, of each of its terms among some scalars, and of the validation's."""
    titles = {
        "train/loss": ("loss, the sum of its terms", "loss"),
        "validation/nll": ("negative log-likelihood on the validation split", "nats"),
    }
    terms = sorted(name for name in names if name.startswith("train/loss/"))
    return titles | {name: (f"loss term {name.removeprefix('train/loss/')}, as weighted", "loss") for name in terms}


def _pairs(confusion: np.ndarray) -> list[tuple[float, int, int]]:
    """(share confused, class, class) of the pairs that are confused most, the worst first."""
    images = confusion.sum(1)
    a, b = np.triu_indices(len(confusion), 1)
    shares = (confusion[a, b] + confusion[b, a]) / np.maximum(images[a] + images[b], 1)
    return [(float(shares[i]), int(a[i]), int(b[i])) for i in np.argsort(-shares, kind="stable")[:100]]


def _named(pairs: Iterable[tuple[float, int, int]], names: Sequence[str]) -> str:
    return ", ".join(f"{names[a]} / {names[b]} {100 * share:.1f}%" for share, a, b in pairs)


def _classes(pairs: Sequence[tuple[float, int, int]], count: int) -> list[int]:
    """All classes where they are few; else those of the worst pairs."""
    if count <= CLASSES:
        return list(range(count))
    chosen: set[int] = set()
    for _, *both in pairs:
        if len(chosen.union(both)) > CLASSES:
            break
        chosen.update(both)
    return sorted(chosen)


def _matrix(title: str, confusion: np.ndarray, chosen: Sequence[int], names: Sequence[str]) -> str:
    shares = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    return plots.matrix(title, [names[i] for i in chosen], shares[np.ix_(chosen, chosen)])


def _about_matrix(chosen: Sequence[int], names: Sequence[str]) -> str:
    part = f" The classes are those of its worst pairs, of {len(names)}." if len(chosen) < len(names) else ""
    return "Numbers are per cent of a label's images." + part
