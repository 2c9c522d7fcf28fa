"""Mirrors a run to Weights & Biases, where the config's log.wandb names a project. The only importer of wandb.

Which W&B run that is stands in wandb.json in the run's folder, so that it stays the same one after a restart.
"""

import contextlib
import os
import secrets
from collections.abc import Iterator, Mapping
from typing import Any

from kd_jax import remote, runs
from kd_jax.errors import InputError, choose, one_line

FILE = "wandb.json"
OFFLINE = ("offline", "dryrun", "disabled")  # modes of W&B that need no login
MODES = ("online", "run", *OFFLINE)  # not "shared", which drops the steps that numbers are written at


def check(project: str) -> None:
    """Raises InputError when a run cannot be mirrored to a project of W&B. Writes nothing."""
    if not isinstance(project, str) or not project.strip() or len(project) > 128 or set(project) & set("/\\#?%:"):
        raise InputError(
            f"log.wandb is {project!r}; expected a project of W&B: up to 128 characters, not all blank, without"
            " / \\ # ? % :"
        )
    choose("WANDB_MODE", os.environ.get("WANDB_MODE", "online"), MODES)
    try:
        import wandb
    except ImportError:
        raise InputError(
            f"log.wandb is {project!r} and wandb is not installed; expected `pip install wandb`, or log.wandb ''"
        ) from None
    try:
        mode = wandb.setup().settings.mode
    except Exception as error:  # of pydantic, which wandb brings along: other variables WANDB_* are wrong
        raise InputError(f"log.wandb is {project!r} and W&B refuses its settings: {one_line(error)}") from None
    if mode in OFFLINE:
        return
    try:
        logged_in = wandb.login(prompt=False)
    except Exception as error:  # wandb's own, or of the network
        raise InputError(f"log.wandb is {project!r} and W&B refuses the login: {one_line(error)}") from None
    if not logged_in:
        raise InputError(
            f"log.wandb is {project!r} and nobody is logged in; see `wandb login`, or set WANDB_MODE=offline"
        )


class Mirror:
    """The W&B run that mirrors a run, if it is mirrored. What fails there is one line, and ends the mirror alone."""

    def __init__(self, folder: str, saved: Mapping[str, Any] | None):
        """Opens the W&B run of log.wandb; `saved`: the run's config and hash, as in config.json."""
        self._run: Any = None
        project = saved["config"]["log"]["wandb"] if saved else ""
        if not saved or not project:
            return
        with self._guarded():
            known = _known(folder)
            wanted = {"project": project, "id": known.get("id") or secrets.token_hex(8)}
            self._run = _open(folder, wanted, saved)
            if not self._run.disabled and known != wanted:
                runs.write_json(os.path.join(folder, FILE), wanted)

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        with self._guarded():
            if self._run:
                self._run.log(numbers, step=step)

    def write_result(self, result: Mapping[str, Any]) -> None:
        with self._guarded():
            if self._run:
                self._run.summary.update({"result": result})

    def close(self) -> None:
        with self._guarded():
            if self._run:
                self._run.finish()

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # wandb's own, of the network, of wandb's process that died
            print(f"W&B fails, and the run goes on without it: {one_line(error)}", flush=True)
            broken, self._run = self._run, None
            if broken:
                with contextlib.suppress(Exception):
                    broken.finish(exit_code=1)


def add_image(folder: str, name: str, path: str, step: int) -> None:
    """Adds an image's file to the W&B run of a finished run that has one; where that fails, prints a line.

    It stands behind `step`, the run's last: W&B drops what is not, and an offline run starts at step 0 again.
    """
    try:
        folder = remote.local(folder)
        known = _known(folder)
        if not known:
            return
        check(known["project"])
        import wandb

        run = _open(folder, known, runs.read_json(folder, "config.json"))
        try:
            run.log({name: wandb.Image(path)}, step=max(step + 1, run.starting_step))
        finally:
            run.finish()
    except Exception as error:  # see Mirror
        print(f"{path} does not go to W&B: {one_line(error)}", flush=True)


def _known(folder: str) -> dict[str, str]:
    """The "project" and "id" of the W&B run that mirrors the run in a folder; {} without one."""
    return runs.read_json(folder, FILE) if os.path.exists(os.path.join(folder, FILE)) else {}


def _open(folder: str, known: Mapping[str, str], saved: Mapping[str, Any]) -> Any:
    import wandb

    return wandb.init(
        project=known["project"],
        name=saved["config"]["name"],
        id=known["id"],
        resume="allow",
        reinit="create_new",  # not the run of a teacher, or of the caller, that is still open
        dir=folder,
        config={"hash": saved["hash"], **saved["config"]},
        settings=wandb.Settings(
            console="off",  # the progress line is for the terminal
            quiet=True,  # where the W&B run is, not its history and summary once more
            finish_timeout=300,  # seconds for what is not uploaded yet; `wandb sync` uploads the rest
        ),
    )
