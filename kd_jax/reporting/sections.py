"""What the report says, in its order."""

from collections.abc import Sequence

from kd_jax.reporting import figures, saliency, tables
from kd_jax.reporting.groups import Group
from kd_jax.reporting.page import Section, Table, count


def sections(groups: Sequence[Group], left_out: Sequence[tuple[str, str]]) -> list[Section]:
    """The sections that have something to say. `left_out`: (folder of a run, why it is left out)."""
    pages = list(figures.pages(groups))
    missing = len(groups) - sum(len(page.groups) for page in pages)
    note = [f"In the tables only: {count(missing, 'more recipe')}; a report on fewer runs draws them."]
    curves = [block for page in pages for block in figures.curves(page)] + (note if missing else [])
    sections = [
        Section("Results", tables.results(groups)),
        Section("Learning curves", curves),
        Section("Calibration", [block for page in pages for block in figures.calibration(page)]),
        Section("Confusions", figures.confusions(groups, pages)),
        Section("Fidelity to the teacher", [block for page in pages for block in figures.fidelity(page)]),
        Section("Saliency maps", [*saliency.agreement(groups), *saliency.pictures(groups)]),
        Section("What was run", tables.about(groups)),
        Section("Left out", [Table(("run", "why"), left_out, numbers=False)] if left_out else []),
    ]
    return [section for section in sections if section.blocks]
