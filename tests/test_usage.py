"""What --help says."""

import re
import subprocess
import sys

import pytest

from kd_jax import cli

FLAG = re.compile(r"^  --([a-z_]+)", re.MULTILINE)
OWN = {
    "evaluate": {"per_class", "workdir", "runs", "path", "import"},
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


@pytest.mark.parametrize(
    ("command", "flag"),
    [("main", "extend"), ("table", "pretrain_on"), ("import-teacher", "weights"), ("import-teacher", "class_names")],
)
def test_a_path_is_a_flag_of_the_command_that_defines_it(command, flag):
    assert f"  --{flag}=PATH" in of(command)


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


@pytest.mark.parametrize("command", ["main", *cli.COMMANDS])
def test_help_loads_nothing_that_is_slow(command):
    program = f"""import runpy, sys
sys.argv = ["kd_jax", "--help"]
try: runpy.run_module("kd_jax.{command.replace("-", "_")}", run_name="__main__", alter_sys=True)
except SystemExit: pass
print([name for name in ("jax", "flax", "tensorflow", "orbax", "scipy.stats") if name in sys.modules])"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr
