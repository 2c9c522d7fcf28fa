"""A run's folder: its identity, its lock, its JSON files.

Two kinds of hash, both SHA-256: the *fingerprint* of a data set or of pretrained weights, and the *digest* of a run's
*identity*, the keys of its config that affect the result, with those fingerprints among them. The digest names the run.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import IO, Any

from kd_jax import checksums, keys, registry, remote
from kd_jax.config import translate
from kd_jax.errors import InputError, one_line

RUN_FILE_KEYS = {  # required keys of each file
    "config.json": {"config", "identity", "hash", "data"},
    "result.json": {"name", "test", "checkpoint"},
    "test_details.json": {"bin_confidence", "bin_correct", "bin_count", "confusion"},
    "wandb.json": {"project", "id"},
    "mlflow.json": {"experiment", "id", "store"},
    "aim.json": {"repo", "id"},
    "saliency.json": {"stage", "variant", "teacher", "students"},
    "export_benchmark.json": {"rows"},
    "gaze.json": {"stage", "variant", "teacher", "students"},  # the former name of saliency.json
}
CONFIG_KEYS = {  # of the parts of config.json from which a run is built again
    "config": {"name", "seed", "precision", "dataset", "model", "teacher", "method", "optimizer", "train", "evaluate"},
    "data": {"fingerprint", "class_names", "mean", "std", "image_shape"},
}
TREES = ("config", "identity", "data", "test")  # and which of them hold keys themselves
NOT_IDENTITY = ("name", "log", "checkpoint")
NOT_OF_DATASET = ("class_names", "stream", "workers")  # how they are read, and what is for people
OF_SCHEDULE = ("schedule", "schedule_options", "warmup_epochs", "milestones", "gamma")
OF_LENGTH = ("train.epochs", "train.steps", *(f"optimizer.{key}" for key in OF_SCHEDULE))  # may differ in a longer run
RUN_FILES = (".lock", "config.json", "metrics.jsonl", "result.json", "test_details.json")  # that training writes
# A full disk, a quota, a disk that fails: not the fault of the input.
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EIO)


def identity(config: Mapping[str, Any], fingerprint: str, teacher: Mapping[str, Any] | None) -> dict[str, Any]:
    """The keys of a config that affect results; the data's fingerprint stands in its path's place.

    Args:
      config: a complete tree.
      fingerprint: of the data set.
      teacher: the identity of the teacher's run, or None.
    """
    kept = {key: value for key, value in config.items() if key not in NOT_IDENTITY}
    kept["model"] = {key: value for key, value in config["model"].items() if value is not None}
    for name, tree in kept.items():
        if isinstance(tree, Mapping) and (later := keys.later(name)):
            kept[name] = {key: value for key, value in tree.items() if key not in later or value != later[key]}
    outside = ("kind", "path", "config", "members", "cache")
    how = {key: value for key, value in kept["teacher"].items() if key not in outside}
    dataset = {key: value for key, value in kept["dataset"].items() if key not in NOT_OF_DATASET}
    return {
        **kept,
        "dataset": {**dataset, "path": fingerprint},
        "teacher": {**how, "run": teacher} if teacher is not None else None,
    }


def digest(identity: Mapping[str, Any]) -> str:
    """The SHA-256 of the canonical JSON, in hexadecimal; 4 and 4.0 are the same."""
    text = json.dumps(flat(identity), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def differences(there: Mapping[str, Any], here: Mapping[str, Any], only: Iterable[str] | None = None) -> list[str]:
    """One "key is A there, B here" for every key that two identities do not share, or for these."""
    a, b = ({key: repr(value) for key, value in flat(tree).items()} for tree in (there, here))
    keys = changed_keys(there, here) if only is None else only
    return [f"{_named(key)} is {a.get(key, 'absent')} there, {b.get(key, 'absent')} here" for key in keys]


def changed_keys(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """The keys that two identities do not share."""
    a, b = ({key: repr(value) for key, value in flat(tree).items()} for tree in (there, here))
    return sorted(key for key in a.keys() | b.keys() if a.get(key) != b.get(key))


def is_of_length(key: str) -> bool:
    """Whether a key of an identity may differ in a longer run."""
    return any(key == own or key.startswith(f"{own}.") for own in OF_LENGTH)


def _named(key: str) -> str:
    """A key of an identity, for people: two of them hold a fingerprint in a path's place."""
    return f"the fingerprint of {key}" if key.endswith(("dataset.path", "model.pretrained")) else key


