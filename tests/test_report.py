"""The report on runs, whose files are made up here; no network is trained."""

import base64
import html
import json
import math
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from kd_jax import report, runs
from kd_jax.types import InputError
from tests import tiny

CLASSES = ("cat", "<i>dog</i>", "price in $\\frac")
PNG = b"\x89PNG\r\n\x1a\n"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def write_run(folder, name="student", seed=0, accuracy=0.5, teacher=None, details=True, classes=CLASSES, **overrides):
    """A finished run of made-up numbers; `teacher` is the identity of its teacher's run. Returns its identity."""
    config = tiny.config(name=name, seed=seed, **overrides)
    identity = runs.identity(config, "f" * 64, teacher)
    config["teacher"]["kind"] = "run" if teacher else "none"
    data = {"fingerprint": "f" * 64, "class_names": classes, "train_images": 64}
    digest = runs.digest(identity)
    test = {"accuracy": accuracy, "top5": 1.0, "nll": 0.7, "ece": 0.02, "agreement": None, "fidelity_kl": None}
    if teacher:
        test |= {"agreement": 0.8, "fidelity_kl": 0.1}
    result = {
        "name": name,
        "model": "resnet8",
        "seed": seed,
        "config_hash": digest,
        "teacher": teacher and {"name": "teacher", "accuracy": 0.9},
        "test": test | {"images": 300},
        "checkpoint": 12,
        "parameters": 1234,
        "seconds": 5.0,
        "images_per_second": 100.0,
        "device": "1 x cpu",
        "versions": {"jax": "0.10.2"},
    }
    os.makedirs(folder)
    runs.write_json(
        f"{folder}/config.json", {"config": config, "identity": identity, "hash": digest, "data": data}, indent=None
    )
    runs.write_json(f"{folder}/result.json", result, indent=None)
    if details:
        confusion = np.eye(len(classes)) * 90 + np.roll(np.eye(len(classes)), 1, 1) * 10
        bins = {"bin_confidence": [5.0, 80.0], "bin_correct": [4, 96], "bin_count": [10, 100]}
        runs.write_json(f"{folder}/test_details.json", bins | {"confusion": confusion.tolist()}, indent=None)
    with open(f"{folder}/metrics.jsonl", "w") as file:
        for epoch in (1.0, 2.0, 3.0):
            values = {"train/accuracy": accuracy, "train/loss": 1 / epoch, "train/loss/cross_entropy": 1 / epoch}
            for line in (values, {"validation/accuracy": accuracy, "validation/nll": 1.0}):
                file.write(json.dumps({"step": int(4 * epoch), "seconds": epoch, "epoch": epoch, **line}) + "\n")
    return identity


def write_table(folder, **options):
    """Three seeds of a student alone and distilled, and their teacher."""
    teacher = write_run(folder / "teacher", "teacher", accuracy=0.97, **{"model.width": 0.25}, **options)
    for seed, alone, distilled in ((0, 0.90, 0.93), (1, 0.92, 0.94), (2, 0.91, 0.95)):
        write_run(folder / f"student-{seed}", "student", seed, alone, **options)
        write_run(folder / f"kd-{seed}", "kd", seed, distilled, teacher, method=tiny.METHODS["kd"], **options)


def made(folder, to):
    """The two files of a report on a folder, as (HTML, Markdown)."""
    report.report([str(folder)], str(to))
    return (to / "index.html").read_text(), (to / "report.md").read_text()


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """(HTML, Markdown) of a report on a small table."""
    folder = tmp_path_factory.mktemp("table")
    write_table(folder / "runs")
    cosine = {"mean": 0.8125, "low": 0.75, "high": 0.875}
    gaze = {"images": 300, "students": [{"name": "kd", "agreement": {"all": {"cosine": cosine}}}], "note": "text"}
    (folder / "runs" / "kd-0" / "gaze.json").write_text(json.dumps(gaze))
    (folder / "runs" / "kd-0" / "gaze.png").write_bytes(PNG)
    return made(folder / "runs", folder / "report")


