"""Reports on runs: tables, curves, calibration, confusions and what was run, as one HTML page and as Markdown.

usage: python -m kd_jax.report [--to=report] RUNS...

RUNS are folders of runs, or folders that hold such folders at any depth. Runs whose configs differ by the seed alone
are one group, a row of the tables. A group with a teacher is compared, seed by seed, with the group of the same student
and recipe without one. Writes index.html, which needs no other file and no network, and report.md.
"""

import collections
import errno
import json
import math
import os
import re
import statistics
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from absl import flags

from kd_jax import cli, plots, runs, writers
from kd_jax.intervals import mean_and_deviation, paired_difference
from kd_jax.page import Block, Figures, Folded, Image, Section, Table, html, markdown
from kd_jax.types import InputError

flags.declare_key_flag("to")

FILES = ("config.json", "result.json", "metrics.jsonl")  # one of them makes a folder a run's
# What a report reads of a result, and of its `test`.
NUMBER, TEXT, KEYS = "a number", "text", "keys"
RESULT = {"name": TEXT, "seed": NUMBER, "config_hash": TEXT, "parameters": NUMBER, "seconds": NUMBER, "device": TEXT}
RESULT["versions"] = KEYS
TEST = {"accuracy": NUMBER, "nll": NUMBER, "ece": NUMBER, "images": NUMBER}
# Where a student alone may differ from a distilled one and still be what it is compared with.
NOT_RECIPE = ("teacher", "method.", "optimizer.method.", "dataset.unlabelled", "evaluate.every", "evaluate.batch")
DRAWN = 3 * len(plots.STYLES)  # groups, at most
POINTS = 120  # of a curve, at most about
SMALL_BIN = 10  # images; a calibration bin of fewer says nothing
CLASSES = 12  # of a confusion matrix, at most
PICTURES = 6


class Run(NamedTuple):
    """A finished run, from its files."""

    folder: str
    result: dict[str, Any]
    recipe: dict[str, Any]  # flat: what affects the result, but for the seed
    data: str  # names the test set
    class_names: tuple[str, ...]


class Group(NamedTuple):
    """Runs of one recipe."""

    label: str
    runs: tuple[Run, ...]

    @property
    def recipe(self) -> dict[str, Any]:
        return self.runs[0].recipe

    @property
    def alone(self) -> bool:
        return self.recipe["teacher"] == "none"

    @property
    def student(self) -> str:
        """What the rows that are compared share."""
        return _key({k: v for k, v in self.recipe.items() if not k.startswith(NOT_RECIPE)})

    def by_seed(self, name: str = "accuracy") -> dict[int, float]:
        """{seed: the mean of a test metric over its runs}; without the runs that lack it."""
        values: dict[int, list[float]] = collections.defaultdict(list)
        for run in self.runs:
            if _is_number(run.result["test"].get(name)):
                values[run.result["seed"]].append(run.result["test"][name])
        return {seed: statistics.fmean(values[seed]) for seed in sorted(values)}


class Drawn(NamedTuple):
    """Groups of one test set that are drawn into the same plots."""

    data: str
    groups: Sequence[Group]  # each in the style of its position
    details: Sequence[dict[str, np.ndarray] | None]  # of each, the sum of its runs' test_details.json


def main(arguments: list[str]) -> None:
    if not arguments:
        raise InputError("expected the folder of one run or more, for example runs")
    to = cli.TO.value or "report"
    count, left_out = report(arguments, to)
    print(f"{os.path.join(to, 'index.html')} and report.md: {_count(count, 'run')}, {left_out} left out")


