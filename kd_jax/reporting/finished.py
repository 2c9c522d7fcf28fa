"""Finished runs, read from their folders, and why others cannot be shown."""

import collections
import os
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open

from kd_jax import remote, runs
from kd_jax.batches import of_images
from kd_jax.errors import InputError
from kd_jax.logging import metrics_file

LARGEST = 1e18  # sums of numbers below it are finite
HASH = re.compile(r" \(hash [0-9a-f]{8}\)")  # what `_hash` adds to a name
INSIDE = ("checkpoints", "wandb")  # folders of a run that hold no other runs
BENCHMARK = "export_benchmark.json"
FILES = ("config.json", "result.json", "metrics.jsonl")  # one of them makes a folder a run's
# What a report reads of a result, and of its `test`.
NUMBER, TEXT, KEYS = "a number", "text", "keys"
RESULT = {"name": TEXT, "seed": NUMBER, "config_hash": TEXT, "parameters": NUMBER, "seconds": NUMBER, "device": TEXT}
RESULT["versions"] = KEYS
TEST = {"accuracy": NUMBER, "nll": NUMBER, "ece": NUMBER, "images": NUMBER}


class Run(NamedTuple):
    """A finished run, from its files."""

    folder: str
    result: dict[str, Any]
    recipe: dict[str, Any]  # flat: what affects the result, but for the seed
    teacher: str | None  # hash of its run's config; None without a teacher
    data: str  # names the test set
    class_names: tuple[str, ...]
    formats: Sequence[Mapping[str, Any]] = ()  # the rows that `kd_jax benchmark-export` wrote about it
    teaches: bool = False  # another of the runs names it as teacher, or it lies in the folder of teachers


def read(folders: Sequence[str]) -> tuple[list[Run], list[tuple[str, str]]]:
    """The finished runs at or below some folders, each once.

    Returns:
      (runs, [(folder of a run that is left out, why)]).
    Raises:
      InputError: when a folder holds no run.
    """
    found: list[Run] = []
    paths, measured, left_out = _find(folders)
    first: dict[str, str] = {}  # hash of a config -> its run
    for folder in paths:
        try:
            run = _read(folder)
        except InputError as error:
            left_out.append((folder, str(error)))
            continue
        if first.setdefault(run.result["config_hash"], folder) == folder:
            found.append(run)
        else:
            left_out.append((folder, f"the same run as {first[run.result['config_hash']]}"))
    formats = dict(map(_formats, measured))
    found = [run._replace(formats=formats.get(run.result["config_hash"], ())) for run in found]
    return _told_apart(found), left_out


