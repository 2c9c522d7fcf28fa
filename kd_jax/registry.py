"""What a user's own files add to the library, and which file added it, so that a later command can add it again."""

import functools
import hashlib
import importlib.util
import inspect
import os
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from kd_jax.errors import InputError, one_line

PACKAGE = Path(__file__).parent
STDLIB = os.path.realpath(sysconfig.get_path("stdlib"))
NO_FILE = ""  # the path of what a notebook or the prompt registered

_files: dict[str, str] = {}  # real path of a file that registered something -> SHA-256 of it then
_origins: dict[tuple[int, str], str] = {}  # (table, name) -> the file that added it
_given: set[str] = set()  # files that were named to be imported
_importing = False


class Imported(BaseException):
    """Ends the import of a file at the point where it would train: all that it registers before stands."""


def add(table: MutableMapping[str, Any], name: str, value: Any) -> None:
    """Adds an entry to a table of the library, or replaces it, and remembers the file that does so."""
    table[name] = value
    path = _registering_file()
    _origins[id(table), name] = path
    if path != NO_FILE:
        _files[path] = digest(path)


def place(error: BaseException) -> str:
    """FILE:LINE of the innermost of a user's own lines that an error has passed since it was raised; "" without any."""
    frames = reversed(traceback.extract_tb(error.__traceback__))
    return next((f"{_shown(frame.filename)}:{frame.lineno}" for frame in frames if _is_own(frame.filename)), "")


def defined(function: Callable[..., Any]) -> str:
    """FILE:LINE of a user's own function, or what a class does when it is called; "" for what is not."""
    while isinstance(function, functools.partial):
        function = function.func
    if not inspect.isroutine(function):
        function = (function if inspect.isclass(function) else type(function)).__call__
    function = inspect.unwrap(function)  # Flax wraps what a module does
    try:
        path, line = inspect.getsourcefile(function) or "", inspect.getsourcelines(function)[1]
    except (OSError, TypeError):  # of what was typed at the prompt, or is written in C
        return ""
    return f"{_shown(path)}:{line}" if _is_own(path) else ""


def _shown(path: str) -> str:
    """A path for people: that of a notebook's cell, which IPython makes up, is In[NUMBER]."""
    ipython = sys.modules.get("IPython")
    shell: Any = ipython.get_ipython() if ipython else None
    found = shell.compile.format_code_name(path) if hasattr(shell, "compile") else None
    return found[1] if found else path


def _is_own(path: str) -> bool:
    return not (path.startswith("<frozen") or _is_installed(path) or Path(path).resolve().is_relative_to(PACKAGE))


def _registering_file() -> str:
    """The file that registers again when it is imported again.

    That is the one whose own lines, outside of any function, call what registers. Where these belong to something that
    is installed, as a test runner is, it is the file that calls this library.
    """
    outside = (frame for frame in inspect.stack(0) if not Path(frame.filename).resolve().is_relative_to(PACKAGE))
    caller = next(outside)
    if _is_top_level(caller):
        return _real_path(caller)
    paths = (_real_path(frame) for frame in outside if _is_top_level(frame))
    return next((path for path in paths if path != NO_FILE and not _is_installed(path)), _real_path(caller))


def _is_top_level(frame: inspect.FrameInfo) -> bool:
    return frame.frame.f_locals is frame.frame.f_globals  # a cell of a notebook is not called <module>


def _is_installed(path: str) -> bool:
    return bool({"site-packages", "dist-packages"} & {*Path(path).parts}) or Path(path).is_relative_to(STDLIB)


def _real_path(frame: inspect.FrameInfo) -> str:
    path = os.path.realpath(frame.frame.f_globals.get("__file__") or frame.filename)
    return path if os.path.isfile(path) and path.endswith(".py") else NO_FILE


def files_of(used: Iterable[tuple[Mapping[str, Any], str]]) -> list[dict[str, str]]:
    """The files that added some entries, given as (table, name), each with the hash that it had then."""
    paths = dict.fromkeys(_origins[id(table), name] for table, name in used if (id(table), name) in _origins)
    return [{"path": path, "sha256": _files.get(path, "")} for path in paths]


def digest(path: str | os.PathLike[str]) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def import_file(path: str | os.PathLike[str]) -> None:
    """Runs a Python file for what it registers. A call of `kd_jax.train` in it ends it there, and `sys.exit` too.

    Raises:
      InputError: where it is missing, or raises.
    """
    path = os.path.realpath(path)
    if not os.path.isfile(path):
        raise InputError(f"{path} does not exist; expected the Python file that registers, see --import")
    _given.add(path)
    _run(path)


def _run(path: str) -> None:
    global _importing
    if path in _files:
        return
    module, outer = _module(path), _importing
    _importing = True
    try:
        assert module.__spec__ is not None
        assert module.__spec__.loader is not None
        module.__spec__.loader.exec_module(module)
    except (Imported, SystemExit):
        pass
    except Exception as error:
        raise InputError(f"{path} cannot be imported: {type(error).__name__}: {one_line(error)}") from error
    finally:
        _importing = outer


def _module(path: str) -> ModuleType:
    """The module of a file, not yet run, which finds the files beside it as a script does, and its package."""
    folder, name = Path(path).parent, f"kd_jax_import_{len(sys.modules)}"
    if (folder / "__init__.py").is_file():
        name = Path(path).stem
        while (folder / "__init__.py").is_file():
            folder, name = folder.parent, f"{folder.name}.{name}"
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    sys.modules[name] = importlib.util.module_from_spec(spec)  # where dataclasses look for the types that they name
    return sys.modules[name]


def import_again(saved: Sequence[Mapping[str, str]]) -> None:
    """Runs the files that a run remembers, and says where one has changed since.

    Raises:
      InputError: where one is missing, or registers nothing.
    """
    for entry in saved:
        path = entry["path"]
        if path == NO_FILE:
            if not _files and NO_FILE not in _origins.values():
                raise InputError(
                    "the run needs what a notebook or the prompt registered; expected --import=FILE, with a Python"
                    " file that registers the same"
                )
            continue
        if os.path.realpath(path) in _files:
            continue
        if not os.path.isfile(path):
            if entry["sha256"] in _files.values():  # it was imported from another place
                continue
            if _given:
                print(f"{path} does not exist; {', '.join(sorted(_given))} is used, which differs", file=sys.stderr)
                continue
            raise InputError(f"the run needs {path}, which does not exist; expected it there, or --import=FILE")
        if digest(path) != entry["sha256"]:
            print(f"{path} has changed since the run was made", file=sys.stderr)
        _run(os.path.realpath(path))
        if os.path.realpath(path) not in _files:
            raise InputError(
                f"the run needs {path}, which registers nothing when it is imported; expected that it registers"
                " outside of `if __name__ == '__main__'`, and before it calls kd_jax.train or sys.exit"
            )


def end_import() -> None:
    """Ends the import of a file that would train now."""
    if _importing:
        raise Imported
