"""The table of results, and the tables of what was run."""

import math

import numpy as np

from kd_jax.reporting import tables
from tests.reporting.made_up import row, text


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
