"""Teachers by kind. Nobody else knows which kinds there are: all are a `Teacher`."""

import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from kd_jax import augment, keys, networks, registry, runs, weights
from kd_jax.data import Dataset
from kd_jax.errors import InputError, check_callable, choose
from kd_jax.teachers import ensemble, exported, mean, model, run
from kd_jax.types import Array, Teacher

__all__ = ["KINDS", "Kind", "Setting", "create", "finished", "identify", "listed_views", "register"]

CACHES = ("none", "recording", "views", "auto")  # of what a teacher says in training, see `kd_jax.teacher_cache`
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
    listed: bool = True  # whether what it says in mode "eval" depends on the view of an image alone


def _identify_weights(section: Mapping[str, Any], _: Any) -> Identity:
    """Two networks may have the same parameters and differ."""
    return {"weights": weights.fingerprint(model.source_of(section)), "model": _model(section)}


def _model(section: Mapping[str, Any]) -> dict[str, Any]:
    """What identifies the network of a teacher without a run."""
    own, later = (section["config"] or {}).get("model", {}), keys.later("model")
    return {k: v for k, v in own.items() if v is not None and not (k in later and v == later[k])}


KINDS: dict[str, Kind] = {
    "none": Kind(lambda setting: None, lambda section, identify: None),
    "config": Kind(run.from_config, lambda section, identify: identify(section["config"])),
    "run": Kind(
        run.finished,
        lambda section, identify: runs.read_json(os.path.expanduser(section["path"]), "config.json")["identity"],
    ),
    "ensemble": Kind(
        lambda setting: ensemble.of(
            {name: _member(setting, name) for name in _members(setting.config["teacher"])}, _read_by_student(setting)
        ),
        lambda section, identify: {
            name: {"mode": member["mode"], "run": _identify(member, identify)}
            for name, member in _members(section).items()
        },
    ),
    "mean": Kind(mean.average, lambda section, identify: {"average": "of the student"}),
    "weights": Kind(model.from_weights, _identify_weights),
    "untrained": Kind(
        model.untrained,
        lambda section, _: {"untrained": _model(section), "seed": (section["config"] or {}).get("seed")},
    ),
    "exported": Kind(exported.from_folder, lambda section, _: exported.identify(section)),
}


def _read_by_student(setting: Setting) -> Callable[[Array], Array]:
    network = networks.create(setting.config, len(setting.dataset.class_names))
    return networks.preprocessor(setting.config, network, setting.dataset.mean, setting.dataset.std)


