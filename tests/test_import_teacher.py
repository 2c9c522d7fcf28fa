"""Teachers of PyTorch networks, as `kd_jax import-teacher` makes them. `launch/test.sh --torch` runs these."""

import builtins
import errno
import json
import os
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax.errors import InputError
from kd_jax.teachers import exported
from tests import tiny

torch = pytest.importorskip("torch", reason="PyTorch is not installed: bash launch/test.sh --torch")
from tests.models.record_resnet import declare_operators  # noqa: E402

pytest.importorskip("torchax", reason="torchax is not installed: bash launch/test.sh --torch")
OPERATORS = declare_operators()  # that timm's import of torchvision needs
timm = pytest.importorskip("timm", reason="timm is not installed: bash launch/test.sh --torch")
pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore")]  # of torchax

from kd_jax.teachers.from_torch import import_teacher  # noqa: E402  after what it needs

OWN = """
    import torch
    from torch import nn

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 6, 3, padding=1)
            self.bn = nn.BatchNorm2d(6)
            self.fc = nn.Linear(6, 4)

        def forward(self, x):
            return self.fc(torch.relu(self.bn(self.conv(x))).mean((2, 3)))

    class Two(Net):
        def forward(self, x):
            return super().forward(x), x

    class Conv(nn.Sequential):
        def __init__(self):
            super().__init__(nn.Conv2d(3, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())

    def broken():
        return Net().missing

    def number():
        return 7
"""
CHANGES = {"size": 8}
IMPORT = builtins.__import__


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "my_net.py"
    path.write_text(textwrap.dedent(OWN))
    return path


def network_of(file, name="Net"):
    """The network with random statistics that matter."""
    names = {}
    exec(compile(file.read_text(), str(file), "exec"), names)
    torch.manual_seed(0)
    network = names[name]().eval()
    for key, value in network.named_buffers():
        if "running" in key:
            value.uniform_(0.5, 2.0)
    return network


def said_of(folder, images):
    about = exported.read(str(folder))
    program, variables = exported.program(str(folder), about, "float32"), exported.variables(str(folder), about)
    head = about["head"] and tuple(about["head"])
    return jax.jit(lambda v, x: exported.apply(program, v, x, head))(variables, jnp.asarray(images))