def is_number(value: Any) -> bool:
    """Whether a value of a file is a number, and of a size that one can be of."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < LARGEST


def _find(folders: Sequence[str]) -> tuple[list[str], list[str], list[tuple[str, str]]]:
    """The folders of runs at or below some folders, and those of measured formats, each once.

    Returns:
      (folders of runs, folders of formats, [(folder that cannot be read, why)]).
    """
    found: dict[str, str] = {}  # by real path
    measured: list[str] = []
    unreadable: list[tuple[str, str]] = []
    for top in folders:
        place = remote.local(top)
        if not os.path.isdir(place):
            raise InputError(f"{top!r} is not a folder; expected the folder of a run, or one that holds runs")
        seen, holds_any = set(), False
        for folder, below, files in os.walk(
            place, followlinks=True, onerror=lambda e: unreadable.append((e.filename, f"cannot be read: {e.strerror}"))
        ):
            real = os.path.realpath(folder)
            if real in seen:  # a link to a folder above
                below.clear()
                continue
            seen.add(real)
            below.sort()
            if BENCHMARK in files:
                measured.append(folder)
                holds_any = True
            if set(FILES) & set(files):
                below[:] = [name for name in below if name not in INSIDE]
                holds_any = True
                found.setdefault(real, remote.normal(top + folder.removeprefix(place)))
        if not holds_any and not unreadable:
            raise _no_run(top)
    if not found and not unreadable:
        raise _no_run(folders[0])
    return list(found.values()), measured, unreadable


def _no_run(folder: str) -> InputError:
    return InputError(f"{folder!r} holds no run; expected the folder of a run, or one that holds runs")


def _read(folder: str) -> Run:
    """A finished run; raises InputError with the reason why it cannot be part of the tables."""
    saved = runs.read_json(folder, "config.json")
    if not runs.has_result(folder):
        raise InputError(_unfinished(folder, saved))
    result = runs.read_json(folder, "result.json")
    _check(result, RESULT, "")
    if saved["config"].get("dataset", {}).get("label_free"):
        raise InputError("was trained without labels and has no accuracy; `kd_jax probe` measures it")
    _check(result["test"], TEST, "test.")

    try:
        recipe, teacher = _recipe(saved["identity"]), saved["identity"]["teacher"]
        taught_by = runs.digest(teacher["run"]) if teacher else None
        names = tuple(map(str, saved["data"]["class_names"]))
        return Run(folder, result, recipe, taught_by, _data(saved, result), names)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        what = f"lacks {error}" if isinstance(error, KeyError) else "has another form"
        raise InputError(f"config.json {what}; it is of another version") from None


def _formats(folder: str) -> tuple[str, Sequence[Mapping[str, Any]]]:
    """(hash of the run whose formats were measured, what was measured); ("", ()) of a folder that is not whole."""
    try:
        with safe_open(os.path.join(folder, "model.safetensors"), "numpy") as weights:
            digest = weights.metadata()["hash"]
        return digest, [row for row in runs.read_json(folder, BENCHMARK)["rows"] if isinstance(row, dict)]
    except (OSError, SafetensorError, InputError, KeyError, TypeError):
        return "", ()


def _check(tree: Mapping[str, Any], expected: Mapping[str, str], where: str) -> None:
    for key, kind in expected.items():
        if key not in tree:
            raise InputError(f"result.json lacks {where}{key}; it is of another version")
        value = tree[key]
        if not (is_number(value) if kind == NUMBER else isinstance(value, str if kind == TEXT else dict)):
            raise InputError(f"{where}{key} of result.json is {repr(value)[:40]}; expected {kind}")


def _unfinished(folder: str, saved: Mapping[str, Any]) -> str:
    """How far a run without a result has come, and when it last wrote."""
    step = 0
    path = os.path.join(folder, "metrics.jsonl")
    try:
        lines = metrics_file.read(folder, most=1)
        step = max((line["step"] for line in lines), default=0)
        train = saved["config"]["train"]
        total = train["steps"] or train["epochs"] * of_images(train, saved["data"]["train_images"]).steps
        written = time.strftime("%Y-%m-%d %H:%M", time.localtime(os.path.getmtime(path)))
        return f"has not finished: step {step} of {total}, last written {written}"
    except (OSError, KeyError, TypeError, ValueError, ZeroDivisionError):
        return f"has not finished: step {step}"


def _told_apart(found: Sequence[Run]) -> list[Run]:
    """Runs that know whether they teach, with hashes only where these tell apart what has one name."""
    data, teachers = _short(run.data for run in found), _short(run.recipe["teacher"] for run in found)
    taught_by = {run.teacher for run in found}
    return [
        run._replace(
            data=data[run.data],
            recipe={**run.recipe, "teacher": teachers[run.recipe["teacher"]]},
            teaches=run.result["config_hash"] in taught_by or run.folder.split("/")[-2:-1] == ["teachers"],
        )
        for run in found
    ]


def _recipe(identity: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of an identity that make a recipe: without seeds, and with a teacher's own in one value."""
    teacher = identity["teacher"]
    kept = {key: value for key, value in identity.items() if key not in ("seed", "teacher")}
    recipe = {**runs.flat(kept), "teacher": "none"}
    if teacher:
        whole = _without_seeds(teacher["run"])
        recipe["teacher"] = whole.get("model", {}).get("name", "weights") + _hash(runs.digest(whole))
        recipe |= {f"teacher.{key}": value for key, value in teacher.items() if key != "run"}
    return recipe


def _without_seeds(identity: Mapping[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in identity.items() if key != "seed"}
    teacher = kept.get("teacher")
    return {**kept, "teacher": {**teacher, "run": _without_seeds(teacher["run"])}} if teacher else kept


def _data(saved: Mapping[str, Any], result: Mapping[str, Any]) -> str:
    name = saved["data"].get("name", saved["config"]["dataset"]["source"])
    classes, images = len(saved["data"]["class_names"]), result["test"]["images"]
    return f"{name}{_hash(saved['data']['fingerprint'])}, {classes} classes, {images:,} test images"


def _hash(digest: str) -> str:
    return f" (hash {digest[:8]})"


def _short(texts: Iterable[str]) -> dict[str, str]:
    """{text: itself, without its hash where no other text differs from it by the hash alone}."""
    bare = {text: HASH.sub("", text) for text in texts}
    counts = collections.Counter(bare.values())
    return {text: name if counts[name] == 1 else text for text, name in bare.items()}
