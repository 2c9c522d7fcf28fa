"""The tables of results, and of what was run."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from kd_jax.metrics import METRICS, Metric
from kd_jax.reporting.finished import is_number
from kd_jax.reporting.groups import Group, baseline, by_data, canonical, shown, unusual_values, usual_values
from kd_jax.reporting.page import Block, Folded, Table
from kd_jax.reporting.seeds import difference, spread

MEASURES = (
    "Balanced: the mean of the classes' recall. Macro F1: the mean of their F1. NLL: negative log-likelihood, nats."
    " ECE: expected calibration error. Agreement and KL compare with the student's own teacher."
)


def results(groups: Sequence[Group]) -> list[Block]:
    """A table for each test set."""
    measured = {name: metric for name, metric in other_metrics().items() if any(g.by_seed(name) for g in groups)}
    header = ["recipe", "test accuracy, %", "difference, points", "compared with", "seeds"]
    header += [metric.title for metric in measured.values()] + ["teacher, %", "parameters", "seconds"]
    blocks: list[Block] = []
    for data, members in by_data(groups).items():
        rows = [_result(group, baseline(group, members), measured) for group in members]
        blocks += [f"Test set: {data}.", Table(header, rows), *read_in_training(members)]
    if groups:
        blocks.append(
            "Mean and standard deviation over seeds. Differences are paired by seed, with a 95% interval by"
            f" Student's t, to the same student and recipe without a teacher. {MEASURES}"
        )
    return blocks


def read_in_training(groups: Sequence[Group]) -> list[Block]:
    """A sentence on the runs that read their test set in training, if there are any."""
    marked = [group.label for group in groups if any(run.result.get("test_every_epoch") is True for run in group.runs)]
    return [f"The test set was read in training, which selected nothing: {', '.join(marked)}."] if marked else []


def other_metrics() -> dict[str, Metric]:
    """All but the accuracy, which has columns of its own."""
    return {name: metric for name, metric in METRICS.items() if name != "accuracy"}


def about(groups: Sequence[Group]) -> list[Block]:
    """What recipes share and where they differ, on which hardware they ran, and every run."""
    if not groups:
        return []
    hardware = []
    for group in groups:
        own = [run.result for run in group.runs]
        speeds = [r["images_per_second"] for r in own if is_number(r.get("images_per_second"))]
        versions = _listed(f"{name} {version}" for r in own for name, version in r["versions"].items())
        hardware.append(
            (
                group.label,
                _listed(r["device"] for r in own),
                f"{statistics.fmean(r['seconds'] for r in own):,.0f}",
                f"{statistics.fmean(speeds):,.0f}" if speeds else "",
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
        )
        for group in groups
        for run in group.runs
    ]
    header = ("run", "recipe", "seed", "test accuracy, %", "seconds")
    return [
        *(block for data, members in by_data(groups).items() for block in _differences(data, members)),
        Table(("recipe", "hardware", "seconds", "images per second", "versions"), hardware, numbers=False),
        Folded("Every run", ["kd_jax report RUN makes the page of one.", Table(header, every, numbers=False)]),
    ]


def _result(group: Group, alone: Group | None, measured: Mapping[str, Metric]) -> list[str]:
    accuracy = group.by_seed(factor=100)
    teachers = [run.result.get("teacher") for run in group.runs]
    taught = [t["accuracy"] for t in teachers if isinstance(t, dict) and is_number(t.get("accuracy"))]

    def average(name: str, metric: Metric) -> str:
        values = group.by_seed(name, metric.factor)
        return f"{statistics.fmean(values.values()):.{metric.digits}f}" if values else ""

    return [
        group.label,
        spread(accuracy, 2),
        difference(accuracy, alone.by_seed(factor=100), 2) if alone else "",
        alone.label if alone else "",
        str(len(accuracy)),
        *(average(name, metric) for name, metric in measured.items()),
        f"{100 * statistics.fmean(taught):.2f}" if taught else "",
        f"{group.runs[0].result['parameters']:,}",
        f"{statistics.fmean(run.result['seconds'] for run in group.runs):,.0f}",
    ]


def _differences(data: str, groups: Sequence[Group]) -> list[Block]:
    """What the configs of groups share, and where each differs."""
    usual = usual_values([group.recipe for group in groups])
    keys = dict.fromkeys(key for group in groups for key in group.recipe)
    differing = sorted(key for key in keys if len({canonical(group.recipe.get(key)) for group in groups}) > 1)
    same = [key for key in sorted(usual) if key not in differing]
    shared = Folded("What all of them share", [_settings(usual, same)])
    if not differing:
        return [f"{data}.", shared]
    rows = []
    for group in groups:
        own = [f"{key} {shown(value)}" for key, value in unusual_values(group.recipe, usual).items()]
        rows.append((group.label, "; ".join(own) or "as usual"))
    return [
        f"{data}. How the recipes differ from what most of them share:",
        Table(("recipe", "differences"), rows, numbers=False),
        Folded("What most of them share, of the keys that differ", [_settings(usual, differing)]),
        shared,
    ]


def _settings(values: Mapping[str, Any], keys: Iterable[str]) -> Table:
    return Table(("key", "value"), [(key, shown(values.get(key, "absent"))) for key in keys], numbers=False)


def _listed(items: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(items))
