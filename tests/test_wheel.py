"""The wheel: it holds the whole package and nothing else, and it works where there is no checkout."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "kd_jax", "configs")
LIST = """
import json
from setuptools import Distribution
distribution = Distribution({"script_name": "setup.py"})
distribution.parse_config_files()
build = distribution.get_command_obj("build_py")
build.ensure_finalized()
modules = {f"{package.replace('.', '/')}/{module}.py": file for package, module, file in build.find_all_modules()}
data = {f"{package}/{name}": f"{folder}/{name}" for package, folder, _, names in build.data_files for name in names}
print(json.dumps(modules | data))
"""
OWN = """
from kd_jax.config import recipes

def get_config(arg=""):
    config = recipes.distilled("smoke", {"rkd_angle": {"weight": 1.0}})
    config.name = "own"
    return config
"""
SHORT = ["--config.train.steps=2", "--config.teacher.config.train.epochs=1"]

pytest.importorskip("setuptools", minversion="77", reason="the wheel is built by a newer setuptools")


def test_the_wheel_would_hold_the_package_and_the_experiments():
    done = subprocess.run([sys.executable, "-c", LIST], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    package = {str(path.relative_to(ROOT)) for path in (ROOT / "kd_jax").rglob("*.py")} | {
        "kd_jax/py.typed",
        "kd_jax/data/digits.npz",
    }
    experiments = {f"kd_jax/configs/{path.name}": f"configs/{path.name}" for path in (ROOT / "configs").glob("*.py")}
    assert json.loads(done.stdout) == {name: name for name in package} | experiments


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder that holds what the wheel installs."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in SOURCES:  # a copy: setuptools builds among the sources, and takes what an earlier build left there
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / name)
    build = [sys.executable, "-c", "from setuptools import build_meta; build_meta.build_wheel('dist')"]
    subprocess.run(build, cwd=folder, check=True, capture_output=True)
    (wheel,) = (folder / "dist").glob("*.whl")
    install = ["-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder / "installed"), str(wheel)]
    subprocess.run([sys.executable, *install], check=True, capture_output=True)
    return folder / "installed"


@pytest.fixture
def call(installed, tmp_path):
    """Runs Python in an empty folder, with the wheel and its dependencies, and returns what it prints."""
    folder, home = tmp_path / "work", tmp_path / "home"
    folder.mkdir()
    home.mkdir()
    # Not this environment's own Python: that would find the checkout, which is installed there as editable.
    path = os.pathsep.join([str(installed), sysconfig.get_paths()["purelib"]])
    environment = {"PATH": os.environ["PATH"], "HOME": str(home), "PYTHONPATH": path, "JAX_PLATFORMS": "cpu"}

    def call(*arguments):
        done = subprocess.run(
            [sys._base_executable, *map(str, arguments)], cwd=folder, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return call


@pytest.mark.slow
def test_nothing_but_the_package_is_installed_at_the_top(installed):
    names = {path.name for path in installed.iterdir() if path.suffix != ".dist-info"}
    assert names == {"kd_jax", "bin"}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["kd", "configs/kd.py"])
def test_an_experiment_is_trained_and_reported_by_name(call, installed, name):
    out = call("-m", "kd_jax.main", f"--config={name}:smoke", *SHORT)
    assert out.startswith(f"--config={name} is {installed / 'kd_jax' / 'configs' / 'kd.py'}\n")
    assert "index.html and report.md: 2 runs, 0 left out" in call("-m", "kd_jax.report", "runs")


@pytest.mark.slow
def test_a_config_of_ones_own_is_trained(call, tmp_path):
    (tmp_path / "work" / "own.py").write_text(OWN)
    assert "runs/own-" in call("-m", "kd_jax.main", "--config=own.py", *SHORT).splitlines()[-1]


@pytest.mark.slow
def test_a_table_is_made_of_the_experiments_of_the_wheel(call):
    out = call("-m", "kd_jax", "table", "--scale=smoke", "--seeds=1", "--only=student", "train.steps=2")
    assert "0 of 1 runs are in runs/results/original-smoke.jsonl" in out


@pytest.mark.slow
def test_the_command_prints_the_version_of_the_wheel(call, installed):
    (folder,) = installed.glob("*.dist-info")
    version = f"kd_jax {folder.name.removesuffix('.dist-info').partition('-')[2]}\n"
    assert call(installed / "bin" / "kd_jax", "--version") == call("-m", "kd_jax.main", "--version") == version
