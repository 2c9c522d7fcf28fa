"""Where the networks look, in the report: gaze.json and gaze.png are made up here."""

import json
import math

import numpy as np
import pytest

from kd_jax import runs
from kd_jax.reporting import saliency
from kd_jax.reporting.page import Folded, Image, Table
from tests import tiny
from tests.reporting.made_up import groups, text, write_run

PNG = b"\x89PNG\r\n\x1a\n"
TEACHER = runs.digest(tiny.config(name="teacher"))
T_975 = 4.3027  # the 97.5% quantile of Student's t with two degrees of freedom


def hash_of(run):
    return runs.read_json(str(run), "config.json")["hash"]


def student(run, pearson, iou=0.5, **by_right):
    """What gaze.json says about a run, whose folder has moved since."""
    values = {"cosine": pearson + 0.2, "pearson": pearson, "iou": iou, "centre_distance": 10 * pearson}
    whole = {measure: {"mean": mean, "low": mean, "high": mean} for measure, mean in values.items()}
    agreement = {"all": {"images": 300, **whole}}
    for right in saliency.RIGHT:
        mean = by_right.get(right, pearson)
        empty = {"images": 0, **dict.fromkeys(values)}
        agreement[right] = empty if mean is None else {"images": 75, **whole, "pearson": {"mean": mean}}
    return {"workdir": "/moved", "name": "", "config_hash": hash_of(run), "agreement": agreement}


def write_gaze(run, students, teacher=TEACHER, stage=-1, variant="gradcam", name="teacher, seed 0"):
    about = {"workdir": "/moved", "name": name, "config_hash": teacher}
    found = {"stage": stage, "variant": variant, "teacher": about, "students": students}
    (run / "gaze.json").write_text(json.dumps(found))


def write_pair(folder, seed, teacher_seed=0):
    """A student alone and a distilled one, as (folder, folder)."""
    alone, kd = folder / f"student-{seed}", folder / f"kd-{seed}"
    write_run(alone, "student", seed, 0.25 + 0.125 * seed)
    identity = runs.identity(tiny.config(name="teacher", seed=teacher_seed), "f" * 64, None)
    write_run(kd, "kd", seed, 0.5, identity, method=tiny.METHODS["kd"])
    return alone, kd, runs.digest(identity)


def said(folder):
    """The cells of the two tables by recipe, and all of the text."""
    blocks = saliency.agreement(groups(folder))
    cells = {}
    for one in blocks:
        if isinstance(one, Table):
            for name, *rest in one.rows:
                cells.setdefault(name, []).extend(rest)
    return cells, text(blocks)


def test_a_row_has_means_over_seeds_and_differences_paired_by_seed(tmp_path):
    alone, distilled = np.array([0.5, 0.25, 0.375]), np.array([0.75, 0.375, 0.625])
    for seed in range(3):
        student_run, kd, teacher = write_pair(tmp_path, seed)
        students = [student(kd, distilled[seed], 0.5), student(student_run, alone[seed], 0.25 + 0.0625 * seed)]
        write_gaze(kd, students, teacher)
    rows = said(tmp_path)[0]
    assert rows["student"] == [
        "3",
        "37.50 ± 12.50",
        f"0.575 ± {alone.std(ddof=1):.3f}",
        f"0.375 ± {alone.std(ddof=1):.3f}",
        "0.312 ± 0.062",
        f"3.75 ± {10 * alone.std(ddof=1):.2f}",
    ]
    gap = distilled - alone
    half = T_975 * gap.std(ddof=1) / math.sqrt(3)
    assert rows["kd"][6:] == [
        *[f"+{gap.mean():.3f} ± {half:.3f}"] * 2,
        f"+0.188 ± {T_975 * 0.0625 / math.sqrt(3):.3f}",
        f"+{10 * gap.mean():.2f} ± {10 * half:.2f}",
    ]


def test_a_run_in_several_files_counts_once(tmp_path):
    """Of the file that is read first: recipes stand in the order of the table of results."""
    for seed in range(2):
        student_run, kd, teacher = write_pair(tmp_path, seed)
        write_gaze(student_run, [student(kd, 0.5), student(student_run, 0.25)], teacher)
        write_gaze(kd, [student(kd, 0.75), student(student_run, 0.75)], teacher)
    rows = said(tmp_path)[0]
    assert [rows["student"][0], rows["student"][3]] == ["2", "0.250 ± 0.000"]
    assert [rows["kd"][0], rows["kd"][3], rows["kd"][7]] == ["2", "0.500 ± 0.000", "+0.250 ± 0.000"]


def test_runs_are_compared_beside_the_same_teacher(tmp_path):
    """Each distilled student has a teacher of its own seed, and each student alone was looked at beside both."""
    pairs = [write_pair(tmp_path, seed, teacher_seed=seed) for seed in range(2)]
    for seed, (_, kd, teacher) in enumerate(pairs):
        alone = [student(student_run, 0.25 if one == seed else 0.0) for one, (student_run, *_) in enumerate(pairs)]
        others = [student(other, 0.125) for _, other, _ in pairs if other != kd]
        write_gaze(kd, [student(kd, 0.5), *alone, *others], teacher, name=f"teacher, seed {seed}")
    rows, written = said(tmp_path)
    assert rows["kd"][3] == "0.500 ± 0.000"
    assert rows["kd"][7] == "+0.250 ± 0.000"
    assert "compared with teacher, seed 0 and teacher, seed 1:" in written


