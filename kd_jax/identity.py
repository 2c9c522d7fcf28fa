"""Which run a config describes, and what the run's config.json says."""

import functools
import importlib.metadata
import platform
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from kd_jax import data, methods, models, optim, registry, remote, runs, schedules, teachers, weights
from kd_jax.config.translate import FORMAT
from kd_jax.types import Teacher

if TYPE_CHECKING:
    from kd_jax.experiment import Experiment


def identify(
    config: Mapping[str, Any], *, fingerprint: str | None = None, pretrained: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """The identity of the run that a config describes (see `kd_jax.runs`), without reading images or weights.

    Args:
      config: a complete, plain tree.
      fingerprint: of the data set; None to take it from the data.
      pretrained: {a value of model.pretrained: its fingerprint}, for weights that do not exist yet.
    """
    known = fingerprint or data.fingerprint(config["dataset"])
    nested = functools.partial(identify, fingerprint=known, pretrained=pretrained)
    identity = runs.identity(config, known, teachers.identify(config["teacher"], nested))
    if source := config["model"]["pretrained"]:
        own = (pretrained or {}).get(source) or weights.fingerprint(source)
        identity["model"] = {**identity["model"], "pretrained": own}
    return identity


def config_json(experiment: "Experiment") -> dict[str, Any]:
    """What a run's config.json holds: enough to repeat the run, and to classify another image."""
    config, dataset = experiment.config, experiment.dataset
    used: list[tuple[Mapping[str, Any], str]]
    used = [(methods.METHODS, options.get("method", term)) for term, options in config["method"].items()]
    used += [(models.NETWORKS, config["model"]["name"]), (data.SOURCES, config["dataset"]["source"])]
    used += [(teachers.KINDS, config["teacher"]["kind"])]
    members = config["teacher"]["members"].values() if config["teacher"]["kind"] == "ensemble" else ()
    used += [(teachers.KINDS, member.get("kind", "none")) for member in members]
    used += [(models.NETWORKS, own["network"]) for own in config["method"].values() if own.get("network")]
    for section in (config["optimizer"], *(options.get("optimizer", {}) for options in config["method"].values())):
        used += [(optim.OPTIMIZERS, section.get("name", "")), (schedules.SCHEDULES, section.get("schedule", ""))]
    return {
        "format": FORMAT,
        "config": config,
        "identity": experiment.identity,
        "hash": experiment.digest,
        "teacher_hash": experiment.teacher.config_hash if experiment.teacher else None,
        "teacher_source": _source(experiment.teacher),
        "teacher_members": {
            name: {"hash": member.config_hash, "source": _source(member)}
            for name, member in ((experiment.teacher and experiment.teacher.members) or {}).items()
        },
        "imports": registry.files_of(used),
        "data": {
            "name": dataset.name,
            "fingerprint": dataset.fingerprint,
            "class_names": list(dataset.class_names),
            "mean": [float(x) for x in dataset.mean],
            "std": [float(x) for x in dataset.std],
            "image_shape": list(dataset.train.images.shape[1:]),
            "train_images": len(dataset.train.labels),
            "labeled": int((dataset.train.labels >= 0).sum()),
            "skipped": dataset.skipped,
        },
    }


def _source(teacher: Teacher | None) -> str | None:
    return remote.absolute(teacher.source) if teacher and teacher.source else None


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that results depend on."""
    packages = ("jax", "flax", "optax", "numpy")
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in packages}
