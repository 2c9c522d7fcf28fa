"""Writes the pages of the methods, docs/methods/NAME.md, and the two tables of docs/methods.md.

usage: python launch/method_pages.py

All that a page says stands elsewhere: the formula in the docstrings of the method and of its losses, options in its
signature, what was published in kd_jax/config/published.py and numbers.py, costs in docs/methods/costs.jsonl
(launch/method_costs.py), what was recorded of the authors' code in tests/methods/originals/. A test compares the pages
with what this makes.
"""

import functools
import inspect
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from kd_jax import keys, losses, methods
from kd_jax.config import experiment, shipped
from kd_jax.config.numbers import Number, of
from kd_jax.config.pairs import PAIRS, in_words
from kd_jax.config.published import PUBLISHED
from kd_jax.config.record import Published, Terms

ROOT = Path(__file__).parents[1]
INDEX, PAGES = ROOT / "docs" / "methods.md", ROOT / "docs" / "methods"
COSTS = PAGES / "costs.jsonl"
RECORDER, ORIGINALS = (ROOT / "tests" / "methods" / path for path in ("record_originals.py", "originals"))
SHARED = ("on", "teacher_on", "standardize", "views", "teacher_views")  # options of every loss, described in methods.md
NOT_ITS_OWN = (
    "benchmark",
    "imagenet",
    "method",
    "scheme",
    "student",
    "teacher",
    "pretrain",
    "photos",
    "quickstart",
    "original",
)  # experiments
OURS = "original_"  # methods of the project that this one reimplements


def write() -> None:
    names = list(methods.METHODS)
    for path in PAGES.glob("*.md"):
        path.unlink()
    for name in names:
        (PAGES / f"{name}.md").write_text(page(name))
    INDEX.write_text(index(INDEX.read_text(), names))


def index(text: str, names: Iterable[str]) -> str:
    """The text of methods.md with its tables as they are now, each between two comments."""
    recipes = [name for name, record in PUBLISHED.items() if name not in record.cifar100]
    for which, rows in (("methods", map(_row, names)), ("recipes", map(_recipe_row, recipes))):
        between = re.compile(rf"(<!-- {which} -->\n).*?(<!-- end -->)", re.DOTALL)
        table = "\n".join(["| name | paper | published weight | config |", "| --- | --- | --- | --- |", *rows])
        text = between.sub(lambda found, table=table: f"{found[1]}{table}\n{found[2]}", text)
    return text


def page(name: str) -> str:
    return "\n\n".join([f"# `{name}`", *filter(None, _parts(name))]) + "\n"


def _parts(name: str) -> Iterator[str]:
    record = PUBLISHED.get(name)
    if record:
        yield f"{record.paper}, {record.venue}." if record.paper else ""
        yield _code("bash", *(f"kd_jax --config={own}" for own in (f"method:{name}", *_experiments(name))))
    else:
        yield "Of [the project that this one reimplements](../from-lightning.md)."
        yield _code("bash", "kd_jax --config=original:ROW,faithful")
    constructor = methods.METHODS[name]
    text = inspect.getdoc(getattr(constructor, "__wrapped__", constructor)) or ""
    yield from _of_docstring(text)
    named = dict.fromkeys(re.findall(r"`losses\.(\w+)`", text))
    for loss in named:
        yield f"## `losses.{loss}`"
        yield from _of_docstring(inspect.getdoc(getattr(losses, loss)) or "")
    yield from _options(constructor)
    yield from _costs(name)
    if record:
        yield from _published(name, record)
    yield "## Compared with"
    yield _compared(name, named)


def _experiments(name: str) -> list[str]:
    """The experiments, other than `method`, that have a method."""
    if name == "cross_entropy":
        return ["student"]
    return [own for own in sorted(set(shipped()) - {*NOT_ITS_OWN}) if name in _terms_of(own)]


@functools.cache
def _terms_of(name: str) -> Mapping[str, Any]:
    terms: Mapping[str, Any] = experiment(name).get_config("smoke").method.to_dict()
    return terms


def _of_docstring(text: str) -> Iterator[str]:
    """A docstring in Markdown: paragraphs, a list for each of its sections, examples as code."""
    for block in re.split(r"\n\s*\n", text):
        if block.startswith(">>>"):
            yield _code("python", block)
            continue
        prose, *sections = re.split(r"^(Args|Fields|Returns|Raises):\n", block, flags=re.MULTILINE)
        if prose.strip():
            yield _prose(prose)
        for title, lines in zip(sections[::2], sections[1::2], strict=True):
            items = re.split(r"\n(?=\S)", inspect.cleandoc(lines))
            yield "\n".join([f"{title}:", "", *(f"* {_prose(item)}" for item in items)])


