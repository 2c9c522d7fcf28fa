"""Weights from files, the hub and runs: what is read, what is refused, what a run starts from."""

import functools
import json
import pickle
import sys
import types

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import kd_jax
from kd_jax import evaluation, experiment, export, models, networks, runs, training, weights
from kd_jax.errors import InputError
from kd_jax.models import torch_names
from tests import tiny


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run and its weights in a file."""
    folder = tmp_path_factory.mktemp("weights")
    training.train(tiny.config(), str(folder / "run"))
    export.export(str(folder / "run"), str(folder / "model.safetensors"))
    return folder / "run", folder / "model.safetensors"


def shapes(run, num_classes=10):
    config = runs.read_json(str(run), "config.json")["config"]
    network = networks.create(config, num_classes)
    return network, jax.eval_shape(network.init, jax.random.key(0), jax.ShapeDtypeStruct((2, 8, 8, 1), np.float32))


def test_an_exported_file_holds_the_runs_variables_and_says_what_they_are(run):
    folder, file = run
    finished = kd_jax.load(folder)
    build = functools.partial(models.create, "resnet8", width=1 / 8)
    assert tiny.identical(torch_names.to_variables(load_file(file), build, image_size=8), finished.variables)
    with open(file, "rb") as stream:
        header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))["__metadata__"]
    assert (header["model"], json.loads(header["class_names"])) == ("resnet8", list(finished.class_names))


def test_an_export_never_replaces_a_file(run):
    folder, file = run
    before = file.read_bytes()
    with pytest.raises(InputError, match=r"which already exists; expected a new file"):
        export.export(str(folder), str(file))
    assert file.read_bytes() == before


@pytest.mark.parametrize("kind", ["file", "run"])
def test_a_run_starts_from_a_file_or_a_run(run, tmp_path, kind):
    source = str(run[1] if kind == "file" else run[0])
    config = tiny.config(
        **{"model.pretrained": source, "optimizer.learning_rate": 1e-30, "optimizer.weight_decay": 0.0}
    )
    state = training.train(config, tmp_path / "run").state
    assert tiny.identical(state.params["student"], kd_jax.load(run[0]).variables["params"])


def test_a_head_of_another_size_is_replaced_and_the_rest_is_kept(run):
    folder, file = run
    network, wanted = shapes(folder, num_classes=3)
    loaded = weights.load(file, wanted, network)
    assert not loaded.head
    assert "fc" not in loaded.variables["params"]
    kept = kd_jax.load(folder).variables
    assert tiny.identical(loaded.variables["params"]["layer1_0"], kept["params"]["layer1_0"])


def test_what_a_run_starts_from_is_part_of_its_identity_by_content(run, tmp_path):
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(run[1].read_bytes())
    first, second = (experiment.create(tiny.config(**{"model.pretrained": str(path)})) for path in (run[1], copy))
    assert first.digest == second.digest != experiment.create(tiny.config()).digest


def test_weights_can_teach_and_their_accuracy_is_measured_first(run, tmp_path, capsys):
    folder, file = run
    config = tiny.config() | {
        "method": tiny.METHODS["kd"],
        "teacher": tiny.config()["teacher"] | {"kind": "weights", "path": str(file), "config": tiny.config()},
    }
    training.train(config, str(tmp_path / "run"))
    result = runs.read_json(str(tmp_path / "run"), "result.json")
    expected = runs.read_json(str(folder), "result.json")["test"]["accuracy"]
    assert result["teacher"] == {"name": "model.safetensors", "accuracy": expected}
    assert f"teacher model.safetensors: test accuracy {100 * expected:.2f}%" in capsys.readouterr().out
    assert evaluation.evaluate_run(str(tmp_path / "run"))["agreement"] == result["test"]["agreement"]


def truncated(path, source):
    path.write_bytes(source.read_bytes()[:-100])


def text(path, source):
    path.write_text("no weights")


def smaller(path, source):
    tensors = load_file(source)
    save_file({**tensors, "layer1.0.bn1.weight": np.zeros(5, np.float32)}, path)


def without_a_key(path, source):
    tensors = load_file(source)
    save_file({key: value for key, value in tensors.items() if key != "layer1.0.bn1.weight"}, path)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (truncated, "cannot be read as weights; expected a whole file of tensors"),
        (text, "cannot be read as weights"),
        (smaller, r"layer1.0.bn1.weight is \(5,\), not \(2,\)"),
        (without_a_key, "the file lacks layer1.0.bn1.weight"),
    ],
)
def test_a_damaged_file_is_refused_in_one_line(run, tmp_path, damage, said):
    damage(tmp_path / "bad.safetensors", run[1])
    with pytest.raises(InputError, match=said) as error:
        experiment.create(tiny.config(**{"model.pretrained": str(tmp_path / "bad.safetensors")}))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("source", ["/nowhere/model.safetensors", "model.pth", "a b"])
def test_a_missing_source_is_refused_with_the_choices(source):
    with pytest.raises(InputError, match=r"no weights found at .*; expected a file"):
        weights.read(source)


def test_a_pytorch_file_without_pytorch_says_so(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    (tmp_path / "model.pth").write_bytes(b"")
    with pytest.raises(InputError, match=r"needs PyTorch, which is not installed"):
        weights.read(str(tmp_path / "model.pth"))


def test_a_pickle_is_read_by_pytorchs_safe_loader_only(tmp_path, monkeypatch):
    asked = {}

    def load(path, **options):
        asked.update(options)
        raise pickle.UnpicklingError("Weights only load failed\nand much more")

    monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(load=load, Tensor=np.ndarray))
    (tmp_path / "model.pth").write_bytes(b"")
    with pytest.raises(InputError, match=r"is refused: it is damaged, or a pickle with more than tensors in it"):
        weights.read(str(tmp_path / "model.pth"))
    assert asked == {"map_location": "cpu", "weights_only": True}


class Code:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def test_code_in_a_pickle_is_not_run(tmp_path):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    torch.save({"state_dict": {"conv1.weight": Code(str(tmp_path / "made"))}}, tmp_path / "model.pth")
    with pytest.raises(InputError, match=r"is refused"):
        weights.read(str(tmp_path / "model.pth"))
    assert not (tmp_path / "made").exists()


def test_a_hub_id_is_fetched_at_its_revision(run, monkeypatch):
    asked = {}

    def hf_hub_download(repository, file, revision):
        asked.update(repository=repository, file=file, revision=revision)
        return str(run[1])

    monkeypatch.setitem(sys.modules, "huggingface_hub", types.SimpleNamespace(hf_hub_download=hf_hub_download))
    assert "conv1.weight" in weights.read("owner/name.v1@0123abc")
    assert asked == {"repository": "owner/name.v1", "file": "model.safetensors", "revision": "0123abc"}


def test_a_hub_that_cannot_be_reached_is_one_line(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(InputError, match=r"are not in the hub's cache and cannot be fetched") as error:
        weights.read("owner/name@0123abc")
    assert "\n" not in str(error.value)
