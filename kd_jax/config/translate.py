"""Reads the config.json of runs that older versions made: their keys and words become today's."""

from collections.abc import Mapping
from typing import Any

from kd_jax import keys
from kd_jax.config.checks import OLD_VALUES

FORMAT = 2  # of config.json; files of the first format do not name theirs
# The first format had one optimizer for all that methods train, with these values unless a config changed them.
METHOD_OPTIMIZER = {
    "name": "adam",
    "learning_rate": 1e-3,
    "momentum": 0.9,
    "nesterov": False,
    "b1": 0.5,
    "b2": 0.999,
    "weight_decay": 0.0,
    "schedule": "constant",
}
TRAINED = ("adversarial", "original_adversarial")  # the methods of then that train parameters of their own


def translate(saved: Mapping[str, Any], teacher_hash: str | None) -> dict[str, Any]:
    """The content of a config.json in today's format.

    Args:
      saved: what the file holds.
      teacher_hash: of the teacher's run as that version computed it, by which its folder is called.
    """
    if saved.get("format", 1) >= FORMAT:
        return {**saved, "config": keys.complete(saved["config"])}
    data = {("labeled" if key == "labelled" else key): value for key, value in saved["data"].items()}
    dataset = saved["config"]["dataset"]
    names = {"folder": str(dataset["path"]).rstrip("/").rpartition("/")[2], "tfds": dataset["name"]}
    return {
        **saved,
        "format": 1,
        "config": keys.complete(_config(saved["config"])),
        "identity": _identity(saved["identity"]),
        "data": {"name": names.get(dataset["source"], dataset["source"]), **data},
        "teacher_hash": teacher_hash,
    }


def _config(config: Mapping[str, Any]) -> dict[str, Any]:
    new = _sections(config)
    if new["teacher"].get("config"):
        new["teacher"] = {**new["teacher"], "config": _config(new["teacher"]["config"])}
    return new


def _identity(identity: Mapping[str, Any]) -> dict[str, Any]:
    if "model" not in identity:  # of weights that are no run
        return dict(identity)
    new = _sections(identity)
    new["model"] = {key: value for key, value in new["model"].items() if value is not None}
    if new["teacher"]:
        new["teacher"] = {**new["teacher"], "run": _identity(new["teacher"]["run"])}
    return new


def _sections(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The sections that a config and an identity share."""
    new = dict(tree)
    freeze = OLD_VALUES["model.freeze"]
    model = {key: None if value == _default(tree["model"], key) else value for key, value in tree["model"].items()}
    new["model"] = {**model, "freeze": freeze.get(tree["model"]["freeze"], model["freeze"])}
    words = {"labelled": "labeled", "unlabelled": "unlabeled"}
    new["dataset"] = {words.get(key, key): value for key, value in tree["dataset"].items()} | {"extra_views": []}
    teacher = tree["teacher"]
    if teacher is not None:
        mode = "train" if teacher.get("batch_statistics") else "eval"
        new["teacher"] = {k: v for k, v in teacher.items() if k != "batch_statistics"} | {"mode": mode}
    optimizer = dict(tree["optimizer"])
    own = {key: v for key, v in optimizer.pop("method", {}).items() if METHOD_OPTIMIZER.get(key) != v}
    new["optimizer"] = optimizer
    new["method"] = {term: _term(term, options, own) for term, options in tree["method"].items()}
    return new


def _default(model: Mapping[str, Any], key: str) -> Any:
    """What the networks of then have where an option is not given, which today's configs leave so."""
    of_imagenet = model["name"] in ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
    return {"stem": "imagenet" if of_imagenet else "cifar", "head": "linear", "shortcut": "conv"}.get(key)


def _term(term: str, options: Mapping[str, Any], optimizer: Mapping[str, Any]) -> dict[str, Any]:
    new = dict(options)
    name = new.pop("loss", term)
    renamed = f"original_{name.removeprefix('seed_')}" if name.startswith("seed_") else name
    new.pop("steps_per_epoch", None)
    if renamed != term:
        new["method"] = renamed
    if renamed == "original_adversarial":  # which follows the student's optimizer today
        new["optimizer"] = {**METHOD_OPTIMIZER, **optimizer}
    elif renamed in TRAINED and optimizer:
        new["optimizer"] = dict(optimizer)
    return new
