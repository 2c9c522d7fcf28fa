"""The numbers of the benchmark's table, from the results of its runs: rows by pair of networks, and ranks over pairs.

Accuracies and differences are in per cent and in points. Old results lack what is newer; it is then unknown.
"""

import math
import statistics
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

from kd_jax import ranks
from kd_jax.config.numbers import Number
from kd_jax.config.published import PUBLISHED
from kd_jax.intervals import independent_difference, paired_difference
from kd_jax.reporting.finished import is_number

Result = Mapping[str, Any]
SPLITS = ("validation", "test")  # on which an epoch may be found to be the best
VIEWS = frozenset(name for name, record in PUBLISHED.items() if record.others.get("dataset.extra_views"))
TWICE = "kd_twice"  # what those that read several views of every image are compared with too


class Given(NamedTuple):
    """What a table is made of."""

    data: str
    results: Mapping[str, Mapping[int, Result]]  # {"PAIR,METHOD": {seed: result.json}}
    seeds: Sequence[int]  # of a row that is complete
    titles: Mapping[str, str]  # {method, or control: what it is called}
    controls: Collection[str]  # rows that are no methods
    preset: str  # "honest" or "published"
    failed: Mapping[str, Mapping[int, str]] = {}  # {row: {seed: why it has no result}}
    published: Callable[[str, str], Sequence[Number]] = lambda pair, method: ()  # the method's authors' first
    changes: Sequence[str] = ()  # of the recipe, with which published numbers do not compare
    note: str = ""


class Difference(NamedTuple):
    """Of a row to another."""

    points: float
    half: float  # of its 95% interval; infinite where there are too few seeds

    @property
    def verdict(self) -> str:
        """Whether it is larger than its interval's half; "" where there is no interval."""
        if math.isinf(self.half):
            return ""
        return "neither" if abs(self.points) <= self.half else "wins" if self.points > 0 else "loses"


class Row(NamedTuple):
    """A method, or a control, on a pair."""

    method: str
    title: str
    last: dict[int, float]  # {seed: test accuracy of the last epoch}
    best: dict[str, dict[int, float]]  # {the split on which an epoch is the best: {seed: its test accuracy}}
    differences: dict[str, Difference]  # of the last epochs, {method: to that one}
    published: Sequence[Number]
    seconds: dict[str, float]  # of an epoch, median over seeds, {hardware: ...}
    time: float | None  # the same as a multiple of KD's on the same hardware
    teacher: str  # whether it ran "live", in every step, or what it says was "kept"; "" where that is unknown
    memory: float | None  # bytes at most, median over seeds
    parameters: int | None  # that are trained beside the student
    agreement: float | None  # share of the teacher's errors that the student makes too
    failed: Mapping[int, str]


class Pair(NamedTuple):
    """The rows of a pair of networks."""

    name: str
    methods: list[Row]
    controls: list[Row]
    teacher: float | None  # its accuracy
    images: list[int]  # that it is trained on
    epochs: list[float]
    hardware: list[str]

    @property
    def rows(self) -> list[Row]:
        return [*self.methods, *self.controls]

    @property
    def lead(self) -> float | None:
        """By how much the teacher is better than cross entropy."""
        alone = next((row.last for row in self.methods if row.method == "cross_entropy" and row.last), None)
        return self.teacher - statistics.fmean(alone.values()) if alone and self.teacher is not None else None


class Ranking(NamedTuple):
    """Methods that are complete on all pairs, the best first."""

    methods: list[str]
    ranks: list[float]
    pairs: list[str]
    friedman: ranks.Friedman
    critical: float  # difference of two ranks
    groups: list[tuple[int, int]]  # (first, last) of those that are not told apart


def pairs(given: Given) -> list[Pair]:
    """The rows of every pair, in the order of `given.results`."""
    named = list(dict.fromkeys(row.partition(",")[0] for row in given.results))
    return [_pair(given, name) for name in named]


def ranking(given: Given, found: Sequence[Pair]) -> Ranking | None:
    """The ranks of methods by the mean of the last epoch, of those that have every seed on each pair that has a result.

    None where fewer than three methods are complete, or there is one pair.
    """
    used = [pair for pair in found if any(row.last for row in pair.methods)]
    methods = complete(given, used)
    if len(used) < 2 or len(methods) < 3:
        return None
    scores = []
    for pair in used:
        means = {row.method: statistics.fmean(row.last.values()) for row in pair.methods if row.last}
        scores.append([means[method] for method in methods])
    mean_ranks = dict(zip(methods, ranks.average_ranks(scores), strict=True))
    ordered = sorted(methods, key=lambda method: mean_ranks[method])
    values = [mean_ranks[method] for method in ordered]
    critical = ranks.critical_difference(len(ordered), len(used))
    test = ranks.friedman(values, len(used))
    return Ranking(ordered, values, [pair.name for pair in used], test, critical, ranks.alike(values, critical))


