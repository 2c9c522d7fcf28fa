"""The loop of the engines whose runs are on other machines: start, ask from time to time, stop where that is asked."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from kd_jax import stopping
from kd_jax.jobs import Failure, Job, Result

Running = dict[Job, Any]  # with the engine's handle of each


def until_done(
    jobs: Sequence[Job],
    at_a_time: int | None,
    start: Callable[[Sequence[Job]], Running],
    ended: Callable[[Running], Mapping[Job, Result | Failure]],
    stop: Callable[[Running], None],
) -> Iterator[tuple[Job, Result | Failure]]:
    """Runs jobs, and yields each with its outcome as soon as it has one.

    Args:
      jobs: what to run.
      at_a_time: how many are started before one has ended; None for all.
      start: starts jobs.
      ended: which of these have ended, and how; it waits a second or so.
      stop: asks these to save their state and stop, and waits for them.
    """
    waiting, running = list(jobs), Running()
    with stopping.listening() as request, request.deferred():
        try:
            while waiting or running:
                request.check()
                free = len(waiting) if at_a_time is None else at_a_time - len(running)
                new, waiting = waiting[:free], waiting[free:]
                if new:
                    running |= start(new)
                for job, outcome in ended(running).items():
                    del running[job]
                    yield job, outcome
        finally:
            if running:
                stop(running)
