"""What is drawn of runs."""

import json
import re

import numpy as np
import pytest

from kd_jax import runs
from kd_jax.reporting import figures, finished, plots
from tests import tiny
from tests.reporting.made_up import groups, row, text, write_run


def test_the_curves_are_those_of_accuracy_and_of_every_term(table):
    (page,) = figures.pages(table)
    _, drawn = figures.curves([page])
    assert [re.search('aria-label="(.*?)"', svg)[1] for svg in drawn.svgs] == [
        "accuracy on training batches",
        "accuracy on the validation split",
        "loss, the sum of its terms",
        "negative log-likelihood on the validation split",
        "loss term cross_entropy, as weighted",
    ]


@pytest.mark.parametrize(("steps", "axis"), [(4, "epoch"), (8, "step")])
def test_curves_are_over_steps_where_epochs_differ_in_these(tmp_path, steps, axis):
    write_run(tmp_path / "one")
    write_run(tmp_path / "two", "other", steps=steps, **{"train.batch_size": 2})
    said, drawn, *_ = figures.curves(list(figures.pages(groups(tmp_path))))
    assert [axis in re.findall(">(epoch|step)<", svg) for svg in drawn.svgs] == [True] * 5
    assert ("Over steps" in said) == (axis == "step")


def test_the_curves_of_one_run_show_training_and_validation_in_one_plot(tmp_path):
    write_run(tmp_path / "one", "kd", teacher=runs.identity(tiny.config(), "f" * 64, None))
    (run,) = groups(tmp_path)[0].runs
    (drawn,) = figures.curves_of_one(run)
    assert [re.search('aria-label="(.*?)"', svg)[1] for svg in drawn.svgs] == [
        "accuracy",
        "loss, the sum of its terms",
        "negative log-likelihood on the validation split",
        "loss term cross_entropy, as weighted",
    ]
    colors = [plots.STYLES[style][0].lower() for style, _ in figures.ONE_RUN.values()]
    assert [color in drawn.svgs[0].lower() for color in colors] == [True, True, False]
    with open(tmp_path / "one" / "metrics.jsonl", "a") as file:  # of a run that reads the test set
        for epoch in (1.0, 2.0):
            file.write(json.dumps({"step": int(4 * epoch), "epoch": epoch, "test/accuracy": 0.25}) + "\n")
    (drawn,) = figures.curves_of_one(run)
    assert [color in drawn.svgs[0].lower() for color in colors] == [True, True, True]


def test_without_metrics_the_page_of_one_run_says_so(tmp_path):
    write_run(tmp_path / "one")
    (tmp_path / "one" / "metrics.jsonl").unlink()
    (run,) = groups(tmp_path)[0].runs
    assert figures.curves_of_one(run) == [f"{figures.UNREAD}: {run.folder}."]


def test_what_a_killed_process_left_of_the_metrics_does_not_stop_the_report(tmp_path):
    write_run(tmp_path / "one")
    (tmp_path / "one" / "metrics.jsonl").write_bytes(
        b'7\n{"step": 1, "epoch": "x"}\n{"step": 1, "epoch": 1, "train/loss": null}\n\x00'
    )
    (page,) = figures.pages(groups(tmp_path))
    assert figures.curves([page]) == [figures.SHORT]


@pytest.mark.parametrize("content", [None, b"", b"\x00 no JSON"], ids=["a folder", "empty", "damaged"])
def test_a_run_whose_metrics_cannot_be_read_is_named(tmp_path, content):
    for seed in range(2):
        write_run(tmp_path / str(seed), seed=seed)
    path = tmp_path / "1" / "metrics.jsonl"
    path.unlink()
    path.mkdir() if content is None else path.write_bytes(content)
    (page,) = figures.pages(groups(tmp_path))
    said = f"Without a line of metrics.jsonl that can be read, and so not drawn: {tmp_path / '1'}."
    assert figures.curves([page])[-1] == said


def test_a_run_whose_metrics_were_cut_is_drawn_and_named(tmp_path, capsys):
    write_run(tmp_path / "one")
    path = tmp_path / "one" / "metrics.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:4]))
    (page,) = figures.pages(groups(tmp_path))
    assert figures.curves([page])
    assert f"{path} holds 4 of the 6 lines that were written\n" in capsys.readouterr().err


