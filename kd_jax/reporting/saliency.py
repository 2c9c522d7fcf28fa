"""Agreement of saliency maps in the report, from the files that `python -m kd_jax.explain` writes."""

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from kd_jax import remote, runs
from kd_jax.errors import InputError
from kd_jax.reporting.finished import Run, is_number
from kd_jax.reporting.groups import Group, baseline, by_data
from kd_jax.reporting.page import Block, Folded, Image, Table, count
from kd_jax.reporting.seeds import difference, means, spread

NUMBERS_FILES = ("saliency.json", "gaze.json")  # the current name, then the former one
PICTURE_FILES = ("saliency.png", "gaze.png")
MAX_PICTURES = 6
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
VARIANTS = {"gradcam": "Grad-CAM", "gradcam++": "Grad-CAM++"}
MEASURES = {  # name in the file: (header, digits)
    "cosine": ("cosine", 3),
    "pearson": ("correlation", 3),
    "iou": ("IoU of the top 20%", 3),
    "center_distance": ("center distance, pixels", 2),
}
FORMER_NAMES = {"center_distance": "centre_distance"}  # of measures
CORRECTNESS = {
    "both_right": "both right",
    "only_teacher_right": "only the teacher right",
    "only_student_right": "only the student right",
    "both_wrong": "neither right",
}


class MapKind(NamedTuple):
    """Which maps one table is about."""

    stage: int
    variant: str
    teacher: str  # its recipe


class Agreement(NamedTuple):
    """Means over the test set, of a run's maps compared with a teacher's."""

    teacher: str | None  # hash of its run
    teacher_name: str
    values: dict[str, float]  # by measure
    by_correctness: dict[str, float]  # the correlation, of the cases that occur


Agreements = Mapping[str, Sequence[Agreement]]  # by hash of the student's run


def agreement(groups: Sequence[Group]) -> list[Block]:
    """A table for each test set, stage, variant and recipe of the teacher; every run counts once."""
    by_kind, left_out = _read(groups)
    blocks: list[Block] = []
    for data, members in by_data(groups).items():
        for kind, agreements in by_kind.items():
            rows = [(group, chosen) for group in members if (chosen := _with_teacher(group, agreements))]
            if rows:
                blocks += _tables(data, kind, rows, members, agreements)
    if blocks:
        blocks.append(
            "A saliency map shows where a network sees evidence for an image's true class. Every student's map is"
            " compared with the teacher's, image by image, over the whole test set. Cosine and correlation are 1 for"
            " equal maps, and a correlation of 0 means that they have nothing in common. IoU is the intersection of the"
            " top 20% of both maps, divided by their union. Center distance is that of their centers of mass, in pixels"
            " of the image. Numbers are means and standard deviations over seeds. Differences are paired by seed, with"
            " a 95% interval by Student's t. Where the whole interval is above 0, or below 0 for the center distance,"
            " distillation brings the student's maps closer to the teacher's."
        )
    if left_out:
        blocks.append(
            f"Left out: {', '.join(left_out)}. Such a file is damaged, of an older version, or about runs that are not"
            " in this report; python -m kd_jax.explain writes a new one."
        )
    return blocks


def pictures(groups: Sequence[Group]) -> list[Block]:
    """The first MAX_PICTURES grids of images and maps."""
    found = [(run.folder, path) for group in groups for run in group.runs if (path := _existing(run, PICTURE_FILES))]
    blocks: list[Block] = []
    for folder, path in found[:MAX_PICTURES]:
        try:
            with open(path, "rb") as file:
                png = file.read()
        except OSError:
            png = b""
        if png.startswith(PNG_SIGNATURE):
            blocks.append(Image(png, folder))
        else:
            blocks.append(f"{path} is not a PNG image; python -m kd_jax.explain writes a new one.")
    if len(found) > MAX_PICTURES:
        more = count(len(found) - MAX_PICTURES, "more picture")
        blocks.append(f"{more} in the folders of the runs: {PICTURE_FILES[0]}.")
    return blocks


def _existing(run: Run, names: Sequence[str]) -> str | None:
    """The path of the first of these files that the run's folder has."""
    paths = (os.path.join(remote.local(run.folder), name) for name in names)
    return next((path for path in paths if os.path.lexists(path)), None)


def _read(groups: Sequence[Group]) -> tuple[dict[MapKind, dict[str, list[Agreement]]], list[str]]:
    """The agreements of the groups' runs, and the files that hold none of them."""
    known = {run.result["config_hash"]: run for group in groups for run in group.runs}
    by_kind: dict[MapKind, dict[str, list[Agreement]]] = {}
    left_out = []
    for run in known.values():
        path = _existing(run, NUMBERS_FILES)
        if not path:
            continue
        try:
            summary = runs.read_json(*os.path.split(path))
            explained = known.get(summary["students"][0]["config_hash"], run)
            kind = MapKind(summary["stage"], summary["variant"], explained.recipe["teacher"])
            agreements = {digest: one for digest, one in _agreements(summary) if digest in known}
            valid = is_number(kind.stage) and kind.variant in VARIANTS and agreements
        except (InputError, KeyError, IndexError, TypeError, AttributeError):
            valid = False
        if not valid:
            left_out.append(path)
            continue
        for digest, one in agreements.items():
            by_kind.setdefault(kind, {}).setdefault(digest, []).append(one)
    return by_kind, left_out


