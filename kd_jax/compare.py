"""A table of finished runs: test accuracy per name over seeds, and the paired difference to one of them.

usage: python -m kd_jax.compare [--against=student] RUNS...

RUNS are folders of runs. Runs of one name are seeds of one row, and a row is paired with `--against` seed by seed.
"""

import statistics
from collections.abc import Mapping
from typing import Any

from absl import flags

from kd_jax import cli, runs
from kd_jax.errors import InputError, choose
from kd_jax.reporting.seeds import difference, spread

flags.declare_key_flag("against")


def main(arguments: list[str]) -> None:
    if not arguments:
        raise InputError("expected the folder of one run or more")
    if len(cli.AGAINST.value) > 1:
        raise InputError(f"--against is {', '.join(cli.AGAINST.value)}; expected the name of one row")
    rows: dict[str, dict[int, dict[str, Any]]] = {}
    for folder in arguments:
        result = runs.read_json(folder, "result.json")
        if result["test"]["accuracy"] is None:
            raise InputError(f"{folder} was trained without labels and has no accuracy; expected `kd_jax probe` for it")
        row = rows.setdefault(result["name"], {})
        if result["seed"] in row:
            raise InputError(
                f"{folder} is a second run with the name {result['name']!r} and the seed {result['seed']};"
                " expected names that tell recipes apart (config.name)"
            )
        row[result["seed"]] = result
    print(table(rows, choose("--against", (cli.AGAINST.value or ["student"])[0], list(rows))))


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
