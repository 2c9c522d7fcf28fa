"""The table of results, and the tables of what was run."""

import math

import numpy as np

from kd_jax.reporting import tables
from tests import tiny
from tests.reporting.made_up import groups, row, text, write_run


def test_a_row_has_mean_and_deviation_over_seeds_and_the_paired_difference(table):
    gains = np.array([3.0, 2.0, 4.0])
    half = 4.3027 * gains.std(ddof=1) / math.sqrt(3)  # the 97.5% quantile of Student's t with two degrees of freedom
    said = text(tables.results(table))
    assert row(said, "student")[1:5] == ["91.00 ± 1.00", "", "", "3"]
    assert row(said, "kd")[1:5] == ["94.00 ± 1.00", f"+3.00 ± {half:.2f}", "student", "3"]


def test_differences_of_configs_hardware_and_versions_are_said(table):
    said = text(tables.about(table))
    assert "method.kd.weight 0.9" in row(said, "kd")[1]
    assert "| 1 x cpu | 5 | 100 | jax 0.10.2 |" in said


def test_a_recipe_whose_test_set_was_read_in_training_is_marked(tmp_path):
    reads = {"evaluate.test_every_epoch": True, "model.width": 0.5}
    write_run(tmp_path / "once", "once", said={"test_every_epoch": False})
    assert "read in training" not in text(tables.results(groups(tmp_path)))
    write_run(tmp_path / "often", "often", said={"test_every_epoch": True}, **reads)
    said = text(tables.results(groups(tmp_path)))
    assert "The test set was read in training, which selected nothing: often." in said


def test_a_student_alone_whose_test_set_was_read_once_is_compared_with(tmp_path):
    teacher = write_run(tmp_path / "teacher", "teacher", accuracy=0.97, **{"model.width": 0.25})
    write_run(tmp_path / "alone", "alone", accuracy=0.5)
    reads = {"evaluate.test_every_epoch": True, "method": tiny.METHODS["kd"]}
    write_run(tmp_path / "kd", "kd", 0, 0.6, teacher, said={"test_every_epoch": True}, **reads)
    assert row(text(tables.results(groups(tmp_path))), "kd")[2:4] == ["+10.00", "alone"]