def report(folders: Sequence[str], to: str) -> tuple[int, int]:
    """Writes the report on all runs in some folders into the folder `to`.

    Returns:
      (number of runs in the tables, number of those left out).
    Raises:
      InputError: when a folder holds no run, or `to` cannot be written; nothing was written.
    """
    runs.check_writable(to, "--to:")
    found: list[Run] = []
    left_out: list[tuple[str, str]] = []
    first: dict[str, str] = {}  # hash of a config -> its run
    for folder in _find(folders):
        try:
            run = _read(folder)
        except InputError as error:
            left_out.append((folder, str(error)))
            continue
        if first.setdefault(run.result["config_hash"], folder) == folder:
            found.append(run)
        else:
            left_out.append((folder, f"the same run as {first[run.result['config_hash']]}"))
    groups = _groups(found)
    title = f"Report: {_count(len(found), 'run')} of {_count(len(groups), 'recipe')}"
    sections = _sections(groups, left_out)
    texts = {"index.html": html(title, sections), "report.md": markdown(title, sections)}
    try:
        os.makedirs(to, exist_ok=True)
        for name, text in texts.items():
            path = os.path.join(to, name)
            with open(path + ".tmp", "w", encoding="utf-8", errors="replace") as file:
                file.write(text)
            os.replace(path + ".tmp", path)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise
        raise InputError(f"--to is {to!r}, which cannot be written: {error.strerror}") from error
    return len(found), len(left_out)


def _find(folders: Sequence[str]) -> list[str]:
    """The folders of runs at or below some folders, each once."""
    found: dict[str, str] = {}  # by real path
    for top in folders:
        if not os.path.isdir(top):
            raise InputError(f"{top!r} is not a folder; expected the folder of a run, or one that holds runs")
        seen, holds_run = set(), False
        for folder, below, files in os.walk(top, followlinks=True):
            real = os.path.realpath(folder)
            if real in seen:  # a link to a folder above
                below.clear()
                continue
            seen.add(real)
            below.sort()
            if set(FILES) & set(files):
                below.clear()
                holds_run = True
                found.setdefault(real, os.path.normpath(folder))
        if not holds_run:
            raise InputError(f"{top!r} holds no run; expected the folder of a run, or one that holds runs")
    return list(found.values())


def _read(folder: str) -> Run:
    """A finished run; raises InputError with the reason why it cannot be part of the tables."""
    saved = runs.read_json(folder, "config.json")
    if not runs.has_result(folder):
        raise InputError(_unfinished(folder, saved))
    result = runs.read_json(folder, "result.json")
    _check(result, RESULT, "")
    _check(result["test"], TEST, "test.")

    try:
        names = saved["data"]["class_names"]
        return Run(folder, result, _recipe(saved["identity"]), _data(saved, result), tuple(map(str, names)))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        what = f"lacks {error}" if isinstance(error, KeyError) else "has another form"
        raise InputError(f"config.json {what}; it is of another version") from None


def _check(tree: Mapping[str, Any], expected: Mapping[str, str], where: str) -> None:
    for key, kind in expected.items():
        if key not in tree:
            raise InputError(f"result.json lacks {where}{key}; it is of another version")
        value = tree[key]
        if not (_is_number(value) if kind == NUMBER else isinstance(value, str if kind == TEXT else dict)):
            raise InputError(f"{where}{key} of result.json is {repr(value)[:40]}; expected {kind}")


