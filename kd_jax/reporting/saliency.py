"""Where the networks look: what `python -m kd_jax.explain` left in the folders of runs, gaze.json and gaze.png."""

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from kd_jax import runs
from kd_jax.errors import InputError
from kd_jax.reporting.finished import Run, is_number
from kd_jax.reporting.groups import Group, baseline, by_data
from kd_jax.reporting.page import Block, Folded, Image, Table, count
from kd_jax.reporting.seeds import difference, means, spread

PICTURES = 6
SIGNATURE = b"\x89PNG\r\n\x1a\n"
VARIANTS = {"gradcam": "Grad-CAM", "gradcam++": "Grad-CAM++"}
MEASURES = {  # of gaze.json: (header, digits)
    "cosine": ("cosine", 3),
    "pearson": ("correlation", 3),
    "iou": ("IoU of the top 20%", 3),
    "centre_distance": ("centre distance, pixels", 2),
}
RIGHT = {
    "both_right": "both right",
    "only_teacher_right": "only the teacher right",
    "only_student_right": "only the student right",
    "both_wrong": "neither right",
}


class Maps(NamedTuple):
    """Whose agreement stands in one table."""

    stage: int
    variant: str
    teacher: str  # its recipe


class Look(NamedTuple):
    """A run's maps beside a teacher's, as means over the test set."""

    teacher: str | None  # hash of its run
    teacher_name: str
    values: dict[str, float]  # by measure
    by_right: dict[str, float]  # the correlation by who is right, where any image is so


Looks = Mapping[str, Sequence[Look]]  # of a run, by its hash


def agreement(groups: Sequence[Group]) -> list[Block]:
    """A table for each test set, stage, variant and recipe of the teacher; every run counts once."""
    found, left_out = _read(groups)
    blocks: list[Block] = []
    for data, members in by_data(groups).items():
        for maps, looks in found.items():
            shown = [(group, chosen) for group in members if (chosen := _chosen(group, looks))]
            if shown:
                teachers = dict.fromkeys(look.teacher_name for _, chosen in shown for _, look in chosen)
                stage = "the last stage" if maps.stage == -1 else f"stage {maps.stage}"
                rows = [_row(group, chosen) for group, chosen in shown]
                compared = [
                    _against(group, chosen, alone)
                    for group, chosen in shown
                    if (alone := _looked_at(baseline(group, members), looks))
                ]
                by_right = Table(("", *RIGHT.values()), [_by_right(group, chosen) for group, chosen in shown])
                header = [header for header, _ in MEASURES.values()]
                blocks += [
                    f"{data}. {VARIANTS[maps.variant]} of {stage}, compared with {' and '.join(teachers)}:",
                    Table(["", "seeds", "test accuracy, %", *header], rows),
                ]
                if compared:
                    blocks += ["Differences to the same student alone:", Table(["", *header], compared)]
                blocks.append(Folded("Correlation by who is right", [by_right]))
    if blocks:
        blocks.append(
            "A map shows which places of an image speak for its true class. Every student's map is compared with the"
            " teacher's, image by image, over the whole test set. Cosine and correlation are 1 where two maps are"
            " equal. A correlation of 0 means that they have nothing in common. IoU is the overlap of the top 20% of"
            " both maps, as a part of their union. Centre distance is that of their centres of mass, in pixels of the"
            " image. Numbers are means and standard deviations over seeds. Differences are paired by seed, with a 95%"
            " interval by Student's t. Where the whole interval is above 0, of the centre distance below 0, the student"
            " looks more where the teacher looks than it does alone."
        )
    if left_out:
        blocks.append(
            f"Left out: gaze.json in {', '.join(left_out)}. It is damaged, of an older version, or about runs that are"
            " not in this report; python -m kd_jax.explain makes it again."
        )
    return blocks


def pictures(groups: Sequence[Group]) -> list[Block]:
    """The first PICTURES grids of images and maps."""
    paths = [(run.folder, os.path.join(run.folder, "gaze.png")) for group in groups for run in group.runs]
    there = [(folder, path) for folder, path in paths if os.path.lexists(path)]
    blocks: list[Block] = []
    for folder, path in there[:PICTURES]:
        try:
            with open(path, "rb") as file:
                png = file.read()
        except OSError:
            png = b""
        if png.startswith(SIGNATURE):
            blocks.append(Image(png, folder))
        else:
            blocks.append(f"{path} is no picture; python -m kd_jax.explain makes it again.")
    if len(there) > PICTURES:
        blocks.append(f"{count(len(there) - PICTURES, 'more picture')} in the folders of the runs: gaze.png.")
    return blocks


