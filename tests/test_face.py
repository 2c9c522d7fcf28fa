"""What `import kd_jax` gives, how little it costs, and what works where only JAX, Flax and optax are installed."""

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import pytest

import kd_jax

ROOT = Path(__file__).parent.parent
# What the package needs for some of its work, and a light installation lacks.
HEAVY = ["clu", "tensorflow", "tensorflow_datasets", "tensorboard", "ml_collections", "PIL", "safetensors"]
HEAVY += ["huggingface_hub", "matplotlib", "sklearn", "jaxtyping", "wandb", "mlflow", "aim"]


@pytest.mark.parametrize("name", kd_jax.__all__)
def test_every_name_of_the_face_is_there(name):
    assert getattr(kd_jax, name) is not None
    assert name in dir(kd_jax)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'kd_jax' has no attribute 'distil'"):
        _ = kd_jax.distil


def test_the_version_has_one_source():
    assert kd_jax.__version__ == importlib.metadata.version("kd_jax")
    assert "\nversion:" not in (ROOT / "CITATION.cff").read_text()


def python(program, tmp_path, **environment):
    """What a fresh Python prints, in an empty folder."""
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": ""} | environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_the_package_imports_nothing_else(tmp_path):
    heavy = python("import kd_jax, sys; print(*{'jax', 'numpy', 'flax', 'orbax'} & sys.modules.keys())", tmp_path)
    assert heavy.strip() == ""


@pytest.fixture
def light(tmp_path):
    """A path on which the heavy libraries cannot be imported."""
    folder = tmp_path / "light"
    folder.mkdir()
    for name in HEAVY:
        (folder / f"{name}.py").write_text(f"raise ModuleNotFoundError('no', name={name!r})")
    return {"PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}


@pytest.mark.parametrize("name", ["losses", "steps", "methods", "models", "gradcam", "augment", "metrics", "optim"])
def test_what_computes_can_be_imported_with_jax_flax_and_optax_alone(light, tmp_path, name):
    python(f"import kd_jax.{name}", tmp_path, **light)


SHORT = """
import kd_jax
from kd_jax.config import base
config = base.get_config()
config.dataset.image_size, config.model.width, config.train.steps = 8, 1 / 8, 2
config.train.batch_size = 8
"""


@pytest.mark.parametrize("data", ["", ", data=((images, labels), (images, labels))"], ids=["digits", "arrays"])
def test_training_there_writes_the_metrics_file_alone_and_says_so(light, tmp_path, data):
    arrays = "import numpy as np\nlabels = np.arange(64) % 4\nimages = np.zeros((64, 8, 8, 3), np.uint8)\n"
    out = python(f"{SHORT}{arrays}print(kd_jax.train(config, 'run'{data}).result['steps'])", tmp_path, **light)
    assert "tensorflow is not installed: metrics go to metrics.jsonl and the terminal, not to TensorBoard" in out
    assert out.splitlines()[-1] == "2"
    assert not list((tmp_path / "run").glob("events*"))


def test_a_result_shows_itself_in_a_notebook(light, tmp_path):
    page = python(f"{SHORT}print(kd_jax.train(config, 'run')._repr_html_())", tmp_path, **light).splitlines()[-1]
    assert page.startswith("<table><tr><th>test accuracy</th><td>")
    assert "<th>folder</th><td>run</td>" in page


def test_a_result_and_a_loaded_run_are_one_short_line(light, tmp_path):
    program = f"{SHORT}result = kd_jax.train(config, 'run')\nprint(result)\nprint(kd_jax.load('run'))"
    result, run = python(program, tmp_path, **light).splitlines()[-2:]
    assert result.startswith("Result(accuracy=0.")
    assert result.endswith(", folder='run')")
    assert run.startswith("LoadedRun(hash='")
    assert len(run) < 250


def test_the_command_line_there_says_what_it_lacks(light, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "kd_jax.main"],
        cwd=tmp_path,
        env=os.environ | light,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert done.stderr.startswith("error: ml_collections is not installed; expected it for --config")
