"""Weights from files, the hub and runs: what is read, what is refused, what a run starts from."""

import functools
import json
import os
import pickle
import sys
import time
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import kd_jax
from kd_jax import evaluation, experiment, export, models, runs, training, weights
from kd_jax.errors import InputError
from kd_jax.models import torch_names
from tests import silent_hub, tiny


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run and its weights in a file."""
    folder = tmp_path_factory.mktemp("weights")
    training.train(tiny.config(), folder / "run")
    export.export(folder / "run", folder / "model.safetensors")
    return folder / "run", folder / "model.safetensors"


def create(num_classes, name="resnet6", **options):
    """The network of the run, with another number of classes or other options."""
    return models.create(name, num_classes, **{"width": 1 / 8, "stem": "cifar"} | options)


def load(source, network, **options):
    shapes = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((2, 8, 8, 1)))
    return weights.load(source, shapes, network, **options)


def test_an_exported_file_holds_the_runs_variables_and_says_what_they_are(run):
    folder, file = run
    finished = kd_jax.load(folder)
    loaded = torch_names.to_variables(load_file(file), create, image_shape=(8, 8, 1))
    assert tiny.identical(loaded, finished.variables)
    with open(file, "rb") as stream:
        header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))["__metadata__"]
    assert (header["model"], json.loads(header["class_names"])) == ("resnet6", list(finished.class_names))


def assert_loads_with_equal_logits(run, file):
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 1), dtype=np.uint8)
    finished, loaded = kd_jax.load(run), kd_jax.load(file)
    assert np.array_equal(jax.jit(finished.logits)(images), jax.jit(loaded.logits)(images))
    assert (loaded.class_names, loaded.image_shape) == (finished.class_names, finished.image_shape)


def test_an_exported_file_is_loaded_as_the_network_that_it_was(run):
    assert_loads_with_equal_logits(*run)


def test_an_export_that_fails_leaves_no_file(run, tmp_path, monkeypatch):
    def fails(old, new):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("kd_jax.exporting.safetensors.os.replace", fails)
    with pytest.raises(InputError, match="which cannot be written: Permission denied"):
        export.export(run[0], tmp_path / "model.safetensors")
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize("source", [None, 3, b"run"])
def test_what_is_no_path_is_not_loaded(source):
    with pytest.raises(InputError, match=r"the run is .*; expected its folder, or a file of `kd_jax export`"):
        kd_jax.load(source)


def test_weights_that_do_not_say_which_network_they_are_of_are_not_loaded(tmp_path):
    save_file({"a": np.zeros(1, np.float32)}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="does not say which network it holds"):
        kd_jax.load(tmp_path / "model.safetensors")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("image_shape", "[]"),
        ("image_shape", '"x"'),
        ("mean", "{}"),
        ("std", "[0.5, 0.5]"),
        ("mean", "[NaN]"),
        ("config", "[]"),
    ],
)
def test_metadata_that_are_not_those_of_an_export_are_refused(run, tmp_path, key, value):
    with safe_open(run[1], "numpy") as file:
        metadata = file.metadata()
    save_file(load_file(run[1]), tmp_path / "model.safetensors", metadata | {key: value})
    with pytest.raises(InputError, match="does not say which network it holds"):
        kd_jax.load(tmp_path / "model.safetensors")


def test_an_export_never_replaces_a_file_that_came_meanwhile(run, tmp_path, monkeypatch):
    path = tmp_path / "model.safetensors"
    exists = os.path.lexists
    monkeypatch.setattr("kd_jax.exporting.os.path.lexists", lambda name: name != str(path) and exists(name))
    path.write_bytes(b"another's")
    with pytest.raises(InputError, match="which cannot be written: File exists"):
        export.export(run[0], path)
    assert path.read_bytes() == b"another's"


def test_an_export_never_replaces_a_file(run):
    folder, file = run
    before = file.read_bytes()
    with pytest.raises(InputError, match="which already exists; expected a new file"):
        export.export(folder, file)
    assert file.read_bytes() == before


@pytest.mark.parametrize("kind", ["file", "run"])
def test_a_run_starts_from_a_file_or_a_run(run, tmp_path, kind):
    source = str(run[1] if kind == "file" else run[0])
    config = tiny.config(
        **{"model.pretrained": source, "optimizer.learning_rate": 1e-30, "optimizer.weight_decay": 0.0}
    )
    state = training.train(config, tmp_path / "run").state
    assert tiny.identical(state.params["student"], kd_jax.load(run[0]).variables["params"])


@pytest.fixture
def unnamed(monkeypatch):
    """The networks of the run's family, without PyTorch names."""
    build = models.NETWORKS["resnet6"]

    @functools.wraps(build)
    def without_names(**options):
        return build(**options)._replace(torch_key=None)

    monkeypatch.setitem(models.NETWORKS, "resnet6", without_names)


@pytest.mark.usefixtures("unnamed")
def test_a_network_without_pytorch_names_is_exported_under_flaxs(run, tmp_path):
    assert "under Flax's key names" in export.export(run[0], tmp_path / "model.safetensors")
    expected = flatten_dict(kd_jax.load(run[0]).variables, sep=".")
    found = load_file(tmp_path / "model.safetensors")
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[key], expected[key]) for key in expected)
    assert_loads_with_equal_logits(run[0], tmp_path / "model.safetensors")


@pytest.mark.usefixtures("unnamed")
def test_a_network_without_pytorch_names_starts_from_a_run(run):
    loaded = load(run[0], create(10))
    assert loaded.head
    assert tiny.identical(loaded.variables, kd_jax.load(run[0]).variables)


