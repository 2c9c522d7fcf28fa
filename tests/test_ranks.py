"""Ranks over data sets, against a published worked example and against SciPy."""

import math

import numpy as np
import pytest
from scipy import stats

from kd_jax import ranks

# Demsar, JMLR 2006, table 6: AUC of C4.5, and of it with m, with cf, and with both tuned, on 14 data sets.
DEMSAR = [
    (0.763, 0.768, 0.771, 0.798),
    (0.599, 0.591, 0.590, 0.569),
    (0.954, 0.971, 0.968, 0.967),
    (0.628, 0.661, 0.654, 0.657),
    (0.882, 0.888, 0.886, 0.898),
    (0.936, 0.931, 0.916, 0.931),
    (0.661, 0.668, 0.609, 0.685),
    (0.583, 0.583, 0.563, 0.625),
    (0.775, 0.838, 0.866, 0.875),
    (1.000, 1.000, 1.000, 1.000),
    (0.940, 0.962, 0.965, 0.962),
    (0.619, 0.666, 0.614, 0.669),
    (0.972, 0.981, 0.975001, 0.975),  # ranks 2 and 3 there, by digits that are not printed
    (0.957, 0.978, 0.946, 0.970),
]
# The same paper, table 5 (a): q of Nemenyi's test at 0.05, for 2, 3, ... methods.
NEMENYI = (1.960, 2.343, 2.569, 2.728, 2.850, 2.949, 3.031, 3.102, 3.164)


def test_the_average_ranks_are_the_published_ones():
    assert ranks.average_ranks(DEMSAR) == pytest.approx([3.143, 2.000, 2.893, 1.964], abs=5e-4)


def test_the_test_of_friedman_is_the_published_one():
    found = ranks.friedman(ranks.average_ranks(DEMSAR), len(DEMSAR))
    assert found.f == pytest.approx(3.69, abs=5e-3)
    assert stats.f.ppf(0.95, 3, 39) == pytest.approx(2.85, abs=5e-3)  # which it is above, as is said there
    assert found.p < 0.05


def test_without_ties_the_statistic_follows_from_that_of_scipy():
    scores = np.random.default_rng(0).normal(size=(7, 5))
    chi = stats.friedmanchisquare(*scores.T).statistic
    found = ranks.friedman(ranks.average_ranks(scores), 7)
    assert found.f == pytest.approx(6 * chi / (7 * 4 - chi))
    assert found.p == pytest.approx(1 - stats.f.cdf(found.f, 4, 24))


@pytest.mark.parametrize(("methods", "sets", "chance"), [(3, 2, 1 / 6), (3, 5, 6**-4), (4, 3, 24**-2)])
def test_few_sets_that_rank_alike_may_do_so_by_chance(methods, sets, chance):
    found = ranks.friedman([float(rank) for rank in range(1, methods + 1)], sets)
    assert found == (math.inf, pytest.approx(chance))


@pytest.mark.parametrize(("methods", "q"), list(enumerate(NEMENYI, 2)))
def test_the_critical_difference_is_the_published_one(methods, q):
    difference = ranks.critical_difference(methods, 14)
    assert difference == pytest.approx(q * math.sqrt(methods * (methods + 1) / (6 * 14)), abs=1.5e-3)


def test_the_published_critical_difference_tells_nobody_from_the_next():
    found = sorted(ranks.average_ranks(DEMSAR))
    assert ranks.alike(found, ranks.critical_difference(4, 14)) == [(0, 3)]
    assert ranks.alike(found, 1.12) == [(0, 2), (2, 3)]  # at 0.10: C4.5 is worse than two, and the third is unclear


@pytest.mark.parametrize(
    ("given", "groups"),
    [([1, 1, 3, 3], [(0, 1), (2, 3)]), ([1, 3, 5], []), ([1, 2, 3], [(0, 1), (1, 2)]), ([2, 2, 2], [(0, 2)])],
)
def test_groups_are_the_largest_within_the_difference(given, groups):
    assert ranks.alike(given, 1.0) == groups
