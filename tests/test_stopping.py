"""Requests to stop: when they end what runs, and with what."""

import os
import signal
import subprocess
import sys
import threading

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
    with stopping.listening(lambda: left.append(True)) as request, request.deferred():
        send(signal.SIGINT)
        assert left == []
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)
    assert left == [True]


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


def test_a_command_says_that_it_was_left_at_once():
    program = (
        "import os, signal, sys; from kd_jax import cli, stopping\n"
        "with stopping.listening(cli._leave) as r, r.deferred(): [os.kill(os.getpid(), signal.SIGINT) for _ in '12']"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 130
    first, second = (line for line in done.stderr.splitlines() if line)
    assert first == "stopping after this step, to save it; Ctrl-C again leaves at once"
    assert second == "left at once; the same command goes on from the last checkpoint"
