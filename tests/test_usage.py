"""What --help says."""

import ast
import importlib.util
import re
import subprocess
import sys

import pytest

from kd_jax import cli, usage

FLAG = re.compile(r"^  --([a-z_]+)", re.MULTILINE)
OWN = {
    "evaluate": {"workdir", "runs", "path", "import", "per_class"},
    "compare": {"against"},
}


def of(command, columns="80"):
    module = f"kd_jax.{command.replace('-', '_')}"
    done = subprocess.run(
        [sys.executable, "-m", module, "--help"], capture_output=True, text=True, env={"COLUMNS": columns}
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.parametrize("command", OWN)
def test_a_commands_help_has_its_own_flags_and_no_others(command):
    assert set(FLAG.findall(of(command))) == OWN[command] | {"help", "version"}


@pytest.mark.parametrize("command", ["main", *cli.COMMANDS])
def test_every_flag_that_a_module_defines_is_one_of_its_command(command):
    with open(importlib.util.find_spec(f"kd_jax.{command.replace('-', '_')}").origin) as file:
        defined = re.findall(r'(?:DEFINE_\w+|define_paths?)\(\s*"(\w+)"', file.read())
    assert set(defined) <= set(FLAG.findall(of(command)))


def test_all_commands_can_be_imported_into_one_process():
    """A flag that two of them define would be defined twice, as where the tests of both are run."""
    names = ", ".join(f"kd_jax.{name.replace('-', '_')}" for name in cli.COMMANDS)
    assert subprocess.run([sys.executable, "-c", f"import kd_jax.main, {names}"]).returncode == 0


def test_flags_of_many_processes_stand_apart():
    assert re.search(r"^many processes:\n  --coordinator", of("main"), re.MULTILINE)


def test_a_shared_flag_says_what_it_is_to_the_command():
    assert "--to=PATH                   A new file" in of("export")
    assert "A folder; by default `report`." in of("report")


@pytest.mark.parametrize("columns", [80, 200])
def test_the_flags_fit_the_terminal(columns):
    lines = of("sweep", str(columns)).partition("\nflags:")[2].splitlines()
    assert max(map(len, lines)) <= min(columns, 120)
    assert max(map(len, lines)) > min(columns, 120) - 20


@pytest.mark.parametrize("columns", [60, 80])
def test_no_line_of_a_help_is_wider_than_the_terminal(columns):
    for command in cli.COMMANDS:
        lines = usage.filled(docstring(command), columns).splitlines()
        assert max(map(len, lines)) <= columns, command


def test_a_paragraph_is_filled_anew_and_what_is_indented_keeps_its_lines():
    text = "One two\nthree.\n\nusage: a [--b=1] [--c=2]\n       d\n\n  bash:  x\n  zsh:  y"
    expected = "One two three.\n\nusage: a [--b=1]\n           [--c=2]\n       d\n\n  bash:  x\n  zsh:  y"
    assert usage.filled(text, 20) == expected


def test_a_usage_names_the_command_as_it_is_typed():
    assert "usage: kd_jax import-teacher timm/NAME" in of("import_teacher")
    assert "usage: kd_jax [--config=" in of("main")


def docstring(command):
    path = importlib.util.find_spec(f"kd_jax.{command.replace('-', '_')}").origin
    with open(path) as file:
        return ast.get_docstring(ast.parse(file.read()))


@pytest.mark.parametrize("command", ["main", *cli.COMMANDS])
def test_help_loads_nothing_that_is_slow(command):
    program = f"""import runpy, sys
sys.argv = ["kd_jax", "--help"]
try: runpy.run_module("kd_jax.{command.replace("-", "_")}", run_name="__main__", alter_sys=True)
except SystemExit: pass
print([name for name in ("jax", "flax", "tensorflow", "orbax", "scipy.stats") if name in sys.modules])"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr
