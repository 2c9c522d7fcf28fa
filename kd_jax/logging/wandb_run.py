"""A run of Weights & Biases that mirrors a run, see `mirrors`. The only importer of wandb."""

import os
import secrets
from collections.abc import Mapping
from typing import Any

from kd_jax.errors import InputError, choose, one_line

OFFLINE = ("offline", "dryrun", "disabled")  # modes of W&B that need no login
MODES = ("online", "run", *OFFLINE)  # not "shared", which drops the steps that numbers are written at


def check(project: str) -> None:
    """Raises InputError when a run cannot be mirrored to a project of W&B. Writes nothing."""
    import wandb

    if len(project) > 128 or set(project) & set("/\\#?%:"):
        raise InputError(
            f"log.wandb is {project!r}; expected a project of W&B: up to 128 characters, not all blank, without"
            " / \\ # ? % :"
        )
    choose("WANDB_MODE", os.environ.get("WANDB_MODE", "online"), MODES)
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


class Session:
    """A `mirrors.Session`: the W&B run of the note, also in another project, or a new one."""

    def __init__(self, folder: str, project: str, known: Mapping[str, str], saved: Mapping[str, Any]):
        import wandb

        identity = known.get("id") or secrets.token_hex(8)
        self._run = wandb.init(
            project=project,
            name=saved["config"]["name"],
            id=identity,
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
        self.note: Mapping[str, str] = {} if self._run.disabled else {"project": project, "id": identity}

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        self._run.log(numbers, step=step)

    def write_result(self, result: Mapping[str, Any], numbers: Mapping[str, float]) -> None:
        self._run.summary.update({"result": result})

    def add_image(self, name: str, path: str, step: int) -> None:
        """W&B drops what is not behind its last step, and an offline run starts at step 0 again."""
        import wandb

        self._run.log({name: wandb.Image(path)}, step=max(step + 1, self._run.starting_step))

    def close(self, *, failed: bool = False) -> None:
        self._run.finish(exit_code=int(failed))
