"""Requests to stop: Ctrl-C (SIGINT), SIGTERM, and SIGUSR2, by which Slurm says that the time is nearly over.

They end a command at once, but for training, which ends at the next step and saves its state. A second Ctrl-C does not
wait for that.
"""

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from types import FrameType
from typing import Any, NoReturn

from kd_jax.errors import Preempted

Leave = Callable[[int, str], Any]  # (signal, what is said)

CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGUSR2: 143}
PARENT = "KD_JAX_PARENT"  # the variable by which a process says to one that it starts who it is

children: "set[subprocess.Popen[bytes]]" = set()  # processes that are asked to stop where this one leaves
leaves_alone = False  # whether other processes, which do not end, would be waited for at this one's end
_unfinished: set[str] = set()  # paths that are removed where this process leaves


class Request:
    """Whether the process was asked to stop."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self.goes_on = ""  # where the same command goes on, for people
        self._deferred = False

    def __bool__(self) -> bool:
        return self.signal is not None

    def stop(self, message: str = "") -> NoReturn:
        """Raises KeyboardInterrupt or Preempted, as was asked for."""
        message = message or self._message()
        raise KeyboardInterrupt(message) if self.signal == signal.SIGINT else Preempted(message)

    def check(self) -> None:
        """Stops where that was asked for."""
        if self:
            self.stop()

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """What runs inside is not ended by a request, and asks for it itself."""
        outer, self._deferred = self._deferred, True
        try:
            yield
        finally:
            self._deferred = outer

    def _message(self) -> str:
        return f"stopped; the same command starts again{self.goes_on}"

    def _handle(self, number: int, leave: Leave) -> None:
        again, self.signal = number == self.signal == signal.SIGINT, number
        if self._deferred and not again:
            if number == signal.SIGINT:
                say("\nstopping after this step, to save it; Ctrl-C again leaves at once\n")
            return
        for child in tuple(children):
            child.terminate()
        remove_unfinished()
        leave(number, "left at once; the same command goes on from the last checkpoint" if again else self._message())
        self.stop()


@contextlib.contextmanager
def unfinished(*paths: str) -> Iterator[None]:
    """Files and folders that do not stay where what runs inside fails or is stopped, at once too."""
    _unfinished.update(paths)
    try:
        yield
    except BaseException:
        _remove(paths)
        raise
    finally:
        _unfinished.difference_update(paths)


def remove_unfinished() -> None:
    """Removes the files and folders that are `unfinished` now, as a process does that leaves at once."""
    _remove(tuple(_unfinished))


def _remove(paths: Iterable[str]) -> None:
    for path in paths:
        shutil.rmtree(path, ignore_errors=True)
        with contextlib.suppress(OSError):
            os.remove(path)


def ask() -> None:
    """Asks for a stop as SIGTERM does, of what saves its state; nothing where nothing listens."""
    if _request is not None:
        _request.signal = signal.SIGTERM


def end_with_parent() -> None:
    """This process is asked to stop where the one that started it, which says so by `PARENT`, is killed (on Linux)."""
    if sys.platform == "linux" and os.environ.get(PARENT) == str(os.getppid()):
        of_parents_death = 1  # PR_SET_PDEATHSIG
        ctypes.CDLL(None).prctl(of_parents_death, signal.SIGTERM)


def say(text: str) -> None:
    """Writes to the terminal from a signal's handler, which may have come in the middle of a `print`."""
    with contextlib.suppress(OSError):
        os.write(2, text.encode())


def leave_at_once(number: int, message: str) -> NoReturn:
    """Ends the process: nothing that it runs, and no library's callback, can keep it."""
    with contextlib.suppress(Exception):  # what a `print` that was interrupted keeps
        sys.stdout.flush()
    say(f"\n{message}\n")
    os._exit(CODES[signal.Signals(number)])


_request: Request | None = None


@contextlib.contextmanager
def listening(leave: Leave = lambda number, message: None, *, last: bool = False) -> Iterator[Request]:
    """Listens to these signals; inside of another one, it is the same request.

    Outside of the main thread, where no signal arrives, nothing is ever asked for.

    Args:
      leave: how a process ends that is asked to where nothing has to be saved, or twice by Ctrl-C; where it returns,
        KeyboardInterrupt or Preempted is raised.
      last: nothing but the end of the process comes behind it, whose exit status no signal is to change any more.
    """
    global _request
    if _request is not None:
        yield _request
        return
    if threading.current_thread() is not threading.main_thread():
        yield Request()
        return
    request = _request = Request()

    def handle(number: int, frame: FrameType | None) -> None:
        request._handle(number, leave)

    numbers = [number for number in CODES if signal.getsignal(number) != signal.SIG_IGN]  # as nohup wants
    previous = {number: signal.signal(number, handle) or signal.SIG_DFL for number in numbers}
    try:
        yield request
    finally:
        _request = None
        for number, handler in previous.items():
            signal.signal(number, signal.SIG_IGN if last else handler)