def _agreements(summary: Mapping[str, Any]) -> Iterator[tuple[str, Agreement]]:
    """(hash of a student's run, its agreement); raises KeyError, TypeError or AttributeError for another form."""
    teacher = summary["teacher"]["config_hash"], str(summary["teacher"]["name"])
    for student in summary["students"]:
        cases = student["agreement"]
        values = {measure: _mean(cases["all"], measure) for measure in MEASURES}
        by_correctness = {case: _mean(cases[case], "pearson") for case in CORRECTNESS if cases[case]["images"]}
        yield student["config_hash"], Agreement(*teacher, values, by_correctness)


def _mean(measures: Mapping[str, Any], name: str) -> float:
    interval = measures[name if name in measures else FORMER_NAMES.get(name, name)]
    if not is_number(interval["mean"]):
        raise TypeError
    return interval["mean"]


def _with_teacher(group: Group, agreements: Agreements) -> list[tuple[Run, Agreement]]:
    """A group's runs, each with the agreement with its own teacher, or else with the first other one."""
    return [
        (run, next((one for one in of_run if one.teacher == run.teacher), of_run[0]))
        for run, of_run in _explained(group, agreements)
    ]


def _explained(group: Group | None, agreements: Agreements) -> list[tuple[Run, Sequence[Agreement]]]:
    """The runs of a group that have agreements."""
    members = group.runs if group else ()
    return [(run, of_run) for run in members if (of_run := agreements.get(run.result["config_hash"]))]


def _tables(
    data: str,
    kind: MapKind,
    rows: Sequence[tuple[Group, Sequence[tuple[Run, Agreement]]]],
    members: Sequence[Group],
    agreements: Agreements,
) -> list[Block]:
    """The tables on one kind of maps: means, differences to the student alone, correlation by correctness."""
    teachers = dict.fromkeys(one.teacher_name for _, chosen in rows for _, one in chosen)
    stage = "the last stage" if kind.stage == -1 else f"stage {kind.stage}"
    headers = [header for header, _ in MEASURES.values()]
    compared = [
        _difference_row(group, chosen, alone)
        for group, chosen in rows
        if (alone := _explained(baseline(group, members), agreements))
    ]
    by_correctness = [_correctness_row(group, chosen) for group, chosen in rows]
    blocks: list[Block] = [
        f"{data}. {VARIANTS[kind.variant]} of {stage}, compared with {' and '.join(teachers)}:",
        Table(["recipe", "seeds", "test accuracy, %", *headers], [_row(group, chosen) for group, chosen in rows]),
    ]
    if compared:
        blocks += ["Differences to the same student alone:", Table(["recipe", *headers], compared)]
    folded = Folded("Correlation by who is right", [Table(("recipe", *CORRECTNESS.values()), by_correctness)])
    return [*blocks, folded]


def _row(group: Group, chosen: Sequence[tuple[Run, Agreement]]) -> list[str]:
    accuracy = means((_seed(run), 100 * run.result["test"]["accuracy"]) for run, _ in chosen)
    cells = [group.label, str(len(accuracy)), spread(accuracy, 2)]
    for measure, (_, digits) in MEASURES.items():
        cells.append(spread(means((_seed(run), one.values[measure]) for run, one in chosen), digits))
    return cells


def _difference_row(
    group: Group, chosen: Sequence[tuple[Run, Agreement]], alone: Sequence[tuple[Run, Sequence[Agreement]]]
) -> list[str]:
    """Differences to the student alone, of agreements with the same teacher."""
    pairs = []
    for run, distilled in chosen:
        for other, candidates in alone:
            same_teacher = [one for one in candidates if one.teacher == distilled.teacher]
            if _seed(other) == _seed(run) and same_teacher:
                pairs.append((_seed(run), distilled, same_teacher[0]))
    cells = [group.label]
    for measure, (_, digits) in MEASURES.items():
        with_teacher = means((seed, distilled.values[measure]) for seed, distilled, _ in pairs)
        without = means((seed, one.values[measure]) for seed, _, one in pairs)
        cells.append(difference(with_teacher, without, digits))
    return cells


def _correctness_row(group: Group, chosen: Sequence[tuple[Run, Agreement]]) -> list[str]:
    correlations = (
        means((_seed(run), one.by_correctness[case]) for run, one in chosen if case in one.by_correctness)
        for case in CORRECTNESS
    )
    return [group.label, *(spread(correlation, 3) for correlation in correlations)]


def _seed(run: Run) -> int:
    return run.result["seed"]
