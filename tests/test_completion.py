"""Completion, by what a shell would be given."""

import os
import pty
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kd_jax import cli, completion
from kd_jax.errors import InputError


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("kd_jax ex", ["explain", "export"]),
        ("kd_jax --config=rk", ["--config=rkd"]),
        ("kd_jax --config=kd --wor", ["--workdir="]),
        ("kd_jax --config=kd --config.train.cli", ["--config.train.clip="]),
        ("kd_jax --config=kd --config.teacher.config.train.cli", ["--config.teacher.config.train.clip="]),
        ("kd_jax sweep --jo", ["--jobs="]),
        ("kd_jax --config=kd --se", ["--seeds="]),
        ("kd_jax --config=kd --sw", ["--sweep="]),
        ("kd_jax --config=kd --ext", ["--extend="]),
        ("kd_jax", []),
        ("kd_jax evaluate --conf", []),
        ("kd_jax evaluate runs/x", []),
        ("kd_jax nothing --wor", []),
        ("kd_jax completion z", ["zsh"]),
    ],
)
def test_a_word_is_completed(line, found):
    assert completion.words(line) == found


def test_every_command_is_offered():
    assert completion.words("kd_jax ") == sorted(cli.COMMANDS)


def test_an_unknown_shell_is_refused():
    with pytest.raises(InputError, match="the shell is 'tcsh'; expected one of: bash, fish, zsh"):
        completion.main(["tcsh"])


@pytest.mark.skipif(not shutil.which("bash"), reason="needs bash")
@pytest.mark.parametrize(("line", "reply"), [("kd_jax --config=rk", "rkd"), ("kd_jax compl", "completion")])
def test_bash_gets_what_stands_behind_its_last_word_break(line, reply):
    script = subprocess.run([sys.executable, "-m", "kd_jax.completion", "bash"], capture_output=True, text=True).stdout
    program = f"{script}\nCOMP_LINE='{line}' COMP_POINT={len(line)}; _kd_jax; echo \"${{COMPREPLY[*]}}\""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(["bash", "-c", program], capture_output=True, text=True, env={**os.environ, "PATH": path})
    assert (done.stdout, done.stderr) == (f"{reply}\n", "")


@pytest.mark.parametrize(("command", "said"), [("completion", ""), ("compare", "loading ...")])
def test_on_a_terminal_only_what_loads_says_so(command, said):
    """Each new shell runs `kd_jax completion`."""
    ours, theirs = pty.openpty()
    done = subprocess.run(
        [sys.executable, "-m", f"kd_jax.{command}", "bash"], stdout=subprocess.PIPE, stderr=theirs, timeout=60
    )
    os.write(theirs, b"end")
    assert done.returncode == (0 if command == "completion" else 2)
    text = os.read(ours, 4096).decode()
    assert ("loading ..." in text, text == "end") == (bool(said), not said)
    os.close(ours)
    os.close(theirs)
