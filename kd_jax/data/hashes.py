"""SHA-256 of many files, remembered between processes."""

import contextlib
import functools
import hashlib
import json
import os
import stat
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

FRESH = 2e9  # nanoseconds; a file that changed so lately may change again without a new time
GONE = "unreadable"  # of what is no regular file, or cannot be read

Known = dict[str, list]  # {name: [size, mtime, ctime, SHA-256]}, times in nanoseconds


def of_files(root: Path, names: Sequence[str]) -> list[str]:
    """The SHA-256 of each file of a folder, hexadecimal.

    A file whose size and times are those of the last time is not read again; ~/.cache/kd_jax/hashes remembers them.
    On two cores 60,000 files of 2 KB take 4 seconds the first time and one after that, large files as long as the disk
    takes to read them.

    Args:
      root: the folder.
      names: of the files, relative to it.
    """
    memory = Path(os.path.expanduser("~"), ".cache", "kd_jax", "hashes", _sha256(os.fsencode(root.resolve())) + ".json")
    known = _load(memory)
    now = time.time_ns()

    def look(name: str) -> tuple[str, list]:
        path = os.path.join(root, name)
        try:
            status = os.stat(path)
            if not stat.S_ISREG(status.st_mode):
                return name, [0, 0, 0, GONE]
            stamp = [status.st_size, status.st_mtime_ns, status.st_ctime_ns]  # the ctime cannot be set back
            if (before := known.get(name)) and before[:3] == stamp:
                return name, before
            with open(path, "rb") as file:
                return name, [*stamp, hashlib.file_digest(file, "sha256").hexdigest()]
        except OSError:
            return name, [0, 0, 0, GONE]

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        blocks = [names[start : start + 256] for start in range(0, len(names), 256)]
        found = dict(pair for block in pool.map(lambda block: [look(name) for name in block], blocks) for pair in block)
    lasting = {
        name: entry for name, entry in found.items() if entry[3] != GONE and now - max(entry[1], entry[2]) > FRESH
    }
    if lasting != known:
        known.clear()
        known.update(lasting)
        _save(memory, known)
    return [found[name][3] for name in names]


@functools.lru_cache(maxsize=4)
def _load(memory: Path) -> Known:
    """What a file remembers, which is shared by all calls; nothing where it is missing or not what was written."""
    with contextlib.suppress(OSError, ValueError):
        checksum, _, text = memory.read_bytes().partition(b"\n")
        if checksum.decode() == _sha256(text):
            return json.loads(text)
    return {}


def _save(memory: Path, known: Mapping[str, list]) -> None:
    """Remembers, or does not where the folder cannot be written: then the files are read again."""
    text = json.dumps(known).encode()
    own = memory.with_suffix(f".{os.getpid()}")
    with contextlib.suppress(OSError):
        memory.parent.mkdir(parents=True, exist_ok=True)
        own.write_bytes(_sha256(text).encode() + b"\n" + text)
        own.replace(memory)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
