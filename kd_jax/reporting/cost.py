"""Accuracy against parameters, and against latency where `kd_jax benchmark-export` measured it."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from kd_jax.reporting import plots
from kd_jax.reporting.figures import Drawn, legend
from kd_jax.reporting.finished import Run, is_number
from kd_jax.reporting.groups import Group
from kd_jax.reporting.page import Block, Figures, Table

BATCHES = ("1", "32")  # images in a call, as in export_benchmark.json
MEASURED = (
    "Latency is the median of a call in milliseconds, from images in memory to logits in memory, on the machine that"
    " ran kd_jax benchmark-export; accuracy here is over the images that it read."
)
UNMEASURED = (
    "No latency is known: kd_jax benchmark-export --workdir=RUN --to=FOLDER measures it; the report finds"
    " FOLDER among and below the folders that it is given."
)


def figures(page: Drawn) -> list[Block]:
    """Clouds of accuracy against the number of parameters and against the latency of one image."""
    sizes, times = [], []
    for style, group in enumerate(page.groups):
        results = [run.result for run in group.runs]
        sizes.append(plots.Series(style, [r["parameters"] for r in results], [r["test"]["accuracy"] for r in results]))
        rows = [row for run in group.runs for row in _measured(run)]
        times.append(plots.Series(style, [row["milliseconds"]["1"] for row in rows], [row["accuracy"] for row in rows]))
    svgs = [
        plots.points(title, x, "accuracy", series, log=True)
        for title, x, series in (
            ("accuracy and size", "parameters", sizes),
            ("accuracy and latency, a point for each format", "milliseconds for one image", times),
        )
        if len({value for one in series for value in one.x}) > 1
    ]
    return [f"{page.data}.", Figures(svgs, legend(page))] if svgs else []


def formats(groups: Sequence[Group]) -> list[Block]:
    """A table of the formats that were measured, the fastest first."""
    rows = [
        (row["milliseconds"]["1"], (f"{group.label}, seed {run.result['seed']}", *_cells(row)))
        for group in groups
        for run in group.runs
        for row in _measured(run)
    ]
    if not rows:
        return [UNMEASURED]
    header = ["run", "format", "MB", "accuracy, %", "same class as the network, %"]
    header += [f"ms for {batch} image{'s' * (batch != '1')}" for batch in BATCHES]
    return [MEASURED, Table(header, [cells for _, cells in sorted(rows)])]


def _measured(run: Run) -> Iterator[Mapping[str, Any]]:
    """The rows of a run's export_benchmark.json that hold all numbers."""
    for row in run.formats:
        times = row.get("milliseconds")
        numbers = [row.get(key) for key in ("megabytes", "accuracy", "same")]
        if isinstance(times, dict) and all(map(is_number, [*numbers, *map(times.get, BATCHES)])):
            yield row


def _cells(row: Mapping[str, Any]) -> list[str]:
    return [
        str(row["name"]),
        f"{row['megabytes']:.2f}",
        f"{100 * row['accuracy']:.2f}",
        f"{100 * row['same']:.1f}",
        *(f"{row['milliseconds'][batch]:.3g}" for batch in BATCHES),
    ]