def test_a_network_of_ones_own_teaches_its_logits_and_embedding(file, tmp_path):
    network = network_of(file)
    torch.save({"state_dict": network.state_dict()}, tmp_path / "weights.pth")
    names = ["a", "b", "c", "d"]
    source, to = f"{file}:Net", tmp_path / "teacher"
    import_teacher(source, str(to), weights_file=str(tmp_path / "weights.pth"), class_names=names, **CHANGES)
    images = np.random.default_rng(0).normal(size=(5, 8, 8, 3)).astype(np.float32)
    said = said_of(to, images)
    with torch.no_grad():
        theirs = torch.from_numpy(images.transpose(0, 3, 1, 2))
        embedding = torch.relu(network.bn(network.conv(theirs))).mean((2, 3))
        np.testing.assert_allclose(said.logits, network(theirs), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(said.embedding, embedding, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(said.head.kernel, network.fc.weight.detach().numpy().T)
    about = exported.read(str(to))
    assert (about["class_names"], about["preprocessing"].size, about["num_classes"]) == (names, 8, 4)
    assert about["parity"]["difference"] < 1e-5


def test_a_network_without_a_linear_layer_at_its_end_reports_logits_alone(file, tmp_path):
    import_teacher(f"{file}:Conv", str(tmp_path / "teacher"), weights_file="none", **CHANGES)
    said = said_of(tmp_path / "teacher", np.zeros((2, 8, 8, 3), np.float32))
    assert said.embedding is None
    assert said.head is None
    assert said.features == ()


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext", "test_efficientnet"])
def test_a_network_of_timms_reports_what_timms_does(tmp_path, name):
    torch.manual_seed(0)
    module = timm.create_model(name, pretrained=False, num_classes=7).eval()
    torch.save(module.state_dict(), tmp_path / "weights.pth")
    to = tmp_path / "teacher"
    import_teacher(f"timm/{name}", str(to), weights_file=str(tmp_path / "weights.pth"), num_classes=7)
    size = module.pretrained_cfg["input_size"][-1]
    images = np.random.default_rng(0).normal(size=(2, size, size, 3)).astype(np.float32)
    said = said_of(to, images)
    with torch.no_grad():
        last, maps = module.forward_intermediates(torch.from_numpy(images.transpose(0, 3, 1, 2)))
        logits, embedding = module.forward_head(last), module.forward_head(last, pre_logits=True)
    for got, expected in (
        (said.logits, logits),
        (said.embedding, embedding),
        (said.features[-1], maps[-1].permute(0, 2, 3, 1)),
    ):
        np.testing.assert_allclose(got, expected, atol=1e-5 * float(expected.abs().max()))
    preprocessing = exported.read(str(to))["preprocessing"]
    assert preprocessing.mean == tuple(module.pretrained_cfg["mean"])


@pytest.mark.parametrize(
    ("source", "options", "said"),
    [
        ("FILE:Two", {}, "FILE:Two returns tuple; expected a tensor of logits"),
        ("FILE:number", {}, "FILE:number returns a int; expected a torch.nn.Module"),
        ("FILE:broken", {}, "FILE:broken cannot be called: AttributeError: 'Net' object has no attribute 'missing'"),
        ("FILE:Nett", {}, "a function of FILE is 'Nett'; expected one of: .*; did you mean 'Net'"),
        ("FILE", {}, "the network is 'FILE'; expected timm/NAME, or FILE.py:FUNCTION"),
        ("elsewhere.py:Net", {}, "there is no file 'elsewhere.py'; expected the Python file of a network"),
        ("FILE:Net", {"weights_file": None}, "--weights is missing; expected the file of the network's weights"),
        ("FILE:Net", {"class_names": ["a"]}, "--class_names names 1 classes; expected the 4 of FILE:Net"),
        ("FILE:Net", {"mean": (0.5,)}, "--mean has 1 numbers and --std 3; expected as many"),
        ("timm/resnett18", {}, r"timm .* has no network 'resnett18'; did you mean resnet18 or"),
        ("timm/resnet18.a9", {}, "the weights of resnet18 is 'a9'; expected one of: a1_in1k"),
        ("timm/test_vit", {"size": 100}, r"timm/test_vit does not read images \(3, 100, 100\): "),
    ],
)
def test_what_cannot_be_imported_is_said(file, tmp_path, source, options, said):
    given = {"weights_file": "none", **({} if source.startswith("timm") else CHANGES), **options}
    with pytest.raises(
        InputError, match=said.replace("FILE", str(file), 1) if "FILE.py" not in said else "expected timm/NAME"
    ):
        import_teacher(source.replace("FILE", str(file)), str(tmp_path / "teacher"), **given)
    assert not (tmp_path / "teacher").exists()


@pytest.mark.parametrize(
    ("source", "width", "options"),
    [
        ("timm/test_vit", 64, {"num_classes": 0, "size": 80}),
        ("timm/resnet18", 512, {"num_classes": 0, "size": 32}),
        ("FILE:Net", 4, {"embedding": True, **CHANGES}),
    ],
)
def test_what_a_network_without_classes_returns_is_an_embedding(file, tmp_path, capsys, source, width, options):
    folder = str(tmp_path / "teacher")
    import_teacher(source.replace("FILE", str(file)), folder, weights_file="none", **options)
    assert f"no classes, an embedding of {width}" in capsys.readouterr().out
    said = exported.read(folder)
    assert (said["num_classes"], said["head"], said["preprocessing"].size) == (0, None, options["size"])
    assert said["parity"]["difference"] < 1e-4 * said["parity"]["largest_number"]
    program = exported.program(folder, said, "float32")
    images = jnp.zeros((2, options["size"], options["size"], len(said["preprocessing"].mean)))
    outputs = exported.apply(program, exported.variables(folder, said), images)
    assert (outputs.num_classes, outputs.embedding.shape) == (0, (2, width))


def test_weights_of_another_network_are_refused(file, tmp_path):
    torch.save({"fc.weight": torch.zeros(4, 6), "other": torch.zeros(1)}, tmp_path / "weights.pth")
    with pytest.raises(
        InputError, match=r"the weights are not those of .*:Net: the file lacks bn.bias, bn.running_mean"
    ):
        import_teacher(f"{file}:Net", str(tmp_path / "teacher"), weights_file=str(tmp_path / "weights.pth"), **CHANGES)


def test_a_full_disk_is_not_bad_input(file, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(exported, "_export", full)
    with pytest.raises(OSError, match="No space left on device"):
        import_teacher(f"{file}:Net", str(tmp_path / "teacher"), weights_file="none", **CHANGES)
    assert not (tmp_path / "teacher").exists()


def test_a_process_that_trains_with_it_never_imports_pytorch(file, tmp_path):
    import_teacher(f"{file}:Net", str(tmp_path / "teacher"), weights_file="none", **CHANGES)
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), np.uint8)
    np.savez(tmp_path / "data.npz", train_images=images, train_labels=np.arange(40) % 4)
    config = tiny.config(**{"dataset.source": "npz", "dataset.path": str(tmp_path / "data.npz"), "train.epochs": 1})
    config["dataset"] |= {"train_images": 0, "holdout": 0.0}
    config["teacher"] |= {"kind": "exported", "path": str(tmp_path / "teacher")}
    config["method"] = tiny.METHODS["kd"]
    program = f"""
import json, sys
import kd_jax
kd_jax.train(json.loads({json.dumps(config)!r}), {str(tmp_path / "run")!r})
print([name for name in ("torch", "torchax", "timm") if name in sys.modules])
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines()[-1] == "[]"


def test_a_torchvision_of_another_build_is_one_line(tmp_path, monkeypatch):
    def fails(*_):
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.delitem(sys.modules, "timm")
    monkeypatch.setattr("builtins.__import__", lambda name, *rest: fails() if name == "timm" else IMPORT(name, *rest))
    with pytest.raises(InputError, match=r"nms does not exist\); expected a torchvision of the same build as PyTorch"):
        import_teacher("timm/resnet18", str(tmp_path / "teacher"), weights_file="none")
