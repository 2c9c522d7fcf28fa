"""Mirrors of a run in services that track experiments, which the config's section `log` names by their keys.

Which run of a service that is stands in <key>.json in the run's folder, so that it stays the same one after a restart.
What fails in a service is one line, and ends that mirror alone.
"""

import contextlib
import importlib
import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

from kd_jax import remote, runs, terminal
from kd_jax.errors import InputError, one_line
from kd_jax.logging import aim_run, mlflow_run, wandb_run


class Session(Protocol):
    """An open run of a service."""

    note: Mapping[str, str]  # by which it is found again; empty where it cannot be

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        """Adds numbers by name."""

    def write_result(self, result: Mapping[str, Any], numbers: Mapping[str, float]) -> None:
        """Adds what result.json holds, and its numbers of the test set."""

    def add_image(self, name: str, path: str, step: int) -> None:
        """Adds an image's file, behind the run's last step."""

    def close(self, *, failed: bool = False) -> None:
        """Ends it, with all that was written."""


class Service(NamedTuple):
    """What tracks experiments. Its key is the name of its package too."""

    name: str  # for people
    place: str  # what log.KEY names, and the key of that in the note
    check: Callable[[str], None]  # raises InputError for a place to which nothing can be written; writes nothing
    # (the run's folder, the place, the note or {}, the run's config and hash) -> a new run, or the one of the note
    open: Callable[[str, str, Mapping[str, str], Mapping[str, Any]], Session]


SERVICES = {
    "wandb": Service("W&B", "project", wandb_run.check, wandb_run.Session),
    "mlflow": Service("MLflow", "experiment", mlflow_run.check, mlflow_run.Session),
    "aim": Service("Aim", "repo", aim_run.check, aim_run.Session),
}


def wanted(log: Mapping[str, Any]) -> dict[str, str]:
    """{key of a service: its place} that a config's section `log` names."""
    return {key: log[key] for key in SERVICES if log.get(key)}


def check(log: Mapping[str, Any]) -> None:
    """Raises InputError when a run cannot be mirrored as a config's section `log` says. Writes nothing."""
    for key, place in wanted(log).items():
        if not isinstance(place, str) or not place.strip():
            raise InputError(f"log.{key} is {place!r}; expected the {SERVICES[key].place} of {SERVICES[key].name}")
        try:
            importlib.import_module(key)
        except ImportError:
            raise InputError(
                f"log.{key} is {place!r} and {key} is not installed; expected `pip install {key}`, or log.{key} ''"
            ) from None
        SERVICES[key].check(place)


class Mirrors:
    """The runs of services that mirror a run."""

    def __init__(self, folder: str, saved: Mapping[str, Any] | None):
        """Opens those that the config names; `saved`: the run's config and hash, as in config.json, or None."""
        self._open: dict[str, Session] = {}
        for key, place in wanted(saved["config"]["log"]).items() if saved else ():
            try:
                known = _known(folder, key)
                self._open[key] = session = SERVICES[key].open(folder, place, known, saved or {})
                if session.note and known != session.note:
                    runs.write_json(os.path.join(folder, f"{key}.json"), session.note)
            except Exception as error:
                self._end(key, error)

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        self._each(lambda session: session.write(step, numbers))

    def write_result(self, result: Mapping[str, Any], numbers: Mapping[str, float]) -> None:
        self._each(lambda session: session.write_result(result, numbers))

    def close(self, *, failed: bool = False) -> None:
        """`failed`: where the run has stopped before its end; it may go on."""
        self._each(lambda session: session.close(failed=failed))

    def _each(self, call: Callable[[Session], None]) -> None:
        for key, session in tuple(self._open.items()):
            try:
                call(session)
            except Exception as error:  # the service's own, of the network, of a process of it that died
                self._end(key, error)

    def _end(self, key: str, error: Exception) -> None:
        terminal.say(f"{SERVICES[key].name} fails, and the run goes on without it: {one_line(error)}")
        if broken := self._open.pop(key, None):
            with contextlib.suppress(Exception):
                broken.close(failed=True)


def add_image(folder: str, name: str, path: str, step: int) -> None:
    """Adds an image's file to the mirrors of a finished run that ended at `step`; a line says where one fails."""
    folder = remote.local(folder)
    for key, service in SERVICES.items():
        try:
            if not (known := _known(folder, key)):
                continue
            check({key: known[service.place]})
            session = service.open(folder, known[service.place], known, runs.read_json(folder, "config.json"))
            try:
                session.add_image(name, path, step)
            finally:
                session.close()
        except Exception as error:  # see Mirrors
            print(f"{path} does not go to {service.name}: {one_line(error)}", flush=True)


def _known(folder: str, key: str) -> dict[str, str]:
    """The note on the run of a service that mirrors the run in a folder; {} without one."""
    return runs.read_json(folder, f"{key}.json") if os.path.exists(os.path.join(folder, f"{key}.json")) else {}
