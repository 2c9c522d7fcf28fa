"""Requests to stop: when they end what runs, and with what."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from kd_jax import stopping
from kd_jax.errors import Preempted


def send(number):
    os.kill(os.getpid(), number)


def end(request, number):
    request.goes_on = " from step 7"
    send(number)
    pytest.fail("was not ended")


@pytest.mark.parametrize(("number", "kind"), [(signal.SIGTERM, Preempted), (signal.SIGINT, KeyboardInterrupt)])
def test_a_request_ends_at_once_what_does_not_defer_it(number, kind):
    with (
        pytest.raises(kind, match="stopped; the same command starts again from step 7"),
        stopping.listening() as request,
    ):
        end(request, number)


@pytest.mark.parametrize(("number", "kind"), [(signal.SIGTERM, Preempted), (signal.SIGINT, KeyboardInterrupt)])
def test_a_deferred_request_is_kept_until_it_is_asked_for(number, kind):
    with stopping.listening() as request:
        with request.deferred():
            assert not request
            send(number)
            assert request
        with pytest.raises(kind, match="here"), stopping.listening() as inner:
            inner.stop("here")


def test_a_second_interrupt_leaves_at_once():
    left = []
    with stopping.listening(lambda *said: left.append(said)) as request, request.deferred():
        send(signal.SIGINT)
        assert left == []
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)
    assert left == [(signal.SIGINT, "left at once; the same command goes on from the last checkpoint")]


def test_what_is_unfinished_is_gone_before_the_process_leaves(tmp_path):
    file, folder = tmp_path / "model.tmp", tmp_path / "folder"
    left = []
    with (
        contextlib.suppress(KeyboardInterrupt),
        stopping.listening(lambda *said: left.append([*tmp_path.iterdir()])),
        stopping.unfinished(str(file), str(folder)),
    ):
        file.touch()
        folder.mkdir()
        send(signal.SIGINT)
    assert left == [[]]


def test_what_is_unfinished_stays_where_it_is_finished_and_goes_where_it_fails(tmp_path):
    file = tmp_path / "model.tmp"
    with stopping.unfinished(str(file)):
        file.touch()
    assert file.exists()
    with pytest.raises(OSError, match="full"), stopping.unfinished(str(file)):
        raise OSError("full")
    assert not file.exists()


def test_a_second_sigterm_waits_for_the_first():
    with stopping.listening(pytest.fail) as request, request.deferred():
        send(signal.SIGTERM)
        send(signal.SIGTERM)


def test_listening_inside_of_another_is_to_the_same_request():
    with stopping.listening() as outer, stopping.listening() as inner:
        assert inner is outer


def test_both_signals_are_given_back():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with stopping.listening():
        assert signal.getsignal(signal.SIGTERM) != before[1]
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_an_interrupt_that_the_shell_ignores_stays_ignored(monkeypatch):
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stopping.listening() as request:
            send(signal.SIGINT)
            assert not request
    finally:
        signal.signal(signal.SIGINT, previous)


def test_outside_of_the_main_thread_nothing_is_asked_for():
    found = []

    def listen():
        with stopping.listening() as request:
            found.append(bool(request))

    thread = threading.Thread(target=listen)
    thread.start()
    thread.join()
    assert found == [False]


COMMAND = """
import os, signal, subprocess, sys
from kd_jax import stopping

with stopping.listening(stopping.leave_at_once) as request:
    {}
print("went on")
"""


def command(body):
    """(exit status, lines of stderr, stdout) of a process that listens as the commands do."""
    done = subprocess.run([sys.executable, "-c", COMMAND.format(body)], capture_output=True, text=True)
    return done.returncode, [line for line in done.stderr.splitlines() if line], done.stdout


def test_a_command_says_that_it_was_left_at_once():
    status, said, _ = command("with request.deferred(): [os.kill(os.getpid(), signal.SIGINT) for _ in '12']")
    assert status == 130
    assert said[0] == "stopping after this step, to save it; Ctrl-C again leaves at once"
    assert said[1:] == ["left at once; the same command goes on from the last checkpoint"]


@pytest.mark.parametrize(("name", "status"), [("SIGTERM", 143), ("SIGINT", 130)])
def test_no_callback_keeps_a_command_that_is_asked_to_stop(name, status):
    swallows = f"""
    class Swallows:
        def __del__(self):
            os.kill(os.getpid(), signal.{name})
    print("kept by a buffer")
    Swallows()"""
    said = ["stopped; the same command starts again"]
    assert command(swallows) == (status, said, "kept by a buffer\n")


def test_a_command_that_is_done_ends_as_such_whatever_is_asked_then():
    code = """
import atexit, os, signal, sys
from kd_jax import cli

sys.argv = ["command"]
atexit.register(lambda: [os.kill(os.getpid(), number) for number in (signal.SIGTERM, signal.SIGINT)])
cli.run(lambda arguments: print("done"), "")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


def test_the_processes_of_a_command_are_asked_to_stop_too():
    starts = """
    child = (
        "import signal, sys; signal.alarm(20); signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM]);"
        "print('ready', flush=True); signal.sigwait([signal.SIGTERM]); print('asked', file=sys.stderr)"
    )
    process = subprocess.Popen([sys.executable, "-c", child], stdout=subprocess.PIPE)
    process.stdout.readline()
    stopping.children.add(process)
    os.kill(os.getpid(), signal.SIGTERM)"""
    status, said, _ = command(starts)
    assert (status, set(said)) == (143, {"stopped; the same command starts again", "asked"})


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says when a process's parent has died")
def test_a_run_is_asked_to_stop_where_the_process_that_started_it_is_killed(tmp_path):
    said = tmp_path / "said"
    child = (
        f"import pathlib, signal, sys; from kd_jax import stopping as own; said = pathlib.Path({str(said)!r})\n"
        "def stop(*_): said.write_text('asked'); sys.exit()\n"
        "signal.signal(signal.SIGTERM, stop); signal.alarm(20); own.end_with_parent(); said.touch(); signal.pause()"
    )
    parent = (
        "import os, subprocess, sys; from kd_jax import stopping; own = {stopping.PARENT: str(os.getpid())}\n"
        f"subprocess.Popen([sys.executable, '-c', {child!r}], env=os.environ | own).wait()"
    )
    process = subprocess.Popen([sys.executable, "-c", parent])
    end = time.monotonic() + 20
    while not said.exists() and time.monotonic() < end:
        time.sleep(0.02)
    process.kill()
    process.wait()
    while not said.read_text() and time.monotonic() < end:
        time.sleep(0.02)
    assert said.read_text() == "asked"


def test_the_signal_by_which_slurm_says_that_time_is_over_is_a_request_to_stop():
    with stopping.listening() as request, request.deferred():
        send(signal.SIGUSR2)
        assert request
        with pytest.raises(Preempted):
            request.stop()
