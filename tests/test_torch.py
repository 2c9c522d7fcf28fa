"""What needs PyTorch itself: its files, as it writes them. `launch/test.sh --torch` installs it and runs these."""

import contextlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax import experiment, models, weights
from kd_jax.errors import InputError
from kd_jax.models import torch_names
from launch import contestants
from tests import tiny

torch = pytest.importorskip("torch", reason="PyTorch is not installed: bash launch/test.sh --torch")
pytestmark = pytest.mark.torch
torch_peer = pytest.importorskip("launch.torch_peer")


@pytest.fixture(scope="module")
def arrays():
    """A state dict of the student that `tiny.config` describes."""
    network = models.create("resnet8", 10, width=1 / 8)
    variables = jax.jit(network.init)(jax.random.key(3), jnp.zeros((1, 8, 8, 1)))
    return torch_names.to_state_dict(variables, network)


def tensors(arrays, dtype=torch.float32):
    return {key: torch.from_numpy(np.array(value)).to(dtype) for key, value in arrays.items()}


def same(read, arrays):
    return read.keys() == arrays.keys() and all(np.array_equal(read[key], arrays[key]) for key in arrays)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("suffix", [".pth", ".PTH", ".pth.tar", ".ckpt", ".bin", ".pt", ".th", ""])
def test_a_file_of_tensors_is_read(arrays, tmp_path, suffix, zipped):
    torch.save(tensors(arrays), tmp_path / f"model{suffix}", _use_new_zipfile_serialization=zipped)
    assert same(weights.read(tmp_path / f"model{suffix}"), arrays)


@pytest.mark.parametrize("key", ["state_dict", "model"])
def test_tensors_of_a_training_checkpoint_are_read(arrays, tmp_path, key):
    torch.save({key: tensors(arrays), "epoch": 3, "optimizer": {"lr": 0.1}}, tmp_path / "model.pth")
    assert same(weights.read(tmp_path / "model.pth"), arrays)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_tensors_of_another_precision_are_read_as_float32(arrays, tmp_path, dtype):
    stored = tensors(arrays, dtype)
    torch.save(stored, tmp_path / "model.pth")
    read = weights.read(tmp_path / "model.pth")
    assert {value.dtype for value in read.values()} == {np.dtype(np.float32)}
    assert same(read, {key: value.double().numpy().astype(np.float32) for key, value in stored.items()})


def test_keys_that_are_no_strings_are_no_names(arrays, tmp_path):
    torch.save({("fc", "weight"): torch.ones(2), 3: torch.ones(2)}, tmp_path / "model.pth")
    with pytest.raises(InputError, match="holds no state dict; expected tensors by name"):
        weights.read(tmp_path / "model.pth")


def test_parameters_of_a_module_are_read(tmp_path):
    module = torch.nn.Linear(3, 2)  # whose parameters require a gradient
    torch.save(dict(module.named_parameters()), tmp_path / "model.pth")
    read = weights.read(tmp_path / "model.pth")
    np.testing.assert_array_equal(read["weight"], module.weight.detach().numpy())


def test_a_student_starts_from_what_data_parallelism_saved(arrays, tmp_path):
    prefixed = {f"module.{key}": value for key, value in tensors(arrays).items()}
    prefixed["module.bn1.num_batches_tracked"] = torch.tensor(7)
    torch.save({"state_dict": prefixed}, tmp_path / "model.pth")
    made = experiment.create(tiny.config(**{"model.pretrained": str(tmp_path / "model.pth")}))
    assert same(torch_names.to_state_dict(made.pretrained, made.components.student), arrays)


class Code:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_pickle_is_refused_and_not_run(tmp_path, zipped):
    state_dict = {"state_dict": {"conv1.weight": Code(str(tmp_path / "made"))}}
    torch.save(state_dict, tmp_path / "model.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(InputError, match="is refused: it is damaged, or a pickle with more than tensors in it"):
        weights.read(tmp_path / "model.pth")
    assert not (tmp_path / "made").exists()


def test_a_whole_module_is_refused(tmp_path):
    torch.save(torch.nn.Linear(3, 2), tmp_path / "model.pth")
    with pytest.raises(InputError, match="is refused: it is damaged, or a pickle with more than tensors in it"):
        weights.read(tmp_path / "model.pth")


def test_what_is_no_state_dict_is_refused(tmp_path):
    torch.save([torch.zeros(3)], tmp_path / "model.pth")
    with pytest.raises(InputError, match="holds no state dict; expected tensors by name"):
        weights.read(tmp_path / "model.pth")


def test_a_file_that_is_cut_short_is_refused(arrays, tmp_path):
    torch.save(tensors(arrays), tmp_path / "model.pth")
    whole = (tmp_path / "model.pth").read_bytes()
    (tmp_path / "model.pth").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"model.pth") as error:
        weights.read(tmp_path / "model.pth")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["resnet20", "resnet8x4", "resnet18", "resnet50"])
def test_the_networks_of_the_benchmark_are_those_of_kd_jax(name):
    network = models.create(name, 10, width=1 / 8)
    images = np.random.default_rng(0).normal(size=(2, 64, 64, 3)).astype(np.float32)
    variables = jax.jit(network.init)(jax.random.key(0), images)
    peer = torch_peer.ResNet(name, 10, width=1 / 8).eval()
    missing, unknown = peer.load_state_dict(tensors(torch_names.to_state_dict(variables, network)), strict=False)
    assert all(key.endswith(torch_names.COUNTER) for key in missing)
    assert not unknown
    logits = jax.jit(lambda v, x: network.apply(v, x, train=False)[0].logits)(variables, images)
    with torch.no_grad():
        np.testing.assert_allclose(peer(torch.from_numpy(images.transpose(0, 3, 1, 2))), logits, rtol=1e-4, atol=1e-4)


def test_the_benchmark_asks_pytorch_in_another_process():
    step = contestants.Step("resnet8", "resnet14", 32, 4, width=1 / 8)
    config = {"train": {"batch_size": 4}, "evaluate": {"batch_size": 8}, "precision": "float32"}
    for name in contestants.PEERS:
        with contextlib.closing(contestants.Torch(sys.executable, name)) as peer:
            assert peer.open(step, config, images=16, workers=1).keys() == {"student", "teacher"}
            assert peer.step(2) > 0
            assert peer.ask("evaluation", count=1)["seconds"] > 0
            with pytest.raises(RuntimeError, match="PyTorch's process: AttributeError"):
                peer.ask("unknown", count=1)


def test_a_crop_of_the_benchmark_is_one_of_those_of_kd_jax():
    image = np.random.default_rng(0).integers(1, 256, (1, 8, 8, 3), dtype=np.uint8)
    padded = np.pad(image[0], ((1, 1), (1, 1), (0, 0)))
    windows = [padded[y : y + 8, x : x + 8] for y in range(3) for x in range(3)]
    possible = {one.tobytes() for window in windows for one in (window, window[:, ::-1])}
    crops = torch_peer.crop_and_flip(torch.from_numpy(np.repeat(image, 200, 0))).numpy()
    assert {crop.tobytes() for crop in crops} == possible
