"""Folders in an object store, as gs:// or s3:// names them: each through a copy on this machine's disk.

What reads and writes files does so in the copy (`local`), which is fetched when it is first asked for. Of a folder that
is held, what changes in the copy goes to the store in the background: training never waits for the store, and goes on
while that cannot be reached. A lease in the store keeps a second process out; it ends where its holder is killed.
"""

import atexit
import contextlib
import functools
import json
import logging
import os
import shutil
import socket
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from kd_jax import stopping, terminal
from kd_jax.errors import InputError, TrainingError, one_line

LEASE, RENEW = 60.0, 15.0  # seconds after which a lease has ended that is not renewed, and between two renewals
EVERY = 20.0  # seconds between two looks at what has changed
PATIENCE = 600.0  # seconds that a run's end waits for a store that cannot be reached
THREADS = 8  # that fetch
LEASE_FILE = ".lease"
# What is fetched only where it is asked for itself: a report needs no checkpoint.
APART = {"checkpoints", "recordings", "views", "evaluations"}
RECORD = "checkpoint.json"  # without which there is no whole checkpoint
LAST = (RECORD, "result.json")  # written behind everything that they speak of, and removed before
LOGGERS = ("gcsfs", "s3fs", "fsspec", "aiobotocore", "botocore")  # which tell of every attempt
PACKAGES = {"gs": "gs", "gcs": "gs", "s3": "s3", "s3a": "s3"}  # {protocol: the extra that has its package}

_lock = threading.RLock()
_fetched: set[str] = set()
_held: dict[str, "_Held"] = {}


