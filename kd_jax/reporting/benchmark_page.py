"""What the benchmark's table says: as a page and Markdown, as CSV, as LaTeX, and as numbers."""

import csv
import io
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from kd_jax.config.numbers import Number
from kd_jax.config.pairs import PAIRS, in_words
from kd_jax.config.published import PUBLISHED
from kd_jax.intervals import mean_and_deviation
from kd_jax.reporting import benchmark, latex, plots
from kd_jax.reporting.benchmark import SPLITS, TWICE, Difference, Given, Pair, Ranking, Row
from kd_jax.reporting.page import Block, Figures, Folded, Section, Table, count, html, markdown
from kd_jax.reporting.seeds import spread

SHORT = {"validation": "val.", "test": "test"}
LEAD = 3.0  # points by which a teacher has to be better than cross entropy for its methods to be told apart
PRESETS = {
    "honest": "Preset honest: a part of the training set is held out for validation, and the test set chooses nothing.",
    "published": "Preset published, as papers do: every image is trained on, and the test set is read after every"
    " epoch. An epoch that is best on the test set is chosen by it, and so looks better than it is.",
    "imagenet": "Nothing is held out; the test set, which is ImageNet's validation set, is read once, at the end.",
}
COLUMNS = (
    "Accuracies are those of the test set, mean and standard deviation over seeds. Differences are those of the last"
    " epoch, paired by seed, with a 95% interval by Student's t; a method wins or loses where its interval leaves out"
    " zero. Each interval stands for itself: of twenty methods as good as KD, about one wins or loses by chance."
)
COSTS = (
    "The teacher runs live, in every step, or what it says is kept by teacher.cache, and a run costs the student alone;"
    " the run that writes a recording has no time here. Time is that of an epoch as a multiple of KD's on the same"
    " hardware, median over seeds; that of a live teacher is part of it, and on a CPU whatever else the machine did."
    " Memory is the largest that was in use, on a CPU of the whole process, which may have trained the teacher first."
    " Parameters are those that a method trains beside the student. The teacher's errors are the share of them that the"
    " student makes too."
)
CONTROLS = (
    "Controls. Cross entropy with other seeds differs from itself by chance alone; its difference is not paired,"
    " with an interval by Welch. Twice the epochs is what a method that reads two views of every image costs."
)
RANKED = (
    "The best method of a pair has rank 1, by its mean of the last epoch. After Demšar, JMLR 2006: the Friedman test in"
    " Iman and Davenport's form, and Nemenyi's critical difference at 5%; a bar joins methods that it does not tell"
    " apart."
)


class Column(NamedTuple):
    """Of a pair's table."""

    heading: str
    short: str  # in LaTeX, which leaves out those that have none
    cell: Callable[[Row], str]


def files(given: Given) -> tuple[str, dict[str, Any], dict[str, str]]:
    """The table as Markdown, as numbers, and as {name of a file: text}."""
    pairs = benchmark.pairs(given)
    ranking = benchmark.ranking(given, pairs)
    title = f"{given.data}: methods of distillation"
    said = sections(given, pairs, ranking)
    more = {"table.csv": table_csv(pairs), "table.tex": tex(given, pairs), "table.html": html(title, said)}
    return markdown(title, said).rstrip(), numbers(pairs, ranking), more


def sections(given: Given, pairs: Sequence[Pair], ranking: Ranking | None) -> list[Section]:
    """The page: what its numbers are, the ranks over pairs, and a section for each pair."""
    return [
        Section("What the numbers are", [*_about(given), COLUMNS, COSTS]),
        Section("Ranks over pairs", _ranks(given, pairs, ranking)),
        *(Section(_words(pair), _pair(pair)) for pair in pairs),
    ]