@pytest.mark.usefixtures("unnamed")
def test_a_network_without_pytorch_names_starts_from_no_file(run):
    with pytest.raises(InputError, match="resnet6 has no PyTorch names"):
        load(run[1], create(10))


@pytest.mark.parametrize("options", [{"num_classes": 3}, {"num_classes": 10, "head": "mlp"}], ids=["size", "kind"])
@pytest.mark.parametrize("source", ["file", "run"])
def test_another_head_is_left_out_and_the_backbone_is_kept(run, source, options):
    loaded = load(run[1] if source == "file" else run[0], create(**options))
    backbone = {key: flatten_dict(tree) for key, tree in kd_jax.load(run[0]).variables.items()}
    expected = {(key, *path): x for key, tree in backbone.items() for path, x in tree.items() if path[0] != "fc"}
    found = flatten_dict(loaded.variables)
    assert not loaded.head
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[path], expected[path]) for path in expected)


def test_a_strict_load_refuses_another_head(run):
    with pytest.raises(InputError, match=r"linear.bias is \(10,\), not \(3,\)"):
        load(run[1], create(3), strict=True)


def test_layers_beyond_those_of_the_backbone_are_refused(run, tmp_path):
    tensors = load_file(run[1])
    layer = {f"layer1.1.{key[9:]}": x for key, x in tensors.items() if key.startswith("layer1.0.")}
    save_file({**tensors, **layer, "linear.weight": np.zeros((3, 8), np.float32)}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=r"the file holds unknown layer1\.1\.bn1\.bias"):
        load(tmp_path / "model.safetensors", create(10))


def test_a_run_that_starts_with_a_new_head_says_so(run, tmp_path, capsys):
    tensors = load_file(run[1])
    save_file({**tensors, "linear.weight": np.zeros((3, 8), np.float32)}, tmp_path / "model.safetensors")
    experiment.create(tiny.config(**{"model.pretrained": str(tmp_path / "model.safetensors")}))
    assert "its head is of another shape, and is reinitialized" in capsys.readouterr().out


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
    training.train(config, tmp_path / "run")
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
    (tmp_path / "model.pth").write_bytes(b"PK\x03\x04")
    with pytest.raises(InputError, match="needs PyTorch, which is not installed"):
        weights.read(tmp_path / "model.pth")


def test_a_pickle_is_read_by_pytorchs_safe_loader_only(tmp_path, monkeypatch):
    asked = {}

    def load(path, **options):
        asked.update(options)
        raise pickle.UnpicklingError("Weights only load failed\nand much more")

    monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(load=load, Tensor=np.ndarray))
    (tmp_path / "model.pth").write_bytes(b"PK\x03\x04")
    with pytest.raises(InputError, match="is refused: it is damaged, or a pickle with more than tensors in it"):
        weights.read(tmp_path / "model.pth")
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
    with pytest.raises(InputError, match="is refused"):
        weights.read(tmp_path / "model.pth")
    assert not (tmp_path / "made").exists()


def test_a_hub_id_is_taken_from_the_cache_at_its_revision(run, monkeypatch):
    asked = {}

    def hf_hub_download(repository, file, revision, **options):
        asked.update(repository=repository, file=file, revision=revision, **options)
        return str(run[1])

    monkeypatch.setitem(sys.modules, "huggingface_hub", types.SimpleNamespace(hf_hub_download=hf_hub_download))
    assert "conv1.weight" in weights.read("owner/name.v1@0123abc")
    assert asked == {
        "repository": "owner/name.v1",
        "file": "model.safetensors",
        "revision": "0123abc",
        "local_files_only": True,
    }


@pytest.mark.parametrize("listens", [False, True], ids=["refuses", "never answers"])
def test_a_hub_that_does_not_answer_is_one_line_within_seconds(monkeypatch, listens):
    with silent_hub.asked(monkeypatch, listens=listens):
        begin = time.monotonic()
        with pytest.raises(
            InputError, match=r"does not answer \(.*\)\. Download model.safetensors .* give its path"
        ) as error:
            weights.read("owner/name@0123abc")
        assert time.monotonic() - begin < 10
    assert len(str(error.value).splitlines()) == 1


def test_a_file_is_told_by_its_content_and_found_at_home(run, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "model.pth.tar").write_bytes(run[1].read_bytes())
    assert weights.read("~/model.pth.tar").keys() == load_file(run[1]).keys()


def test_a_head_called_fc_is_that_called_linear(run, tmp_path):
    tensors = load_file(run[1])
    save_file({key.replace("linear.", "fc."): x for key, x in tensors.items()}, tmp_path / "model.bin")
    loaded = load(tmp_path / "model.bin", create(10))
    assert loaded.head
    assert tiny.identical(loaded.variables, kd_jax.load(run[0]).variables)


@pytest.mark.parametrize(
    ("options", "why"),
    [({"num_classes": 3}, "is of another shape"), ({"num_classes": 10, "head": "mlp"}, "is of another kind")],
)
def test_why_a_head_is_left_out_is_said_in_its_own_words(run, options, why):
    assert load(run[1], create(**options)).why == why


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(run, tmp_path, value):
    tensors = load_file(run[1])
    tensors["layer1.0.bn1.weight"][0] = value
    save_file(tensors, tmp_path / "bad.safetensors")
    with pytest.raises(InputError, match=r"bad.safetensors are not finite, first in layer1.0.bn1.weight; expected"):
        load(tmp_path / "bad.safetensors", create(10))


def test_a_hub_that_cannot_be_reached_is_one_line(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(InputError, match="are not in the hub's cache and cannot be fetched") as error:
        weights.read("owner/name@0123abc")
    assert "\n" not in str(error.value)