def flat(tree: Mapping[str, Any]) -> dict[str, Any]:
    """{"section.key": value} of a tree; 4.0 is 4, and a tuple a list."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            found |= {f"{key}.{own}": inner for own, inner in flat(value).items()}
        else:
            found[key] = _canonical(value)
    return found


def _canonical(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_canonical(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def json_text(value: Mapping[str, Any], indent: int | None = 1) -> str:
    """The text of a file that `read_json` reads, with its checksum; with `indent` None on one line."""
    return json.dumps(checksums.add(value), indent=indent, allow_nan=False) + "\n"


def write_json(path: str, value: Mapping[str, Any], indent: int | None = 1) -> None:
    """Writes the `json_text` of a value into a file: whole or not at all."""
    place = _place(*os.path.split(path))
    partial = f"{place}.tmp"
    try:
        with open(partial, "w") as file:
            file.write(json_text(value, indent))
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, place)
    except BaseException:
        with contextlib.suppress(OSError):
            os.remove(partial)
        raise
    remote.changed(path)


def _place(folder: str, name: str) -> str:
    """Where a file of a folder lies on this machine."""
    return os.path.join(remote.local(folder), name)


def write_files(folder: str, files: Mapping[str, bytes]) -> None:
    """Writes files into a folder, which is made where it is missing: each whole, and all of them or none.

    Raises:
      InputError: when they cannot be written. OSError: the disk is full, or fails.
    """
    paths = {_place(folder, name): content for name, content in files.items()}
    partial = f".{os.getpid()}.tmp"  # two processes may write the same files, which no lock keeps apart
    try:
        os.makedirs(remote.local(folder), exist_ok=True)
        for path, content in paths.items():
            with open(path + partial, "wb") as file:
                file.write(content)
        for path in paths:
            os.replace(path + partial, path)
    except OSError as error:
        for path in paths:
            with contextlib.suppress(OSError):
                os.remove(path + partial)
        raise refused(f"{folder!r} cannot be written", error) from error
    for name in files:
        remote.changed(os.path.join(folder, name))


def read_json(folder: str, name: str) -> Any:
    """A run's `name`, that of an older version in today's keys; raises InputError when the folder has no whole one."""
    path, place = os.path.join(folder, name), _place(folder, name)
    try:
        with open(place) as file:
            value = json.load(file)
    except FileNotFoundError:
        if name == "result.json" and os.path.exists(_place(folder, "config.json")):
            raise InputError(
                f"the run in {folder} has not finished; the command that began it goes on with it"
            ) from None
        raise InputError(f"{folder} has no {name}; expected the folder of a run") from None
    except (OSError, ValueError, RecursionError) as error:  # of the disk, of the text, of the JSON
        raise InputError(f"{path} cannot be read; expected a run's {name}: {one_line(error)}") from None
    if not isinstance(value, dict):
        raise InputError(f"{path} holds no keys; expected a run's {name}")
    try:
        checked = checksums.take(value)
    except ValueError as error:
        raise InputError(
            f"{path} cannot be used: {error}; expected it as it was written (without its key"
            f" {checksums.KEY!r} it is read unchecked)"
        ) from None
    if not checked:
        checksums.say_unchecked(folder)
    if missing := RUN_FILE_KEYS[name] - {
        key for key, part in value.items() if key not in TREES or isinstance(part, dict)
    }:
        raise InputError(f"{path} lacks {', '.join(sorted(missing))}; expected a run's {name}")
    return _config_of_today(value) if name == "config.json" else value


def _config_of_today(saved: dict[str, Any]) -> dict[str, Any]:
    """Translated, unless so much is missing that the reader will say so."""
    try:
        teacher = saved["identity"].get("teacher")
        return translate.translate(saved, digest(teacher["run"]) if teacher else None)
    except (KeyError, TypeError, AttributeError):
        return {"format": 1, "teacher_hash": None, **saved}


def read_config(folder: str) -> dict[str, Any]:
    """A run's config.json, for a command that builds the run again: the files that registered its parts are imported.

    Raises:
      InputError: when the folder has no whole one, or a file that it needs is missing.
    """
    saved = read_json(folder, "config.json")
    for part, needed in CONFIG_KEYS.items():
        if missing := needed - saved[part].keys():
            path = os.path.join(folder, "config.json")
            raise InputError(f"{path} lacks {part}.{min(missing)}; expected a run's config.json")
    registry.import_again(saved.get("imports", ()))
    return saved


def has_result(folder: str) -> bool:
    """Whether the run in this folder has finished."""
    return os.path.exists(_place(folder, "result.json"))


def check(folder: str, own: Mapping[str, Any]) -> None:
    """Raises InputError when the folder cannot be written, or holds a run of another identity. Writes nothing.

    A run that has finished need not be writable.
    """
    if not has_result(folder):
        check_writable(folder, files=RUN_FILES)
        checkpoints = _place(folder, "checkpoints")
        if os.path.lexists(checkpoints) and not os.path.isdir(checkpoints):
            raise InputError(f"{checkpoints!r} is not a folder; expected that of the run's checkpoints, or none")
    if not os.path.exists(_place(folder, "config.json")):
        return
    saved = read_json(folder, "config.json")
    if saved["format"] == 1:
        raise InputError(
            f"the work directory {folder!r} holds a run of version 0.1, which can be evaluated, explained and reported"
            " and not trained on; expected another --workdir"
        )
    there = saved["identity"]
    if changed := differences(there, own):
        older = any("fingerprint" in key for key in changed)
        hint = " (an older version took another fingerprint of images; its runs can be evaluated)" if older else ""
        longer = any(own["train"][key] > there["train"][key] for key in ("epochs", "steps"))
        if longer and has_result(folder) and all(map(is_of_length, changed_keys(there, own))):
            hint = f" (--extend={folder} with another --workdir, or none, makes a longer run of it)"
        raise InputError(
            f"the work directory {folder!r} holds a run of another config ({'; '.join(changed)}){hint};"
            " expected the same config, or another --workdir"
        )


def check_writable(folder: str, what: str = "the work directory", files: Iterable[str] = ()) -> None:
    """Raises InputError when the folder or one of these files in it cannot be made or written. Writes nothing.

    Of an object store only that it can be read.
    """
    if remote.is_remote(folder):
        remote.local(folder)
        return
    parent = os.path.abspath(folder)
    while not os.path.lexists(parent):
        parent = os.path.dirname(parent)
    if not os.path.isdir(parent) or not os.access(parent, os.W_OK | os.X_OK):
        raise InputError(f"{what} {folder!r} cannot be written: {parent} is not a writable folder")
    for name in files:
        path = os.path.join(folder, name)
        if os.path.lexists(path) and not os.path.isfile(path):
            kind = "a folder" if os.path.isdir(path) else "no ordinary file"
            raise InputError(f"{what} {folder!r} cannot be written: {name} in it is {kind}; expected a file or none")
        if os.path.exists(path) and not os.access(path, os.W_OK):
            raise InputError(f"{what} {folder!r} cannot be written: {name} in it is write-protected")


def refused(what: str, error: OSError) -> Exception:
    """What to raise when a place cannot be written: InputError, but what the disk does is no fault of the input."""
    return error if error.errno in DISK_ERRORS else InputError(f"{what}: {error.strerror}")


@contextlib.contextmanager
def locked(folder: str, *, wait: bool) -> Iterator[None]:
    """Makes the folder and holds its lock, which a killed process releases; in an object store a lease, see `remote`.

    With `wait` a second starter waits for the first; otherwise it gets InputError. On a file system without locks, a
    line says that nothing keeps a second one out.
    """
    if remote.is_remote(folder):
        with remote.held(folder, wait=wait):
            yield
        return
    path = os.path.join(folder, ".lock")
    while True:
        try:
            os.makedirs(folder, exist_ok=True)
            file = open(path, "w")  # noqa: SIM115
        except OSError as error:
            raise refused(f"the work directory {folder!r} cannot be written", error) from None
        with file:
            _lock(file, folder, wait)
            # Whoever held it before may have removed the folder: what is locked is then a file without a name.
            if not os.path.exists(path) or not os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                continue
            yield
            return


def _lock(file: IO[str], folder: str, wait: bool) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        if not wait:
            raise InputError(
                f"the work directory {folder!r} is in use by another process; expected a free one"
            ) from None
        print(f"waiting for another process to finish the run in {folder}", flush=True)
        fcntl.flock(file, fcntl.LOCK_EX)
    except OSError as error:
        print(
            f"{folder} lies on a file system without locks ({one_line(error)}): nothing keeps a second process from"
            " training the same run there",
            file=sys.stderr,
        )