def _unfinished(folder: str, saved: Mapping[str, Any]) -> str:
    """How far a run without a result has come, and when it last wrote."""
    step = 0
    path = os.path.join(folder, "metrics.jsonl")
    try:
        lines = writers.read(folder, most=1)
        step = max((line["step"] for line in lines), default=0)
        train = saved["config"]["train"]
        total = train["steps"] or train["epochs"] * (saved["data"]["train_images"] // train["batch_size"])
        written = time.strftime("%Y-%m-%d %H:%M", time.localtime(os.path.getmtime(path)))
        return f"has not finished: step {step} of {total}, last written {written}"
    except (OSError, KeyError, TypeError, ValueError, ZeroDivisionError):
        return f"has not finished: step {step}"


def _recipe(identity: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of an identity that make a recipe: without seeds, and with a teacher's own in one value."""
    teacher = identity["teacher"]
    kept = {key: value for key, value in identity.items() if key not in ("seed", "teacher")}
    recipe = {**runs.flat(kept), "teacher": "none"}
    if teacher:
        whole = _without_seeds(teacher["run"])
        recipe["teacher"] = f"{whole.get('model', {}).get('name', 'weights')} {runs.digest(whole)[:8]}"
        recipe |= {f"teacher.{key}": value for key, value in teacher.items() if key != "run"}
    return recipe


def _without_seeds(identity: Mapping[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in identity.items() if key != "seed"}
    teacher = kept.get("teacher")
    return {**kept, "teacher": {**teacher, "run": _without_seeds(teacher["run"])}} if teacher else kept


def _data(saved: Mapping[str, Any], result: Mapping[str, Any]) -> str:
    dataset = saved["config"]["dataset"]
    names = {"folder": os.path.basename(os.path.normpath(dataset["path"])), "tfds": dataset["name"]}
    name = names.get(dataset["source"], dataset["source"])
    classes, images = len(saved["data"]["class_names"]), result["test"]["images"]
    return f"{name} {saved['data']['fingerprint'][:8]}, {classes} classes, {images:,} test images"


def _groups(found: Sequence[Run]) -> list[Group]:
    """Runs by recipe: test set by test set, students with more recipes first, and of a student the one alone first."""
    by_recipe: dict[str, list[Run]] = collections.defaultdict(list)
    for run in found:
        by_recipe[_key([run.data, run.recipe])].append(run)
    by_name: dict[str, list[list[Run]]] = collections.defaultdict(list)
    for members in by_recipe.values():
        members.sort(key=lambda run: (run.result["seed"], run.folder))
        by_name[members[0].result["name"]].append(members)
    groups = []
    for name, same in by_name.items():
        usual = _usual([members[0].recipe for members in same])
        for members in same:
            own = {k: v for k, v in _unusual(members[0].recipe, usual).items() if not k.startswith("dataset.path")}
            apart = ", ".join(f"{key} {_shown(value)}" for key, value in list(own.items())[:3])
            groups.append(Group(f"{name} ({apart})" if apart else name, tuple(members)))
    size = collections.Counter((group.runs[0].data, group.student) for group in groups)

    def order(group: Group):
        family = (group.runs[0].data, group.student)
        return group.runs[0].data, -size[family], family, not group.alone, -_mean(group.by_seed().values())

    return sorted(groups, key=order)


def _baseline(group: Group, groups: Sequence[Group]) -> Group | None:
    """The group without a teacher that has the same student and recipe; cross entropy before other losses."""
    alike = [g for g in groups if g.alone and g.runs[0].data == group.runs[0].data and g.student == group.student]
    if group.alone or not alike:
        return None

    def fitness(candidate: Group):
        plain = all(key.startswith("method.cross_entropy") for key in candidate.recipe if key.startswith("method."))
        return plain, len(candidate.by_seed().keys() & group.by_seed().keys())

    return max(alike, key=fitness)


def _sections(groups: Sequence[Group], left_out: Sequence[tuple[str, str]]) -> list[Section]:
    pages = list(_pages(groups))
    missing = len(groups) - sum(len(page.groups) for page in pages)
    note = [f"{_count(missing, 'more recipe')} stand in the tables only; a report on fewer runs draws them."]
    curves = [block for page in pages for block in _curves(page)] + (note if missing else [])
    sections = [
        Section("Results", _results(groups)),
        Section("Learning curves", curves),
        Section("Calibration", [block for page in pages for block in _calibration(page)]),
        Section("Confusions", _confusions(groups, pages)),
        Section("Fidelity to the teacher", [block for page in pages for block in _fidelity(page)]),
        Section("Where the networks look", _gaze(groups)),
        Section("What was run", _about(groups)),
        Section("Left out", [Table(("run", "why"), left_out, numbers=False)] if left_out else []),
    ]
    return [section for section in sections if section.blocks]


def _pages(groups: Sequence[Group]) -> Iterator[Drawn]:
    """The first DRAWN groups, so many to a page as there are styles, each page of one test set."""
    for data, members in _by_data(groups[:DRAWN]).items():
        for start in range(0, len(members), len(plots.STYLES)):
            page = members[start : start + len(plots.STYLES)]
            yield Drawn(data, page, [_details(group) for group in page])


def _by_data(groups: Sequence[Group]) -> dict[str, list[Group]]:
    """Groups by test set."""
    by_data: dict[str, list[Group]] = collections.defaultdict(list)
    for group in groups:
        by_data[group.runs[0].data].append(group)
    return by_data


def _results(groups: Sequence[Group]) -> list[Block]:
    """A table for each test set."""
    header = ["", "test accuracy, %", "difference, points", "compared with", "seeds", "top-5, %", "NLL", "ECE, %"]
    header += ["agreement, %", "KL", "teacher, %", "parameters", "seconds"]
    blocks: list[Block] = []
    for data, members in _by_data(groups).items():
        rows = [_result(group, _baseline(group, members)) for group in members]
        blocks += [f"Test set: {data}.", Table(header, rows)]
    if groups:
        blocks.append(
            "Mean and standard deviation over seeds. Differences are paired by seed, with a 95% interval by"
            " Student's t, to the same student and recipe without a teacher. NLL: negative log-likelihood, nats. ECE:"
            " expected calibration error. Agreement and KL compare with the student's own teacher."
        )
    return blocks


def _result(group: Group, baseline: Group | None) -> list[str]:
    accuracy = {seed: 100 * value for seed, value in group.by_seed().items()}
    mean, deviation = mean_and_deviation(list(accuracy.values()))
    difference = ""
    if baseline:
        other = baseline.by_seed()
        both = sorted(accuracy.keys() & other.keys())
        if both:
            gain, half = paired_difference([accuracy[s] for s in both], [100 * other[s] for s in both])
            difference = f"{gain:+.2f}" + (f" ± {half:.2f}" if math.isfinite(half) else "")
        else:
            difference = "no seed in common"
    teachers = [run.result.get("teacher") for run in group.runs]
    taught = [t["accuracy"] for t in teachers if isinstance(t, dict) and _is_number(t.get("accuracy"))]

    def average(name: str, form: str, factor: float = 1.0) -> str:
        values = group.by_seed(name)
        return form.format(factor * _mean(values.values())) if values else ""

    return [
        group.label,
        f"{mean:.2f}" + (f" ± {deviation:.2f}" if len(accuracy) > 1 else ""),
        difference,
        baseline.label if baseline else "",
        str(len(accuracy)),
        average("top5", "{:.2f}", 100),
        average("nll", "{:.3f}"),
        average("ece", "{:.2f}", 100),
        average("agreement", "{:.2f}", 100),
        average("fidelity_kl", "{:.3f}"),
        f"{100 * _mean(taught):.2f}" if taught else "",
        f"{group.runs[0].result['parameters']:,}",
        f"{_mean(run.result['seconds'] for run in group.runs):,.0f}",
    ]


def _curves(page: Drawn) -> list[Block]:
    """Accuracy and every loss term over epochs, mean over seeds with a band from the lowest to the highest."""
    values: dict[str, dict[int, dict[float, list[float]]]] = {}  # by scalar, style and epoch
    for style, group in enumerate(page.groups):
        for run in group.runs:
            for line in _lines(run.folder):
                for name, value in line.items():
                    if _is_number(value):
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
    return [f"{page.data}. {said}", Figures(svgs, _legend(page))] if svgs else []


def _lines(folder: str) -> list[dict]:
    try:
        lines = writers.read(folder, most=POINTS)
    except OSError:
        return []
    return [line for line in lines if isinstance(line, dict) and _is_number(line.get("epoch"))]


def _calibration(page: Drawn) -> list[Block]:
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


def _details(group: Group) -> dict[str, np.ndarray] | None:
    """The sum of test_details.json over a group's runs; None where one has none that fits."""
    total: dict[str, np.ndarray] = {}
    for run in group.runs:
        try:
            details = runs.read_json(run.folder, "test_details.json")
            arrays = {key: np.array(details[key], float) for key in runs.KEYS["test_details.json"]}
            total = {key: total.get(key, 0) + value for key, value in arrays.items()}
        except (InputError, TypeError, ValueError):
            return None
    classes = len(group.runs[0].class_names)
    bins = {total[key].shape for key in ("bin_confidence", "bin_correct", "bin_count")}
    return total if total["confusion"].shape == (classes, classes) and len(bins) == 1 else None


def _lacking(labels: Sequence[str]) -> list[Block]:
    if not labels:
        return []
    return [f"Without a test_details.json that fits, as of an older version: {', '.join(labels)}."]


def _confusions(groups: Sequence[Group], pages: Sequence[Drawn]) -> list[Block]:
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
            best = max(distilled, key=lambda group: _mean(group.by_seed().values()))
            shown = [(g, confusion) for g, confusion in measured if g is best or g is _baseline(best, groups)]
            chosen = _classes(_pairs(next(confusion for group, confusion in shown if group is best)), len(names))
            svgs = []
            for group, confusion in shown:
                shares = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
                svgs.append(plots.matrix(group.label, [names[i] for i in chosen], shares[np.ix_(chosen, chosen)]))
            part = f" The classes are those of its worst and best pairs, of {len(names)}."
            blocks += [
                f"{data}. A pair's number: of the images of its two classes, those taken for the other one.",
                Table(("", "confused most", "confused least"), rows, numbers=False),
                "The best of the recipes, and the same student alone where it was run; per cent of a label's images."
                + (part if len(chosen) < len(names) else ""),
                Figures(svgs),
            ]
        blocks += _lacking([group.label for group, total in every if not total])
    return blocks


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


def _fidelity(page: Drawn) -> list[Block]:
    svgs, used = [], set()
    for name, x in (("agreement", "agreement with the teacher"), ("fidelity_kl", "KL from the teacher, nats")):
        series = []
        for style, group in enumerate(page.groups):
            tests = [r.result["test"] for r in group.runs if _is_number(r.result["test"].get(name))]
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


def _gaze(groups: Sequence[Group]) -> list[Block]:
    """What kd_jax.explain left in the folders of runs: numbers of gaze.json, and gaze.png."""
    blocks: list[Block] = []
    pictures = 0
    for run in (run for group in groups for run in group.runs):
        numbers, picture = _gaze_numbers(run.folder), os.path.join(run.folder, "gaze.png")
        if numbers:
            blocks += [f"{run.folder}:", Table(("agreement of the maps", "mean"), numbers)]
        if os.path.isfile(picture):
            pictures += 1
            if pictures <= PICTURES:
                with open(picture, "rb") as file:
                    blocks.append(Image(file.read(), f"Grad-CAM: {run.folder}"))
    if pictures > PICTURES:
        blocks.append(f"{_count(pictures - PICTURES, 'more picture')} in the folders of the runs: gaze.png.")
    return blocks


def _gaze_numbers(folder: str) -> list[tuple[str, str]]:
    """(where it stands, "mean (low to high)") for every mean in gaze.json."""
    try:
        with open(os.path.join(folder, "gaze.json")) as file:
            return list(_means(json.load(file), ""))
    except (OSError, ValueError):
        return []


def _means(tree: Any, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(tree, list):
        tree = {str(one.get("name", i)) if isinstance(one, dict) else str(i): one for i, one in enumerate(tree)}
    if not isinstance(tree, dict):
        return
    if _is_number(tree.get("mean")):
        low, high = tree.get("low"), tree.get("high")
        interval = f" ({low:.3f} to {high:.3f})" if _is_number(low) and _is_number(high) else ""
        yield path, f"{tree['mean']:.3f}{interval}"
        return
    for key, value in tree.items():
        yield from _means(value, f"{path}, {key}".removeprefix(", "))


def _about(groups: Sequence[Group]) -> list[Block]:
    if not groups:
        return []
    hardware = []
    for group in groups:
        results = [run.result for run in group.runs]
        speeds = [r["images_per_second"] for r in results if _is_number(r.get("images_per_second"))]
        versions = _listed(f"{name} {version}" for r in results for name, version in r["versions"].items())
        hardware.append(
            (
                group.label,
                _listed(r["device"] for r in results),
                f"{_mean(r['seconds'] for r in results):,.0f}",
                f"{_mean(speeds):,.0f}" if speeds else "",
                versions,
            )
        )
    every = [
        (
            run.folder,
            group.label,
            str(run.result["seed"]),
            f"{100 * run.result['test']['accuracy']:.2f}",
            f"{run.result['seconds']:,.0f}",
            run.result["config_hash"][:8],
        )
        for group in groups
        for run in group.runs
    ]
    header = ("run", "recipe", "seed", "test accuracy, %", "seconds", "config")
    return [
        *(block for data, members in _by_data(groups).items() for block in _differences(data, members)),
        Table(("", "hardware", "seconds", "images per second", "versions"), hardware, numbers=False),
        Folded("Every run", [Table(header, every, numbers=False)]),
    ]


def _differences(data: str, groups: Sequence[Group]) -> list[Block]:
    """What the configs of groups share, and where each differs."""
    usual = _usual([group.recipe for group in groups])
    keys = dict.fromkeys(key for group in groups for key in group.recipe)
    differing = sorted(key for key in keys if len({_key(group.recipe.get(key)) for group in groups}) > 1)
    same = [key for key in sorted(usual) if key not in differing]
    shared = Folded("What all of them share", [_settings(usual, same)])
    if not differing:
        return [f"{data}.", shared]
    rows = []
    for group in groups:
        own = [f"{key} {_shown(value)}" for key, value in _unusual(group.recipe, usual).items()]
        rows.append((group.label, "; ".join(own) or "as usual"))
    return [
        f"{data}. How the recipes differ from what most of them share:",
        Table(("", "differences"), rows, numbers=False),
        Folded("What most of them share, of the keys that differ", [_settings(usual, differing)]),
        shared,
    ]


def _settings(values: Mapping[str, Any], keys: Iterable[str]) -> Table:
    return Table(("key", "value"), [(key, _shown(values.get(key, "absent"))) for key in keys], numbers=False)


def _usual(recipes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The most frequent value of every key that most recipes have."""
    usual = {}
    for key in dict.fromkeys(key for recipe in recipes for key in recipe):
        counts = collections.Counter(_key(recipe[key]) if key in recipe else None for recipe in recipes)
        most = counts.most_common(1)[0][0]
        if most is not None:
            usual[key] = json.loads(most)
    return usual


def _unusual(recipe: Mapping[str, Any], usual: Mapping[str, Any]) -> dict[str, Any]:
    """{key: value} where a recipe is not as usual; "absent" for a key it lacks."""
    keys = sorted(recipe.keys() | usual.keys())
    both = {key: (recipe.get(key, "absent"), usual.get(key, "absent")) for key in keys}
    return {key: own for key, (own, other) in both.items() if own != other}


def _legend(page: Drawn, styles: Iterable[int] | None = None) -> list[tuple[str, str]]:
    kept = set(range(len(plots.STYLES))) if styles is None else set(styles)
    return [(plots.mark(style), group.label) for style, group in enumerate(page.groups) if style in kept]


def _shown(value: Any) -> str:
    """A value of a config; a SHA-256 in short."""
    text = str(value)
    return text[:8] if re.fullmatch("[0-9a-f]{64}", text) else text


def _listed(items: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(items))


def _mean(values: Iterable[float]) -> float:
    return statistics.fmean(values)


def _key(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")


if __name__ == "__main__":
    cli.run(main, __doc__)
