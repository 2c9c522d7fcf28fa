"""Whether a config is whole, with values that `kd_jax.keys` allows; and the words of older versions."""

import functools
from collections.abc import Mapping
from typing import Any

from kd_jax import keys
from kd_jax.batches import LAST_BATCH
from kd_jax.config import base
from kd_jax.errors import InputError, choose, shown
from kd_jax.keys import KEYS

SELECTIONS = ("last", "best-validation", "both")
RATINGS = ("accuracy", "balanced_accuracy", "macro_f1")  # of `metrics.METRICS`
DEEPEST = 40  # sections in one another

# Keys of older versions, and what has taken their place. `translate` reads them in the files of old runs.
OLD_KEYS = {
    "optimizer.method": "method.TERM.optimizer, and the student's optimizer where that is not given",
    "teacher.batch_statistics": "teacher.mode, which is 'eval' or 'train'",
    "dataset.labelled": "dataset.labeled",
    "dataset.unlabelled": "dataset.unlabeled",
}
OLD_VALUES = {"model.freeze": {"convolutions": "backbone", "encoder": "backbone_and_norms"}}


def plain(config: Any) -> dict[str, Any]:
    """Nested dictionaries of numbers, strings, booleans and lists, out of a ConfigDict or of such dictionaries.

    Keys that were added when there were runs already get their defaults where they are missing.

    Raises:
      InputError: for anything else.
    """
    if hasattr(config, "to_dict"):
        config = config.to_dict()
    if not isinstance(config, Mapping):
        raise InputError(
            f"the config is {shown(config)}; expected a tree, as kd_jax.config.base.get_config() makes one"
        )

    def convert(value: Any, path: tuple[str, ...] = ()) -> Any:
        what = ".".join(path)
        if len(path) > DEEPEST:
            raise InputError(f"{what[:100]}... is a section in {DEEPEST} others; expected fewer")
        if isinstance(value, Mapping):
            for key in value:
                if type(key) is not str:
                    raise InputError(f"a key of {what or 'the config'} is {shown(key)}; expected a string")
            return {key: convert(v, (*path, key)) for key, v in value.items()}
        if isinstance(value, list | tuple):
            return [convert(v, (*path, str(i))) for i, v in enumerate(value)]
        if value is not None and type(value) not in (bool, int, float, str):
            expected = "a number, a string, true or false, a list or a section"
            raise InputError(f"{what} is {shown(value)}, of type {type(value).__name__}; expected {expected}")
        if type(value) is int and abs(value) >= 10**400:
            raise InputError(f"{what} is a number of more than 400 digits; expected a smaller one")
        return value

    completed: dict[str, Any] = keys.complete(convert(config))
    return completed


def check(config: Mapping[str, Any]) -> None:
    """Raises InputError for a missing key, a key of an older version, and a value that cannot be.

    A teacher's config is checked too, where `teacher.kind` says that it is used.
    """
    for key, instead in OLD_KEYS.items():
        if get(config, key) is not None:
            raise InputError(f"{key} is a key of an older version; it is now {instead}")
    for key, words in OLD_VALUES.items():
        if isinstance(value := get(config, key), str) and value in words:
            raise InputError(f"{key} is {value!r}, a word of an older version; it is now {words[value]!r}")
    defaults = plain(base.get_config())
    choose_keys("the config", config, defaults)
    for name, default in defaults.items():
        if name not in config:
            raise InputError(f"the config lacks {name}; expected every key of kd_jax/keys.py")
        if name not in KEYS:
            keys.check_section(name, config[name])
            if name != "model":  # whose other keys are options of the network, which knows them
                choose_keys(name, config[name], default)
    keys.check_section("", config)
    choose("evaluate.select", config["evaluate"]["select"], SELECTIONS)
    choose("train.last_batch", config["train"]["last_batch"], LAST_BATCH)
    choose("evaluate.metric", config["evaluate"]["metric"], RATINGS)
    weights = config["train"]["class_weights"]
    if config["dataset"]["sampling"] == "balanced" and weights in ("balanced", "effective"):
        raise InputError(
            f"train.class_weights is {weights!r} and dataset.sampling 'balanced', which would make up for small classes"
            " twice; expected one of them"
        )
    if config["evaluate"]["select"] != "last" and not config["dataset"]["holdout"]:
        raise InputError("dataset.holdout is 0, so there is no validation split; expected evaluate.select 'last'")
    if config["evaluate"]["select"] == "both" and config["evaluate"]["test_every_epoch"]:
        raise InputError(
            "evaluate.select is 'both' and evaluate.test_every_epoch true, of which each has a best epoch of its own;"
            " expected one of them"
        )
    for section in teacher_sections(config["teacher"]):
        if section.get("kind") in ("config", "weights") and section.get("config"):
            try:
                check(section["config"])
            except InputError as error:
                raise InputError(f"in the teacher's config, {error}") from error


def teacher_sections(teacher: Any) -> list[Mapping[str, Any]]:
    """The section `teacher` of a config, and those of an ensemble's members; of what is no section nothing."""
    if not isinstance(teacher, Mapping):
        return []
    members = teacher.get("members")
    nested = list(members.values()) if teacher.get("kind") == "ensemble" and isinstance(members, Mapping) else []
    return [section for section in (teacher, *nested) if isinstance(section, Mapping)]


def choose_keys(what: str, tree: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    """Raises InputError for a key that is not known."""
    for key in tree:
        choose(f"a key of {what}", key, known)


def get(config: Mapping[str, Any], key: str, default: Any = None) -> Any:
    """The value at "section.key", or the default where it is missing."""
    try:
        return functools.reduce(lambda tree, part: tree[part], key.split("."), config)
    except (KeyError, TypeError):
        return default