def test_without_a_seed_in_common_there_is_no_difference(tmp_path):
    student_run, kd = write_pair(tmp_path, 0)[0], write_pair(tmp_path, 1)[1]
    write_gaze(kd, [student(kd, 0.5), student(student_run, 0.25)])
    assert said(tmp_path)[0]["kd"][6:] == ["no seed in common"] * 4


def test_where_the_student_alone_was_not_looked_at_there_is_no_difference(tmp_path):
    _, kd, _ = write_pair(tmp_path, 0)
    write_gaze(kd, [student(kd, 0.5)])
    rows, _ = said(tmp_path)
    assert (list(rows), rows["kd"][6:]) == (["kd"], [])


def test_another_stage_is_another_table(tmp_path):
    alone, kd, _ = write_pair(tmp_path, 0)
    write_gaze(kd, [student(kd, 0.5)])
    write_gaze(alone, [student(kd, 0.25)], stage=2, variant="gradcam++")
    blocks = saliency.agreement(groups(tmp_path))
    heads = [block.partition(". ")[2] for block in blocks if isinstance(block, str)][:2]
    tables = [block for block in blocks if isinstance(block, Table)]
    assert dict(zip(heads, (table.rows[0][4] for table in tables), strict=True)) == {
        "Grad-CAM of the last stage, compared with teacher, seed 0:": "0.500",
        "Grad-CAM++ of stage 2, compared with teacher, seed 0:": "0.250",
    }


def test_correlation_stands_by_who_is_right(tmp_path):
    for seed, neither in ((0, None), (1, 0.25)):
        _, kd, teacher = write_pair(tmp_path, seed)
        right = {"both_right": 0.5 + seed / 4, "only_teacher_right": 0.25, "only_student_right": None}
        write_gaze(kd, [student(kd, 0.5, **right, both_wrong=neither)], teacher)
    (folded,) = (block for block in saliency.agreement(groups(tmp_path)) if isinstance(block, Folded))
    assert folded.blocks[0].rows == [["kd", f"0.625 ± {0.25 / math.sqrt(2):.3f}", "0.250 ± 0.000", "", "0.250"]]


def older(found):
    for one in (found["teacher"], *found["students"]):
        del one["config_hash"]


def cut(*keys, value=None):
    """Puts a value where the keys lead."""

    def change(found):
        for key in keys[:-1]:
            found = found[key]
        found[keys[-1]] = value

    return change


DAMAGE = {
    "older": older,
    "other runs": cut("students", 0, "config_hash", value="0" * 64),
    "no students": cut("students", value=[]),
    "students are text": cut("students", value="text"),
    "a hash that is a list": cut("students", 0, "config_hash", value=[]),
    "no teacher": cut("teacher"),
    "no numbers": cut("students", 0, "agreement", "all", "cosine"),
    "not a number": cut("students", 0, "agreement", "all", "iou", "mean", value=math.nan),
    "no part": cut("students", 0, "agreement", "both_wrong"),
    "a stage that is text": cut("stage", value="last"),
    "a variant that is unknown": cut("variant", value="cam"),
    "a variant that is a list": cut("variant", value=[]),
}


def assert_left_out(folder, run):
    (line,) = saliency.agreement(groups(folder))
    assert line.startswith(f"Left out: gaze.json in {run}. It is damaged, of an older version, or about runs that are")
    assert line.endswith("python -m kd_jax.explain makes it again.")


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_file_of_another_form_is_left_out_in_one_line(tmp_path, damage):
    _, kd, _ = write_pair(tmp_path, 0)
    write_gaze(kd, [student(kd, 0.5)])
    found = json.loads((kd / "gaze.json").read_text())
    damage(found)
    (kd / "gaze.json").write_text(json.dumps(found))
    assert_left_out(tmp_path, kd)


@pytest.mark.parametrize("content", [b"", b"\xff\x00", b"[]", b'{"stage": -1'], ids=["empty", "bytes", "list", "cut"])
def test_a_file_that_is_no_whole_json_is_left_out_in_one_line(tmp_path, content):
    _, kd, _ = write_pair(tmp_path, 0)
    (kd / "gaze.json").write_bytes(content)
    assert_left_out(tmp_path, kd)


def test_a_folder_in_the_place_of_the_file_is_left_out_in_one_line(tmp_path):
    _, kd, _ = write_pair(tmp_path, 0)
    (kd / "gaze.json").mkdir()
    assert_left_out(tmp_path, kd)


def test_pictures_are_shown_and_what_is_too_much_is_counted(tmp_path):
    for seed in range(8):
        write_run(tmp_path / str(seed), seed=seed)
        (tmp_path / str(seed) / "gaze.png").write_bytes(PNG)
    *shown, more = saliency.pictures(groups(tmp_path))
    assert shown == [Image(PNG, str(tmp_path / str(seed))) for seed in range(6)]
    assert more == "2 more pictures in the folders of the runs: gaze.png."


@pytest.mark.parametrize("content", [b"", b"GIF89a"], ids=["empty", "another format"])
def test_a_file_that_is_no_png_is_named_and_not_shown(tmp_path, content):
    write_run(tmp_path / "one")
    (tmp_path / "one" / "gaze.png").write_bytes(content)
    said = f"{tmp_path / 'one' / 'gaze.png'} is no picture; python -m kd_jax.explain makes it again."
    assert saliency.pictures(groups(tmp_path)) == [said]
