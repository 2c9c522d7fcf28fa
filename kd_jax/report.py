"""Reports on runs: tables, curves, calibration, confusions and what was run, as one HTML page and as Markdown.

usage: python -m kd_jax.report [--to=report] RUNS...

RUNS are folders of runs, or folders that hold such folders at any depth. Runs whose configs differ by the seed alone
are one group, a row of the tables. A group with a teacher is compared, seed by seed, with the group of the same student
and recipe without one. Writes index.html, which needs no other file and no network, and report.md.
"""

import contextlib
import errno
import os
from collections.abc import Sequence

from absl import flags

from kd_jax import cli, runs
from kd_jax.reporting import finished
from kd_jax.reporting.groups import by_recipe
from kd_jax.reporting.page import count, html, markdown
from kd_jax.reporting.sections import sections
from kd_jax.types import InputError

flags.declare_key_flag("to")

FILES = ("index.html", "report.md")


def main(arguments: list[str]) -> None:
    if not arguments:
        raise InputError("expected the folder of one run or more, for example runs")
    to = cli.TO.value or "report"
    shown, left_out = report(arguments, to)
    print(f"{os.path.join(to, 'index.html')} and report.md: {count(shown, 'run')}, {left_out} left out")


def report(folders: Sequence[str], to: str) -> tuple[int, int]:
    """Writes the report on all runs in some folders into the folder `to`.

    Returns:
      (number of runs in the tables, number of those left out).
    Raises:
      InputError: when a folder holds no run, or `to` cannot be written; nothing was written.
    """
    runs.check_writable(to, "--to:")
    for name in FILES:
        if os.path.isdir(os.path.join(to, name)):
            raise InputError(
                f"--to is {to!r}, which cannot be written: {name} in it is a folder; expected a file or none"
            )
    found, left_out = finished.read(folders)
    groups = by_recipe(found)
    title = f"Report: {count(len(found), 'run')} of {count(len(groups), 'recipe')}"
    said = sections(groups, left_out)
    _write(to, [html(title, said), markdown(title, said)])
    return len(found), len(left_out)


def _write(to: str, texts: Sequence[str]) -> None:
    """Writes the files into a folder, each whole or not at all."""
    paths = [os.path.join(to, name) for name in FILES]
    try:
        os.makedirs(to, exist_ok=True)
        for path, text in zip(paths, texts, strict=True):
            with open(path + ".tmp", "w", encoding="utf-8", errors="replace") as file:
                file.write(text)
            os.replace(path + ".tmp", path)
    except OSError as error:
        for path in paths:
            with contextlib.suppress(OSError):
                os.remove(path + ".tmp")
        if error.errno == errno.ENOSPC:
            raise
        raise InputError(f"--to is {to!r}, which cannot be written: {error.strerror}") from error


if __name__ == "__main__":
    cli.run(main, __doc__)
