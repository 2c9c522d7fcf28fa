"""Numbers over seeds: mean and deviation, and the paired difference of two rows with its interval."""

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
    quantile = float(special.stdtrit(len(differences) - 1, 0.5 + confidence / 2))
    return mean, quantile * deviation / math.sqrt(len(differences))
