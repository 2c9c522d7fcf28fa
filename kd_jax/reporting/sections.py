"""What the report says, in its order."""

from collections.abc import Sequence

from kd_jax.reporting import cost, figures, one_run, saliency, tables
from kd_jax.reporting.groups import Group
from kd_jax.reporting.page import Block, Section, Table, count


def sections(groups: Sequence[Group], left_out: Sequence[tuple[str, str]]) -> list[Section]:
    """The sections that have something to say, which are others where there is one run alone.

    Args:
      groups: of runs.
      left_out: (folder of a run, why it is left out).
    """
    last = [Section("Left out", [Table(("run", "why"), left_out, numbers=False)])] if left_out else []
    if [len(group.runs) for group in groups] == [1]:
        return one_run.sections(groups[0]) + last
    pages = list(figures.pages(groups))
    missing = len(groups) - sum(len(page.groups) for page in pages)
    note = [f"In the tables only: {count(missing, 'more recipe')}; a report on fewer runs draws them."]
    curves = figures.curves(pages) + (note if missing else [])
    sections = [
        Section("Results", tables.results(groups)),
        Section("Learning curves", curves),
        Section("Accuracy, size and latency", _costs(groups, pages)),
        Section("Calibration", [block for page in pages for block in figures.calibration(page)], half=True),
        Section("Confusions", figures.confusions(groups, pages), half=True),
        Section("Fidelity to the teacher", [block for page in pages for block in figures.fidelity(page)]),
        Section("Saliency maps", [*saliency.agreement(groups), *saliency.pictures(groups)]),
        Section("What was run", tables.about(groups)),
    ]
    return [section for section in sections if section.blocks] + last


def _costs(groups: Sequence[Group], pages: Sequence[figures.Drawn]) -> list[Block]:
    clouds = [block for page in pages for block in cost.figures(page)]
    return [*clouds, *cost.formats(groups)] if groups else []
