"""Each format, run by its own runtime: the network's logits, and what is known of it. ONNX where it is installed."""

import functools
import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from kd_jax import exporting
from kd_jax.errors import InputError, TrainingError
from kd_jax.exporting import Options
from tests.exporting import small

PROGRAM = small.program()
IMAGES = small.images(PROGRAM)
EXPECTED = np.asarray(jax.jit(PROGRAM.apply)(IMAGES))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Writes a format, once: (path, what `export` returned)."""

    @functools.cache
    def write(name):
        if name == "onnx":
            pytest.importorskip("jax2onnx")
        path = str(tmp_path_factory.mktemp(name) / "model")
        return path, exporting.export(name, PROGRAM, path, Options(), IMAGES)

    return write


@pytest.mark.parametrize("name", exporting.FORMATS)
def test_a_program_computes_the_networks_logits_of_any_number_of_images(written, name):
    path, found = written(name)
    run = exporting.runner(name, path)
    for count in (1, 3):
        np.testing.assert_allclose(run(IMAGES[:count]), EXPECTED[:count], atol=1e-5 * np.abs(EXPECTED).max())
    assert found["error"] < 1e-5
    assert found["same"] == 1


@pytest.mark.parametrize("name", exporting.FORMATS)
def test_the_sidecar_says_what_is_known(written, name):
    path, _ = written(name)
    with open(path + exporting.SIDECAR) as file:
        said = json.load(file)
    batch = 1 if name == "tflite" else None
    assert said == {"format": name, **small.ABOUT, "returns": "logits", "batch": batch, "quantize": ""}
    assert sorted(os.listdir(os.path.dirname(path))) == ["model", "model.json"]


@pytest.mark.slow
def test_tensorflow_alone_runs_a_saved_model(written, tmp_path):
    path, _ = written("savedmodel")
    np.save(tmp_path / "images.npy", IMAGES)
    program = f"""
import sys
sys.modules["jax"] = None
import numpy as np, tensorflow as tf
call = tf.saved_model.load({path!r}).signatures["serving_default"]
np.save("logits.npy", call(images=tf.constant(np.load("images.npy")))["logits"])
"""
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, cwd=tmp_path)
    found = np.load(tmp_path / "logits.npy")
    np.testing.assert_allclose(found, EXPECTED, atol=1e-5 * np.abs(EXPECTED).max())


@pytest.mark.filterwarnings("ignore:.*tf.lite.Interpreter is deprecated")
def test_tflite_has_the_networks_convolutions_as_its_own(written):
    from kd_jax.exporting.savedmodel import tensorflow

    interpreter = tensorflow().lite.Interpreter(written("tflite")[0])
    names = [operation["op_name"] for operation in interpreter._get_ops_details()]
    assert names.count("CONV_2D") + names.count("DEPTHWISE_CONV_2D") == 9  # the first has one channel
    assert not [name for name in names if name.startswith(("STABLEHLO", "Flex"))]


@pytest.mark.slow
def test_a_program_of_integers_is_smaller_and_says_much_the_same(tmp_path):
    images = small.images(PROGRAM, 16)
    for quantize in ("", "int8"):
        path = str(tmp_path / f"model{quantize}")
        found = exporting.export("tflite", PROGRAM, path, Options(4, quantize, images), images)
        assert found["error"] < 0.1
    assert os.path.getsize(tmp_path / "modelint8") < os.path.getsize(tmp_path / "model")


def test_images_of_a_calibration_are_all_used_whatever_the_batch():
    parts = exporting.batches(np.arange(5), 8)
    assert [part.tolist() for part in parts] == [[0, 1, 2, 3, 4, 4, 4, 4]]


@pytest.mark.slow
def test_integers_resize_their_images_as_the_network_does(tmp_path):
    images = small.images(PROGRAM, 64)
    program = PROGRAM._replace(
        apply=lambda x: jax.image.resize(x / 255 - 0.5, (x.shape[0], 16, 16, 1), "linear")[..., 0].mean(2)
    )
    found = exporting.export("tflite", program, str(tmp_path / "model"), Options(1, "int8", images), images)
    assert found["error"] < 0.03


def test_integers_need_training_images(tmp_path):
    with pytest.raises(InputError, match="needs training images; expected the folder of a run"):
        exporting.export("tflite", PROGRAM, str(tmp_path / "model"), Options(1, "int8"), IMAGES)
    assert [*tmp_path.iterdir()] == []


def test_onnx_elsewhere_names_its_script(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "jax2onnx", None)
    with pytest.raises(InputError, match=r"bash launch/onnx\.sh model\.safetensors model\.onnx"):
        exporting.export("onnx", PROGRAM, str(tmp_path / "model.onnx"), Options(), IMAGES)
    assert [*tmp_path.iterdir()] == []


def test_a_program_that_differs_is_not_written(tmp_path):
    runs = iter((0.0, 1.0))  # of one kind when it is traced for the file, and of another when it is compared

    def differs(images):
        return PROGRAM.apply(images) + next(runs)

    with pytest.raises(TrainingError, match="the program of format stablehlo differs from the network: by"):
        exporting.export("stablehlo", PROGRAM._replace(apply=differs), str(tmp_path / "model"), Options(), IMAGES)
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize("name", ["model", "model.json"])
def test_a_file_that_is_there_is_never_replaced(tmp_path, name):
    (tmp_path / name).write_text("another's")
    with pytest.raises(InputError, match="already exists; expected a new file"):
        exporting.check("stablehlo", str(tmp_path / "model"), Options())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (Options(batch=2), "--batch is 2, and a program of format onnx takes any"),
        (Options(quantize="int8"), "--quantize is 'int8'; expected 'int8' with --format=tflite"),
    ],
)
def test_an_option_of_another_format_is_refused(options, said):
    with pytest.raises(InputError, match=said):
        exporting.check("onnx", "model", options)


def test_a_batch_that_is_fixed_is_filled_up():
    sizes = []

    def run(images):
        sizes.append(len(images))
        return images * 2

    images = np.arange(5)[:, None]
    np.testing.assert_array_equal(exporting.in_batches(run, 2)(images), images * 2)
    assert sizes == [2, 2, 2]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the .imagenet. stem divides")
@pytest.mark.parametrize("name", small.FAMILIES)
@pytest.mark.parametrize("format", exporting.FORMATS)
def test_each_family_is_exported_to_each_format(tmp_path, format, name):
    if format == "onnx":
        pytest.importorskip("jax2onnx")
    program = small.program(name, small.SIZE, 3)
    assert exporting.export(format, program, str(tmp_path / "model"), Options(), small.images(program))["error"] < 1e-5
