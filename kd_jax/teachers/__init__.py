"""Teachers by kind. Nobody else knows which kinds there are: all are a `Teacher`."""

import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from kd_jax import registry, runs, weights
from kd_jax.data import Dataset
from kd_jax.errors import InputError, check_callable, choose
from kd_jax.teachers import file, run
from kd_jax.types import Teacher

__all__ = ["KINDS", "Kind", "Setting", "create", "finished", "identify", "register"]

Identity = Mapping[str, Any]


class Setting(NamedTuple):
    """What a teacher is built for."""

    config: Mapping[str, Any]  # the student's, whole; its section `teacher` is this teacher's
    dataset: Dataset
    runs_folder: str
    create_experiment: Callable[[Mapping[str, Any]], Any]  # config -> Experiment, for a teacher that is a run
    training: bool = True  # False where a run that has finished is evaluated


class Kind(NamedTuple):
    """A kind of teacher."""

    build: Callable[[Setting], Teacher | None]
    # (section `teacher`, identity of a config) -> what of the teacher affects its student's result
    identify: Callable[[Mapping[str, Any], Callable[[Mapping[str, Any]], Identity]], Identity | None]


KINDS: dict[str, Kind] = {
    "none": Kind(lambda setting: None, lambda section, identify: None),
    "config": Kind(run.from_config, lambda section, identify: identify(section["config"])),
    "run": Kind(
        run.finished,
        lambda section, identify: runs.read_json(os.path.expanduser(section["path"]), "config.json")["identity"],
    ),
    "weights": Kind(file.from_weights, lambda section, identify: {"weights": weights.fingerprint(section["path"])}),
}


def register(
    name: str,
    build: Callable[[Setting], Teacher | None],
    identify: Callable[[Mapping[str, Any]], Identity],
) -> None:
    """Adds a kind of teacher of your own, which `teacher.kind` then knows by `name`, or replaces it.

    Args:
      name: of the kind.
      build: makes the teacher.
      identify: from the section `teacher` of a config to what of the teacher affects its student's result (the hash of
        its file, say), by which runs are told apart.
    """
    check_callable(f"the builder of teacher {name!r}", build)
    check_callable(f"the identity of teacher {name!r}", identify)
    registry.add(KINDS, name, Kind(build, lambda section, _: identify(section)))


def create(setting: Setting) -> Teacher | None:
    """The teacher of a config, or None. Nothing is trained yet.

    Raises:
      InputError: for an unknown kind, and for whatever is wrong with the teacher.
    """
    kind = setting.config["teacher"]["kind"]
    teacher = choose("teacher.kind", kind, KINDS).build(setting)
    if not (teacher is None or isinstance(teacher, Teacher)):
        raise InputError(f"teacher.kind {kind!r} builds a {type(teacher).__name__}; expected a Teacher, or None")
    return teacher


def identify(section: Mapping[str, Any], identify_config: Callable[[Mapping[str, Any]], Identity]) -> Identity | None:
    """What of a config's teacher affects its student's result; None without one."""
    return choose("teacher.kind", section["kind"], KINDS).identify(section, identify_config)


def finished(saved: Mapping[str, Any], folder: str, runs_folder: str) -> dict[str, Any]:
    """The section `teacher` of a run that has finished, so that nothing would be trained.

    Args:
      saved: the run's config.json. folder: of the run.
      runs_folder: where the runs of teachers lie; they are also looked for beside the run, and where they lay.
    Returns:
      A section whose kind is "none", and a line says so, where the teacher is gone or has become another one.
    """
    section = dict(saved["config"]["teacher"])
    if section["kind"] in ("config", "run"):
        found = run.find(saved, folder, runs_folder)
        return {**section, **({"kind": "run", "path": found} if found else {"kind": "none"})}
    if section["kind"] == "weights" and not file.is_there(saved):
        return {**section, "kind": "none"}
    return section
