"""Numbers over seeds."""

import math

import numpy as np
import pytest
from scipy import stats

from kd_jax import intervals


def test_one_pair_has_no_interval():
    assert intervals.paired_difference([3.0], [1.0]) == (2.0, math.inf)


def test_mean_and_deviation_are_those_of_a_sample():
    mean, deviation = intervals.mean_and_deviation([1.0, 2.0, 6.0])
    assert (mean, deviation) == (3.0, pytest.approx(np.std([1.0, 2.0, 6.0], ddof=1)))


def test_independent_rows_have_the_interval_of_welch():
    a, b = [71.2, 71.9, 71.4, 72.0], [70.8, 71.1, 70.1]
    mean, half = intervals.independent_difference(a, b)
    theirs = stats.ttest_ind(a, b, equal_var=False).confidence_interval(0.95)
    assert (mean - half, mean + half) == (pytest.approx(theirs.low), pytest.approx(theirs.high))


def test_independent_rows_of_one_seed_have_no_interval_and_of_equal_ones_none_to_speak_of():
    assert intervals.independent_difference([3.0], [1.0, 2.0]) == (1.5, math.inf)
    assert intervals.independent_difference([3.0, 3.0], [1.0, 1.0]) == (2, 0)