def _prose(text: str) -> str:
    """Words of a docstring, which Markdown leaves as they are."""
    parts = re.split(r"(`[^`]*`)", " ".join(text.split()))
    return "".join(part if part.startswith("`") else re.sub(r"([*<\\])", r"\\\1", part) for part in parts)


def _options(constructor: Any) -> Iterator[str]:
    _, *parameters = inspect.signature(constructor).parameters.values()
    yield "## Options"
    shared = [f"`{p.name}` ({_value(p.default)})" for p in parameters if p.name in SHARED]
    own = [p for p in parameters if p.name not in SHARED or len(shared) < len(SHARED)]
    if own:
        rows = [f"| `{p.name}` | {_value(p.default)} | {_cell(keys.kind_of(p).expected)} |" for p in own]
        yield "\n".join(["| option | default | may be |", "| --- | --- | --- |", *rows])
    if len(shared) == len(SHARED):
        yield f"And [those of every loss](../methods.md#options-of-every-loss): {', '.join(shared)}."
    elif not own:
        yield "None of its own."


def _value(value: Any) -> str:
    if value is inspect.Parameter.empty:
        return "none, it has to be given"
    return f"`{json.dumps(value, ensure_ascii=False)}`"


def _cell(text: str) -> str:
    return text.replace("|", r"\|")


@functools.cache
def _lines() -> Mapping[str, Mapping[str, Any]]:
    lines = [json.loads(line) for line in COSTS.read_text().splitlines()] if COSTS.exists() else []
    return {line["method"]: line for line in lines}


def _costs(name: str) -> Iterator[str]:
    lines = _lines()
    if not {name, "kd", "networks"} <= lines.keys():
        return
    line = lines[name]
    yield "## What it reads, and what it costs"
    sides = {"student": [], "teacher": [], "": []}  # type: dict[str, list[str]]
    for what in line["reads"]:
        side, _, field = what.rpartition(".")
        sides[side if side in sides else ""].append(_read(field))
    words = [f"of the {side} {_joined(sides[side])}" for side in ("student", "teacher") if sides[side]]
    words += [_joined(sides[""])] if sides[""] else []
    views = f" Both networks see {line['views']} views of each image." if line["views"] > 1 else ""
    yield f"It reads {'; '.join(words)}. It needs {'a' if line['needs_teacher'] else 'no'} teacher.{views}"
    columns = {f"`{name}`": line, "`kd`": lines["kd"], "the two networks": lines["networks"]}
    table = [
        ("parameters that train", "parameters", _count),
        ("state, bytes", "state_bytes", _count),
        ("floating-point operations", "flops", _rounded),
        ("temporary memory, bytes", "temp_bytes", _rounded),
    ]
    yield "\n".join(
        [
            f"| a step of 64 images | {' | '.join(columns)} |",
            "|" + " --- |" * (1 + len(columns)),
            *(f"| {what} | {' | '.join(form(x[key]) for x in columns.values())} |" for what, key, form in table),
        ]
    )
    terms = f"`{json.dumps(line['terms'][name])}`" if line["terms"][name] else "the defaults"
    yield (
        "The method's own part, with its gradient, as XLA counts it for a CPU. ResNet-56 teaches ResNet-20 at 32x32"
        f" pixels, 100 classes, 50,000 images; options: {terms} ({line['date']}, JAX {line['jax']})."
    )


def _read(field: str) -> str:
    words = {
        "rng": "a random key",
        "step": "the step",
        "train_labels": "the labels of the training set",
        "network": "the network itself",
    }
    return words.get(field, f"`{field}`")


def _joined(words: list[str]) -> str:
    return ", ".join(words[:-1]) + " and " + words[-1] if words[1:] else words[0]


def _count(number: float) -> str:
    return f"{int(number):,}"


def _rounded(number: float) -> str:
    """Three digits: the rest depends on how XLA fuses."""
    for unit in ("", " k", " M", " G", " T"):
        if number < 999.5:
            return f"{number:.3g}{unit}"
        number /= 1000
    return f"{number:.3g} P"


def _published(name: str, record: Published) -> Iterator[str]:
    yield "## As published"
    for data, terms, what in (("CIFAR-100", record.cifar100, ""), ("ImageNet", record.imagenet, ",imagenet")):
        if terms:
            yield f"For {data}, `--config=method:{name}{what}`:"
            yield _code("json", *_json(terms))
    if record.others:
        yield f"With {', '.join(f'`{key}={json.dumps(value)}`' for key, value in record.others.items())}."
    yield from _other_pairs(record)
    yield record.pairs
    yield from _numbers(name)
    differs = record.differs or ("No difference from the paper is noted." if record.paper else "")
    for title, text in (("### The official code", differs), ("### Here", record.here)):
        if text:
            yield f"{title}\n\n{text}"


