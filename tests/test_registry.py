"""What a file registers is remembered by the run that used it, and registered again by the commands that need it."""

import json
import os
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest

from kd_jax import registry, runs
from kd_jax.errors import InputError
from tests import tiny

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


def call(folder, *arguments, path=""):
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=folder,
        env=os.environ
        | {"PYTHONPATH": os.pathsep.join([path, str(ROOT)]), "XLA_FLAGS": "--xla_backend_optimization_level=0"},
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def made(tmp_path_factory, no_tensorflow):
    """A run whose method a file registered that also trains."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "own.py").write_text(OWN)
    status, _, err = call(folder, "own.py", path=no_tensorflow)
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
    paths = [os.path.realpath(path) for path in (made / "own.py", tiny.__file__)]
    assert saved["imports"] == [{"path": path, "sha256": registry.digest(path)} for path in paths]


def test_a_command_registers_again_and_does_not_train_again(made, copy):
    status, out, err = call(copy, "-m", "kd_jax.evaluate", "--workdir=run")
    assert (status, err.startswith("data digits: "), err.count("\n")) == (0, True, 1)
    assert "trained" not in out
    assert json.loads(out)["accuracy"] == accuracy(copy)


def forget(folder):
    """Where the file was is no file any more."""
    path = folder / "run" / "config.json"
    saved = json.loads(path.read_text())
    saved["imports"][0]["path"] = str(folder / "gone.py")
    runs.write_json(str(path), saved)


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
    runs.write_json(str(path), json.loads(path.read_text().replace(str(made / "own.py"), str(copy / "own.py"))))
    status, out, err = call(copy, "-m", "kd_jax.evaluate", "--workdir=run")
    assert (status, err.splitlines()[0]) == (0, f"{copy / 'own.py'} has changed since the run was made")
    assert json.loads(out)["accuracy"] == accuracy(copy)


def test_a_file_that_raises_is_named(tmp_path):
    (tmp_path / "bad.py").write_text("1 / 0\n")
    with pytest.raises(InputError, match=r"bad.py cannot be imported: ZeroDivisionError: division by zero"):
        registry.import_file(tmp_path / "bad.py")


def test_a_file_that_is_missing_is_named():
    with pytest.raises(InputError, match=r"/nowhere.py does not exist; expected the Python file that registers"):
        registry.import_file("/nowhere.py")


@pytest.fixture
def fresh(monkeypatch):
    """A process that has imported nothing yet."""
    for name in ("_files", "_origins"):
        monkeypatch.setattr(registry, name, {})
    monkeypatch.setattr(registry, "_given", set())
    monkeypatch.setattr(sys, "path", [*sys.path])
    before = {*sys.modules}
    yield
    for name in {*sys.modules} - before:
        if name.startswith("kd_jax_"):
            del sys.modules[name]


def write(path, text):
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return path


ADDS = "from kd_jax import registry\ntable = {}\n"


def again(path, sha256=""):
    registry.import_again([{"path": str(path), "sha256": sha256 or registry.digest(path)}])


@pytest.mark.usefixtures("fresh")
def test_a_file_finds_the_files_beside_it(tmp_path):
    write(tmp_path / "kd_jax_beside.py", "value = 1\n")
    path = write(tmp_path / "own.py", ADDS + "import kd_jax_beside\nregistry.add(table, 'own', kd_jax_beside.value)\n")
    again(path)
    assert [*registry._origins.values()] == [str(path)]


@pytest.mark.usefixtures("fresh")
def test_a_file_of_a_package_finds_its_package(tmp_path):
    write(tmp_path / "kd_jax_own" / "__init__.py", "")
    write(tmp_path / "kd_jax_own" / "beside.py", "value = 1\n")
    text = ADDS + "from .beside import value\nregistry.add(table, 'own', value)\n"
    path = write(tmp_path / "kd_jax_own" / "own.py", text)
    again(path)
    assert [*registry._origins.values()] == [str(path)]


@pytest.mark.usefixtures("fresh")
def test_the_file_that_calls_a_function_that_registers_is_remembered(tmp_path):
    write(tmp_path / "kd_jax_beside.py", ADDS + "def setup():\n    registry.add(table, 'own', 1)\n")
    path = write(tmp_path / "own.py", "import kd_jax_beside\nkd_jax_beside.setup()\n")
    again(path)
    assert [*registry._origins.values()] == [str(path)]


@pytest.mark.usefixtures("fresh")
def test_annotations_may_be_strings_in_a_module_of_ones_own(tmp_path):
    text = "from __future__ import annotations\n" + ADDS
    text += "import flax.linen as nn\nclass Own(nn.Module):\n    width: int = 1\nregistry.add(table, 'own', Own)\n"
    path = write(tmp_path / "own.py", text)
    again(path)
    assert [*registry._origins.values()] == [str(path)]


@pytest.mark.usefixtures("fresh")
def test_a_file_may_end_itself(tmp_path):
    path = write(tmp_path / "own.py", ADDS + "registry.add(table, 'own', 1)\nraise SystemExit(0)\n")
    again(path)
    assert [*registry._origins.values()] == [str(path)]


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize("first", ["import kd_jax\nkd_jax.train({})\n", "raise SystemExit(0)\n"])
def test_a_file_that_registers_too_late_is_named(first, tmp_path):
    path = write(tmp_path / "own.py", first + ADDS + "registry.add(table, 'own', 1)\n")
    with pytest.raises(InputError, match=r"own.py, which registers nothing when it is imported"):
        again(path)


@pytest.mark.usefixtures("fresh")
def test_what_no_file_registered_needs_one():
    with pytest.raises(InputError, match="registered; expected --import=FILE"):
        registry.import_again([{"path": registry.NO_FILE, "sha256": ""}])


@pytest.mark.usefixtures("fresh")
def test_what_no_file_registered_is_there_in_the_same_process():
    table = {}
    exec("registry.add(table, 'own', 1)", {"registry": registry, "table": table})
    registry.import_again(registry.files_of([(table, "own")]))
    assert registry.files_of([(table, "own")]) == [{"path": registry.NO_FILE, "sha256": ""}]


@pytest.mark.usefixtures("fresh")
def test_a_file_that_moved_and_changed_is_used_where_it_is_named(tmp_path, capsys):
    path = write(tmp_path / "own.py", ADDS + "registry.add(table, 'own', 1)\n")
    registry.import_file(path)
    again("/gone/own.py", sha256="of what it was")
    assert capsys.readouterr().err == f"/gone/own.py does not exist; {path} is used, which differs\n"


@pytest.mark.usefixtures("fresh")
def test_a_cell_of_a_notebook_is_no_file_whatever_runs_it():
    cell = compile("registry.add(table, 'own', 1)", "/tmp/ipykernel_1/1.py", "exec").replace(co_name="<cell line: 1>")
    exec(cell, names := {"registry": registry, "table": {}})
    assert registry.files_of([(names["table"], "own")]) == [{"path": registry.NO_FILE, "sha256": ""}]


@pytest.mark.usefixtures("fresh")
def test_a_file_that_imports_another_still_ends_where_it_would_train(tmp_path):
    inner = write(tmp_path / "inner.py", ADDS + "registry.add(table, 'inner', 1)\n")
    text = (
        ADDS + f"registry.import_file({str(inner)!r})\nregistry.add(table, 'outer', 1)\nregistry.end_import()\n1 / 0\n"
    )
    registry.import_file(write(tmp_path / "outer.py", text))


def test_a_place_in_a_notebook_is_that_of_its_cell(monkeypatch):
    with pytest.raises(ZeroDivisionError) as raised:
        exec(compile("\n1 / 0", "/tmp/ipykernel_7/8.py", "exec"))
    assert registry.place(raised.value) == "/tmp/ipykernel_7/8.py:2"
    cells = {"/tmp/ipykernel_7/8.py": ("Cell", "In[3]")}
    shell = types.SimpleNamespace(compile=types.SimpleNamespace(format_code_name=cells.get))
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: shell))
    assert registry.place(raised.value) == "In[3]:2"
