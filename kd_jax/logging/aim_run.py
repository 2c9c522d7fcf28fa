"""A run of Aim that mirrors a run, see `mirrors`. The only importer of aim."""

import logging
import os
from collections.abc import Mapping
from typing import Any

from kd_jax.errors import InputError


def check(repo: str) -> None:
    """Raises InputError for a place where there can be no repository of Aim."""
    place = _place(repo)
    if "://" not in place and not os.path.isdir(place):
        raise InputError(f"log.aim is {repo!r}; expected a folder that is there, or aim://HOST:PORT")


class Session:
    """A `mirrors.Session`: the Aim run of the note where it is there, or a new one."""

    def __init__(self, folder: str, repo: str, known: Mapping[str, str], saved: Mapping[str, Any]):
        import aim
        from aim.sdk.errors import MissingRunError

        # It warns of every run that goes on. What the run's own lock keeps away are other processes that write.
        logging.getLogger("aim.sdk.lock_manager").setLevel(logging.ERROR)
        place, name = _place(repo), saved["config"]["name"]
        settings = {"repo": place, "system_tracking_interval": None, "capture_terminal_logs": False}
        try:
            before = known["id"] if known.get("repo") == place else None
            self._run = aim.Run(before, experiment=name, force_resume=before is not None, **settings)
        except MissingRunError:
            self._run = aim.Run(experiment=name, **settings)
        self.note: Mapping[str, str] = {"repo": place, "id": self._run.hash}
        self._run["hash"], self._run["config"] = saved["hash"], dict(saved["config"])

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        for name, value in numbers.items():
            self._run.track(value, name=name, step=step)

    def write_result(self, result: Mapping[str, Any], numbers: Mapping[str, float]) -> None:
        self._run["result"] = dict(result)
        self.write(result["checkpoint"], numbers)

    def add_image(self, name: str, path: str, step: int) -> None:
        import aim

        self._run.track(aim.Image(path), name=name, step=step)

    def close(self, *, failed: bool = False) -> None:
        self._run.close()


def _place(repo: str) -> str:
    return repo if "://" in repo else os.path.abspath(os.path.expanduser(repo))
