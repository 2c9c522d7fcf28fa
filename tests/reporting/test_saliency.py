"""Agreement of saliency maps in the report, from files that are made up here."""

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


def student(run, pearson, iou=0.5, **by_correctness):
    """The entry of saliency.json for a run, whose folder has moved since."""
    values = {"cosine": pearson + 0.2, "pearson": pearson, "iou": iou, "center_distance": 10 * pearson}
    whole = {measure: {"mean": mean, "low": mean, "high": mean} for measure, mean in values.items()}
    agreement = {"all": {"images": 300, **whole}}
    for case in saliency.CORRECTNESS:
        mean = by_correctness.get(case, pearson)
        empty = {"images": 0, **dict.fromkeys(values)}
        agreement[case] = empty if mean is None else {"images": 75, **whole, "pearson": {"mean": mean}}
    return {"workdir": "/moved", "name": "", "config_hash": hash_of(run), "agreement": agreement}


def write_summary(run, students, teacher=TEACHER, stage=-1, variant="gradcam", name="teacher, seed 0"):
    taught_by = {"workdir": "/moved", "name": name, "config_hash": teacher}
    summary = {"stage": stage, "variant": variant, "teacher": taught_by, "students": students}
    (run / "saliency.json").write_text(json.dumps(summary))


def write_pair(folder, seed, teacher_seed=0):
    """A student alone and a distilled one, as (folder, folder)."""
    alone, kd = folder / f"student-{seed}", folder / f"kd-{seed}"
    write_run(alone, "student", seed, 0.25 + 0.125 * seed)
    identity = runs.identity(tiny.config(name="teacher", seed=teacher_seed, **{"model.width": 0.25}), "f" * 64, None)
    write_run(kd, "kd", seed, 0.5, identity, method=tiny.METHODS["kd"])
    return alone, kd, runs.digest(identity)


def rows_and_text(folder):
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
        write_summary(kd, students, teacher)
    rows = rows_and_text(tmp_path)[0]
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
        write_summary(student_run, [student(kd, 0.5), student(student_run, 0.25)], teacher)
        write_summary(kd, [student(kd, 0.75), student(student_run, 0.75)], teacher)
    rows = rows_and_text(tmp_path)[0]
    assert [rows["student"][0], rows["student"][3]] == ["2", "0.250 ± 0.000"]
    assert [rows["kd"][0], rows["kd"][3], rows["kd"][7]] == ["2", "0.500 ± 0.000", "+0.250 ± 0.000"]


def test_runs_are_compared_beside_the_same_teacher(tmp_path):
    """Each distilled student has a teacher of its own seed, and each student alone has an agreement with both."""
    pairs = [write_pair(tmp_path, seed, teacher_seed=seed) for seed in range(2)]
    for seed, (_, kd, teacher) in enumerate(pairs):
        alone = [student(student_run, 0.25 if one == seed else 0.0) for one, (student_run, *_) in enumerate(pairs)]
        others = [student(other, 0.125) for _, other, _ in pairs if other != kd]
        write_summary(kd, [student(kd, 0.5), *alone, *others], teacher, name=f"teacher, seed {seed}")
    rows, report = rows_and_text(tmp_path)
    assert rows["kd"][3] == "0.500 ± 0.000"
    assert rows["kd"][7] == "+0.250 ± 0.000"
    assert "compared with teacher, seed 0 and teacher, seed 1:" in report


def test_without_a_seed_in_common_there_is_no_difference(tmp_path):
    student_run, kd = write_pair(tmp_path, 0)[0], write_pair(tmp_path, 1)[1]
    write_summary(kd, [student(kd, 0.5), student(student_run, 0.25)])
    assert rows_and_text(tmp_path)[0]["kd"][6:] == ["no seed in common"] * 4


def test_without_the_student_alone_there_is_no_difference(tmp_path):
    _, kd, _ = write_pair(tmp_path, 0)
    write_summary(kd, [student(kd, 0.5)])
    rows, _ = rows_and_text(tmp_path)
    assert (list(rows), rows["kd"][6:]) == (["kd"], [])


def test_another_stage_is_another_table(tmp_path):
    alone, kd, _ = write_pair(tmp_path, 0)
    write_summary(kd, [student(kd, 0.5)])
    write_summary(alone, [student(kd, 0.25)], stage=2, variant="gradcam++")
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
        write_summary(kd, [student(kd, 0.5, **right, both_wrong=neither)], teacher)
    (folded,) = (block for block in saliency.agreement(groups(tmp_path)) if isinstance(block, Folded))
    assert folded.blocks[0].rows == [["kd", f"0.625 ± {0.25 / math.sqrt(2):.3f}", "0.250 ± 0.000", "", "0.250"]]


