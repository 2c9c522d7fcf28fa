"""Records what the authors' PyTorch code computes, in float64, into originals/REPOSITORY.npz beside this file.

    python -m tests.methods.record_originals REPOSITORY CHECKOUT

A file holds the outputs alone, "METHOD/CASE/value" and "METHOD/CASE/gradient", the gradient with respect to the
student's input (several maps: "METHOD/CASE/gradient/0" and so on). Inputs, parameters and options are those of
`derived`. The authors' modules are imported from the checkout, without the `__init__` of their packages, which need
more than the losses do. They run as they are but for this: tensors that go to a GPU stay, `torch.float32` means
float64, and the random mask of MGD is derived. Adapters are in training mode.

Recorded with torch 2.13.0 (CPU) from git checkouts of GitHub's default branches:

  HobbitLong          RepDistiller                   b84f547c5db6a35318d4671d7d5c4de74c822403
  megvii-research     mdistiller                     a08d46f10d6102bd6e3f258ca5ac880b020ea259
  zkxufo              TTM                            fe457b33a71ba27536ec04fe3d32c5b04963522f
  JiamingLv           WKD                            214cf8868c2b8e45781f238b8f0e47c2e4e38190
  shicaiwei123        SDD-CVPR2024                   e412036c6b7b67d8ed25418d2dedad223ab49a71
  zju-SWJ             RLD                            d54578fd77cd669d6209be4d05ae773bca4109b5
  ismail31416         LumiNet                        8cf749be3a4ec67c4673bfbc791715848e5bb720
  gizi1               NormKD                         279371b69beeadbfe29104875b728a687a7cea49
  ghwang-s            abkd                           df813185e69d21d1e99510272cd94e49be7250c0
  WangYZ1608          Knowledge-Distillation-via-ND  fc6f3f9058ed35189a1d3c0a79a7594025e4d88f
  ADLab-AutoDrive     ICKD                           403b8d3d7c3aaa429e4708870d2be1d4daf92f07
  yzd-v               MGD                            2c9da0b28625eb948db57afc02c824452c3910fe
  yzd-v               cls_KD                         1e5d48f36957ee460d39d7ebc592c6cc7f8f3d66
  zhengli97           CTKD                           7d5252241259ae70d38a832371fed9697d15fc14
  hunto               DIST_KD                        2418f18b1fedd7c2646a7b1b9a27d5c674c2170b
  hunto               image_classification_sota      6f7a70a1dd57fd88413d83909d3d53243068f701
  sunshangquan        logit-standardization-KD       f6e5aa5172bad618e801163c3385322eea673754
  DefangChen          SimKD                          2b389c31ed7779aea31e7aaf0bb0f2d8b6ac2f01
  GzyAftermath        CAT-KD                         4467073ca31b9929e7c45f5a6761e5e1b7c9442f
  yoshitomo-matsubara torchdistill                   3e4373c45214c5c56eebac481d5bfe8b8735aa05
  roymiles            Simple-Recipe-Distillation     31e8477cfdd6bb6ec7cdc332915fd4496b6de7b6
  chenyd7             PEFD                           7f1e2de54505987da8de628aa90abbadf2b2591f
  roymiles            vkd                            4b480506d10bad9bfaf27b144f5929ad4007472d
  maximzubkov         cnn-distillation               da345ae550c0d0467e375b506428fb8f55d95226
  Hao840              vanillaKD                      a27b029f693a13d67b85c61a52e25a85f9414e70
  penghui-yang        DHKD                           7976c69d408e72b4203d04a6e82dc27792ec1469
  facebookresearch    deit                           7e160fe43f0252d17191b71cbb5826254114ea5b
  haiduo              DeepKD                         afb5964e0639c6d1abef2384acd9dea04f3f27dc

Of LumiNet, abkd and Knowledge-Distillation-via-ND some data files were missing from the checkout, and no code.
RepDistiller is the authors' own code for CRD and a collection for the other methods, mdistiller is DKD's, cls_KD is
NKD's and has WSLD and SRRL, logit-standardization-KD has the losses of MLKD, torchdistill has SKD, DeepKD has CRLD.
What both RepDistiller and mdistiller hold gives the same numbers, to the last digit but one.

Not recorded, and compared with numpy alone: RRD, whose licence forbids commercial use; Tf-KD, whose code does otherwise
than its paper, which is followed here; SDD's form of NKD, whose code means to leave the label out of the other classes
and does not; the Jensen-Shannon divergence and the plain losses of maps and embeddings, which are nobody's own.
"""

import argparse
import ast
import functools
import importlib
import math
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.methods import derived

Records = dict[str, np.ndarray]
ORIGINALS = Path(__file__).parent / "originals"


