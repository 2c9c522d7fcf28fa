"""Reports on runs: tables, curves, calibration, confusions and what was run, as one HTML page and as Markdown.

usage: python -m kd_jax.report [--to=report] RUNS...

RUNS are folders of runs, or folders that hold such folders at any depth. Runs whose configs differ by the seed alone
are one group, a row of the tables. A group with a teacher is compared, seed by seed, with the group of the same student
and recipe without one. Of one run alone, as of the folder of one, the page tells more: its recipe in words, all of its
curves and pairs of classes. Writes index.html, which needs no other file and no network, and report.md.
"""

import os
from collections.abc import Sequence

from absl import flags

from kd_jax import cli, runs
from kd_jax.errors import InputError

flags.declare_key_flag("to")

FILES = ("index.html", "report.md")


def main(arguments: list[str]) -> None:
    if not arguments:
        raise InputError("expected the folder of one run or more, for example runs")
    to = cli.TO.value or "report"
    shown, left_out = report(arguments, to)
    said = "1 run" if shown == 1 else f"{shown} runs"
    print(f"{os.path.join(to, 'index.html')} and report.md: {said}, {left_out} left out")


def report(folders: Sequence[str], to: str) -> tuple[int, int]:
    """Writes the report on all runs in some folders into the folder `to`.

    Returns:
      (number of runs in the tables, number of those left out).
    Raises:
      InputError: when a folder holds no run, or `to` cannot be written; nothing was written.
    """
    from kd_jax.reporting import finished  # after the flags: JAX is slow to import
    from kd_jax.reporting.groups import by_recipe
    from kd_jax.reporting.page import count, html, markdown
    from kd_jax.reporting.sections import sections

    runs.check_writable(to, "--to:", FILES)
    found, left_out = finished.read(folders)
    groups = by_recipe(found)
    title = f"Report: {count(len(found), 'run')} of {count(len(groups), 'recipe')}"
    if len(found) == 1:
        title = f"{found[0].result['name']}, seed {found[0].result['seed']}"
    said = sections(groups, left_out)
    texts = (html(title, said), markdown(title, said))
    runs.write_files(to, {name: text.encode(errors="replace") for name, text in zip(FILES, texts, strict=True)})
    return len(found), len(left_out)


if __name__ == "__main__":
    cli.run(main, __doc__)
