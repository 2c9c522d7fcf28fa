"""What a user's own files add to the library, and which file added it, so that a later command can add it again."""

import hashlib
import importlib.util
import inspect
import os
from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Any

from kd_jax.errors import InputError, one_line

PACKAGE = Path(__file__).parent

_files: dict[str, str] = {}  # real path of a file that registered something -> SHA-256 of it then
_origins: dict[tuple[int, str], str] = {}  # (table, name) -> the file that added it
_importing = False


class Imported(BaseException):
    """Ends the import of a file at the point where it would train: all that it registers before stands."""


def add(table: MutableMapping[str, Any], name: str, value: Any) -> None:
    """Adds an entry to a table of the library, or replaces it, and remembers the file that does so."""
    table[name] = value
    _origins.pop((id(table), name), None)
    for frame in inspect.stack()[1:]:
        path = os.path.realpath(frame.filename)
        if Path(path).is_relative_to(PACKAGE):
            continue
        if os.path.isfile(path) and path.endswith(".py"):
            _files[path] = digest(path)
            _origins[id(table), name] = path
        return


def files_of(used: Iterable[tuple[Mapping[str, Any], str]]) -> list[dict[str, str]]:
    """The files that added some entries, given as (table, name), each with the hash that it had then."""
    paths = dict.fromkeys(_origins[id(table), name] for table, name in used if (id(table), name) in _origins)
    return [{"path": path, "sha256": _files[path]} for path in paths]


def digest(path: str | os.PathLike[str]) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def import_file(path: str | os.PathLike[str]) -> None:
    """Runs a Python file for what it registers. A call of `kd_jax.train` in it ends it there.

    Raises:
      InputError: where it is missing, or raises.
    """
    global _importing
    path = os.path.realpath(path)
    if path in _files:
        return
    if not os.path.isfile(path):
        raise InputError(f"{path} does not exist; expected the Python file that registers, see --import")
    spec = importlib.util.spec_from_file_location(f"kd_jax_import_{len(_files)}", path)
    assert spec is not None
    assert spec.loader is not None
    _importing = True
    try:
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
    except Imported:
        pass
    except Exception as error:
        raise InputError(f"{path} cannot be imported: {type(error).__name__}: {one_line(error)}") from error
    finally:
        _importing = False


def import_again(saved: Sequence[Mapping[str, str]]) -> None:
    """Runs the files that a run remembers, and says where one has changed since.

    Raises:
      InputError: where one is missing.
    """
    for entry in saved:
        path = entry["path"]
        if os.path.realpath(path) in _files:
            continue
        if not os.path.isfile(path):
            if entry["sha256"] in _files.values():  # it was imported from another place
                continue
            raise InputError(f"the run needs {path}, which does not exist; expected it there, or --import=FILE")
        if digest(path) != entry["sha256"]:
            print(f"{path} has changed since the run was made")
        import_file(path)


def end_import() -> None:
    """Ends the import of a file that would train now."""
    if _importing:
        raise Imported
