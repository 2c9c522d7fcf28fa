"""Numbers over seeds."""

import math

import numpy as np
import pytest

from kd_jax import intervals


def test_one_pair_has_no_interval():
    assert intervals.paired_difference([3.0], [1.0]) == (2.0, math.inf)


def test_mean_and_deviation_are_those_of_a_sample():
    mean, deviation = intervals.mean_and_deviation([1.0, 2.0, 6.0])
    assert (mean, deviation) == (3.0, pytest.approx(np.std([1.0, 2.0, 6.0], ddof=1)))
