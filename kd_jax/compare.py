"""A table of finished runs: test accuracy over seeds, and the paired difference to one row.

usage: python -m kd_jax.compare [--against=student] RUNS...

RUNS are folders of runs, or folders that hold such folders at any depth. Runs whose configs differ by the seed alone
are one row, which has their name, and where several recipes share that also what tells them apart. Every row is paired
seed by seed with `--against`.
"""

import statistics
import sys
from collections.abc import Mapping
from typing import Any

from absl import flags

from kd_jax import cli
from kd_jax.errors import InputError, choose
from kd_jax.reporting.seeds import difference, spread

flags.declare_key_flag("against")
DEFAULT = "student"  # the row that others are compared with


def main(arguments: list[str]) -> None:
    if not arguments:
        raise InputError("expected the folder of one run or more")
    if len(cli.AGAINST.value) > 1:
        raise InputError(f"--against is {', '.join(cli.AGAINST.value)}; expected the name of one row")
    from kd_jax.reporting import finished  # after the flags: JAX is slow to import
    from kd_jax.reporting.groups import by_recipe

    found, left_out = finished.read(arguments)
    for folder, why in left_out:
        print(f"{folder} is left out: {why}", file=sys.stderr)
    groups = by_recipe(found)
    if len(data := sorted({group.runs[0].data for group in groups})) != 1:
        raise InputError(f"the runs have {len(data)} test sets: {', '.join(data) or 'none'}; expected one")
    rows = {group.label: {run.result["seed"]: run.result for run in group.runs} for group in groups}
    if not cli.AGAINST.value and DEFAULT not in rows:
        raise InputError(f"no row is {DEFAULT!r}; expected --against=ROW, one of: {', '.join(rows)}")
    print(table(rows, choose("--against", (cli.AGAINST.value or [DEFAULT])[0], list(rows))))


def table(rows: Mapping[str, Mapping[int, Mapping[str, Any]]], to: str, labels: Mapping[str, str] | None = None) -> str:
    """A Markdown table.

    Args:
      rows: {name: {seed: result}}.
      to: the name of the row that the others are compared with, by the seeds that both have.
      labels: {name: what to print for it}.
    """
    lines = [
        "| | test accuracy, % | difference, points | seeds | seconds |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, results in rows.items():
        accuracy = _accuracy(results)
        gain = "" if name == to else difference(accuracy, _accuracy(rows[to]), 2)
        seconds = statistics.fmean(r["seconds"] for r in results.values())
        label = (labels or {}).get(name, name)
        lines.append(f"| {label} | {spread(accuracy, 2)} | {gain} | {len(results)} | {seconds:.0f} |")
    if any(len(results) > 1 for results in rows.values()):
        lines += ["", "Mean and standard deviation over seeds; differences are paired by seed, with a 95% interval."]
    return "\n".join(lines)


def _accuracy(results: Mapping[int, Mapping[str, Any]]) -> dict[int, float]:
    return {seed: 100 * result["test"]["accuracy"] for seed, result in results.items()}


if __name__ == "__main__":
    cli.run(main, __doc__)