def tensor(x: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(x))


def cases(method: str) -> dict[str, types.SimpleNamespace]:
    """The options of every case of a method, with `case`, its name."""
    return {
        case: types.SimpleNamespace(case=case, **options)
        for case, options in derived.CASES.items()
        if case.split("/")[0] == method
    }


def side(case: str, name: str):
    """A tensor, or a list of them."""
    arrays = derived.inputs(case, name)
    return [tensor(x) for x in arrays] if isinstance(arrays, list) else tensor(arrays)


def labels(case: str, teacher: Tensor) -> Tensor:
    return tensor(derived.labels(case, teacher.numpy()))


def derive_parameters(module: nn.Module, case: str) -> nn.Module:
    """The module in training mode, with the derived parameters."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(tensor(derived.parameter(f"{case}.{name}", tuple(parameter.shape))))
    return module.train()


def record(case: str, loss: Callable, *others) -> Records:
    """The value of loss(student, *others), and its gradients."""
    student = side(case, "student")
    parts = student if isinstance(student, list) else [student]
    for part in parts:
        part.requires_grad_()
    value = loss(student, *others)
    gradients = torch.autograd.grad(value.sum(), parts)
    names = [f"/{i}" for i in range(len(parts))] if isinstance(student, list) else [""]
    recorded = {f"{case}/gradient{name}": x.numpy() for name, x in zip(names, gradients, strict=True)}
    return {f"{case}/value": np.array(value.item()), **recorded}


def record_all(method: str, loss: Callable) -> Records:
    """`record` of every case of a method, with loss(student, teacher, options)."""
    recorded: Records = {}
    for case, options in cases(method).items():
        teacher = side(case, "teacher") if hasattr(options, "teacher") else None
        recorded |= record(case, loss, teacher, options)
    return recorded


class InDoubles:
    """The module torch, in which float32 is float64."""

    def __getattr__(self, name: str):
        return {"float32": torch.float64, "FloatTensor": torch.DoubleTensor}.get(name) or getattr(torch, name)


def load(folder: Path, name: str, **missing: types.ModuleType) -> types.ModuleType:
    """The module `name` ("loss" or "losses.loss") of a package in `folder`, without the __init__ of any package."""
    for loaded in [key for key in sys.modules if key.split(".")[0] == "original"]:
        del sys.modules[loaded]  # else a module of the same name in another folder would be taken for it
    sys.modules.update(missing)
    *parents, _ = f"original.{name}".split(".")
    for depth in range(len(parents)):
        package = types.ModuleType(".".join(parents[: depth + 1]))
        package.__path__ = [str(folder.joinpath(*parents[1 : depth + 1]))]
        sys.modules[package.__name__] = package
    module = importlib.import_module(f"original.{name}")
    if hasattr(module, "torch"):
        module.torch = InDoubles()
    return module


def registry(*names: str) -> types.ModuleType:
    """A module of registries that register nothing."""
    module = types.ModuleType("registry")
    for name in names:
        setattr(module, name, types.SimpleNamespace(register_module=lambda: lambda c: c))
    return module


class Network(nn.Module):
    """Stands for a network: reports what it is given."""

    def __init__(self, logits: Tensor | None = None, **features):
        super().__init__()
        self.outputs = logits, features

    def forward(self, image):
        return self.outputs


def config(**options) -> types.SimpleNamespace:
    return types.SimpleNamespace(
        **{key: config(**value) if isinstance(value, dict) else value for key, value in options.items()}
    )


def rep_distiller(checkout: Path) -> Records:
    names = ("AB", "AT", "CC", "FSP", "FT", "FitNet", "KD", "NST", "PKT", "RKD", "SP", "VID")
    zoo = {name: load(checkout / "distiller_zoo", name) for name in names}
    util = load(checkout / "models", "util")
    criterion = load(checkout / "crd", "criterion")
    crd_options = config(s_dim=5, t_dim=7, feat_dim=4, nce_k=6, nce_t=0.07, nce_m=0.5, n_data=10)

    def kd(student, teacher, o):
        return zoo["KD"].DistillKL(o.temperature)(student, teacher)

    def fitnet(student, teacher, o):
        regressor = derive_parameters(util.ConvReg(o.student, o.teacher), f"{o.case}/regressor")
        return zoo["FitNet"].HintLoss()(regressor(student), teacher)

    def single(loss):
        return lambda student, teacher, o: loss([student], [teacher])[0]

    def vid(student, teacher, o):
        loss = zoo["VID"].VIDLoss(o.student[1], o.teacher[1], o.teacher[1])
        return derive_parameters(loss, f"{o.case}/vid")(student, teacher)

    def cc(student, teacher, o):
        if hasattr(o, "features"):
            student = derive_parameters(util.LinearEmbed(o.student[1], o.features), f"{o.case}/student_embed")(student)
            teacher = derive_parameters(util.LinearEmbed(o.teacher[1], o.features), f"{o.case}/teacher_embed")(teacher)
        return zoo["CC"].Correlation()(student, teacher)

    def ab(student, teacher, o):
        connector = derive_parameters(util.Connector(o.student, o.teacher), f"{o.case}/connector")
        return sum(zoo["AB"].ABLoss(len(student))(connector(student), teacher))

    def ft(student, teacher, o):
        paraphraser = util.Paraphraser(o.student if teacher is None else o.teacher, o.rate)
        derive_parameters(paraphraser, f"{o.case}/paraphraser")
        if teacher is None:
            return nn.MSELoss()(paraphraser(student)[1], student)
        translator = derive_parameters(util.Translator(o.student, o.teacher, o.rate), f"{o.case}/translator")
        return zoo["FT"].FactorTransfer()(translator(student), paraphraser(teacher, is_factor=True))

    def fsp(student, teacher, o):
        return sum(zoo["FSP"].FSP(o.student, o.teacher)(student, teacher))

    @functools.cache
    def crd_module():
        module = derive_parameters(criterion.CRDLoss(crd_options), "crd")
        for name, memory in module.contrast.named_buffers():
            if name.startswith("memory"):
                memory.copy_(tensor(derived.array(f"crd.{name}", tuple(memory.shape), 0.5)))
        return module

    def crd(student, teacher, o):  # the second case goes on from the first
        return crd_module()(student, teacher, *(tensor(x) for x in derived.drawn_pairs(o.case)))

    def nce(student, teacher, o):
        return criterion.ContrastLoss(o.num_examples)(student.exp())

    return {
        **record_all("kd", kd),
        **record_all("fitnet", fitnet),
        **record_all("at", single(zoo["AT"].Attention())),
        **record_all("sp", single(zoo["SP"].Similarity())),
        **record_all("nst", single(zoo["NST"].NSTLoss())),
        **record_all("vid", vid),
        **record_all("cc", cc),
        **record_all("pkt", lambda student, teacher, o: zoo["PKT"].PKT()(student, teacher)),
        **record_all("rkd_distance", lambda student, teacher, o: zoo["RKD"].RKDLoss(1, 0)(student, teacher)),
        **record_all("rkd_angle", lambda student, teacher, o: zoo["RKD"].RKDLoss(0, 1)(student, teacher)),
        **record_all("ab", ab),
        **record_all("ft", ft),
        **record_all("fsp", fsp),
        **record_all("crd", crd),
        **record_all("nce", nce),
    }


def mdistiller(checkout: Path) -> Records:
    names = ("AT", "DKD", "FitNet", "KD", "NST", "OFD", "PKT", "RKD", "ReviewKD", "SP", "VID", "_common")
    zoo = {name: load(checkout / "mdistiller" / "distillers", name) for name in names}
    image = torch.zeros(1)

    def vid(student, teacher, o):
        channels = o.teacher[1]
        own = [(o.student[1], channels), (channels, channels), (channels, channels)]
        first, second, third = (zoo["VID"].conv1x1(*widths) for widths in own)
        regressor = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), third)
        module = nn.ParameterDict({"log_scale": torch.zeros(channels)})
        module["regressor"] = regressor
        derive_parameters(module, f"{o.case}/vid")
        return zoo["VID"].vid_loss(regressor, module["log_scale"], student, teacher)

    def fitnet(student, teacher, o):
        regressor = derive_parameters(zoo["_common"].ConvReg(o.student, o.teacher), f"{o.case}/regressor")
        return F.mse_loss(regressor(student), teacher)

    def ofd(student, teacher, o):
        norms = [nn.BatchNorm2d(shape[1]) for shape in o.teacher]
        for i, norm in enumerate(norms):
            scale, bias = derived.norm(f"{o.case}/norm/{i}", norm.num_features)
            norm.weight.data, norm.bias.data = tensor(scale), tensor(bias)
        networks = Network(student[0], preact_feats=[None, *student]), Network(preact_feats=[None, *teacher])
        for network, shapes in zip(networks, (o.student, o.teacher), strict=True):
            network.get_stage_channels = lambda shapes=shapes: [None, *(shape[1] for shape in shapes)]
        networks[1].get_bn_before_relu = lambda: norms
        options = config(OFD={"LOSS": {"CE_WEIGHT": 0, "FEAT_WEIGHT": 1}, "CONNECTOR": {"KERNEL_SIZE": 1}})
        module = zoo["OFD"].OFD(*networks, options)
        derive_parameters(module.connectors, f"{o.case}/connectors")
        preactivations = [network.outputs[1]["preact_feats"][1:] for network in networks]
        return module.ofd_loss(*preactivations)

    def review_kd(student, teacher, o):
        sizes = [1, *(shape[2] for shape in o.student[-2::-1])]
        out_sizes = [1, *(shape[2] for shape in o.teacher[-2::-1])]
        options = {"SHAPES": sizes, "OUT_SHAPES": out_sizes, "CE_WEIGHT": 0, "REVIEWKD_WEIGHT": 1, "WARMUP_EPOCHS": 1}
        widths = {"IN_CHANNELS": [s[1] for s in o.student], "OUT_CHANNELS": [s[1] for s in o.teacher]}
        options |= {**widths, "STU_PREACT": False, "MAX_MID_CHANNEL": 512}
        logits = torch.zeros(o.student[0][0], 2)
        networks = (
            Network(logits, feats=[None, *student[:-1]], pooled_feat=student[-1]),
            Network(logits, preact_feats=[None, *teacher[:-1]], pooled_feat=teacher[-1]),
        )
        module = derive_parameters(zoo["ReviewKD"].ReviewKD(*networks, config(REVIEWKD=options)), o.case)
        return module.forward_train(image, torch.zeros(len(logits), dtype=torch.long), epoch=1)[1]["loss_kd"]

    def dkd(student, teacher, o):
        return zoo["DKD"].dkd_loss(student, teacher, labels(o.case, teacher), o.alpha, o.beta, o.temperature)

    def rkd(**weights):
        return lambda student, teacher, o: zoo["RKD"].rkd_loss(student, teacher, **weights)

    return {
        **record_all("kd", lambda student, teacher, o: zoo["KD"].kd_loss(student, teacher, o.temperature)),
        **record_all("dkd", dkd),
        **record_all("fitnet", fitnet),
        **record_all("at", lambda student, teacher, o: zoo["AT"].at_loss([student], [teacher], 2)),
        **record_all("sp", lambda student, teacher, o: zoo["SP"].sp_loss([student], [teacher])),
        **record_all("nst", lambda student, teacher, o: zoo["NST"].nst_loss([student], [teacher])),
        **record_all("pkt", lambda student, teacher, o: zoo["PKT"].pkt_loss(student, teacher)),
        **record_all("rkd_distance", rkd(distance_weight=1, angle_weight=0)),
        **record_all("rkd_angle", rkd(distance_weight=0, angle_weight=1)),
        **record_all("vid", vid),
        **record_all("ofd", ofd),
        **record_all("reviewkd", review_kd),
    }


def ttm(checkout: Path) -> Records:
    folder = checkout / "distiller_zoo"
    zoo = {name: load(folder, name) for name in ("ttm", "wttm")}
    return {
        **record_all("ttm", lambda student, teacher, o: zoo["ttm"].TTM(o.exponent)(student, teacher)),
        **record_all("wttm", lambda student, teacher, o: zoo["wttm"].WTTM(o.exponent)(student, teacher)),
    }


def wkd(checkout: Path) -> Records:
    common, wkd = (load(checkout / "mdistiller" / "distillers", name) for name in ("_common", "WKD"))

    def logits(student, teacher, o):
        prototypes = tensor(derived.array(f"{o.case}/prototypes", o.prototypes))
        networks = Network(student), Network(teacher)
        networks[1].fc = types.SimpleNamespace(weight=prototypes)
        weights = {"CE_WEIGHT": 0, "WKD_LOGIT_WEIGHT": o.gamma, "WKD_FEAT_WEIGHT": 0, "COSINE_DECAY_EPOCH": 9}
        options = {"LOSS": weights, "TEMPERATURE": o.temperature, "COST_MATRIX": "fc"}
        options |= {"SINKHORN": {"LAMBDA": o.reg, "ITER": o.steps}, "COST_MATRIX_SHARPEN": o.sharpening}
        module = wkd.WKD(*networks, config(WKD=options))
        return module.forward_train(None, labels(o.case, teacher), epoch=0)[1]["loss_kd"]

    def features(student, teacher, o):
        regressor = derive_parameters(common.ConvReg(o.student, o.teacher), f"{o.case}/regressor")
        mean, deviation = wkd.wkd_feature_loss(regressor(student), teacher, grid=o.grid)
        return o.ratio * mean + deviation

    return {**record_all("wkd_logits", logits), **record_all("wkd_features", features)}


def sdd(checkout: Path) -> Records:
    folder = checkout / "mdistiller" / "distillers"
    zoo = {name: load(folder, name) for name in ("KD", "SDD_DKD")}
    utils = load(checkout / "mdistiller" / "models" / "cifar", "utils")

    def cells(x: Tensor, o, name: str) -> Tensor:
        """Logits [B, K, cells], as the networks of the repository make them."""
        head = derive_parameters(nn.Linear(x.shape[1], o.classes), f"{o.case}/{name}_head").requires_grad_(False)
        pooled, _ = utils.SPP(str(list(o.scales)).replace(" ", ""))(x)
        return head(pooled.permute(0, 2, 1)).permute(0, 2, 1)

    def sdd(student, teacher, o):
        own, others = cells(student, o, "student"), cells(teacher, o, "teacher")
        target = labels(o.case, others[:, :, 0])
        if hasattr(o, "beta"):
            return zoo["SDD_DKD"].multi_dkd(own, others, target, o.alpha, o.beta, o.temperature)
        return zoo["KD"].sdd_kd_loss(own, others, o.temperature, target)

    return record_all("sdd", sdd)


def rld(checkout: Path) -> Records:
    folder = checkout / "mdistiller" / "distillers"
    zoo = {name: load(folder, name) for name in ("RLD", "SWAP")}

    def rld(standardized):
        def loss(student, teacher, o):
            weights = o.alpha, o.beta, o.temperature, standardized, o.alpha_temperature
            return zoo["RLD"].rld_loss(student, teacher, labels(o.case, teacher), *weights)

        return loss

    def swap(student, teacher, o):
        swapped = zoo["SWAP"].swap(teacher, labels(o.case, teacher))
        return zoo["SWAP"].kd_loss(student, swapped, o.temperature, False)

    return {
        **record_all("rld", rld(False)),
        **record_all("rld_standardized", rld(True)),
        **record_all("swap", swap),
    }


def lumi_net(checkout: Path) -> Records:
    module = load(checkout / "mdistiller" / "distillers", "Luminet")

    def loss(student, teacher, o):
        return module.luminet_loss(student, teacher, None, o.alpha, o.temperature)

    return record_all("luminet", loss)


def norm_kd(checkout: Path) -> Records:
    module = load(checkout / "mdistiller" / "distillers", "NormKD")

    def loss(student, teacher, o):
        return module.kd_loss_normal(student, teacher, o.temperature)

    return record_all("normkd", loss)


def abkd(checkout: Path) -> Records:
    module = load(checkout / "standard_classification" / "distiller_zoo", "abkl")

    def loss(student, teacher, o):
        return module.ABKL(config(kd_T=o.temperature, ab_alpha=o.alpha, ab_beta=o.beta))(student, teacher)[0]

    return record_all("abkd", loss)


def nd(checkout: Path) -> Records:
    module = load(checkout / "CIFAR", "utils")

    def loss(student, teacher, o):
        centers = derived.array(f"{o.case}/centers", (o.num_classes, o.teacher[1]))
        target = derived.integers(f"{o.case}/labels", o.student[:1], o.num_classes)
        named = {str(i): center.tolist() for i, center in enumerate(centers)}
        return module.DirectNormLoss(o.num_classes)(student, teacher, named, tensor(target))

    return record_all("nd", loss)


def ickd(checkout: Path) -> Records:
    module = load(checkout / "Cifar100" / "distiller_zoo", "ICKD")

    def loss(student, teacher, o):
        options = config(s_dim=o.student[1], feat_dim=o.teacher[1])
        return derive_parameters(module.ICKDLoss(options), o.case)([student], [teacher])[0]

    return record_all("ickd", loss)


def mgd(checkout: Path) -> Records:
    losses = registry("DISTILL_LOSSES")
    module = load(checkout / "cls" / "mmcls" / "distillation", "losses.mgd", **{"original.builder": losses})

    def loss(student, teacher, o):
        uniform = derived.generator(f"{o.case}/uniform").random((*o.teacher[:2], 1, 1))
        module.torch.rand = lambda shape: tensor(uniform)
        own = module.MGDLoss(o.student[1], o.teacher[1], "mgd", o.alpha, o.ratio)
        return derive_parameters(own, o.case)(student, teacher)

    return record_all("mgd", loss)


def cls_kd(checkout: Path) -> Records:
    folder = checkout / "mmcls" / "models" / "dis_losses"
    models = {"mmcls": types.ModuleType("mmcls"), "mmcls.registry": registry("MODELS")}
    nkd, wsld, srrl = (load(folder, name, **models) for name in ("nkd", "wsld", "srrl"))

    def of_nkd(student, teacher, o):
        return nkd.NKDLoss("nkd", True, o.temperature, o.gamma)(student, teacher, labels(o.case, teacher))

    def of_wsld(student, teacher, o):
        module = wsld.WSLDLoss("wsld", True, o.temperature, o.alpha, student.shape[1])
        return module(student, teacher, labels(o.case, teacher))

    def of_srrl(student, teacher, o):
        module = srrl.SRRLLoss("srrl", True, o.student[1], o.teacher[1], o.alpha, o.beta)
        derive_parameters(module, f"{o.case}/projector")
        head = derive_parameters(nn.Linear(o.teacher[1], o.classes), f"{o.case}/head").requires_grad_(False)
        projected = module.Connectors(student)
        return module(projected, teacher, head(projected.mean((2, 3))), head(teacher.mean((2, 3))))

    return {**record_all("nkd", of_nkd), **record_all("wsld", of_wsld), **record_all("srrl", of_srrl)}


def ctkd(checkout: Path) -> Records:
    temperature = load(checkout / "models", "temp_global")
    kd = load(checkout / "distiller_zoo", "KD")
    recorded: Records = {}
    for case, o in cases("ctkd").items():
        module = temperature.Global_T()
        module.global_T.data.fill_(o.theta)

        def loss(student, teacher, o=o, module=module):
            given = o.start + o.end * torch.sigmoid(module(teacher, student, o.factor))
            return kd.DistillKL()(student, teacher, given)

        teacher = side(case, "teacher")
        recorded |= record(case, loss, teacher)
        loss(side(case, "student"), teacher).sum().backward()
        recorded[f"{case}/gradient of theta"] = module.global_T.grad.numpy()
    # The script imports too much: its class alone.
    tree = ast.parse((checkout / "train_student.py").read_text())
    tree.body = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "CosineDecay"]
    names = {"math": math}
    exec(compile(tree, "train_student.py", "exec"), names)
    decay = names["CosineDecay"](max_value=0, min_value=-1, num_loops=10)
    return recorded | {"ctkd/factor/value": np.array([decay.get_value(epoch) for epoch in range(1, 13)])}


def dist_kd(checkout: Path) -> Records:
    module = load(checkout / "segmentation" / "losses", "dist_kd")
    o = cases("dist")["dist/t1"]  # it knows no temperature
    return record(o.case, module.DIST(o.beta, o.gamma), side(o.case, "teacher"))


def image_classification_sota(checkout: Path) -> Records:
    module = load(checkout / "lib" / "models" / "losses", "dist_kd")
    return record_all("dist", lambda student, teacher, o: module.DIST(o.beta, o.gamma, o.tau)(student, teacher))


def logit_standardization(checkout: Path) -> Records:
    turtle, termios = types.ModuleType("turtle"), types.ModuleType("termios")
    turtle.st = termios.CEOL = None  # imported and not used
    folder = checkout / "mdistiller" / "distillers"
    kd, dkd, mlkd = (load(folder, name, turtle=turtle, termios=termios) for name in ("KD", "DKD", "MLKD"))

    def of_kd(student, teacher, o):
        return kd.kd_loss(student, teacher, o.temperature, True)

    def of_dkd(student, teacher, o):
        return dkd.dkd_loss(student, teacher, labels(o.case, teacher), o.alpha, o.beta, o.temperature, True)

    def of_mlkd(student, teacher, o):
        parts = mlkd.kd_loss, mlkd.cc_loss, mlkd.bc_loss
        return sum(part(student, teacher, temperature) for part in parts for temperature in o.temperatures)

    return {
        **record_all("kd_standardized", of_kd),
        **record_all("dkd_standardized", of_dkd),
        **record_all("mlkd", of_mlkd),
    }


def simkd(checkout: Path) -> Records:
    util = load(checkout / "models", "util")

    def loss(student, teacher, o):
        module = derive_parameters(util.SimKD(s_n=o.student[1], t_n=o.teacher[1], factor=o.factor), o.case)
        projected, target, _ = module(student, teacher, nn.Identity())
        return nn.MSELoss()(projected, target)

    return record_all("simkd", loss)


def cat_kd(checkout: Path) -> Records:
    module = load(checkout / "mdistiller" / "distillers", "CAT_KD")
    return record_all("catkd", lambda student, teacher, o: module.CAT_loss(student, teacher, o.size, o.normalize))


def identities(*names: str) -> types.ModuleType:
    """A module of decorators that do nothing."""
    module = types.ModuleType("decorators")
    for name in names:
        setattr(module, name, lambda decorated: decorated)
    return module


def torchdistill_losses(folder: Path, name: str) -> types.ModuleType:
    logging = types.ModuleType("constant")
    logging.def_logger = types.SimpleNamespace(getChild=lambda name: None)
    registers = [f"register_{kind}" for kind in ("loss_wrapper", "single_loss", "mid_level_loss")]
    missing = {"original.losses.registry": identities(*registers), "original.common": types.ModuleType("common")}
    return load(folder, f"losses.{name}", **missing, **{"original.common.constant": logging})


def torchdistill(checkout: Path) -> Records:
    module = torchdistill_losses(checkout / "torchdistill", "mid_level")

    def loss(student, teacher, o):
        where = ("logits", "output") * 2
        parts = module.SKDInstanceLoss(*where, o.temperature), module.SKDDirectionLoss(*where, o.ridge)
        outputs = [{"logits": {"output": logits}} for logits in (student, teacher)]
        return sum(part(*outputs) for part in parts)

    return record_all("skd", loss)


def simple_recipe(checkout: Path) -> Records:
    """Its module knows one width, 512; the layers are replaced by narrower ones."""
    original = torchdistill_losses(checkout / "imagenet" / "torchdistill", "single")

    def loss(student, teacher, o):
        module = original.OurDistillationLoss()
        module.embed = nn.Linear(o.student[1], o.teacher[1])
        for name in ("bn_s", "bn_t"):
            setattr(module, name, nn.BatchNorm1d(o.teacher[1], eps=getattr(module, name).eps, affine=False))
        logits = {"output": torch.zeros(len(student), 2)}  # equal, so that the other part is zero
        outputs = [{"layer4": {"output": x[:, :, None, None]}, "fc": logits} for x in (student, teacher)]
        return derive_parameters(module, o.case)(*outputs, None)

    return record_all("srd", loss)


def pefd(checkout: Path) -> Records:
    """The loss stands in the step, which runs with networks that report the inputs, and other losses of weight zero."""
    loops, util = load(checkout / "helper", "loops"), load(checkout / "models", "util")
    weights = config(distill="ours", gamma=0, alpha=0, beta=1, print_freq=1)
    zero = {"criterion_list": [lambda *_: 0] * 3, "opt": weights}

    class Reports(Network):
        def forward(self, images, is_feat, preact):
            return [self.outputs[1]["embedding"]], self.outputs[0]

    def loss(student, teacher, o):
        logits, embedding = torch.zeros(len(student), 5), student.detach().requires_grad_()
        layers = [util.Reg(o.student[1], o.teacher[1]) for _ in range(4)]  # the last is not used
        for i, projector in enumerate(layers):
            derive_parameters(projector, f"{o.case}/projector{i}")
        networks = Reports(logits, embedding=embedding), Reports(logits, embedding=teacher)
        optimizer = types.SimpleNamespace(zero_grad=lambda: None, step=lambda: None)
        batch = torch.zeros(len(student)), torch.zeros(len(student), dtype=torch.long), None
        modules = nn.ModuleList([networks[0], *layers, networks[1]])
        _, value = loops.train_distill(0, [batch], modules, optimizer=optimizer, **zero)
        return value + ((student - student.detach()) * embedding.grad).sum()  # with the step's value and gradient

    return record_all("pefd", loss)


def vkd(checkout: Path) -> Records:
    """The loss stands in the step, which runs here with networks that report the inputs, up to the optimizer."""
    timm, utils, tensors = (types.ModuleType(name) for name in ("timm", "utils", "tensors"))
    timm.utils, tensors.reduce_tensor = utils, None
    utils.accuracy, utils.AverageMeter = None, lambda: types.SimpleNamespace(update=lambda *_: None)
    models = types.ModuleType("models")
    models.model_parameters = None
    stubs = {"timm": timm, "timm.utils": utils, "timm.models": models}
    engine = load(checkout, "engine", **stubs, utils=types.ModuleType("utils"), **{"utils.tensors": tensors})

    class Done(Exception):
        pass

    def loss(student, teacher, o):
        logits = torch.zeros(len(student), 5)

        def give(*_):
            return logits

        own = Network()
        own.forward_features = lambda _: (None, None, student[:, None])
        own.head, own.head_dist, own.projector = give, give, nn.Identity()
        network = Network()
        network.module = own
        fixed = Network()
        fixed.forward_features, fixed.forward_head = lambda _: teacher[:, :, None, None], give

        def scaler(loss, *_, **__):
            raise Done(loss)

        batch = torch.zeros(len(student)), torch.zeros(len(student)), None
        weights = config(alpha=1, gamma=1, bce_loss=False)
        nothing = lambda *_: torch.zeros(())  # noqa: E731
        first = (0, None, print, network, fixed, nothing, nothing, [batch], None, "cpu", 0, scaler, None)
        try:
            engine.train_one_epoch(*first, args=weights)
        except Done as done:
            return done.args[0]

    return record_all("vkd", loss)


def cnn_distillation(checkout: Path) -> Records:
    kd, rkd = (load(checkout / "models", f"loss.{name}") for name in ("kd_loss", "rkd_loss"))

    def of_kd(student, teacher, o):
        sides = kd.KDFeatures(student), kd.KDFeatures(teacher)
        return kd.KDLoss(o.alpha, o.temperature)(*sides, labels(o.case, teacher))

    def of_rkd(name):
        def loss(student, teacher, o):
            sides = rkd.RKDFeatures(student), rkd.RKDFeatures(teacher)
            return getattr(rkd, name)(o.weight, o.temperature)(*sides, labels(o.case, teacher))

        return loss

    return {
        **record_all("original_kd", of_kd),
        **record_all("original_rkd_distance", of_rkd("RKDDistanceLoss")),
        **record_all("original_rkd_angle", of_rkd("RKDAngleLoss")),
    }


def vanilla_kd(checkout: Path) -> Records:
    module = load(checkout / "losses", "bkd")
    return record_all("bce", lambda student, teacher, o: module.BinaryKLDiv()(student, teacher))


def dhkd(checkout: Path) -> Records:
    plain, norm = (load(checkout / "distiller_zoo", name) for name in ("BinaryKL", "BinaryKLNorm"))

    def loss(student, teacher, o):
        return (norm.BinaryKLNorm if o.norm else plain.BinaryKL)(o.temperature)(student, teacher)

    return record_all("binary_kd", loss)


def deit(checkout: Path) -> Records:
    module = load(checkout, "losses")

    def loss(student, teacher, o):
        head = derive_parameters(nn.Linear(o.student[1], o.teacher[1]), f"{o.case}/head")
        kind = o.case.split("/")[1]
        whole = module.DistillationLoss(lambda outputs, labels: 0.0, lambda images: teacher, kind, 1.0, o.temperature)
        return whole(None, (None, head(student)), None)

    return record_all("deit", loss)


def deep_kd(checkout: Path) -> Records:
    module = load(checkout / "mdistiller" / "distillers", "CRLD")

    class Views(Network):
        def forward(self, view):
            return self.outputs[0][view], {}

    def loss(student, teacher, o):
        (within, across), (weak, strong) = o.weights, o.confidences
        options = {"CE_WEIGHT": 0, "WV_WEIGHT": within, "CV_WEIGHT": across, "TEMPERATURE": o.temperature}
        deepkd = {name: None for name in ("ALPHA", "BETA", "WARMUP_FACTOR", "DKD", "TOPK")}
        settings = config(
            CRLD={**options, "TAU_W": weak, "TAU_S": strong},
            EXPERIMENT={"LOGIT_STAND": False},
            SOLVER={"TRAINER": "base", "DEEPKD": deepkd},
        )
        target = torch.zeros(len(student[0]), dtype=torch.long)
        return module.CRLD(Views(student), Views(teacher), settings).forward_train(0, 1, target)[1]["loss_kd"]

    return record_all("crld", loss)


REPOSITORIES = {
    "RepDistiller": rep_distiller,
    "mdistiller": mdistiller,
    "TTM": ttm,
    "WKD": wkd,
    "SDD-CVPR2024": sdd,
    "RLD": rld,
    "LumiNet": lumi_net,
    "NormKD": norm_kd,
    "abkd": abkd,
    "Knowledge-Distillation-via-ND": nd,
    "ICKD": ickd,
    "MGD": mgd,
    "cls_KD": cls_kd,
    "CTKD": ctkd,
    "DIST_KD": dist_kd,
    "image_classification_sota": image_classification_sota,
    "logit-standardization-KD": logit_standardization,
    "SimKD": simkd,
    "CAT-KD": cat_kd,
    "torchdistill": torchdistill,
    "Simple-Recipe-Distillation": simple_recipe,
    "PEFD": pefd,
    "vkd": vkd,
    "vanillaKD": vanilla_kd,
    "cnn-distillation": cnn_distillation,
    "DHKD": dhkd,
    "deit": deit,
    "DeepKD": deep_kd,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("repository", choices=REPOSITORIES)
    parser.add_argument("checkout", type=Path, help="folder of a git checkout of that repository")
    arguments = parser.parse_args()
    torch.set_default_dtype(torch.float64)
    torch.Tensor.cuda = nn.Module.cuda = lambda self, *_, **__: self
    recorded = REPOSITORIES[arguments.repository](arguments.checkout)
    commit = subprocess.check_output(["git", "-C", arguments.checkout, "rev-parse", "HEAD"], text=True).strip()
    about = {"repository": arguments.repository, "commit": commit, "torch": torch.__version__}
    ORIGINALS.mkdir(exist_ok=True)
    recorded |= {key: np.array(value) for key, value in about.items()}
    np.savez_compressed(ORIGINALS / f"{arguments.repository}.npz", **recorded)


if __name__ == "__main__":
    main()