def tex(given: Given, pairs: Sequence[Pair]) -> str:
    """A table for each pair, for a document that uses booktabs and graphicx."""
    tables = []
    for pair in pairs:
        columns = [column for column in _columns(pair) if column.short]
        blocks = [[[c.cell(row) for c in columns] for row in rows] for rows in (pair.methods, pair.controls)]
        caption = " ".join([f"{_words(pair)}.", *_about(given), *_of(pair)])
        tables.append(latex.table([c.short for c in columns], blocks, caption, f"{pair.name}-{given.preset}"))
    return "% needs \\usepackage{booktabs,graphicx}\n\n" + "\n".join(tables)


def table_csv(pairs: Sequence[Pair]) -> str:
    """A line for each row, with the accuracies of its seeds; what is unknown is empty."""
    lines = [_line(pair, row) for pair in pairs for row in pair.rows]
    seeds = sorted({seed for pair in pairs for row in pair.rows for seed in row.last})
    names = [name for line in lines for name in line if not name.startswith("seed_")]
    ends = [f"seed_{seed}_{kind}" for kind in ("last", *(f"best_{split}" for split in SPLITS)) for seed in seeds]
    kept = [name for name in ends if any(name in line for line in lines)]
    file = io.StringIO()
    writer = csv.DictWriter(file, [*dict.fromkeys(names), *kept], restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return file.getvalue()


def numbers(pairs: Sequence[Pair], ranking: Ranking | None) -> dict[str, Any]:
    """All of it for programs: {"pairs": {pair: {method: ...}}, "ranks": ...}."""
    found = {pair.name: {row.method: _of_row(row) for row in pair.rows} for pair in pairs}
    ranks = ranking and ranking._asdict() | {"friedman": {"f": _finite(ranking.friedman.f), "p": ranking.friedman.p}}
    return {"pairs": found, "ranks": ranks}


def _of_row(row: Row) -> dict[str, Any]:
    published = [number._asdict() for number in row.published]
    differences = {other: _numbers(difference) for other, difference in row.differences.items()}
    return row._asdict() | {"published": published, "differences": differences}


def _numbers(difference: Difference) -> dict[str, Any]:
    return {"points": difference.points, "interval": _finite(difference.half), "verdict": difference.verdict}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _words(pair: Pair) -> str:
    return in_words(pair.name) if pair.name in PAIRS else pair.name


def _about(given: Given) -> list[str]:
    """Sentences on all numbers; ImageNet has one preset."""
    changed = f"Another recipe than the benchmark's ({', '.join(given.changes)}): no published numbers stand here."
    notes = [changed] * bool(given.changes) + [given.note] * bool(given.note)
    return [PRESETS[given.data if given.data in PRESETS else given.preset], *notes]


def _pair(pair: Pair) -> list[Block]:
    columns = _columns(pair)
    header = [column.heading for column in columns]
    blocks: list[Block] = [" ".join(_of(pair))] if _of(pair) else []
    for text, rows in (("", pair.methods), (CONTROLS, pair.controls)):
        if rows:
            cells = [[column.cell(row) for column in columns] for row in rows]
            blocks += [*([text] if text else []), Table(header, cells)]
    views = [(row, row.differences[TWICE]) for row in pair.methods if TWICE in row.differences]
    if views:
        head = ("two views of every image", "against KD for twice the epochs, points", "beyond its interval")
        blocks.append(Table(head, [(row.title, _points(own), own.verdict) for row, own in views]))
    failed = [(row.title, str(seed), reason) for row in pair.rows for seed, reason in row.failed.items()]
    if failed:
        blocks.append(Table(("failed", "seed", "why"), failed, numbers=False))
    said = [
        (
            row.title,
            _with_deviation(one),
            one.chosen,
            one.source,
            PUBLISHED[one.method].pairs if one.method in PUBLISHED else "",
        )
        for row in pair.rows
        for one in row.published
    ]
    if said:
        blocks.append(
            Folded("Published numbers", [Table(("method", "accuracy, %", "epoch", "source", "settings"), said, False)])
        )
    return blocks


def _of(pair: Pair) -> list[str]:
    """Sentences on what a pair was trained with, and whether its teacher has something to teach."""
    facts = {
        "Training images": [f"{images:,}" for images in pair.images],
        "epochs": [f"{epochs:g}" for epochs in pair.epochs],
        "hardware": pair.hardware,
    }
    parts = [f"{name}: {' or '.join(values)}" for name, values in facts.items() if values]
    said = [f"{'; '.join(parts)}."] if parts else []
    if pair.teacher is not None:
        lead = f", {pair.lead:+.2f} points against cross entropy" if pair.lead is not None else ""
        said.append(f"The teacher has {pair.teacher:.2f}%{lead}.")
    if pair.lead is not None and pair.lead < LEAD:
        said.append(f"With under {LEAD:.0f} points to gain from it, differences between methods mean little.")
    return said


def _columns(pair: Pair) -> list[Column]:
    """The columns that some row of the pair has something to say in."""
    every = [
        Column("last epoch, %", "Last", lambda row: spread(row.last, 2)),
        Column("published, last epoch, %", "Publ. last", _published("last")),
        *(Column(f"best on {split}, %", f"Best, {SHORT[split]}", _best(split)) for split in SPLITS),
        Column("published, best on test, %", "Publ. best", _published("best")),
        Column("against KD, points", "vs KD", lambda row: _points(row.differences.get("kd"))),
        Column("beyond its interval", "", lambda row: _verdict(row.differences.get("kd"))),
        Column("against cross entropy, points", "vs CE", lambda row: _points(row.differences.get("cross_entropy"))),
        Column("teacher", "Teacher", lambda row: row.teacher),
        Column("time, KD = 1", "Time", lambda row: _said(row.time, ".2f")),
        Column("peak memory, MiB", "MiB", lambda row: _said(row.memory and row.memory / 2**20, ",.0f")),
        Column("extra parameters", "Extra", lambda row: _said(row.parameters, ",")),
        Column("the teacher's errors, %", "Errors", lambda row: _said(row.agreement, ".1f")),
    ]
    used = [column for column in every if any(column.cell(row) for row in pair.rows)]
    return [Column("method", "Method", lambda row: row.title), *used, Column("seeds", "Seeds", _seeds)]


def _seeds(row: Row) -> str:
    return "; ".join([str(len(row.last)), *(f"seed {seed} failed" for seed in row.failed)])


def _points(difference: Difference | None) -> str:
    if difference is None:
        return ""
    return f"{difference.points:+.2f}" + (f" ± {difference.half:.2f}" if math.isfinite(difference.half) else "")


def _number(row: Row, chosen: str) -> Number | None:
    """The first published number of the last epoch, or of the best one."""
    return next((number for number in row.published if number.chosen == chosen), None)


def _published(chosen: str) -> Callable[[Row], str]:
    def cell(row: Row) -> str:
        number = _number(row, chosen)
        return _with_deviation(number) if number else ""

    return cell


def _with_deviation(number: Number) -> str:
    return f"{number.accuracy:.2f}" + ("" if number.deviation is None else f" ± {number.deviation:.2f}")


def _best(split: str) -> Callable[[Row], str]:
    return lambda row: spread(row.best.get(split, {}), 2)


def _verdict(difference: Difference | None) -> str:
    return difference.verdict if difference else ""


def _said(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _ranks(given: Given, pairs: Sequence[Pair], ranking: Ranking | None) -> list[Block]:
    means = [{row.method: row for row in pair.methods} for pair in pairs]
    blocks: list[Block] = []
    if ranking is None:
        used = [pair for pair in pairs if any(row.last for row in pair.methods)]
        said = f"{count(len(benchmark.complete(given, used)), 'method')} and {count(len(used), 'pair')}"
        blocks.append(f"No ranks: they take three methods that have every seed on two pairs or more; here are {said}.")
        order = [row.method for row in (pairs[0].methods if pairs else ())]
    else:
        blocks += _diagram(given, ranking)
        others = [method for method in means[0] if method not in ranking.methods]
        order = [*ranking.methods, *others]
        if others:
            blocks.append(f"Without a rank, as runs of them are missing: {', '.join(_titles(given, others))}.")
    if len(pairs) < 2:
        return blocks
    place = dict(zip(ranking.methods, ranking.ranks, strict=True)) if ranking else {}
    rows = []
    for method in order:
        own = [rows_of[method] for rows_of in means if method in rows_of]
        verdicts = [row.differences["kd"].verdict for row in own if "kd" in row.differences]
        wins = [str(verdicts.count(verdict)) if any(verdicts) else "" for verdict in ("wins", "loses")]
        cells = [spread(rows_of[method].last, 2) if method in rows_of else "" for rows_of in means]
        rows.append((own[0].title, f"{place[method]:.2f}" if method in place else "", *wins, *cells))
    head = ("method", "average rank", "wins against KD", "loses", *(f"{pair.name}, %" for pair in pairs))
    return [*blocks, Table(head, rows)]


def _diagram(given: Given, ranking: Ranking) -> list[Block]:
    k, n = len(ranking.methods), len(ranking.pairs)
    f, p = ranking.friedman
    verdict = "differ by more than chance" if p < 0.05 else "may differ by chance alone, and the bars say nothing more"
    names = _titles(given, ranking.methods)
    best = next((names[1 : last + 1] for first, last in ranking.groups if first == 0), [])
    alike = f"not told apart from it: {', '.join(best)}" if best else "every other one is told apart from it"
    chance = "p < 0.001" if p < 0.001 else f"p = {p:.2g}"
    left = "" if math.isinf(f) else f"F({k - 1}, {(k - 1) * (n - 1)}) = {f:.2f}, "
    return [
        f"{count(k, 'method')} on {count(n, 'pair')}: {left}{chance}, so that the ranks {verdict}. The critical"
        f" difference is {ranking.critical:.2f}. The best is {names[0]}; {alike}.",
        RANKED,
        Figures([plots.ranks("methods over pairs", names, ranking.ranks, ranking.critical, ranking.groups)]),
    ]


def _titles(given: Given, methods: Sequence[str]) -> list[str]:
    return [given.titles.get(method, method) for method in methods]


def _line(pair: Pair, row: Row) -> dict[str, Any]:
    """A line of the CSV."""
    line: dict[str, Any] = {"pair": pair.name, "method": row.method, "seeds": len(row.last)}
    for kind, by_seed in {"last": row.last, **{f"best_{split}": row.best.get(split, {}) for split in SPLITS}}.items():
        mean, deviation = mean_and_deviation(list(by_seed.values())) if by_seed else (None, None)
        line |= {f"{kind}_mean": mean, f"{kind}_deviation": deviation if len(by_seed) > 1 else None}
        line |= {f"seed_{seed}_{kind}": accuracy for seed, accuracy in by_seed.items()}
    for other in ("kd", "cross_entropy", TWICE):
        own = _numbers(row.differences[other]) if other in row.differences else {}
        names = {"difference": "points", "interval": "interval", "verdict": "verdict"}
        line |= {f"{name}_to_{other}": own.get(key) for name, key in names.items()}
    for chosen in ("last", "best"):
        number = _number(row, chosen)
        for name, field in (("", "accuracy"), ("_source", "source"), ("_deviation", "deviation")):
            line[f"published_{chosen}{name}"] = number and getattr(number, field)
    hardware, seconds = next(iter(row.seconds.items()), (None, None))
    return line | {
        "seconds_per_epoch": seconds,
        "hardware": hardware,
        "time_to_kd": row.time,
        "teacher": row.teacher,
        "peak_memory_bytes": row.memory,
        "extra_parameters": row.parameters,
        "teachers_errors": row.agreement,
        "failed": "; ".join(f"seed {seed}: {reason}" for seed, reason in row.failed.items()),
    }