def row(markdown, name):
    """The cells of the first row of a table that begins with a name."""
    line = next(line for line in markdown.splitlines() if line.startswith(f"| {name} |"))
    return [cell.strip() for cell in line.strip("|").split(" | ")]


def left_out(folder, to):
    """{run: reason}."""
    lines = made(folder, to)[1].partition("## Left out")[2].splitlines()
    cells = [line.strip("| ").split(" | ") for line in lines if line.startswith("| ")][2:]
    return {Path(path.replace("\\", "")).name: why for path, why in cells}


def test_a_row_has_mean_and_deviation_over_seeds_and_the_paired_difference(table):
    gains = np.array([3.0, 2.0, 4.0])
    half = 4.3027 * gains.std(ddof=1) / math.sqrt(3)  # the 97.5% quantile of Student's t with two degrees of freedom
    assert row(table[1], "student")[1:5] == ["91.00 ± 1.00", "", "", "3"]
    assert row(table[1], "kd")[1:5] == ["94.00 ± 1.00", f"+3.00 ± {half:.2f}", "student", "3"]


def test_a_student_of_another_recipe_is_no_baseline(tmp_path):
    write_run(tmp_path / "runs" / "a", "student", **{"optimizer.learning_rate": 0.3})
    teacher = write_run(tmp_path / "runs" / "t", "teacher", **{"model.width": 0.25})
    write_run(tmp_path / "runs" / "b", "kd", teacher=teacher)
    assert row(made(tmp_path / "runs", tmp_path / "report")[1], "kd")[2:4] == ["", ""]


def test_seeds_of_the_teacher_do_not_split_a_row(tmp_path):
    for seed in range(2):
        teacher = write_run(tmp_path / "runs" / f"t{seed}", "teacher", seed, **{"model.width": 0.25})
        write_run(tmp_path / "runs" / f"kd{seed}", "kd", seed, teacher=teacher)
    assert row(made(tmp_path / "runs", tmp_path / "report")[1], "kd")[4] == "2"


def test_recipes_of_one_name_are_told_apart_by_what_differs(tmp_path):
    for width in (0.25, 0.5):
        write_run(tmp_path / "runs" / str(width), "student", **{"model.width": width})
    markdown = made(tmp_path / "runs", tmp_path / "report")[1]
    assert {"| student |", "| student (model.width 0.5) |"} <= set(re.findall(r"\| student.*? \|", markdown))


def test_runs_are_found_at_any_depth_and_through_links_once(tmp_path):
    write_run(tmp_path / "runs" / "deep" / "deeper" / "one")
    (tmp_path / "runs" / "loop").symlink_to(tmp_path / "runs")
    assert report.report([str(tmp_path / "runs"), str(tmp_path / "runs" / "deep")], str(tmp_path / "report")) == (1, 0)


def test_a_copy_of_a_run_does_not_count(tmp_path):
    write_run(tmp_path / "runs" / "one")
    shutil.copytree(tmp_path / "runs" / "one", tmp_path / "runs" / "two")
    (why,) = left_out(tmp_path / "runs", tmp_path / "report").values()
    assert re.fullmatch(r"the same run as .*/runs/one", why)


def without(folder, *keys):
    """Takes a key out of a run's result."""
    result = runs.read_json(str(folder), "result.json")
    tree = result
    for key in keys[:-1]:
        tree = tree[key]
    del tree[keys[-1]]
    runs.write_json(str(folder / "result.json"), result)


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (lambda run: (run / "result.json").unlink(), "has not finished: step 12 of 12, last written 20.*"),
        (lambda run: (run / "config.json").unlink(), ".*has no config.json; expected the folder of a run"),
        (lambda run: (run / "result.json").write_text('{"na'), ".*result.json cannot be read; expected .*"),
        (lambda run: (run / "result.json").write_bytes(b"\xff\x00"), ".*result.json cannot be read; expected .*"),
        (lambda run: without(run, "seconds"), "result.json lacks seconds; it is of another version"),
        (lambda run: without(run, "test", "nll"), "result.json lacks test.nll; it is of another version"),
        (
            lambda run: (run / "result.json").write_text((run / "result.json").read_text().replace("0.02", "NaN")),
            "test.ece of result.json is nan; expected a number",
        ),
        (
            lambda run: (run / "config.json").write_text(
                '{"config": {}, "identity": {"teacher": null}, "hash": "", "data": {"class_names": []}}'
            ),
            "config.json lacks 'dataset'; it is of another version",
        ),
    ],
    ids=["going", "no config", "cut short", "no text", "older", "older test", "not a number", "older config"],
)
def test_a_run_that_cannot_be_shown_is_listed_with_the_reason(tmp_path, damage, why):
    write_run(tmp_path / "runs" / "good")
    write_run(tmp_path / "runs" / "bad", seed=1)
    damage(tmp_path / "runs" / "bad")
    reasons = left_out(tmp_path / "runs", tmp_path / "report")
    assert reasons.keys() == {"bad"}
    assert re.fullmatch(why, reasons["bad"].replace("\\", ""))


