"""Numbers by seed."""

import math

import numpy as np

from kd_jax.reporting import seeds


def test_a_seed_has_the_mean_of_its_values():
    assert list(seeds.means([(1, 5.0), (0, 1.0), (0, 2.0)]).items()) == [(0, 1.5), (1, 5.0)]


def test_a_difference_is_that_of_the_seeds_in_common():
    gaps = np.array([0.5, 0.25, 0.0])
    half = 4.3027 * gaps.std(ddof=1) / math.sqrt(3)  # the 97.5% quantile of Student's t with two degrees of freedom
    said = seeds.difference({0: 1.5, 1: 2.25, 2: 3.0, 3: 9.0}, {5: 7.0, 2: 3.0, 1: 2.0, 0: 1.0}, 3)
    assert said == f"+0.250 ± {half:.3f}"


def test_without_a_seed_in_common_there_is_no_difference():
    assert seeds.difference({0: 1.0}, {1: 1.0}, 2) == "no seed in common"
