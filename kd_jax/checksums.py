"""Checksums of what is written now and read back later, so that a damaged file is noticed."""

import hashlib
import json
import sys
from collections.abc import Mapping
from typing import Any

KEY = "checksum"  # of JSON: the first 16 hexadecimal digits of the SHA-256 of the other keys

_said: set[str] = set()  # folders whose files are known to have none


def add(value: Mapping[str, Any]) -> dict[str, Any]:
    """The same keys, and their checksum as the last."""
    value = {key: x for key, x in value.items() if key != KEY}
    return {**value, KEY: _checksum(json.loads(json.dumps(value)))}


def take(value: dict[str, Any]) -> bool:
    """Takes the checksum out of a parsed `value`; False where it has none. Raises ValueError when it does not match."""
    found = value.pop(KEY, None)
    if found is not None and found != _checksum(value):
        raise ValueError(f"its content does not match its {KEY}, so it is damaged or was edited by hand")
    return found is not None


def say_unchecked(folder: str) -> None:
    """Says once that the files of a folder have no checksums."""
    if folder not in _said:
        _said.add(folder)
        print(f"{folder} was written without checksums, by an older version; it is read unchecked", file=sys.stderr)


def _checksum(value: Mapping[str, Any]) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:16]