def test_the_most_confused_pair_is_named_with_its_share(table):
    said = text(figures.confusions(table, list(figures.pages(table))))
    assert row(said, "kd")[1].startswith("cat / &lt;i&gt;dog&lt;/i&gt; 5.0%")


def test_the_pairs_of_one_run_are_counted_each_way(tmp_path):
    write_run(tmp_path / "one")
    path = str(tmp_path / "one")
    details = runs.read_json(path, "test_details.json")
    runs.write_json(
        f"{path}/test_details.json", details | {"confusion": [[9, 6, 0], [2, 8, 0], [0, 1, 9]]}, indent=None
    )
    (page,) = figures.pages(groups(tmp_path))
    _, pairs, *_ = figures.confusions_of_one(page)
    assert pairs.rows == [("cat / <i>dog</i>", "32.0", "6", "2"), ("<i>dog</i> / price in $\\frac", "5.0", "0", "1")]


def test_of_many_classes_the_matrix_shows_those_of_the_worst_pairs():
    confusion = np.diag(np.full(50, 90.0))
    confusion[3, 40] = confusion[8, 9] = 10.0
    confusion[:20, 0] += 1.0  # all but the classes 20 and above make a mistake
    chosen = figures._classes(figures._pairs(confusion), 50)
    assert len(chosen) <= 12
    assert {3, 40, 8, 9} <= set(chosen) <= {40, *range(20)}


@pytest.mark.parametrize("section", ["calibration", "confusions", "confusions of one"])
def test_without_details_the_report_says_so(tmp_path, section):
    write_run(tmp_path / "one", details=False)
    found = groups(tmp_path)
    (page,) = figures.pages(found)
    blocks = {
        "calibration": lambda: figures.calibration(page),
        "confusions": lambda: figures.confusions(found, [page]),
        "confusions of one": lambda: figures.confusions_of_one(page),
    }[section]()
    assert blocks == ["Without a whole test_details.json of every run, as in an older version: student."]


@pytest.mark.parametrize("count", [None, -1, 10**400], ids=["null", "negative", "too large"])
def test_details_that_are_no_counts_do_not_fit(tmp_path, count):
    write_run(tmp_path / "one")
    details = runs.read_json(str(tmp_path / "one"), "test_details.json")
    details["bin_count"][0] = count
    runs.write_json(str(tmp_path / "one" / "test_details.json"), details)
    (page,) = figures.pages(groups(tmp_path))
    assert page.details == [None]


def test_details_of_other_classes_do_not_fit(tmp_path):
    write_run(tmp_path / "one")
    bins = {"bin_confidence": [1.0], "bin_correct": [1], "bin_count": [1]}
    runs.write_json(str(tmp_path / "one" / "test_details.json"), bins | {"confusion": [[1, 0], [0, 1]]})
    (page,) = figures.pages(groups(tmp_path))
    assert page.details == [None]


def test_what_is_not_drawn_of_a_run_is_not_in_its_legend(tmp_path):
    write_run(tmp_path / "one")
    path = tmp_path / "one" / "metrics.jsonl"
    path.write_text("".join(line for line in path.read_text().splitlines(keepends=True) if "validation" not in line))
    (run,) = finished.read([str(tmp_path)])[0]
    (drawn,) = figures.curves_of_one(run)
    assert [label for _, label in drawn.legend] == ["training batches"]


def test_a_run_with_one_measurement_is_called_too_short_for_curves(tmp_path):
    write_run(tmp_path / "one")
    path = tmp_path / "one" / "metrics.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:2]))
    (run,) = finished.read([str(tmp_path)])[0]
    assert figures.curves_of_one(run) == [figures.SHORT]
    assert figures.curves(list(figures.pages(groups(tmp_path)))) == [figures.SHORT]


def test_without_a_bin_that_counts_no_empty_calibration_is_drawn(tmp_path):
    write_run(tmp_path / "one")
    path = f"{tmp_path}/one"
    details = runs.read_json(path, "test_details.json")
    runs.write_json(f"{path}/test_details.json", details | {"bin_count": [9, 9], "bin_correct": [4, 4]})
    (page,) = figures.pages(groups(tmp_path))
    assert figures.calibration(page) == [f"{page.data}. Nothing is drawn: no bin of confidences has 10 images."]
