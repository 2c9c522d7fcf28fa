"""Methods compared over several data sets, or pairs of networks, by their ranks.

After Demsar, "Statistical Comparisons of Classifiers over Multiple Data Sets", JMLR 2006.
"""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats


class Friedman(NamedTuple):
    """Whether the ranks of methods differ by more than chance."""

    f: float  # infinite where all sets rank the methods alike
    p: float


def average_ranks(scores: Sequence[Sequence[float]]) -> list[float]:
    """The mean rank of each method over sets; the highest score of a set has rank 1, and equal ones share theirs.

    Args:
      scores: [N, k], of k methods on N sets.
    Returns:
      [k].

    >>> average_ranks([[0.7, 0.9, 0.7], [0.5, 0.6, 0.8]])
    [2.75, 1.5, 1.75]
    """
    return [float(rank) for rank in stats.rankdata(-np.asarray(scores, float), axis=1).mean(0)]


def friedman(ranks: Sequence[float], sets: int) -> Friedman:
    """The Friedman test of mean ranks, in Iman and Davenport's form: F with (k - 1) and (k - 1)(N - 1) degrees.

    Demsar, section 3.2.2; without a correction for ties, as there, which makes it the more careful.

    Args:
      ranks: [k], of `average_ranks`.
      sets: N, at least 2.
    """
    k = len(ranks)
    chi = 12 * sets / (k * (k + 1)) * (sum(rank**2 for rank in ranks) - k * (k + 1) ** 2 / 4)
    room = sets * (k - 1) - chi
    if room <= 1e-9 * sets * k:
        return Friedman(math.inf, math.factorial(k) ** (1.0 - sets))  # that all sets rank as the first does
    f = (sets - 1) * chi / room
    return Friedman(f, float(stats.f.sf(f, k - 1, (k - 1) * (sets - 1))))


def critical_difference(methods: int, sets: int, confidence: float = 0.95) -> float:
    """By how much the mean ranks of two of `methods` differ at least to be told apart, by Nemenyi's test.

    Demsar, section 3.2.2: q sqrt(k (k + 1) / (6 N)), where q is the studentized range's quantile divided by sqrt(2).

    >>> round(critical_difference(4, 14), 2)
    1.25
    """
    q = float(stats.studentized_range.ppf(confidence, methods, math.inf)) / math.sqrt(2)
    return q * math.sqrt(methods * (methods + 1) / (6 * sets))


def alike(ranks: Sequence[float], difference: float) -> list[tuple[int, int]]:
    """The largest groups of at least two methods that are not told apart, as (first, last) of sorted ranks.

    Args:
      ranks: [k], ascending.
      difference: the critical one.

    >>> alike([1.0, 1.5, 2.2, 4.0], 1.0)
    [(0, 1), (1, 2)]
    """
    ends = [max(i for i, rank in enumerate(ranks) if rank - first <= difference) for first in ranks]
    before = [-1, *itertools.accumulate(ends, max)]
    return [(first, last) for first, last in enumerate(ends) if last > first and last > before[first]]
