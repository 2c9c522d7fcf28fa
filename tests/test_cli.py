"""Exit codes, and the one line that goes with each."""

import errno

import pytest

from kd_jax import cli
from kd_jax.errors import InputError, Preempted, TrainingError


def wrapped(error):
    """An error that another one hides, as a library's does that writes in the background."""
    try:
        raise ValueError("cannot save") from error
    except ValueError as outer:
        return outer


FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (InputError("seed is 'x';\n  expected a number"), 2, "error: seed is 'x'; expected a number"),
        (TrainingError("loss is not finite by step 3"), 1, "error: loss is not finite by step 3"),
        (FULL, 1, "error: the disk is full; make room and start the same command again"),
        (wrapped(FULL), 1, "error: the disk is full; make room and start the same command again"),
        (Preempted("stopped at step 3 of 9"), 143, "stopped at step 3 of 9"),
        (KeyboardInterrupt(), 130, "interrupted; the same command starts again, a run from its last checkpoint"),
    ],
    ids=["input", "training", "disk", "disk in the background", "preempted", "interrupted"],
)
def test_an_error_has_its_exit_code_and_one_line(error, code, line, capsys):
    def call():
        raise error

    assert cli._exit_code(call) == code
    assert capsys.readouterr().err == line + "\n"


def test_a_mistake_of_the_program_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        cli._exit_code(lambda: 1 // 0)


def test_done_is_zero():
    assert cli._exit_code(lambda: None) == 0
