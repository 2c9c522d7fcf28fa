"""What a file registers is remembered by the run that used it, and registered again by the commands that need it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kd_jax import registry
from kd_jax.errors import InputError

ROOT = Path(__file__).parent.parent
OWN = """
import jax.numpy as jnp
from kd_jax import methods, train
from tests import tiny

def shrink(student_logits, *, by=1.0):
    return by * jnp.square(student_logits).mean(-1)

methods.register("shrink", methods.from_loss(shrink))
config = tiny.config(**{"train.steps": 2}) | {"method": {"cross_entropy": {}, "shrink": {"weight": 0.1}}}
train(config, "run")
print("trained")
"""


def call(folder, *arguments):
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": "--xla_backend_optimization_level=0"},
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run whose method a file registered that also trains."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "own.py").write_text(OWN)
    status, _, err = call(folder, "own.py")
    assert status == 0, err
    return folder


@pytest.fixture
def copy(made, tmp_path):
    shutil.copytree(made / "run", tmp_path / "run")
    return tmp_path


def accuracy(folder):
    return json.loads((folder / "run" / "result.json").read_text())["test"]["accuracy"]


def test_a_run_remembers_the_file_by_path_and_hash(made):
    saved = json.loads((made / "run" / "config.json").read_text())
    path = os.path.realpath(made / "own.py")
    assert saved["imports"] == [{"path": path, "sha256": registry.digest(path)}]


def test_a_command_registers_again_and_does_not_train_again(made, copy):
    status, out, err = call(copy, "-m", "kd_jax.evaluate", "--workdir=run")
    assert (status, err) == (0, "")
    assert "trained" not in out
    assert json.loads(out)["accuracy"] == accuracy(copy)


def forget(folder):
    """Where the file was is no file any more."""
    path = folder / "run" / "config.json"
    saved = json.loads(path.read_text())
    saved["imports"][0]["path"] = str(folder / "gone.py")
    path.write_text(json.dumps(saved))


def test_a_file_that_is_gone_is_named_with_the_way_out(copy):
    forget(copy)
    status, out, err = call(copy, "-m", "kd_jax.evaluate", "--workdir=run")
    assert (status, out) == (2, "")
    assert f"the run needs {copy / 'gone.py'}, which does not exist; expected it there, or --import=FILE" in err


def test_a_file_that_moved_is_imported_where_it_is(made, copy):
    forget(copy)
    status, out, err = call(copy, "-m", "kd_jax.evaluate", "--workdir=run", f"--import={made / 'own.py'}")
    assert status == 0, err
    assert json.loads(out)["accuracy"] == accuracy(copy)


def test_a_file_that_changed_is_used_and_a_line_says_so(made, copy):
    (copy / "own.py").write_text(OWN + "# changed\n")
    path = copy / "run" / "config.json"
    path.write_text(path.read_text().replace(str(made / "own.py"), str(copy / "own.py")))
    status, out, err = call(copy, "-m", "kd_jax.evaluate", "--workdir=run")
    assert status == 0, err
    assert out.startswith(f"{copy / 'own.py'} has changed since the run was made\n")


def test_a_file_that_raises_is_named(tmp_path):
    (tmp_path / "bad.py").write_text("1 / 0\n")
    with pytest.raises(InputError, match=r"bad.py cannot be imported: ZeroDivisionError: division by zero"):
        registry.import_file(tmp_path / "bad.py")


def test_a_file_that_is_missing_is_named():
    with pytest.raises(InputError, match=r"/nowhere.py does not exist; expected the Python file that registers"):
        registry.import_file("/nowhere.py")