def _members(section: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The whole sections of an ensemble's members."""
    defaults = {key: entry.default for key, entry in keys.section("teacher").items()}
    members = {}
    for name, member in section["members"].items():
        what = f"teacher.members.{name}"
        keys.SECTION.check(what, member)
        for key in member:
            choose(f"a key of {what}", key, defaults)
        members[name] = {**defaults, **member}
        keys.check_section("teacher", members[name], what)
        if members[name]["cache"] != "none":
            raise InputError(f"{what}.cache is {members[name]['cache']!r}; expected that of teacher")
        if members[name]["kind"] in ("none", "mean", "ensemble"):
            raise InputError(f"{what}.kind is {members[name]['kind']!r}; expected a teacher of its own")
    if not members:
        raise InputError("teacher.members is empty; expected {name: a section like teacher} for an ensemble")
    return members


def _member(setting: Setting, name: str) -> Teacher:
    section = _members(setting.config["teacher"])[name]
    try:
        member = create(setting._replace(config={**setting.config, "teacher": section}))
    except InputError as error:
        raise InputError(f"teacher.members.{name}: {error}") from error
    assert member is not None, "its kind is not none"
    return member


def _identify(section: Mapping[str, Any], identify_config: Callable[[Mapping[str, Any]], Identity]) -> Any:
    own = KINDS[section["kind"]].identify(section, identify_config)
    return {"epoch": section["epoch"], **(own or {})} if section["epoch"] else own


def register(
    name: str,
    build: Callable[[Setting], Teacher | None],
    identify: Callable[[Mapping[str, Any]], Identity],
    *,
    listed: bool = False,
) -> None:
    """Adds a kind of teacher of your own, which `teacher.kind` then knows by `name`, or replaces it.

    Args:
      name: of the kind.
      build: makes the teacher.
      identify: from the section `teacher` of a config to what of the teacher affects its student's result (the hash of
        its file, say), by which runs are told apart.
      listed: whether what it says in mode "eval" depends on the view of an image alone, so that `teacher.cache` "views"
        can list it.
    """
    check_callable(f"the builder of teacher {name!r}", build)
    check_callable(f"the identity of teacher {name!r}", identify)
    registry.add(KINDS, name, Kind(build, lambda section, _: identify(section), listed=listed))


def create(setting: Setting) -> Teacher | None:
    """The teacher of a config, or None. Nothing is trained yet.

    Raises:
      InputError: for an unknown kind, and for whatever is wrong with the teacher.
    """
    kind = setting.config["teacher"]["kind"]
    section = setting.config["teacher"]
    chosen = choose("teacher.kind", kind, KINDS)
    if section["epoch"] and kind not in ("config", "run"):
        raise InputError(f"teacher.epoch is {section['epoch']}, and teacher.kind {kind!r}; expected 0, or a run")
    _check_cache(setting.config, len(setting.dataset.class_names))
    if section["members"] and kind != "ensemble":
        raise InputError(f"teacher.members is given, and teacher.kind is {kind!r}; expected none, or kind 'ensemble'")
    if kind == "ensemble" and (section["mode"] != "eval" or section["path"]):
        raise InputError("teacher.mode or teacher.path is given with kind 'ensemble'; expected those of its members")
    teacher = chosen.build(setting)
    if not (teacher is None or isinstance(teacher, Teacher)):
        raise InputError(f"teacher.kind {kind!r} builds a {type(teacher).__name__}; expected a Teacher, or None")
    return teacher


def _check_cache(config: Mapping[str, Any], classes: int) -> None:
    section = config["teacher"]
    cache = choose("teacher.cache", section["cache"], CACHES)
    if cache in ("recording", "views") and section["kind"] in ("none", "mean"):
        raise InputError(f"teacher.cache is {cache!r} and teacher.kind {section['kind']!r}; expected cache 'none'")
    if cache == "views" and listed_views(config) is None:
        raise InputError(
            "teacher.cache is 'views', which mixup, CutMix, cutout, resized crops, RandAugment, teacher.mode 'train'"
            " and a kind that draws do not allow: what the teacher says cannot be listed; expected 'recording'"
        )
    if top_k := section["top_k"]:
        if cache == "none":
            raise InputError(f"teacher.top_k is {top_k} and teacher.cache 'none'; expected 0, or a cache")
        if top_k >= classes:
            raise InputError(f"teacher.top_k is {top_k}; expected fewer than the {classes} classes, or 0 for all")


def listed_views(config: Mapping[str, Any]) -> tuple[int, ...] | None:
    """The numbers of all views that a config takes of an image in training; None where they cannot be listed."""
    section = config["teacher"]
    members = _members(section).values() if section["kind"] == "ensemble" else ()
    drawn = any(each["mode"] != "eval" or not KINDS[each["kind"]].listed for each in (section, *members))
    if config["train"]["mixup"] or config["train"]["cutmix"] or config["dataset"]["cutout"] or drawn:
        return None
    return augment.listed((config["dataset"]["augment"], *config["dataset"]["extra_views"]))


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
    section = saved["config"]["teacher"] | {"cache": "none", "top_k": 0}  # of training
    if section["kind"] == "mean":  # it is the student
        return {**section, "kind": "none"}
    if section["kind"] == "ensemble":
        members = {name: finished(_of_member(saved, name), folder, runs_folder) for name in section["members"]}
        gone = any(member["kind"] == "none" for member in members.values())
        return {**section, "kind": "none"} if gone else {**section, "members": members}
    if section["kind"] in ("config", "run"):
        found = run.find(saved, folder, runs_folder)
        return {**section, **({"kind": "run", "path": found} if found else {"kind": "none"})}
    if section["kind"] == "weights" and not model.is_there(saved):
        return {**section, "kind": "none"}
    if section["kind"] == "exported" and not exported.is_there(saved):
        return {**section, "kind": "none"}
    return section


def _of_member(saved: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The config.json of a run that has one member of an ensemble for its teacher."""
    known = saved["teacher_members"][name]
    return {
        **saved,
        "config": {**saved["config"], "teacher": _members(saved["config"]["teacher"])[name]},
        "identity": {**saved["identity"], "teacher": saved["identity"]["teacher"]["run"][name]},
        "teacher_hash": known["hash"],
        "teacher_source": known["source"],
    }
