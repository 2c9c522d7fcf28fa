"""Runs as processes of this machine, some at a time, each on its share of the cores."""

import concurrent.futures
import os
import queue
from collections.abc import Iterator, Sequence

from kd_jax import jobs, stopping
from kd_jax.engines.options import check
from kd_jax.jobs import Failure, Job, Result, Setting


def run_all(wanted: Sequence[Job], setting: Setting) -> Iterator[tuple[Job, Result | Failure]]:
    """Runs jobs, and yields each with its outcome as soon as it has one."""
    check(setting.options, {})
    at_a_time = setting.at_a_time or 1
    shares: queue.SimpleQueue[list[int]] = queue.SimpleQueue()
    for share in _shares(at_a_time):
        shares.put(share)

    def on_its_share(job: Job) -> Result | Failure:
        share = shares.get()
        try:
            return jobs.run(job, setting.runs_folder, share, setting.restarts)
        finally:
            shares.put(share)

    pool = concurrent.futures.ThreadPoolExecutor(at_a_time)
    try:
        futures = {pool.submit(on_its_share, job): job for job in wanted}
        for future in concurrent.futures.as_completed(futures):
            yield futures[future], future.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)  # an interrupted table starts no further run
        for process in tuple(stopping.children):
            stopping.children.discard(process)  # so that none follows it
            process.terminate()  # it saves its state
        pool.shutdown()


def _shares(at_a_time: int) -> list[list[int]]:
    """The cores of each of the runs that go on at a time; empty for all of them."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") and at_a_time > 1 else []
    return [cores[share::at_a_time] for share in range(at_a_time)]