def complete(given: Given, found: Sequence[Pair]) -> list[str]:
    """The methods that have every seed on all of these pairs."""
    done = [{row.method for row in pair.methods if set(given.seeds) <= row.last.keys()} for pair in found]
    return [row.method for row in (found[0].methods if found else ()) if all(row.method in own for own in done)]


def _pair(given: Given, name: str) -> Pair:
    own = {row.partition(",")[2]: by_seed for row, by_seed in given.results.items() if row.partition(",")[0] == name}
    rows = [_row(given, name, method, own) for method in own]
    taught = [r for m, by_seed in own.items() if m not in given.controls for r in by_seed.values()]
    teachers = [
        100 * r["teacher"]["accuracy"] for r in taught if r.get("teacher") and is_number(r["teacher"].get("accuracy"))
    ] or list(_last(own.get("teacher", {})).values())
    return Pair(
        name,
        [row for row in rows if row.method not in given.controls],
        [row for row in rows if row.method in given.controls],
        statistics.fmean(teachers) if teachers else None,
        *(list(dict.fromkeys(r[key] for r in taught if key in r)) for key in ("train_images", "epochs", "device")),
    )


def _row(given: Given, pair: str, method: str, own: Mapping[str, Mapping[int, Result]]) -> Row:
    """A row of a pair; `own` has all of the pair's results, by method and seed."""
    results = dict(sorted(own[method].items()))
    seconds, of_kd = _seconds(results), _seconds(own.get("kd", {}))
    shared = [hardware for hardware in seconds if hardware in of_kd]
    peaks = [r["peak_memory"] for r in results.values() if is_number(r.get("peak_memory"))]
    added = [r["method_parameters"] for r in results.values() if is_number(r.get("method_parameters"))]
    agreed = [r["test"].get("agreement_on_errors") for r in results.values()]
    errors = [100 * share for share in agreed if is_number(share)]
    best: dict[str, dict[int, float]] = {}
    for seed, result in results.items():
        if chosen := result.get("best"):
            best.setdefault(chosen["on"], {})[seed] = 100 * chosen["test"]["accuracy"]
    others = () if method == "teacher" else ("cross_entropy",) if method == "again" else ("kd", "cross_entropy")
    differences = {}
    for other in (*others, *((TWICE,) if method in VIEWS else ())):
        if other != method and (difference := _difference(results, own.get(other, {}), method != "again")):
            differences[other] = difference
    return Row(
        method=method,
        title=given.titles.get(method, method),
        last=_last(results),
        best=best,
        differences=differences,
        published=() if given.changes else tuple(given.published(pair, method)),
        seconds=seconds,
        time=seconds[shared[0]] / of_kd[shared[0]] if shared else None,
        teacher=_teacher(results),
        memory=statistics.median(peaks) if peaks else None,
        parameters=added[0] if added else None,
        agreement=statistics.fmean(errors) if errors else None,
        failed=given.failed.get(f"{pair},{method}", {}),
    )


def _last(results: Mapping[int, Result]) -> dict[int, float]:
    return {seed: 100 * result["test"]["accuracy"] for seed, result in results.items()}


def _difference(results: Mapping[int, Result], others: Mapping[int, Result], paired: bool) -> Difference | None:
    """Of the last epochs: paired by seed, or of rows that share nothing."""
    own, other = _last(results), _last(others)
    if not paired:
        return Difference(*independent_difference([*own.values()], [*other.values()])) if own and other else None
    both = own.keys() & other.keys()
    return Difference(*paired_difference([own[n] for n in both], [other[n] for n in both])) if both else None


def _teacher(results: Mapping[int, Result]) -> str:
    kinds = {result["teacher_cache"] for result in results.values() if result.get("teacher_cache")}
    return " or ".join(sorted({"live" if kind == "none" else "kept" for kind in kinds}))


def _seconds(results: Mapping[int, Result]) -> dict[str, float]:
    """The median time of an epoch by hardware, that of most runs first: where what was kept is read, of those alone."""
    ran = {seed: result.get("teacher_ran") for seed, result in results.items()}
    least = min((share for share in ran.values() if share is not None), default=None)
    found: dict[str, list[float]] = {}
    for seed, result in results.items():
        wrote = result.get("teacher_cache") in ("recording", "views") and ran[seed]
        if wrote or ran[seed] != least:
            continue
        images, speed = result.get("train_images"), result.get("images_per_second")
        if is_number(images) and is_number(speed) and speed:
            found.setdefault(result["device"], []).append(images / speed)
    by_runs = sorted(found.items(), key=lambda item: -len(item[1]))
    return {hardware: statistics.median(times) for hardware, times in by_runs}
