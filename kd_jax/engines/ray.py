"""Runs as tasks of a Ray cluster: the one that RAY_ADDRESS names, or one of this machine.

A task whose machine is lost is run again elsewhere, and its run goes on from its last checkpoint.
"""

import contextlib
import os
import signal
import socket
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from kd_jax import keys, stopping
from kd_jax.engines import polling, worker
from kd_jax.engines.options import check
from kd_jax.errors import InputError, one_line
from kd_jax.jobs import Failure, Job, Result, Setting

OPTIONS = {
    "num_cpus": keys.AT_LEAST_0,  # of a run, by default 1
    "num_gpus": keys.AT_LEAST_0,  # of a run, by default 1 where the cluster has any
    "memory": keys.whole(1, 2**53),  # of a run, in bytes
    "max_retries": keys.whole(0),  # of a run whose machine is lost, by default 3
}
STORE = 80 * 2**20  # bytes of a cluster of this machine, through which only results go
SAVES = 120  # seconds that runs have to save their states


def run_all(jobs: Sequence[Job], setting: Setting) -> Iterator[tuple[Job, Result | Failure]]:
    """Runs jobs, and yields each with its outcome as soon as it has one."""
    check(setting.options, OPTIONS)
    try:
        import ray
    except ModuleNotFoundError as error:
        raise InputError(
            f"--on is 'ray' and {error.name} is not installed; expected pip install 'kd_jax[ray]'"
        ) from None

    def start(new: Sequence[Job]) -> dict[Job, Any]:
        return {job: task.remote(job, setting, os.getcwd()) for job in new}

    def ended(running: Mapping[Job, Any]) -> dict[Job, Result | Failure]:
        ready, _ = ray.wait(list(running.values()), timeout=1)
        return {job: outcome(job, handle) for job, handle in running.items() if handle in ready}

    def outcome(job: Job, handle: Any) -> Result | Failure:
        try:
            return ray.get(handle)
        except ray.exceptions.RayError as error:
            return Failure(job.row, job.seed, one_line(error, 300))

    def stop(running: Mapping[Job, Any]) -> None:
        for handle in running.values():
            ray.cancel(handle)
        ray.wait(list(running.values()), num_returns=len(running), timeout=SAVES)

    _connect(ray, setting.at_a_time)
    try:
        gpus = min(1, ray.cluster_resources().get("GPU", 0))
        task = ray.remote(**{"num_cpus": 1, "num_gpus": gpus, "max_retries": 3} | dict(setting.options))(worker.run)
        yield from polling.until_done(jobs, setting.at_a_time, start, ended, stop)
    finally:
        ray.shutdown()


def _connect(ray: Any, at_a_time: int | None) -> None:
    """Starts or finds the cluster."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    own: dict[str, Any] = {"num_cpus": at_a_time, "object_store_memory": STORE, "include_dashboard": False}
    address = os.environ.get("RAY_ADDRESS")
    if address:
        _check(address)
    handlers = {number: signal.getsignal(number) for number in stopping.CODES}
    try:
        where = {"address": "auto"} if address else {"address": "local", **own}
        ray.init(**where, log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, RuntimeError, ValueError) as error:
        place = f"RAY_ADDRESS is {address!r}, where" if address else "--on is 'ray', and on this machine"
        raise InputError(f"{place} no cluster can be used: {one_line(error, 300)}") from None
    finally:
        for number, handler in handlers.items():  # Ray's own for SIGTERM leaves without a word
            with contextlib.suppress(ValueError):  # of another than the main thread, which has none
                signal.signal(number, handler)


def _check(address: str) -> None:
    """Raises InputError where nobody answers, for which Ray waits many minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdigit():
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
        except OSError as error:
            raise InputError(f"RAY_ADDRESS is {address!r}, where no cluster answers: {one_line(error)}") from None
