"""Numbers over seeds: mean and deviation, and the difference of two rows with its interval, paired or not."""

import math
import statistics
from collections.abc import Sequence

from scipy import special


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation (0 of a single value)."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def paired_difference(a: Sequence[float], b: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """Mean of a - b over pairs, and the half width of its interval by Student's t (infinite for one pair).

    >>> mean, half = paired_difference([3.0, 5.0, 4.0], [1.0, 2.0, 3.0])
    >>> round(mean, 3), round(half, 3)
    (2.0, 2.484)
    """
    differences = [x - y for x, y in zip(a, b, strict=True)]
    mean, deviation = mean_and_deviation(differences)
    if len(differences) < 2:
        return mean, math.inf
    return mean, _quantile(len(differences) - 1, confidence) * deviation / math.sqrt(len(differences))


def independent_difference(a: Sequence[float], b: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """Mean of a - mean of b, which share nothing, and the half width of its interval (infinite where one is single).

    Welch, "The generalization of Student's problem when several different population variances are involved",
    Biometrika 1947.

    >>> mean, half = independent_difference([3.0, 5.0, 4.0], [1.0, 2.0, 3.0])
    >>> round(mean, 3), round(half, 3)
    (2.0, 2.267)
    """
    difference = statistics.fmean(a) - statistics.fmean(b)
    if min(len(a), len(b)) < 2:
        return difference, math.inf
    parts = [statistics.variance(values) / len(values) for values in (a, b)]
    if not sum(parts):
        return difference, 0.0
    degrees = sum(parts) ** 2 / sum(p**2 / (len(v) - 1) for p, v in zip(parts, (a, b), strict=True))
    return difference, _quantile(degrees, confidence) * math.sqrt(sum(parts))


def _quantile(degrees: float, confidence: float) -> float:
    return float(special.stdtrit(degrees, 0.5 + confidence / 2))
