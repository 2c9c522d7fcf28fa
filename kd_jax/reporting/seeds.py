"""Numbers by seed, and how a table says them."""

import collections
import math
import statistics
from collections.abc import Iterable, Mapping

from kd_jax.intervals import mean_and_deviation, paired_difference


def means(values: Iterable[tuple[int, float]]) -> dict[int, float]:
    """{seed: the mean of its values}, of (seed, value); seeds in their order."""
    found: dict[int, list[float]] = collections.defaultdict(list)
    for seed, value in values:
        found[seed].append(value)
    return {seed: statistics.fmean(found[seed]) for seed in sorted(found)}


def spread(values: Mapping[int, float], digits: int) -> str:
    """Mean and standard deviation over seeds.

    >>> spread({0: 1.0, 1: 3.0}, 2), spread({0: 1.0}, 2), spread({}, 2)
    ('2.00 ± 1.41', '1.00', '')
    """
    if not values:
        return ""
    mean, deviation = mean_and_deviation(list(values.values()))
    return f"{mean:.{digits}f}" + (f" ± {deviation:.{digits}f}" if len(values) > 1 else "")


def difference(own: Mapping[int, float], other: Mapping[int, float], digits: int) -> str:
    """Mean of own - other over the seeds that both have, and the half width of its 95% interval by Student's t.

    >>> difference({0: 3.0, 1: 5.0, 2: 4.0}, {0: 1.0, 1: 2.0, 2: 3.0}, 3), difference({0: 3.0}, {0: 1.0}, 3)
    ('+2.000 ± 2.484', '+2.000')
    """
    both = sorted(own.keys() & other.keys())
    if not both:
        return "no seed in common"
    mean, half = paired_difference([own[seed] for seed in both], [other[seed] for seed in both])
    return f"{mean:+.{digits}f}" + (f" ± {half:.{digits}f}" if math.isfinite(half) else "")
