"""Runs as processes of this machine, some at a time, each on its share of the cores."""

import concurrent.futures
import contextlib
import os
import queue
from collections.abc import Callable, Iterator, Sequence

from kd_jax import jobs, stopping
from kd_jax.engines.options import check
from kd_jax.jobs import Failure, Job, Result, Setting

Outcome = concurrent.futures.Future[Result | Failure]


def run_all(wanted: Sequence[Job], setting: Setting) -> Iterator[tuple[Job, Result | Failure]]:
    """Runs jobs, and yields each with its outcome as soon as it has one."""
    check(setting.options, {})
    with pool(setting) as submit:
        futures = {submit(job): job for job in wanted}
        for future in concurrent.futures.as_completed(futures):
            yield futures[future], future.result()


@contextlib.contextmanager
def pool(setting: Setting) -> Iterator[Callable[[Job], Outcome]]:
    """What takes a job and returns its future outcome. Where it is left, the runs that go on save and stop."""
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

    threads = concurrent.futures.ThreadPoolExecutor(at_a_time)
    try:
        yield lambda job: threads.submit(on_its_share, job)
    finally:
        threads.shutdown(wait=False, cancel_futures=True)  # what is interrupted starts no further run
        for process in tuple(stopping.children):
            stopping.children.discard(process)  # so that none follows it
            process.terminate()  # it saves its state
        threads.shutdown()


def _shares(at_a_time: int) -> list[list[int]]:
    """The cores of each of the runs that go on at a time; empty for all of them."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") and at_a_time > 1 else []
    return [cores[share::at_a_time] for share in range(at_a_time)]