def _other_pairs(record: Published) -> Iterator[str]:
    """The options that have other values for some pairs: a row for each set of values."""
    rows: dict[str, list[str]] = {}
    for pair, terms in record.of_pairs.items():
        values = "; ".join(f"`{term}` {_listed(options)}" for term, options in terms.items())
        rows.setdefault(values, []).append(in_words(pair).partition(", ")[2])
    if rows:
        lines = (f"| {'; '.join(pairs)} | {values} |" for values, pairs in rows.items())
        yield "\n".join(["| other pairs | what is other there |", "| --- | --- |", *lines])


def _numbers(name: str) -> Iterator[str]:
    rows = [f"| {in_words(pair)} | {_number(number)} |" for pair in PAIRS for number in of(pair, name)]
    if rows:
        yield "\n".join(["| data, teacher and student | top-1, % | epoch | source |", "|" + " --- |" * 4, *rows])


def _number(number: Number) -> str:
    deviation = "" if number.deviation is None else f" ± {number.deviation:.2f}"
    return f"{number.accuracy:.2f}{deviation} | {number.chosen} | {number.source}"


def _json(terms: Terms) -> list[str]:
    rows = [f"  {json.dumps(term)}: {json.dumps(options)}" for term, options in terms.items()]
    return ["{", *(f"{row}," for row in rows[:-1]), rows[-1], "}"]


@functools.cache
def _recordings() -> Mapping[str, list[str]]:
    """{method: the repositories whose code was recorded for it}"""
    found: dict[str, list[str]] = {}
    rows = re.findall(r"^  (\S+) +(\S+) +[0-9a-f]{40}$", RECORDER.read_text(), re.MULTILINE)
    owners = {repository: owner for owner, repository in rows}
    for path in sorted(ORIGINALS.glob("*.npz")):
        with np.load(path) as file:
            repository, commit = str(file["repository"]), str(file["commit"])
            for name in dict.fromkeys(key.split("/")[0] for key in file.files if "/" in key):
                found.setdefault(name, []).append(f"{owners[repository]}/{repository} at {commit[:10]}")
    return found


def _compared(name: str, named: Iterable[str]) -> str:
    sources = dict.fromkeys(source for one in (name, *named) for source in _recordings().get(one, []))
    derived = "a derivation of the formula in numpy, also in float64: values and gradients"
    if not sources:
        return "A derivation of the formula in float64 numpy: values and gradients."
    return f"What the PyTorch code of {_joined(list(sources))} computes, recorded in float64, and {derived}."


def _row(name: str) -> str:
    own = ", ".join(f"`{config}`" for config in (f"method:{name}", *_experiments(name)))
    if name.startswith(OURS):
        return f"| [`{name}`](methods/{name}.md) | as cnn-distillation ran it | | `original:ROW,faithful` |"
    record = PUBLISHED.get(name, Published("", "", "", {}))
    return f"| [`{name}`](methods/{name}.md) | {_cited(record)} | {_settings(record, name)} | {own} |"


def _recipe_row(name: str) -> str:
    record = PUBLISHED[name]
    terms = "; ".join(f"`{term}` {_settings(record, term)}" for term in record.cifar100 if term != "cross_entropy")
    return f"| `{name}` | {_cited(record)} | {terms} | `method:{name}` |"


def _cited(record: Published) -> str:
    authors = record.paper.partition(', "')[0]
    return f"{authors}, {record.venue}" if authors else ""


def _settings(record: Published, name: str) -> str:
    """The weights of the published terms in a few words."""
    options = dict(record.cifar100.get(name, {}))
    labels = record.cifar100.get("cross_entropy", {"weight": 0}).get("weight", 1)
    words = [f"{options.pop('weight', 1):g}"]
    words += [f"labels {labels:g}" if labels else "no labels"] if labels != 1 and name != "cross_entropy" else []
    return ", ".join([*words, *([_listed(options)] if options else [])])


def _listed(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {_plain(value)}" for key, value in options.items())


def _plain(value: Any) -> str:
    return f"{value:g}" if type(value) is float else json.dumps(value)


def _code(language: str, *lines: str) -> str:
    return "\n".join([f"```{language}", *lines, "```"])


if __name__ == "__main__":
    write()
