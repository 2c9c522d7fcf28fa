"""A run's folder: its identity, its lock, its JSON files."""

import contextlib
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

from flax.traverse_util import flatten_dict

from kd_jax.types import InputError

KEYS = {  # that the files of a run cannot lack
    "config.json": {"config", "identity", "hash", "data"},
    "result.json": {"name", "test", "checkpoint"},
}
NOT_IDENTITY = ("name", "log", "checkpoint")


def identity(config: Mapping[str, Any], fingerprint: str, teacher: str | None) -> dict[str, Any]:
    """The keys of a config that affect results; the data's fingerprint stands in its path's place.

    Args:
      config: a complete tree.
      fingerprint: of the data set.
      teacher: the hash of the teacher's run, or None.
    """
    kept = {key: value for key, value in config.items() if key not in NOT_IDENTITY}
    how = {key: value for key, value in config["teacher"].items() if key not in ("kind", "path", "config")}
    return {
        **kept,
        "dataset": {**config["dataset"], "path": fingerprint},
        "teacher": {**how, "hash": teacher} if teacher else None,
    }


def digest(identity: Mapping[str, Any]) -> str:
    """The SHA-256 of the canonical JSON, in hexadecimal."""
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """One "key is A there, B here" for every key that two identities do not share."""
    flat = (flatten_dict(dict(tree), sep=".", keep_empty_nodes=True) for tree in (there, here))
    a, b = ({key: repr(value) for key, value in tree.items()} for tree in flat)
    return [
        f"{key} is {a.get(key, 'absent')} there, {b.get(key, 'absent')} here"
        for key in sorted(a.keys() | b.keys())
        if a.get(key) != b.get(key)
    ]


def write_json(path: str, value: Any) -> None:
    """Writes a file whole or not at all."""
    with open(path + ".tmp", "w") as file:
        json.dump(value, file, indent=1)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(path + ".tmp", path)


def read_json(folder: str, name: str) -> Any:
    """A run's `name`; raises InputError when the folder has no whole one."""
    path = os.path.join(folder, name)
    try:
        with open(path) as file:
            value = json.load(file)
    except FileNotFoundError:
        raise InputError(f"{folder} has no {name}; expected the folder of a run") from None
    except (OSError, json.JSONDecodeError) as error:
        raise InputError(f"{path} cannot be read; expected a run's {name}: {error}") from None
    if missing := KEYS[name] - set(value):
        raise InputError(f"{path} lacks {', '.join(sorted(missing))}; expected a run's {name}")
    return value


def has_result(folder: str) -> bool:
    """Whether the run in this folder has finished."""
    return os.path.exists(os.path.join(folder, "result.json"))


def check(folder: str, own: Mapping[str, Any]) -> None:
    """Raises InputError when the folder cannot be written, or holds a run of another identity. Writes nothing."""
    parent = os.path.abspath(folder)
    while not os.path.lexists(parent):
        parent = os.path.dirname(parent)
    if not os.path.isdir(parent) or not os.access(parent, os.W_OK | os.X_OK):
        raise InputError(f"the work directory {folder!r} cannot be written: {parent} is not a writable folder")
    if not os.path.exists(os.path.join(folder, "config.json")):
        return
    there = read_json(folder, "config.json")["identity"]
    if changed := differences(there, own):
        raise InputError(
            f"the work directory {folder!r} holds a run of another config ({'; '.join(changed)});"
            " expected the same config, or another --workdir"
        )


@contextlib.contextmanager
def locked(folder: str, *, wait: bool) -> Iterator[None]:
    """Makes the folder and holds its lock, which a killed process releases.

    With `wait` a second starter waits for the first; otherwise it gets InputError.
    """
    try:
        os.makedirs(folder, exist_ok=True)
        file = open(os.path.join(folder, ".lock"), "w")  # noqa: SIM115
    except OSError as error:
        raise InputError(f"the work directory {folder!r} cannot be written: {error.strerror}") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not wait:
                raise InputError(
                    f"the work directory {folder!r} is in use by another process; expected a free one"
                ) from None
            print(f"waiting for another process to finish the run in {folder}", flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