def is_remote(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder lies in an object store; what the web has is none.

    Raises:
      InputError: for what `pathlib.Path` makes of a URL, which would be a folder here.
    """
    path = os.fspath(folder)
    protocol, colon, rest = path.partition(":/")
    if colon and protocol in PACKAGES and not rest.startswith("/"):
        raise InputError(f"{path!r} has lost a slash, as by pathlib.Path; expected the text '{protocol}://{rest}'")
    return "://" in path and not path.startswith("http")


def absolute(folder: str) -> str:
    """The absolute path of a folder, of one in an object store its own."""
    return folder if is_remote(folder) else os.path.abspath(folder)


def normal(folder: str) -> str:
    """A folder as people would write it: without `..`, and a slash that means nothing."""
    if not is_remote(folder):
        return os.path.normpath(folder)
    protocol, _, path = folder.partition("://")
    slash = "/" if path.startswith("/") else ""
    return f"{protocol}://{slash}{os.path.normpath('/' + path.lstrip('/'))[1:]}"


def local(path: str) -> str:
    """Where a folder's copy lies, which is fetched unless it is there; of a folder of this machine, itself.

    Raises:
      InputError: the store cannot be read.
    """
    if not is_remote(path):
        return path
    url = normal(path)
    with _lock:
        if not any(_covers(known, url) for known in _fetched | _held.keys()):
            _fetch(url, whole=False)
            _fetched.add(url)
    return _place(url)


def _covers(known: str, url: str) -> bool:
    """Whether a folder came with one that was fetched."""
    below = url.removeprefix(known)
    return not below or (below.startswith("/") and (known in _held or not APART & {*below.split("/")}))


@contextlib.contextmanager
def held(url: str, *, wait: bool) -> Iterator[None]:
    """Holds a folder of a store: its copy is what the store has now, and the store has what the copy has in the end.

    Args:
      url: of the folder.
      wait: for a process that holds it.
    Raises:
      InputError: the folder is in use, or cannot be read or written. TrainingError: another process took the lease, or
        the store could not be reached for `PATIENCE` seconds; the copy then stays.
    """
    url = normal(url)
    with _lease(url, wait) as lease:
        if any(_covers(known, url) for known in _held):  # with which it goes to the store
            os.makedirs(_place(url), exist_ok=True)
            yield
            return
        with _lock:
            shutil.rmtree(_place(url), ignore_errors=True)
            parts = _fetch(url, whole=True)
            os.makedirs(_place(url), exist_ok=True)
            folder = _held[url] = _Held(url, lease, parts)
        try:
            with _repeated(EVERY, folder.write):
                yield
        finally:
            try:
                folder.finish()
            finally:
                with _lock:
                    _held.pop(url, None)
                    _fetched.add(url)


def changed(path: str) -> None:
    """Sends a file to its store that was written into a copy, or removed there, unless its folder is held.

    Raises:
      InputError: the store cannot be written.
    """
    if not is_remote(path) or any(_covers(known, normal(path)) for known in _held):
        return
    path = normal(path)
    with _told(path, "written"):
        system, name = _system(path)
        if os.path.exists(_place(path)):
            system.pipe_file(name, _content(_place(path)))
        else:
            with contextlib.suppress(FileNotFoundError):
                system.rm_file(name)


class _Held:
    """A folder whose copy goes to the store."""

    def __init__(self, url: str, lease: "_Lease", parts: set[str]):
        """`parts`: files in the store that are removed."""
        self._url, self._lease = url, lease
        self._known: dict[str, Any] = dict.fromkeys(parts)  # what the store has
        self._known |= {name: _stamp(self._path(name)) for name in _names(_place(url))}
        self._writing = threading.Lock()
        self._error = ""

    def _path(self, name: str) -> str:
        return os.path.join(_place(self._url), name)

    def write(self) -> bool:
        """Writes what has changed; whether all is written. A line says where the store cannot be reached."""
        with self._writing:
            self._lease.renew()  # it may have ended while the store could not be reached, or this process did not run
            if self._lease.lost:
                return True
            try:
                self._write()
            except Exception as error:  # each store has its own
                if not self._error:
                    terminal.say(
                        f"{self._url} cannot be written: {one_line(error, 120)}; the run goes on, and what it writes"
                        f" waits in {_place(self._url)}"
                    )
                self._error = one_line(error, 120)
                return False
            if self._error:
                terminal.say(f"{self._url} can be written again, and has everything")
            self._error = ""
            return True

    def _write(self) -> None:
        system, root = _system(self._url)
        names = _names(_place(self._url))
        for name in sorted(names, key=_rank):
            if self._lease.lost:
                return
            try:
                stamp = _stamp(self._path(name))  # now: whatever a checkpoint counts on was written before it was found
                if stamp == self._known.get(name):
                    continue
                content = _content(self._path(name))
            except FileNotFoundError:  # superseded in the meantime
                continue
            system.pipe_file(f"{root}/{name}", content)
            self._known[name] = stamp
        for name in sorted(filter(self._is_superseded, self._known.keys() - names), key=_rank, reverse=True):
            with contextlib.suppress(FileNotFoundError):
                system.rm_file(f"{root}/{name}")
            del self._known[name]

    def _is_superseded(self, name: str) -> bool:
        """Whether a file that is gone was of a checkpoint. Others stay: whoever clears temporary files takes them."""
        folder = os.path.dirname(name)
        return "checkpoints" in folder.split("/") and not os.path.exists(self._path(folder))

    def finish(self) -> None:
        """Writes what is left, and waits for the store where it cannot be reached, or until that is asked to stop."""
        with stopping.listening() as request, request.deferred():
            begin, before = time.monotonic(), bool(request)
            while not self.write():
                _copies().stay()
                waited = time.monotonic() - begin
                if waited > PATIENCE or (request and not before):
                    raise TrainingError(
                        f"{self._url} could not be written for {waited:.0f} s: {self._error}; what the run wrote stays"
                        f" in {_place(self._url)}, from where it can be copied there"
                    )
                time.sleep(min(RENEW, PATIENCE) / 3)
        if self._lease.lost:
            _copies().stay()
            raise TrainingError(
                f"another process has taken {self._url}, or removed it; what this one wrote stays in"
                f" {_place(self._url)}"
            )


class _Lease:
    """A file of a store that says who holds its folder, renewed as long as that process lives."""

    def __init__(self, url: str):
        self._system, root = _system(url)
        self._path, self._own = f"{root}/{LEASE_FILE}", uuid.uuid4().hex
        self._url, self.lost, self._renewing = url, False, threading.Lock()

    def _text(self) -> bytes:
        said = {"holder": self._own, "host": socket.gethostname(), "pid": os.getpid(), "renewed": time.time()}
        return json.dumps(said).encode()

    def _there(self) -> bytes | None:
        try:
            return self._system.cat_file(self._path)
        except FileNotFoundError:
            return None

    def take(self, wait: bool) -> None:
        """Takes it once nobody holds it, or who held it has not renewed it for `LEASE` seconds while it was watched."""
        seen, since = None, 0.0
        while (there := self._there()) is not None:
            if there != seen:
                if seen is not None and not wait:
                    raise InputError(
                        f"the work directory {self._url!r} is in use by another process; expected a free one"
                    )
                if seen is None:
                    print(f"{self._url} is held by another process, or was by one that is gone: waiting", flush=True)
                seen, since = there, time.monotonic()
            elif time.monotonic() - since > LEASE:
                self.release()
                break
            time.sleep(RENEW / 3)
        try:
            self._system.pipe_file(self._path, self._text(), mode="create")
        except FileExistsError:  # another process was faster
            return self.take(wait)
        except (NotImplementedError, TypeError, ValueError):  # a store without conditional writes
            self._system.pipe_file(self._path, self._text())

    def renew(self) -> None:
        """Renews it; where another process has it, or has had it, asks this one to stop."""
        with self._renewing, contextlib.suppress(Exception):  # said where files are written
            if self.lost:
                return
            there = self._there()
            if there is not None and self._own.encode() in there:
                self._system.pipe_file(self._path, self._text())
            else:
                self.lost = True
                stopping.ask()

    def release(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._system.rm_file(self._path)


@contextlib.contextmanager
def _lease(url: str, wait: bool) -> Iterator[_Lease]:
    with _told(url, "written"):
        lease = _Lease(url)
        lease.take(wait)
    try:
        with _repeated(RENEW, lease.renew):
            yield lease
    finally:
        with contextlib.suppress(Exception):  # then it ends by itself
            if not lease.lost:
                lease.release()


@contextlib.contextmanager
def _repeated(seconds: float, work: Callable[[], Any]) -> Iterator[None]:
    """Calls a function every so many seconds while what runs inside does."""
    end = threading.Event()
    thread = threading.Thread(target=_repeat, args=(seconds, work, end), daemon=True)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join()


def _repeat(seconds: float, work: Callable[[], Any], end: threading.Event) -> None:
    while not end.wait(seconds):
        work()


class _Copies:
    """Where the copies of this process lie, until it ends."""

    def __init__(self) -> None:
        self.folder = tempfile.mkdtemp(prefix="kd_jax-")
        self._ends = contextlib.ExitStack()
        self._ends.enter_context(stopping.unfinished(self.folder))
        atexit.register(self._remove)

    def stay(self) -> None:
        """They hold what the store does not have."""
        self._ends.close()
        atexit.unregister(self._remove)

    def _remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


_copies = functools.cache(_Copies)


def _place(url: str) -> str:
    protocol, _, path = url.partition("://")
    return os.path.join(_copies().folder, protocol, path.strip("/"))


def _system(url: str) -> tuple[Any, str]:
    """The file system of a store, and the path in it.

    Raises:
      InputError: the protocol is not known, or its package is not installed.
    """
    import fsspec  # slow to import

    protocol, _, path = url.partition("://")
    if not path.strip("/"):
        raise InputError(f"{url!r} names no folder; expected {protocol}://BUCKET/FOLDER")
    for name in LOGGERS:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        folders = {"auto_mkdir": True} if protocol == "file" else {}  # which object stores do not have
        system = fsspec.filesystem(protocol, use_listings_cache=False, **folders)
    except ImportError as error:
        extra = PACKAGES.get(protocol)
        how = f'pip install "kd_jax[{extra}]"' if extra else one_line(error)
        raise InputError(f"{url!r} needs a package that is not installed; expected {how}") from None
    except ValueError:
        raise InputError(f"{url!r} is of no object store that is known; expected gs://, s3://, or a folder") from None
    return system, system._strip_protocol(url).rstrip("/")


def _fetch(url: str, *, whole: bool) -> set[str]:
    """Fetches the files of a folder into its copy; `whole`: with what else is fetched `APART`.

    Returns:
      The files that are left out as parts of a checkpoint that was not written, or not removed, to its end.
    """
    with _told(url, "read"):
        with contextlib.suppress(FileNotFoundError):  # of a run that goes on: a checkpoint was superseded
            return _fetched_now(url, whole)
        return _fetched_now(url, whole)


def _fetched_now(url: str, whole: bool) -> set[str]:
    system, root = _system(url)
    system.invalidate_cache()
    found = [path.removeprefix(f"{root}/") for path in system.find(root) if path.startswith(f"{root}/")]
    found = [name for name in found if not {"", ".", ".."} & {*name.split("/")}]  # that lie outside of the copy
    steps = {name.removesuffix(f"/{RECORD}") for name in found if name.endswith(f"/{RECORD}")}
    parts = {name for name in found if _is_part(url, name, steps)}
    names = [name for name in found if name not in parts and _is_wanted(name, whole)]
    place = _place(url)
    for folder in {os.path.dirname(os.path.join(place, name)) for name in names}:
        os.makedirs(folder, exist_ok=True)
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(lambda name: system.get_file(f"{root}/{name}", os.path.join(place, name)), names))
    return parts


def _is_part(url: str, name: str, steps: set[str]) -> bool:
    """Whether a file is of a checkpoint without a record; `steps`: the folders of those that have one."""
    folders = name.split("/")[:-1]
    above = [os.path.basename(url), *folders]
    return any(
        folder.isdecimal() and above[index] == "checkpoints" and "/".join(folders[: index + 1]) not in steps
        for index, folder in enumerate(folders)
    )


def _is_wanted(name: str, whole: bool) -> bool:
    *folders, base = name.split("/")
    return not base.startswith(".") and (whole or not APART & {*folders})


def _names(folder: str) -> set[str]:
    """The files of a folder that go to its store: none that is not finished, or hidden."""
    found = set()
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        kept = [name for name in files if not name.startswith(".") and not name.endswith(".tmp")]
        found |= {os.path.relpath(os.path.join(place, name), folder) for name in kept}
    return found


def _rank(name: str) -> tuple[int, str]:
    base = os.path.basename(name)
    return (1 + LAST.index(base) if base in LAST else 0), name


def _stamp(path: str) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_mtime_ns, status.st_size


def _content(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


@contextlib.contextmanager
def _told(url: str, what: str) -> Iterator[None]:
    """What a store raises, as an InputError."""
    try:
        yield
    except (InputError, TrainingError):
        raise
    except Exception as error:  # each store has its own
        raise InputError(f"{url!r} cannot be {what}: {one_line(error, 160)}") from error
