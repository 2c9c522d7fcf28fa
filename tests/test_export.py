"""The command `export` on a run: which images it is checked on, what a program reads, what is refused."""

import json
import re
import sys

import jax
import numpy as np
import pytest

import kd_jax
from kd_jax import export, exporting, training
from kd_jax.errors import InputError
from kd_jax.exporting import benchmark, program
from tests import tiny


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run, which resizes its images, and its weights in a file."""
    folder = tmp_path_factory.mktemp("export")
    training.train(tiny.config(**{"model.image_size": 12, "train.steps": 2}), folder / "run")
    export.export(folder / "run", folder / "model.safetensors")
    return folder / "run", folder / "model.safetensors"


@pytest.mark.parametrize(("index", "images"), [(0, "100 test images"), (1, "100 random images")])
def test_a_program_is_compared_on_the_test_images_where_they_can_be_read(run, tmp_path, index, images):
    path = tmp_path / "model.stablehlo"
    said = export.export(run[index], path)
    assert images in said
    assert "100.0% of the classes are the same" in said
    pixels = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1), np.uint8)
    expected = jax.jit(kd_jax.load(run[0]).logits)(pixels)
    np.testing.assert_allclose(exporting.runner("stablehlo", str(path))(pixels), expected, rtol=1e-5, atol=1e-5)


def test_what_prepares_images_beside_a_program_is_in_its_sidecar(run, tmp_path):
    path = tmp_path / "model.stablehlo"
    export.export(run[1], path, preprocess="beside")
    with open(f"{path}.json") as file:
        said = json.load(file)
    assert (said["preprocess"], said["size"], said["image_shape"]) == ("beside", 12, [8, 8, 1])
    finished = kd_jax.load(run[0])
    assert said["class_names"] == list(finished.class_names)
    pixels = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1), np.uint8)
    normalized = (pixels / np.float32(255) - np.float32(said["mean"])) / np.float32(said["std"])
    prepared = jax.image.resize(normalized, (3, said["size"], said["size"], 1), "linear")
    found = exporting.runner("stablehlo", str(path))(np.asarray(prepared))
    np.testing.assert_allclose(found, jax.jit(finished.logits)(pixels), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        (
            "model.pth",
            {},
            "names no format; expected .safetensors, .stablehlo, .tflite, .onnx, or --format",
        ),
        ("model", {"format": "caffe"}, "--format is 'caffe'; expected one of: onnx, safetensors, savedmodel"),
        ("model.safetensors", {"quantize": "int8"}, "expected no --preprocess, --batch, --quantize"),
        ("model.stablehlo", {"batch": 2}, "--batch is 2, and a program of format stablehlo takes any"),
        ("model.tflite", {"preprocess": "none"}, "--preprocess is 'none'; expected one of: beside, inside"),
        ("none/model.onnx", {}, "expected a file in an existing folder"),
    ],
)
def test_bad_input_is_refused_and_writes_nothing(run, tmp_path, name, options, said):
    with pytest.raises(InputError, match=re.escape(said)):
        export.export(run[0], tmp_path / name, **options)
    assert [*tmp_path.iterdir()] == []


def test_weights_are_not_made_of_weights(run, tmp_path):
    with pytest.raises(InputError, match="a file; expected the folder of a finished run, or another --format"):
        export.export(run[1], tmp_path / "model.safetensors")


@pytest.mark.parametrize(("index", "said"), [(0, "dataset.path is '/none'"), (1, "a file has no data set")])
def test_a_path_without_the_data_is_refused(run, tmp_path, index, said):
    with pytest.raises(InputError, match=said):
        export.export(run[index], tmp_path / "model.stablehlo", data="/none")
    assert [*tmp_path.iterdir()] == []


def test_a_run_in_bfloat16_is_exported_in_float32(run):
    assert kd_jax.load(run[0], precision="bfloat16").preprocess(np.zeros((1, 8, 8, 1), np.uint8)).dtype == "bfloat16"
    assert program.read(str(run[0])).program.apply(np.zeros((1, 8, 8, 1), np.uint8)).dtype == "float32"


def test_the_benchmark_measures_each_format_that_runs_here(run, tmp_path, monkeypatch):
    kept = {name: exporting.FORMATS[name] for name in ("stablehlo", "onnx")}
    monkeypatch.setattr(exporting, "FORMATS", kept)
    monkeypatch.setitem(sys.modules, "jax2onnx", None)
    monkeypatch.setattr(benchmark, "ONNX_PYTHON", str(tmp_path / "none"))
    rows = benchmark.run(str(run[0]), str(tmp_path / "table"), count=64)
    network, stablehlo, onnx = rows
    assert stablehlo.same == 1
    assert stablehlo.accuracy == network.accuracy
    assert stablehlo.milliseconds.keys() == {"1", "32"}
    assert "needs jax2onnx" in onnx.why
    assert len(benchmark.table(rows).splitlines()) == 4
    with open(tmp_path / "table" / "export_benchmark.json") as file:
        assert json.load(file)["images"] == 64
