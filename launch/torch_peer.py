"""PyTorch beside kd_jax: the process that launch/benchmark.py starts and asks, so that both are measured in one run.

usage: PYTHON launch/torch_peer.py fair|kept|usual, with an interpreter that has PyTorch and need not have anything else

It reads a JSON object per line and answers each with one, {"error": TEXT} where that failed:

    {"do": "versions"}                                        what runs where
    {"do": "open", SETTING}                                   builds the networks of a step
    {"do": "step", "count": N}                                {"seconds": S} of N training steps, synchronized
    {"do": "evaluation", "count": N}                          the same of N batches in inference mode
    {"do": "memory"}                                          {"mib": M} at most on a GPU since `open`, else null

A process is one peer, so that neither its memory nor PyTorch's settings are another's. "kept" is "fair" with the memory
that kd_jax has on a CPU.

The architectures are those of kd_jax, by He et al., with PyTorch's own initialization; names of parameters are those of
torchvision, and of the CIFAR networks of Tian et al.
"""

import contextlib
import json
import os
import platform
import runpy
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

PIXELS = 32  # of the images as they are stored
BASIC, BOTTLENECK = 1, 4  # by the factor on a block's channels
THIN, WIDE, IMAGENET = (16, 16, 32, 64), (32, 64, 128, 256), (64, 64, 128, 256, 512)
# (factor, blocks of each stage, channels of the stem and of each stage)
FAMILY = {
    **{f"resnet{6 * n + 2}": (BASIC, (n,) * 3, THIN) for n in (1, 2, 3, 5, 7, 9, 18)},
    **{f"resnet{6 * n + 2}x4": (BASIC, (n,) * 3, WIDE) for n in (1, 5)},
    "resnet18": (BASIC, (2, 2, 2, 2), IMAGENET),
    "resnet34": (BASIC, (3, 4, 6, 3), IMAGENET),
    "resnet50": (BOTTLENECK, (3, 4, 6, 3), IMAGENET),
}