def test_what_a_killed_process_left_of_the_metrics_does_not_stop_the_report(tmp_path):
    write_run(tmp_path / "runs" / "one")
    (tmp_path / "runs" / "one" / "metrics.jsonl").write_bytes(
        b'7\n{"epoch": "x"}\n{"epoch": 1, "train/loss": null}\n\x00'
    )
    assert report.report([str(tmp_path / "runs")], str(tmp_path / "report")) == (1, 0)


def test_the_curves_are_those_of_accuracy_and_of_every_term_in_training_and_validation(table):
    titles = re.findall(r'aria-label="(.*?)"', table[0])
    assert titles[:5] == [
        "accuracy on training batches",
        "accuracy on the validation split",
        "loss, the sum of its terms",
        "negative log-likelihood on the validation split",
        "loss term cross_entropy, as weighted",
    ]


def test_the_most_confused_pair_is_named_with_its_share(table):
    line = next(line for line in table[1].splitlines() if line.startswith("| kd | ") and "/" in line)
    assert "cat / &lt;i&gt;dog&lt;/i&gt; 5.0%" in line


def test_of_many_classes_the_matrix_shows_those_of_the_worst_and_the_best_pairs():
    confusion = np.diag(np.full(50, 90.0))
    confusion[3, 40] = confusion[8, 9] = 10.0
    confusion[:20, 0] += 1.0  # all but the classes 20 and above make a mistake
    confusion[22:, 0] += 1.0
    chosen = report._classes(report._pairs(confusion), 50)
    assert len(chosen) <= 12
    assert {3, 40, 8, 9, 20, 21} <= set(chosen)


def test_without_details_the_report_says_so(tmp_path):
    write_run(tmp_path / "runs" / "one", details=False)
    said = made(tmp_path / "runs", tmp_path / "report")[1].replace("\\", "")
    assert said.count("Without a test_details.json that fits, as of an older version: student.") == 2


def test_details_of_other_classes_do_not_fit(tmp_path):
    write_run(tmp_path / "runs" / "one")
    bins = {"bin_confidence": [1.0], "bin_correct": [1], "bin_count": [1]}
    runs.write_json(str(tmp_path / "runs" / "one" / "test_details.json"), bins | {"confusion": [[1, 0], [0, 1]]})
    assert "that fits" in made(tmp_path / "runs", tmp_path / "report")[1]


def test_gaze_is_shown_where_it_was_measured(table):
    assert row(table[1], "students, kd, agreement, all, cosine")[1] == "0.812 (0.750 to 0.875)"
    assert f'src="data:image/png;base64,{base64.b64encode(PNG).decode()}"' in table[0]


def test_differences_of_configs_hardware_and_versions_are_said(table):
    assert "method.kd.weight 0.9" in next(
        line for line in table[1].splitlines() if line.startswith("| kd | ") and "method" in line
    ).replace("\\", "")
    assert "| 1 x cpu | 5 | 100 | jax 0.10.2 |" in table[1]


def test_the_page_needs_nothing_from_elsewhere(table):
    assert not re.search(r"<script|<link[^>]*href=\"(?!data:)|(src|href)=\"(?!data:|#)|url\((?!#)|@import", table[0])


