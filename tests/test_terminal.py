"""What a terminal is taken to show."""

import fcntl
import io
import os
import pty
import struct
import termios

import pytest

from kd_jax import terminal


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture(autouse=True)
def plain(monkeypatch):
    """An environment that says nothing of terminals."""
    for name in ("NO_COLOR", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")


def test_a_terminal_has_color():
    assert terminal.style("left", "dim", Terminal()) == "\033[2mleft\033[0m"


def test_an_empty_no_color_is_none(monkeypatch):
    monkeypatch.setenv("NO_COLOR", "")
    assert terminal.style("left", "dim", Terminal()) != "left"


def test_what_is_said_stands_in_the_place_of_a_line_that_is_overwritten(capsys):
    stream = Terminal()
    terminal.overwrite("step 1/2", stream)
    terminal.say("no connection")
    terminal.overwrite("step 2/2", stream)
    terminal.leave()
    terminal.say("done")
    assert stream.getvalue() == "\r\033[Kstep 1/2\r\033[K\r\033[Kstep 2/2\n"
    assert capsys.readouterr().out == "no connection\ndone\n"


def test_where_no_line_is_overwritten_none_is_left():
    terminal.leave()
    terminal.overwrite("evaluating ...", stream := Terminal())
    terminal.overwrite("", stream)
    terminal.leave()
    assert not stream.getvalue().endswith("\n")


@pytest.mark.parametrize(("name", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_the_environment_turns_color_off(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    assert terminal.style("left", "dim", Terminal()) == "left"


def test_a_file_has_no_color():
    assert terminal.style("left", "dim", io.StringIO()) == "left"


def test_the_width_is_that_of_the_terminal_at_that_moment():
    master, slave = pty.openpty()
    with os.fdopen(slave, "w") as stream:
        widths = []
        for columns in (91, 43):
            fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
            widths.append(terminal.width(stream))
    os.close(master)
    assert widths == [91, 43]


@pytest.mark.parametrize(("value", "width"), [("132", 132), ("0", 80), ("wide", 80), ("", 80)])
def test_the_variable_columns_counts_where_it_is_a_number(monkeypatch, value, width):
    monkeypatch.setenv("COLUMNS", value)
    assert terminal.width(Terminal()) == width


@pytest.mark.parametrize(("text", "columns"), [("loss", 4), ("猫", 2), ("e\u0301", 1), ("\uff21", 2)])
def test_a_text_takes_the_columns_that_are_seen(text, columns):
    assert terminal.columns(text) == columns


@pytest.mark.parametrize("most", range(6))
def test_a_text_that_is_cut_never_takes_more_columns(most):
    assert terminal.columns(terminal.cut("猫a猫b猫", most)) <= most


def test_a_line_is_folded_between_words_on_a_terminal_alone(monkeypatch):
    monkeypatch.setenv("COLUMNS", "30")
    text = "  --config.train.epochs=74  (few images)"
    assert terminal.fold(text, Terminal()) == "  --config.train.epochs=74\n      (few images)"
    assert terminal.fold(text, io.StringIO()) == text
