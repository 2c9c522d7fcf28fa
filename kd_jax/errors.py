"""What may go wrong, in one line each: the value, what was expected, the valid choices."""

import difflib
import inspect
from collections.abc import Collection, Iterable, Mapping
from typing import Any

TOLD = "another process says so"  # the note of an error that is said already


class InputError(ValueError):
    """The user's input is wrong. The message is one line: the value, what was expected, the valid choices."""

    def _render_traceback_(self) -> list[str]:
        """What a notebook shows, where the lines that found the mistake say nothing of it."""
        return [f"error: {self}"]


class TrainingError(RuntimeError):
    """A run cannot go on, though its input was valid, for example because the loss is not finite."""


class Preempted(BaseException):
    """The process was asked to stop (SIGTERM); what there was to save is saved. Like KeyboardInterrupt no Exception."""


def choose(what: str, value: Any, choices: Collection[Any]) -> Any:
    """Returns `choices[value]` of a mapping, or `value` itself of any other collection; raises InputError otherwise."""
    try:
        known = value in choices
    except TypeError:  # a list, say
        known = False
    if not known:
        names = sorted(map(str, choices))
        near = difflib.get_close_matches(shown(value).strip("'"), names, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise InputError(f"{what} is {shown(value)}; expected one of: {', '.join(names)}{hint}")
    return choices[value] if isinstance(choices, Mapping) else value


def check_callable(what: str, value: Any) -> Mapping[str, inspect.Parameter]:
    """The parameters of a function or class; raises InputError for anything else."""
    if not callable(value):
        raise InputError(f"{what} is of type {type(value).__name__}; expected a function, or a class")
    try:
        return inspect.signature(value).parameters
    except ValueError as error:  # of one that is written in C
        raise InputError(
            f"{what} is {value!r}, whose parameters cannot be read; expected a function around it"
        ) from error


def shown(value: Any, length: int = 100) -> str:
    """A value in a message: as Python writes it, and cut where it is long."""
    try:
        text = " ".join(repr(value).split())
    except (ValueError, RecursionError):  # a number of thousands of digits, say
        text = f"a {type(value).__name__} that is too long to show"
    return text if len(text) <= length else f"{text[: length - 3]}..."


def one_line(error: BaseException, length: int | None = None) -> str:
    """What an error says, on one line and cut to `length` characters; its type where it says nothing."""
    text = getattr(error, "strerror", None) or (error.args[0] if isinstance(error, KeyError) and error.args else error)
    return " ".join(str(text).split())[:length] or type(error).__name__


def first_few(items: Iterable[str], count: int = 5) -> str:
    """The first items of a list that may be long, and how many more there are."""
    items = list(items)
    return ", ".join(items[:count]) + (f" and {len(items) - count} more" if len(items) > count else "")
