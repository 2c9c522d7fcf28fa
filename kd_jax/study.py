"""The study of a search on the disk, through Optuna: several processes share it, and what was killed is tried again."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from typing import Any

from kd_jax import runs
from kd_jax.errors import InputError

NAME, LOG = "search", "study.jsonl"


def import_optuna() -> Any:
    """Optuna; raises InputError where it is not installed."""
    try:
        import optuna
    except ModuleNotFoundError as error:
        raise InputError(f'{error.name} is not installed; expected pip install "kd_jax[tune]"') from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


@contextlib.contextmanager
def opened(folder: str, pruner: Any) -> Iterator[Any]:
    """The study in a folder, of which each process holds a share: what runs while nobody does was killed."""
    optuna = import_optuna()
    runs.check_writable(folder, "the folder of the search")
    os.makedirs(folder, exist_ok=True)
    path = os.path.join(folder, LOG)
    with open(os.path.join(folder, ".lock"), "w") as file:
        alone = lock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if alone:
            _mend(path)
        else:
            lock(file, fcntl.LOCK_SH)
        study = optuna.create_study(
            storage=optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(path)),
            study_name=NAME,
            direction="maximize",
            pruner=pruner,
            load_if_exists=True,
        )
        if alone:
            _try_again(study)
            lock(file, fcntl.LOCK_SH)
        yield study


def lock(file: Any, how: int) -> bool:
    """Whether a file is locked now; on a file system without locks one process alone can search."""
    try:
        fcntl.flock(file, how)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


def _mend(path: str) -> None:
    """Removes what a process leaves that is killed while it writes: Optuna's lock, and a part of a line.

    Optuna would wait for the first, and read nothing behind the second.
    """
    with contextlib.suppress(FileNotFoundError):
        os.remove(f"{path}.lock")
    if os.path.exists(path):
        with open(path, "rb+") as file:
            file.truncate(file.read().rfind(b"\n") + 1)


def trials(study: Any) -> list[Any]:
    """The trials in the order in which they were drawn, each as it was tried last."""
    latest = {_first(trial): trial for trial in study.get_trials(deepcopy=False)}
    return [trial for trial in latest.values() if trial.state.name != "FAIL" or "run" in trial.user_attrs]


def _first(trial: Any) -> int:
    """The number of a trial's first attempt."""
    return trial.user_attrs.get("again", trial.number)


def _try_again(study: Any) -> None:
    """Queues what was killed or has failed, with the same values; what was killed before it had any is drawn anew."""
    from optuna.trial import TrialState

    for trial in trials(study):
        if trial.state is TrialState.RUNNING:
            study.tell(trial.number, state=TrialState.FAIL)
        if trial.state in (TrialState.RUNNING, TrialState.FAIL) and "run" in trial.user_attrs:
            study.enqueue_trial(trial.params, {"again": _first(trial), "run": trial.user_attrs["run"]})
