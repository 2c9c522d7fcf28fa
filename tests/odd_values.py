"""Configs with one odd value each: what a person or a program may write by mistake, for every key there is.

Each is to be built, or to be refused in one line; anything else is a fault.
"""

import copy
import importlib
import math
from collections.abc import Iterator, Mapping
from typing import Any

from kd_jax.config import shipped
from kd_jax.config.checks import plain
from tests import tiny

ODD: tuple[Any, ...] = (
    None,
    "",
    "x",
    "x" * 5000,
    "a\nb\0",
    b"x",
    True,
    0,
    -1,
    1.5,
    -0.0,
    1e9,
    10**12,
    10**30,
    10**400,
    math.nan,
    math.inf,
    -math.inf,
    [],
    [None],
    [[1]],
    (-1, math.nan),
    {},
    {"x": {"y": 1}},
    {1: 2},
)


def odd_configs() -> Iterator[tuple[str, dict[str, Any]]]:
    """(description, config) of every key of a taught run and of its teacher, and of every term that is shipped."""
    for path, _ in walk(tiny.taught()):
        yield from changed("kd", tiny.taught(), path)
    for name in sorted(set(shipped()) - {"imagenet", "benchmark"}):  # whose terms are those of `method`
        config = small(name)
        for path, _ in walk(config["method"]):
            yield from changed(name, config, ("method", *path))
        for term in config["method"]:
            for option in ("epochs", "warmup_epochs", "optimizer", "on", "standardize", "views", "no_such_option"):
                if option not in config["method"][term]:
                    yield from changed(name, config, ("method", term, option))


def small(name: str) -> dict[str, Any]:
    """An experiment that is shipped, on small images and with small networks."""
    argument = {
        "original": "adversarial,faithful,smoke",
        "pretrain": "student,smoke",
        "quickstart": "rkd,smoke",
        "method": "wkd,smoke",
        "scheme": "dense,smoke",
    }
    module = importlib.import_module(f"kd_jax.configs.{name}")
    config = module.get_config(argument.get(name, "smoke"))
    changes = {key: value for key, value in tiny.CHANGES.items() if key != "name"} | {"dataset.labeled": 0}
    config.update_from_flattened_dict(changes | {"train.steps": 8})
    if config.teacher.kind == "config":
        config.teacher.config.update_from_flattened_dict(changes)
    return plain(config)


def walk(tree: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every (path, value) of a tree: of its sections too."""
    for key, value in tree.items():
        yield (*path, key), value
        if isinstance(value, Mapping):
            yield from walk(value, (*path, key))


def changed(name: str, config: Mapping[str, Any], path: tuple[str, ...]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The config with each odd value in the place of one, and without it."""
    for index, value in enumerate((*ODD, ...)):
        new = copy.deepcopy(dict(config))
        *sections, last = path
        section: Any = new
        for key in sections:
            section = section[key]
        if value is ...:
            section.pop(last, None)
        else:
            section[last] = copy.deepcopy(value)
        shown = "missing" if value is ... else f"odd value {index}, of type {type(value).__name__}"
        yield f"{name}: {'.'.join(path)} is {shown}", new