def _read(groups: Sequence[Group]) -> tuple[dict[Maps, dict[str, list[Look]]], list[str]]:
    """The looks of the groups' runs, and the folders whose gaze.json says nothing about them."""
    known = {run.result["config_hash"]: run for group in groups for run in group.runs}
    found: dict[Maps, dict[str, list[Look]]] = {}
    left_out = []
    for run in known.values():
        if not os.path.lexists(os.path.join(run.folder, "gaze.json")):
            continue
        try:
            gaze = runs.read_json(run.folder, "gaze.json")
            explained = known.get(gaze["students"][0]["config_hash"], run)
            maps = Maps(gaze["stage"], gaze["variant"], explained.recipe["teacher"])
            looks = {hashed: look for hashed, look in _looks(gaze) if hashed in known}
            whole = is_number(maps.stage) and maps.variant in VARIANTS and looks
        except (InputError, KeyError, IndexError, TypeError, AttributeError):
            whole = False
        if not whole:
            left_out.append(run.folder)
            continue
        for hashed, look in looks.items():
            found.setdefault(maps, {}).setdefault(hashed, []).append(look)
    return found, left_out


def _looks(gaze: Mapping[str, Any]) -> Iterator[tuple[str, Look]]:
    """(hash of a run, its look) of a gaze.json; raises KeyError, TypeError or AttributeError where it is another."""
    teacher = gaze["teacher"]["config_hash"], str(gaze["teacher"]["name"])
    for student in gaze["students"]:
        own = student["agreement"]
        values = {measure: _mean(own["all"][measure]) for measure in MEASURES}
        by_right = {right: _mean(own[right]["pearson"]) for right in RIGHT if own[right]["images"]}
        yield student["config_hash"], Look(*teacher, values, by_right)


def _mean(interval: Mapping[str, Any]) -> float:
    if not is_number(interval["mean"]):
        raise TypeError
    return interval["mean"]


def _chosen(group: Group, looks: Looks) -> list[tuple[Run, Look]]:
    """A group's runs that were looked at, each beside its own teacher, or else beside the first other one."""
    return [
        (run, next((look for look in own if look.teacher == run.teacher), own[0]))
        for run, own in _looked_at(group, looks)
    ]


def _looked_at(group: Group | None, looks: Looks) -> list[tuple[Run, Sequence[Look]]]:
    members = group.runs if group else ()
    return [(run, own) for run in members if (own := looks.get(run.result["config_hash"]))]


def _row(group: Group, chosen: Sequence[tuple[Run, Look]]) -> list[str]:
    accuracy = means((_seed(run), 100 * run.result["test"]["accuracy"]) for run, _ in chosen)
    cells = [group.label, str(len(accuracy)), spread(accuracy, 2)]
    for measure, (_, digits) in MEASURES.items():
        cells.append(spread(means((_seed(run), look.values[measure]) for run, look in chosen), digits))
    return cells


def _against(
    group: Group, chosen: Sequence[tuple[Run, Look]], alone: Sequence[tuple[Run, Sequence[Look]]]
) -> list[str]:
    """A row of differences to the student alone, of looks beside the same teacher."""
    pairs = []
    for run, look in chosen:
        for other, others in alone:
            same = [one for one in others if one.teacher == look.teacher]
            if _seed(other) == _seed(run) and same:
                pairs.append((_seed(run), look, same[0]))
    cells = [group.label]
    for measure, (_, digits) in MEASURES.items():
        own = means((seed, look.values[measure]) for seed, look, _ in pairs)
        theirs = means((seed, one.values[measure]) for seed, _, one in pairs)
        cells.append(difference(own, theirs, digits))
    return cells


def _by_right(group: Group, chosen: Sequence[tuple[Run, Look]]) -> list[str]:
    """A row of the correlation by who is right."""
    correlations = (
        means((_seed(run), look.by_right[right]) for run, look in chosen if right in look.by_right) for right in RIGHT
    )
    return [group.label, *(spread(correlation, 3) for correlation in correlations)]


def _seed(run: Run) -> int:
    return run.result["seed"]
