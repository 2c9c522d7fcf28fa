"""Exit codes, and the one line that goes with each."""

import errno
import importlib.util
import os
import sys

import pytest
from absl import flags

from kd_jax import cli
from kd_jax.errors import TOLD, InputError, Preempted, TrainingError, choose


def wrapped(error):
    """An error that another one hides, as a library's does that writes in the background."""
    try:
        raise ValueError("cannot save") from error
    except ValueError as outer:
        return outer


FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(("error", "code"), [(InputError("no folder"), 2), (RuntimeError("of any kind"), 1)])
def test_what_another_process_says_is_not_said_again(error, code, capsys):
    def call():
        raise error

    error.add_note(TOLD)
    assert cli._exit_code(call) == code
    assert capsys.readouterr() == ("", "")


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


def test_a_long_list_of_choices_keeps_its_end(capsys):
    cli._exit_code(lambda: choose("the key", "zz", ["z" * 900, "zzz"]))
    assert capsys.readouterr().err.endswith("; did you mean 'zzz'?\n")


def test_a_path_may_begin_with_the_home_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/somewhere")
    assert cli.PathParser().parse("~/runs") == "/somewhere/runs"
    paths = ("workdir", "runs", "path", "to", "import", "against")
    assert all(isinstance(flags.FLAGS[name].parser, cli.PathParser) for name in paths)


@pytest.mark.parametrize(
    ("number", "said"),
    [(errno.EDQUOT, "the disk quota is used up"), (errno.EIO, "the disk fails"), (errno.EROFS, "has become read-only")],
)
def test_what_the_disk_does_is_one_line_and_status_1(number, said, capsys):
    def call():
        raise RuntimeError("in the background") from OSError(number, os.strerror(number))

    assert cli._exit_code(call) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


@pytest.fixture
def ran(monkeypatch):
    """The modules that `command` runs, each with its arguments."""
    modules = []
    monkeypatch.setattr(cli.runpy, "run_module", lambda name, **_: modules.append((name, sys.argv[1:])))
    return modules


@pytest.mark.parametrize(
    ("line", "module", "arguments"),
    [
        (["--config=kd", "--help"], "kd_jax.main", ["--config=kd", "--help"]),
        (["--version"], "kd_jax.main", ["--version"]),
        (["report", "runs", "--to=x"], "kd_jax.report", ["runs", "--to=x"]),
        (["--config=kd", "--seeds=5"], "kd_jax.sweep", ["--config=kd", "--seeds=5"]),
        (["--sweep", "kd.weight=1,2"], "kd_jax.sweep", ["--sweep", "kd.weight=1,2"]),
    ],
)
def test_the_command_runs_the_module_of_its_name(ran, monkeypatch, line, module, arguments):
    monkeypatch.setattr(sys, "argv", ["kd_jax", *line])
    cli.command()
    assert ran == [(module, arguments)]


@pytest.mark.parametrize("line", [[], ["--help"], ["-h"]])
def test_help_lists_the_commands_within_the_terminal(ran, monkeypatch, capsys, line):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys, "argv", ["kd_jax", *line])
    cli.command()
    out = capsys.readouterr().out
    assert ran == []
    assert [name for name in cli.COMMANDS if f"\n  {name} " not in out] == []
    assert max(map(len, out.splitlines())) <= 80


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_is_a_module(name):
    assert importlib.util.find_spec(f"kd_jax.{name.replace('-', '_')}")


def test_an_unknown_command_has_its_near_choice_and_status_2(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["kd_jax", "reprot"])
    with pytest.raises(SystemExit) as raised:
        cli.command()
    assert raised.value.code == 2
    assert capsys.readouterr().err.startswith(
        "error: the command is 'reprot'; expected one of: benchmark-export, compare, "
    )