def without_hashes(summary):
    for model in (summary["teacher"], *summary["students"]):
        del model["config_hash"]


def replace(*keys, value=None):
    """Puts a value where the keys lead."""

    def change(summary):
        for key in keys[:-1]:
            summary = summary[key]
        summary[keys[-1]] = value

    return change


DAMAGE = {
    "older": without_hashes,
    "other runs": replace("students", 0, "config_hash", value="0" * 64),
    "no students": replace("students", value=[]),
    "students are text": replace("students", value="text"),
    "a hash that is a list": replace("students", 0, "config_hash", value=[]),
    "no teacher": replace("teacher"),
    "no numbers": replace("students", 0, "agreement", "all", "cosine"),
    "not a number": replace("students", 0, "agreement", "all", "iou", "mean", value=math.nan),
    "no part": replace("students", 0, "agreement", "both_wrong"),
    "a stage that is text": replace("stage", value="last"),
    "a variant that is unknown": replace("variant", value="cam"),
    "a variant that is a list": replace("variant", value=[]),
}


def assert_left_out(folder, run):
    (line,) = saliency.agreement(groups(folder))
    assert line.startswith(f"Left out: {run}/saliency.json. Such a file is damaged, of an older version, or about runs")
    assert line.endswith("python -m kd_jax.explain writes a new one.")


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_file_of_another_form_is_left_out_in_one_line(tmp_path, damage):
    _, kd, _ = write_pair(tmp_path, 0)
    write_summary(kd, [student(kd, 0.5)])
    summary = json.loads((kd / "saliency.json").read_text())
    damage(summary)
    (kd / "saliency.json").write_text(json.dumps(summary))
    assert_left_out(tmp_path, kd)


@pytest.mark.parametrize("content", [b"", b"\xff\x00", b"[]", b'{"stage": -1'], ids=["empty", "bytes", "list", "cut"])
def test_a_file_that_is_not_json_is_left_out_in_one_line(tmp_path, content):
    _, kd, _ = write_pair(tmp_path, 0)
    (kd / "saliency.json").write_bytes(content)
    assert_left_out(tmp_path, kd)


def test_a_folder_in_the_place_of_the_file_is_left_out_in_one_line(tmp_path):
    _, kd, _ = write_pair(tmp_path, 0)
    (kd / "saliency.json").mkdir()
    assert_left_out(tmp_path, kd)


def test_a_file_with_the_former_names_is_read(tmp_path):
    _, kd, _ = write_pair(tmp_path, 0)
    write_summary(kd, [student(kd, 0.5)])
    summary = json.loads((kd / "saliency.json").read_text())
    measures = summary["students"][0]["agreement"]["all"]
    measures["centre_distance"] = measures.pop("center_distance")
    (kd / "gaze.json").write_text(json.dumps(summary))
    (kd / "saliency.json").unlink()
    assert rows_and_text(tmp_path)[0]["kd"][5] == "5.00"


def test_a_file_with_the_current_name_is_read_first(tmp_path):
    _, kd, _ = write_pair(tmp_path, 0)
    write_summary(kd, [student(kd, 0.25)])
    (kd / "saliency.json").rename(kd / "gaze.json")
    write_summary(kd, [student(kd, 0.5)])
    assert rows_and_text(tmp_path)[0]["kd"][3] == "0.500"


def test_a_picture_with_the_former_name_is_shown(tmp_path):
    write_run(tmp_path / "one")
    (tmp_path / "one" / "gaze.png").write_bytes(PNG)
    assert saliency.pictures(groups(tmp_path)) == [Image(PNG, str(tmp_path / "one"))]


def test_pictures_are_shown_and_what_is_too_much_is_counted(tmp_path):
    for seed in range(8):
        write_run(tmp_path / str(seed), seed=seed)
        (tmp_path / str(seed) / "saliency.png").write_bytes(PNG)
    *shown, more = saliency.pictures(groups(tmp_path))
    assert shown == [Image(PNG, str(tmp_path / str(seed))) for seed in range(6)]
    assert more == "2 more pictures in the folders of the runs: saliency.png."


@pytest.mark.parametrize("content", [b"", b"GIF89a"], ids=["empty", "another format"])
def test_a_file_that_is_no_png_is_named_and_not_shown(tmp_path, content):
    write_run(tmp_path / "one")
    (tmp_path / "one" / "saliency.png").write_bytes(content)
    message = f"{tmp_path / 'one' / 'saliency.png'} is not a PNG image; python -m kd_jax.explain writes a new one."
    assert saliency.pictures(groups(tmp_path)) == [message]