class Block(nn.Module):
    """Two 3x3 convolutions, or 1x1, 3x3 and 1x1, and a shortcut."""

    def __init__(self, channels: int, width: int, stride: int, factor: int) -> None:
        super().__init__()
        own = [(1, width), (3, width), (1, factor * width)] if factor == BOTTLENECK else [(3, width), (3, width)]
        strided = 2 if factor == BOTTLENECK else 1
        self.count = len(own)
        before = channels
        for i, (size, out) in enumerate(own, start=1):
            conv = nn.Conv2d(before, out, size, stride if i == strided else 1, size // 2, bias=False)
            setattr(self, f"conv{i}", conv)
            setattr(self, f"bn{i}", nn.BatchNorm2d(out))
            before = out
        self.downsample = None
        if stride != 1 or channels != before:
            self.downsample = nn.Sequential(nn.Conv2d(channels, before, 1, stride, bias=False), nn.BatchNorm2d(before))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x
        for i in range(1, self.count + 1):
            y = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(y))
            if i < self.count:
                y = F.relu(y)
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    """A network of `FAMILY`, with every number of channels times `width`."""

    def __init__(self, name: str, classes: int, width: float = 1.0) -> None:
        super().__init__()
        factor, stages, published = FAMILY[name]
        stem, *widths = (max(1, round(width * channels)) for channels in published)
        self.imagenet, self.stages = published is IMAGENET, len(stages)
        size, stride = (7, 2) if self.imagenet else (3, 1)
        self.conv1 = nn.Conv2d(3, stem, size, stride, size // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        before = stem
        for stage, (blocks, channels) in enumerate(zip(stages, widths, strict=True), start=1):
            each = []
            for i in range(blocks):
                each.append(Block(before, channels, 2 if stage > 1 and i == 0 else 1, factor))
                before = factor * channels
            setattr(self, f"layer{stage}", nn.Sequential(*each))
        self.last = "fc" if self.imagenet else "linear"
        setattr(self, self.last, nn.Linear(before, classes))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        if self.imagenet:
            x = F.max_pool2d(x, 3, 2, 1)
        for stage in range(1, self.stages + 1):
            x = getattr(self, f"layer{stage}")(x)
        return getattr(self, self.last)(x.mean((2, 3)))


def crop_and_flip(images: torch.Tensor) -> torch.Tensor:
    """Crops images [B, H, W, C] of the same padded by an eighth, and flips every second, all at random places."""
    count, height, width = images.shape[:3]
    pads, device = (height // 8, width // 8), images.device
    padded = F.pad(images, (0, 0, pads[1], pads[1], pads[0], pads[0]))
    top, left = (torch.randint(0, 2 * pad + 1, (count, 1), device=device) for pad in pads)
    flipped = torch.rand(count, 1, device=device) < 0.5
    columns = torch.arange(width, device=device)
    rows = top + torch.arange(height, device=device)
    columns = left + torch.where(flipped, columns.flip(0), columns)
    return padded[torch.arange(count, device=device)[:, None, None], rows[:, :, None], columns[:, None]]


def prepared(images: torch.Tensor, size: int) -> torch.Tensor:
    """uint8 images [B, H, W, C] -> normalized [B, C, size, size], channels last in memory."""
    x = (images.permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.29
    return x if x.shape[-1] == size else F.interpolate(x, size=(size, size), mode="bilinear", align_corners=False)


class Images(torch.utils.data.Dataset):
    """What a DataLoader's worker does for each image."""

    def __init__(self, images: torch.Tensor, labels: torch.Tensor, size: int) -> None:
        self.images, self.labels, self.size = images, labels, size

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        image = prepared(crop_and_flip(self.images[index : index + 1]), self.size)[0]
        return image.contiguous(), self.labels[index]


class Order(torch.utils.data.Sampler):
    """`count` images in a random order."""

    def __init__(self, images: int) -> None:
        self.images, self.count = images, 0

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[int]:
        return iter(torch.randint(0, self.images, (self.count,)).tolist())


class Peer:
    """A training step: cross entropy, and KD where there is a teacher, by SGD with momentum."""

    compiles = False  # on a GPU
    layout = torch.contiguous_format

    def __init__(self, setting: dict[str, Any]) -> None:
        self.setting = setting
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.half = self.compiles and setting["precision"] == "bfloat16"
        generator = torch.Generator().manual_seed(0)
        shape = (setting["images"], PIXELS, PIXELS, 3)
        self.images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
        self.labels = torch.randint(0, setting["classes"], (len(self.images),), generator=generator)
        self.student = self._network("student")
        self.teacher = self._network("teacher") if setting["teacher"] else None
        if self.teacher:
            self.teacher.eval().requires_grad_(False)
        self.optimizer = torch.optim.SGD(self.student.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
        compiles = self.compiles and self.device.type == "cuda"
        self.loss = torch.compile(self._loss) if compiles else self._loss
        self.predict = torch.compile(self._predict) if compiles else self._predict
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()

    def parameters(self) -> dict[str, int]:
        networks = {"student": self.student, "teacher": self.teacher}
        return {name: sum(x.numel() for x in net.parameters()) for name, net in networks.items() if net}

    def step(self, count: int) -> float:
        """Seconds of `count` training steps."""
        self.student.train()
        self._wait()
        begin = time.perf_counter()
        for images, labels in self._batches(count):
            with self._precision():
                logits, loss = self.loss(images, labels)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()
            self._seen(logits, labels, loss)
        self._wait()
        return time.perf_counter() - begin

    @torch.no_grad()
    def evaluation(self, count: int) -> float:
        """Seconds of `count` batches in inference mode: accuracy, and agreement with the teacher, asked before."""
        self.student.eval()
        size = self.setting["evaluation_batch"]
        each = [torch.arange(i * size, (i + 1) * size) % len(self.labels) for i in range(count)]
        labels = [self.labels[ids].to(self.device) for ids in each]
        told = [self._predict(self.teacher, self._batch(ids)) for ids in each] if self.teacher else labels
        total = torch.zeros(2, device=self.device)
        self._wait()
        begin = time.perf_counter()
        for ids, *right in zip(each, labels, told, strict=True):
            with self._precision():
                found = self.predict(self.student, self._batch(ids))
            total += torch.stack([(found == other).sum() for other in right])
        total.tolist()
        return time.perf_counter() - begin

    def _batch(self, ids: torch.Tensor) -> torch.Tensor:
        return prepared(self.images[ids].to(self.device), self.setting["size"]).to(memory_format=self.layout)

    def memory(self) -> float | None:
        return torch.cuda.max_memory_allocated() / 2**20 if self.device.type == "cuda" else None

    def _network(self, which: str) -> nn.Module:
        torch.manual_seed(0)
        network = ResNet(self.setting[which], self.setting["classes"], self.setting["width"])
        return network.to(self.device, memory_format=self.layout)

    def _loss(self, images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits = self.student(images).float()
        loss = F.cross_entropy(logits, labels)
        if self.teacher:
            with torch.no_grad():
                taught = self.teacher(images).float()
            temperature, (of_labels, of_teacher) = self.setting["temperature"], self.setting["weights"]
            log_p, q = F.log_softmax(logits / temperature, 1), F.softmax(taught / temperature, 1)
            loss = of_labels * loss + of_teacher * temperature**2 * F.kl_div(log_p, q, reduction="batchmean")
        return logits, loss

    def _predict(self, network: nn.Module, images: torch.Tensor) -> torch.Tensor:
        return network(images).argmax(1)

    def _precision(self) -> Any:
        return torch.autocast(self.device.type, torch.bfloat16) if self.half else contextlib.nullcontext()

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def _batches(self, count: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        raise NotImplementedError

    def _seen(self, logits: torch.Tensor, labels: torch.Tensor, loss: torch.Tensor) -> None:
        """What is done with a step's numbers."""


class Fair(Peer):
    """What an expert would write: channels last, data on the device, nothing waits; on a GPU compiled, in bfloat16."""

    compiles, layout = True, torch.channels_last

    def __init__(self, setting: dict[str, Any]) -> None:
        super().__init__(setting)
        self.images, self.labels = self.images.to(self.device), self.labels.to(self.device)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        torch.backends.cudnn.benchmark = True

    def _batches(self, count: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for _ in range(count):
            ids = torch.randint(0, len(self.labels), (self.setting["batch"],), device=self.device)
            images = prepared(crop_and_flip(self.images[ids]), self.setting["size"])
            yield images.to(memory_format=self.layout), self.labels[ids]


class Usual(Peer):
    """As torchdistill and RepDistiller train: a DataLoader with workers, eager, float32, a loss that is read."""

    def __init__(self, setting: dict[str, Any]) -> None:
        super().__init__(setting)
        self.order = Order(len(self.labels))
        self.loader = torch.utils.data.DataLoader(
            Images(self.images, self.labels, setting["size"]),
            setting["batch"],
            sampler=self.order,
            num_workers=setting["workers"],
            persistent_workers=setting["workers"] > 0,
            pin_memory=self.device.type == "cuda",
        )
        torch.backends.cudnn.benchmark = True

    def _batches(self, count: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        self.order.count = count * self.setting["batch"]
        for images, labels in self.loader:
            yield images.to(self.device), labels.to(self.device)

    def _seen(self, logits: torch.Tensor, labels: torch.Tensor, loss: torch.Tensor) -> None:
        loss.item()
        (logits.argmax(1) == labels).float().mean().item()


PEERS = {"fair": Fair, "kept": Fair, "usual": Usual}


def versions() -> dict[str, Any]:
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "device": device,
    }


def main() -> None:
    (which,) = sys.argv[1:]
    if which == "kept":  # of kd_jax, whose other files need what this interpreter need not have
        runpy.run_path(str(Path(__file__).resolve().parents[1] / "kd_jax" / "allocation.py"))["keep_memory"]()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    peer: Any = None
    for line in sys.stdin:
        request = json.loads(line)
        do = request["do"]
        try:
            if do == "versions":
                answer: Any = versions()
            elif do == "open":
                peer = None  # the memory of the one before is free
                peer = PEERS[which](request)
                answer = peer.parameters()
            elif do == "memory":
                answer = {"mib": peer.memory()}
            else:
                answer = {"seconds": getattr(peer, do)(request["count"])}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
