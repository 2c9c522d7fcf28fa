"""The pairs of networks that benchmarks of distillation are made of."""

from typing import NamedTuple


class Pair(NamedTuple):
    """A teacher and its student, and the data that both see."""

    data: str
    teacher: str
    student: str
    like: str  # the pair whose published settings it has


def _pairs(data: str, *names: str, prefix: str = "", like: str = "") -> dict[str, Pair]:
    networks = {name: name.split("-") for name in names}
    return {prefix + name: Pair(data, teacher, student, like or name) for name, (teacher, student) in networks.items()}


# By name, {TEACHER-STUDENT}: the 13 of Tian et al., "Contrastive Representation Distillation", ICLR 2020; the four that
# later papers add, from Sun et al., "Logit Standardization in Knowledge Distillation", CVPR 2024, on (zju-SWJ/RLD and
# haiduo/DeepKD have the same four); those of ImageNet; and, for small machines, of CIFAR-10.
PAIRS: dict[str, Pair] = {
    **_pairs(
        "cifar100",
        *("wrn_40_2-wrn_16_2", "wrn_40_2-wrn_40_1", "resnet56-resnet20", "resnet110-resnet20", "resnet110-resnet32"),
        *("resnet32x4-resnet8x4", "vgg13-vgg8", "vgg13-mobilenetv2_half", "resnet50-mobilenetv2_half"),
        *("resnet50-vgg8", "resnet32x4-shufflenetv1", "resnet32x4-shufflenetv2", "wrn_40_2-shufflenetv1"),
        *("resnet32x4-wrn_16_2", "resnet32x4-wrn_40_2", "wrn_40_2-resnet8x4", "wrn_40_2-mobilenetv2_half"),
    ),
    **_pairs("imagenet", "resnet34-resnet18", "resnet50-mobilenetv1"),
    **_pairs("cifar10", "resnet56-resnet8", "resnet56-resnet20", prefix="cifar10-", like="resnet56-resnet20"),
}

WORDS = {  # of data and networks
    "cifar10": "CIFAR-10",
    "cifar100": "CIFAR-100",
    "imagenet": "ImageNet",
    "wrn_40_2": "WRN-40-2",
    "wrn_40_1": "WRN-40-1",
    "wrn_16_2": "WRN-16-2",
    "vgg8": "VGG-8",
    "vgg13": "VGG-13",
    "mobilenetv1": "MobileNet-V1",
    "mobilenetv2_half": "MobileNet-V2",
    "shufflenetv1": "ShuffleNet-V1",
    "shufflenetv2": "ShuffleNet-V2",
    **{f"resnet{depth}": f"ResNet-{depth}" for depth in (8, 18, 20, 32, 34, 50, 56, 110, "8x4", "32x4")},
}


def in_words(name: str) -> str:
    """A pair's data, teacher and student.

    >>> in_words("wrn_40_2-mobilenetv2_half")
    'CIFAR-100, WRN-40-2 to MobileNet-V2'
    """
    pair = PAIRS[name]
    return f"{WORDS[pair.data]}, {WORDS[pair.teacher]} to {WORDS[pair.student]}"
