"""A run of MLflow that mirrors a run, see `mirrors`. The only importer of mlflow.

It lies where MLFLOW_TRACKING_URI says, by default in files of the current folder: no server is needed.
"""

import logging
import os
import re
import time
from collections.abc import Mapping
from typing import Any

from kd_jax import runs
from kd_jax.errors import InputError

AT_ONCE = 100  # parameters in a request, at most
LONGEST = 6000  # characters of a parameter


def check(experiment: str) -> None:
    """Raises InputError for what MLflow takes for no name of an experiment."""
    if len(experiment) > 256:
        raise InputError(f"log.mlflow has {len(experiment)} characters; expected an experiment's name, of at most 256")


class Session:
    """A `mirrors.Session`: the MLflow run of the note where it is there, or a new one."""

    def __init__(self, folder: str, experiment: str, known: Mapping[str, str], saved: Mapping[str, Any]):
        import mlflow

        for noisy, level in (("mlflow.store", "WARNING"), ("alembic", "WARNING"), ("urllib3.connectionpool", "ERROR")):
            logging.getLogger(noisy).setLevel(level)  # each step of making the database, and each try of a request
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # training waits for them; by default for minutes
        store = os.environ.get("MLFLOW_TRACKING_URI") or known.get("store") or mlflow.get_tracking_uri()
        self._client = mlflow.MlflowClient(store)
        self._last: dict[str, int] = {}  # of each metric, the last step of earlier processes
        if known.get("experiment") != experiment or not self._goes_on(known["id"]):
            self._start(experiment, saved)
        self.note: Mapping[str, str] = {"experiment": experiment, "id": self._id, "store": store}

    def _goes_on(self, identity: str) -> bool:
        from mlflow.exceptions import MlflowException

        try:
            metrics = self._client.get_run(identity).data.metrics
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return False
            raise
        self._id = identity
        self._last = {name: max(m.step for m in self._client.get_metric_history(identity, name)) for name in metrics}
        self._client.update_run(identity, status="RUNNING")
        return True

    def _start(self, experiment: str, saved: Mapping[str, Any]) -> None:
        from mlflow.entities import Param
        from mlflow.exceptions import MlflowException

        try:
            where = self._client.create_experiment(experiment)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            where = self._client.get_experiment_by_name(experiment).experiment_id
        name, tags = saved["config"]["name"], {"hash": saved["hash"]}
        self._id = self._client.create_run(where, run_name=name, tags=tags).info.run_id
        config = runs.flat(saved["config"]).items()
        params = [Param(_named(key), str(value)[:LONGEST]) for key, value in config]
        for first in range(0, len(params), AT_ONCE):
            self._client.log_batch(self._id, params=params[first : first + AT_ONCE])

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        """MLflow keeps all that is written at a step, so what earlier processes have written is left out."""
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        new = {key: v for name, v in numbers.items() if step > self._last.get(key := _named(name), -1)}
        self._client.log_batch(self._id, metrics=[Metric(name, value, now, step) for name, value in new.items()])

    def write_result(self, result: Mapping[str, Any], numbers: Mapping[str, float]) -> None:
        self.write(result["checkpoint"], numbers)
        self._client.log_dict(self._id, dict(result), "result.json")

    def add_image(self, name: str, path: str, step: int) -> None:
        self._client.log_artifact(self._id, path)

    def close(self, *, failed: bool = False) -> None:
        self._client.set_terminated(self._id, "FAILED" if failed else "FINISHED")


def _named(name: str) -> str:
    """A name in the characters that MLflow takes."""
    return re.sub(r"[^\w/.\- ]", "_", name)