def test_names_of_runs_and_classes_are_text_and_no_markup(tmp_path):
    name = '<script>alert("x")</script> | $\\frac'
    write_run(tmp_path / "runs" / "one", name)
    page_text, markdown = made(tmp_path / "runs", tmp_path / "report")
    assert html.escape(name) in page_text
    assert not re.search("<script|<i>", page_text + markdown)
    tables = re.findall(r"(?:^\|.*\n)+", markdown, re.MULTILINE)
    assert any("alert" in one for one in tables)
    for one in tables:
        assert len({line.replace("\\|", "").count("|") for line in one.splitlines()}) == 1


def test_hundreds_of_runs_and_recipes_stand_in_one_report(tmp_path):
    write_run(tmp_path / "runs" / "0")
    for number in range(1, 300):
        folder = tmp_path / "runs" / str(number)
        shutil.copytree(tmp_path / "runs" / "0", folder)
        for file in ("config.json", "result.json"):
            tree = json.loads((folder / file).read_text())
            tree |= {"seed": number % 3, "config_hash": str(number)}
            if file == "config.json":
                tree["identity"]["optimizer"]["learning_rate"] = 1.0 + number // 3
            (folder / file).write_text(json.dumps(tree))
    assert report.report([str(tmp_path / "runs")], str(tmp_path / "report")) == (300, 0)
    assert "300 runs of 101 recipes" in (tmp_path / "report" / "report.md").read_text()


@pytest.mark.parametrize("inside", [False, True], ids=["a file", "below a file"])
def test_a_place_that_cannot_be_written_is_refused(tmp_path, inside):
    write_run(tmp_path / "runs" / "one")
    (tmp_path / "file").write_text("kept")
    to = tmp_path / "file" / "report" if inside else tmp_path / "file"
    with pytest.raises(InputError, match=r"--to: '.*' cannot be written: .*file is not a writable folder"):
        report.report([str(tmp_path / "runs")], str(to))
    assert (tmp_path / "file").read_text() == "kept"


@pytest.mark.parametrize(("name", "said"), [("empty", "holds no run"), ("nowhere", "is not a folder")])
def test_a_folder_without_a_run_is_refused_and_nothing_is_written(tmp_path, name, said):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=said):
        report.report([str(tmp_path / name)], str(tmp_path / "report"))
    assert not (tmp_path / "report").exists()


FRAME = """<!DOCTYPE html><pre></pre><iframe src="report/index.html" width={width} height=900 onload="
  const page = this.contentDocument;
  page.querySelectorAll('details').forEach(one => one.open = true);
  const pictures = [...page.querySelectorAll('.figures svg')];
  document.querySelector('pre').textContent = [this.contentWindow.innerWidth, page.documentElement.scrollWidth,
    pictures.length, Math.max(...pictures.map(one => one.getBoundingClientRect().right))].join(' ');"></iframe>"""


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
@pytest.mark.parametrize("width", [390, 1440])
def test_in_a_browser_nothing_overflows_and_the_console_is_silent(tmp_path, width):
    write_table(tmp_path / "runs")
    write_run(tmp_path / "runs" / "long", "a-name-that-never-ends-" * 12, **{"model.width": 0.5})
    made(tmp_path / "runs", tmp_path / "report")
    (tmp_path / "frame.html").write_text(FRAME.format(width=width))
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files", "--hide-scrollbars"]
    flags += ["--enable-logging=stderr", "--window-size=1600,1000", f"--user-data-dir={tmp_path / 'profile'}"]
    done = subprocess.run(
        [CHROMIUM, *flags, "--virtual-time-budget=5000", "--dump-dom", (tmp_path / "frame.html").as_uri()],
        capture_output=True,
        text=True,
        timeout=60,
    )
    inner, scrolled, pictures, right = map(float, re.search("<pre>(.*?)</pre>", done.stdout)[1].split())
    assert (inner, pictures >= 8) == (width, True)
    assert max(scrolled, right) <= width
    assert "CONSOLE" not in done.stderr
