"""What a config's values may be, where no other module owns them; and the words of older versions."""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

from kd_jax.config import base
from kd_jax.errors import InputError, check_kind, choose

SELECTIONS = ("last", "best-validation")

# (key, whether a value is good, what was expected)
CHECKS: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    ("seed", lambda v: 0 <= v < 2**32, "a whole number from 0 to 4294967295"),
    ("train.epochs", lambda v: v >= 1, "at least 1"),
    ("train.steps", lambda v: v >= 0, "a number of steps, or 0"),
    ("train.batch_size", lambda v: v >= 1, "at least 1"),
    ("train.steps_per_call", lambda v: v >= 0, "a number of steps, or 0"),
    ("train.ema", lambda v: 0 <= v < 1, "a decay of at least 0 and below 1"),
    ("train.label_smoothing", lambda v: 0 <= v < 1, "at least 0 and below 1"),
    ("train.mixup", lambda v: v >= 0, "at least 0"),
    ("train.clip", lambda v: v >= 0, "at least 0"),
    ("train.accumulate", lambda v: v >= 1, "at least 1"),
    ("evaluate.every_epochs", lambda v: v >= 1, "at least 1"),
    ("evaluate.batch_size", lambda v: v >= 1, "at least 1"),
    ("checkpoint.every_epochs", lambda v: v >= 1, "at least 1"),
    ("checkpoint.keep", lambda v: v >= 1, "at least 1"),
    ("log.every_steps", lambda v: v >= 1, "at least 1"),
)
# Keys of older versions, and what has taken their place. `translate` reads them in the files of old runs.
OLD_KEYS = {
    "optimizer.method": "method.TERM.optimizer, and the student's optimizer where that is not given",
    "teacher.batch_statistics": "teacher.mode, which is 'eval' or 'train'",
    "dataset.labelled": "dataset.labeled",
    "dataset.unlabelled": "dataset.unlabeled",
}
OPEN = ("method", "config")  # sections whose keys no default names: terms, and a teacher's config
OLD_VALUES = {"model.freeze": {"convolutions": "backbone", "encoder": "backbone_and_norms"}}


def plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dictionaries of numbers, strings, booleans and lists, out of a ConfigDict or of such dictionaries."""
    if hasattr(config, "to_dict"):
        config = config.to_dict()
    if not isinstance(config, Mapping):
        raise InputError(f"the config is {config!r}; expected a tree, as kd_jax.config.base.get_config() makes one")

    def convert(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: convert(v) for key, v in value.items()}
        return [convert(v) for v in value] if isinstance(value, list | tuple) else value

    return convert(config)


def check(config: Mapping[str, Any]) -> None:
    """Raises InputError for a missing key, a key of an older version, and a value that cannot be."""
    for key, instead in OLD_KEYS.items():
        if get(config, key) is not None:
            raise InputError(f"{key} is a key of an older version; it is now {instead}")
    for key, words in OLD_VALUES.items():
        if (value := get(config, key)) in words:
            raise InputError(f"{key} is {value!r}, a word of an older version; it is now {words[value]!r}")
    defaults = plain(base.get_config())
    # The others are options of the network, which knows them.
    defaults["model"] = {key: defaults["model"][key] for key in ("name", "pretrained", "freeze")}
    _check_tree("", config, defaults)
    for key, good, expected in CHECKS:
        value = get(config, key)
        if not math.isfinite(value) or not good(value):
            raise InputError(f"{key} is {value!r}; expected {expected}")
    choose("evaluate.select", config["evaluate"]["select"], SELECTIONS)
    if config["evaluate"]["select"] == "best-validation" and not config["dataset"]["holdout"]:
        raise InputError("dataset.holdout is 0, so there is no validation split; expected evaluate.select 'last'")


def _check_tree(prefix: str, tree: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """Raises InputError unless a section has the keys of the default one, each with a value of its kind."""
    for key, default in defaults.items():
        if key not in tree:
            raise InputError(f"the config lacks {prefix}{key}; expected every key of kd_jax/config/base.py")
        if isinstance(default, Mapping) and not isinstance(tree[key], Mapping):
            raise InputError(f"{prefix}{key} is {tree[key]!r}; expected a section")
        if isinstance(default, Mapping) and key not in OPEN:
            _check_tree(f"{prefix}{key}.", tree[key], default)
        check_kind(f"{prefix}{key}", tree[key], default)
    for key in tree if prefix != "model." else ():
        choose(f"a key of {prefix.removesuffix('.') or 'the config'}", key, defaults)


def get(config: Mapping[str, Any], key: str, default: Any = None) -> Any:
    """The value at "section.key", or the default where it is missing."""
    try:
        return functools.reduce(lambda tree, part: tree[part], key.split("."), config)
    except (KeyError, TypeError):
        return default
