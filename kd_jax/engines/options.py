"""The options of an engine, from --engine_options."""

from collections.abc import Iterable, Mapping
from typing import Any

from kd_jax import cli
from kd_jax.errors import InputError, choose
from kd_jax.keys import Kind


def read(pairs: Iterable[str]) -> dict[str, Any]:
    """{key: value} of KEY=VALUE; raises InputError for anything else.

    >>> read(["partition=gpu", "gpus_per_node=1"])
    {'partition': 'gpu', 'gpus_per_node': 1}
    """
    options = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not key or not equals:
            raise InputError(f"--engine_options has {pair!r}; expected KEY=VALUE,KEY=VALUE, as in partition=gpu")
        options[key] = cli.parsed(value)
    return options


def check(options: Mapping[str, Any], known: Mapping[str, Kind]) -> None:
    """Raises InputError for an option that an engine does not have, or whose value cannot be."""
    for key, value in options.items():
        if not known:
            raise InputError(f"--engine_options has {key}; expected none, as --on=local takes no options")
        choose("a key of --engine_options", key, known).check(f"{key} of --engine_options", value)
