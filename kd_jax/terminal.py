"""What a terminal shows: a line that is overwritten, its width, the width of a text, a little color."""

import os
import textwrap
import unicodedata
from typing import Any

STYLES = {"bold": 1, "dim": 2, "red": 31, "green": 32, "yellow": 33}  # codes of ECMA-48


def is_terminal(stream: Any) -> bool:
    """Whether what is written to a stream can be overwritten, as on a terminal that is not "dumb"."""
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def style(text: str, name: str, stream: Any) -> str:
    """The text in one of STYLES, where the stream shows it and NO_COLOR is not set (see no-color.org)."""
    if not is_terminal(stream) or os.environ.get("NO_COLOR"):
        return text
    return f"\033[{STYLES[name]}m{text}\033[0m"


_overwritten: Any = None  # the terminal on which a line stands that will be overwritten


def overwrite(text: str, stream: Any) -> None:
    """Writes a line that the next one, or `say`, overwrites; "" leaves none."""
    global _overwritten
    print(f"\r\033[K{text}", end="", file=stream, flush=True)
    _overwritten = stream if text else None


def leave() -> None:
    """What comes next comes below the line that was to be overwritten, if there is one."""
    global _overwritten
    if _overwritten is not None:
        print(file=_overwritten, flush=True)
    _overwritten = None


def say(text: str, stream: Any = None) -> None:
    """Prints a line while others run, in the place of one that is overwritten, not behind it."""
    if _overwritten is not None:
        overwrite("", _overwritten)
    print(text, file=stream, flush=True)


def width(stream: Any) -> int:
    """Columns of a terminal as it is now: of the variable COLUMNS, or of the stream; 80 where neither says."""
    columns = os.environ.get("COLUMNS", "")
    if columns.isdecimal() and int(columns):
        return int(columns)
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80
    except (OSError, ValueError):  # it is none, or has no number, or is closed
        return 80


def fold(text: str, stream: Any) -> str:
    """A line of whole words, where the stream is a terminal as several that fit, the later ones indented."""
    if not is_terminal(stream):
        return text
    indent = "    " + " " * (len(text) - len(text.lstrip()))
    return textwrap.fill(text, width(stream), subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def columns(text: str) -> int:
    """How many columns a text takes: two for a wide character, none for one that is drawn onto another.

    >>> columns("abc"), columns("猫"), columns("e" + chr(0x301))
    (3, 2, 1)
    """
    return sum(map(_columns_of, text))


def _columns_of(character: str) -> int:
    if unicodedata.category(character) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def cut(text: str, most: int) -> str:
    """The text, where it takes more than so many columns only its start, with an ellipsis.

    >>> cut("loss 0.5", 8), cut("loss 0.51", 8), cut("a 猫猫猫", 7)
    ('loss 0.5', 'loss ...', 'a 猫...')
    """
    if columns(text) <= most:
        return text
    dots = "..."[: max(most, 0)]
    while text and columns(text) + len(dots) > most:
        text = text[:-1]
    return text + dots
