"""What each method was published with, as data: `configs/method.py` trains by it, and the methods' pages print it.

One record per method of `kd_jax.methods.METHODS`, under its name there, and one per recipe that joins or alters some.
The accuracies stand in `numbers.py`.
"""

from collections.abc import Mapping
from typing import Any

from kd_jax.config.record import Published, Terms


def _alone(name: str, weight: float, labels: float = 1.0, **options: Any) -> Terms:
    """One method beside the labels."""
    return {"cross_entropy": {"weight": labels}, name: {"weight": weight, **options}}


def _transport(**options: Any) -> Terms:
    """WKD of logits as two terms beside the labels, the label's part and the transport, which alone falls to zero."""
    return {
        "cross_entropy": {"weight": 1.0},
        "wkd_label": {"method": "wkd_logits", "weight": 1.0, "gamma": 0.0},
        "wkd_logits": {"weight": 1.0, "alpha": 0.0, **options},
    }


def _two_views(given: Terms) -> Terms:
    """The same terms on a weak and a strong view of every image."""
    return {term: {**options, "views": [0, 1]} for term, options in given.items()}


def _first(name: str, epochs: int, **options: Any) -> Terms:
    """The method alone for some epochs, then the labels alone."""
    return {
        "cross_entropy": {"weight": 1.0, "epochs": [epochs, None]},
        name: {"weight": 1.0, **options, "epochs": [0, epochs]},
    }


def _of_pairs(keys: str, values: Mapping[str, tuple[Any, ...]]) -> dict[str, Terms]:
    """{pair: options by term}, of "TERM.OPTION ..." and the values that they have for each pair.

    Where a pair has fewer values, the last options are the usual ones.
    """
    found: dict[str, Terms] = {}
    for pair, own in values.items():
        for key, value in zip(keys.split(), own, strict=False):
            term, _, option = key.partition(".")
            found.setdefault(pair, {}).setdefault(term, {})[option] = value
    return found


OF_ND = {  # the weights of KD and of ND in KD++
    "resnet56-resnet20": (1.0, 2.0),
    "wrn_40_2-wrn_40_1": (1.0, 1.5),
    "resnet50-mobilenetv2_half": (3.0, 0.5),
    "resnet32x4-shufflenetv1": (2.5, 1.5),
    "resnet32x4-shufflenetv2": (4.0, 0.5),
}
BETAS: dict[str, tuple[float]] = {  # of DKD
    "wrn_40_2-wrn_16_2": (6.0,),
    "wrn_40_2-wrn_40_1": (6.0,),
    "wrn_40_2-resnet8x4": (6.0,),
    "wrn_40_2-mobilenetv2_half": (6.0,),
    "vgg13-vgg8": (6.0,),
    "vgg13-mobilenetv2_half": (6.0,),
    "resnet56-resnet20": (2.0,),
    "resnet110-resnet20": (2.0,),
    "resnet110-resnet32": (2.0,),
    "resnet50-mobilenetv1": (2.0,),
}
RANDAUGMENT = {"dataset.extra_views": ("randaugment",)}
WORDS = {  # of records that share them
    "rkd": 'Park et al., "Relational Knowledge Distillation"',
    "ttm": 'Zheng and Yang, "Knowledge Distillation Based on Transformed Teacher Matching"',
    "wkd": 'Lv et al., "Wasserstein Distance Rivals Kullback-Leibler Divergence for Knowledge Distillation"',
    "standardized": 'Sun et al., "Logit Standardization in Knowledge Distillation"',
    "nd": 'Wang et al., "Improving Knowledge Distillation via Regularizing Feature Direction and Norm"',
}

PUBLISHED: dict[str, Published] = {
    # Of logits.
    "cross_entropy": Published(
        "cross entropy",
        "",
        "",
        {"cross_entropy": {"weight": 1.0}},
        {"cross_entropy": {"weight": 1.0}},
        teacher=False,
    ),
    "kd": Published(
        "KD",
        'Hinton et al., "Distilling the Knowledge in a Neural Network"',
        "2015",
        _alone("kd", 0.9, 0.1, temperature=4.0),
        _alone("kd", 0.5, 0.5, temperature=1.0),
        pairs="The settings are those of Tian et al., ICLR 2020.",
    ),
    "mse": Published("MSE of logits", "", "", _alone("mse", 1.0), pairs="The weight is chosen here."),
    "dkd": Published(
        "DKD",
        'Zhao et al., "Decoupled Knowledge Distillation"',
        "CVPR 2022",
        _alone("dkd", 1.0, alpha=1.0, beta=8.0, temperature=4.0, warmup_epochs=20),
        _alone("dkd", 1.0, alpha=1.0, beta=0.5, temperature=1.0, warmup_epochs=1),
        pairs="beta for ResNet-110 to ResNet-20, and for WRN-40-2 to ResNet-8x4 and to MobileNet-V2, is that of"
        " zju-SWJ/RLD.",
        of_pairs=_of_pairs("dkd.beta", BETAS),
        differs="It subtracts 1000 from the label's logit to hide it, and takes logarithms of sums of"
        " probabilities, which can be zero.",
        here="The label is left out, and all is computed from log-probabilities.",
    ),
    "mlkd": Published(
        "MLKD",
        'Jin et al., "Multi-Level Logit Distillation"',
        "CVPR 2023",
        _two_views(_alone("mlkd", 0.9, 0.1)),
        pairs="Published with a learning rate of 0.025; for MobileNet-V2 with 480 epochs at 0.01, for ShuffleNets with"
        " 960, 480 where WRN-40-2 is their teacher. The configs of the numbers' source have 480 for others too. A step"
        " costs about two of KD.",
        differs="Its mask of confident images scales the loss and drops no image, at two of the temperatures the weak"
        " view stands in the strong one's place, and the parts of classes and batch count for the weak view alone.",
        here="No mask, and every part for each view at every temperature.",
        others=RANDAUGMENT,
    ),
    "nkd": Published(
        "NKD",
        'Yang et al., "From Knowledge Distillation to Self-Knowledge Distillation: A Unified Approach with Normalized'
        ' Loss and Customized Soft Labels"',
        "ICCV 2023",
        _alone("nkd", 1.0, temperature=3.0, gamma=3.5),
        _alone("nkd", 1.0, temperature=1.0, gamma=1.5),
        pairs="The terms for CIFAR-100 are those of ResNet-34 to ResNet-18.",
        differs="The part of the other classes is a cross entropy, which differs from a divergence by a constant.",
        here="The same, so that the loss is not zero where both agree.",
    ),
    "wsld": Published(
        "WSLD",
        'Zhou et al., "Rethinking Soft Labels for Knowledge Distillation: A Bias-Variance Tradeoff Perspective"',
        "ICLR 2021",
        _alone("wsld", 2.25, temperature=4.0),
        _alone("wsld", 2.5, temperature=2.0),
        pairs="The weights are those of yzd-v/cls_KD, whose authors are others, for ResNet-34 to ResNet-18.",
    ),
    "rld": Published(
        "RLD",
        'Sun et al., "Knowledge Distillation with Refined Logits"',
        "2024",
        _alone("rld", 1.0, alpha=1.0, beta=8.0, temperature=4.0, warmup_epochs=20),
        _alone("rld", 1.0, alpha=1.0, beta=0.5, temperature=1.0, warmup_epochs=1),
        pairs="beta is that of DKD for a pair of networks; the command that is published for VGG-13 to VGG-8 has 8.",
        of_pairs=_of_pairs("rld.beta", {**BETAS, "vgg13-vgg8": (8.0,)}),
        differs="It takes logarithms of probabilities, which can be zero; the temperature of the label's part is 1"
        " unless its command says otherwise, as the published one does.",
        here="All is computed from log-probabilities; both parts have one temperature unless `label_temperature` is"
        " given.",
    ),
    "swap": Published(
        "SWAP",
        'Wen et al., "Preparing Lessons: Improve Knowledge Distillation with Better Supervision"',
        "2019",
        _alone("swap", 0.9, 0.1, temperature=4.0),
        _alone("swap", 0.5, 0.5, temperature=1.0),
        pairs="The settings are those of zju-SWJ/RLD, where it is a baseline.",
    ),
    "wkd_logits": Published(
        "WKD-L",
        WORDS["wkd"],
        "NeurIPS 2024",
        _transport(gamma=600.0, temperature=8.0, decay_epochs=[150, 240]),
        _transport(gamma=30.0, temperature=2.0, decay_epochs=[0, 100]),
        of_pairs=_of_pairs("wkd_logits.gamma wkd_logits.temperature", {"wrn_40_2-shufflenetv1": (200.0, 6.0)})
        | _of_pairs("wkd_logits.gamma wkd_logits.kappa", {"resnet50-mobilenetv1": (25.0, 2.0)}),
        differs="The costs are of the centred kernel alignment of the classes' features, and a matrix of them is cut"
        " for every image.",
        here="The costs are of the teacher's head, and one matrix serves all images.",
    ),
    "teacher_free": Published(
        "Tf-KD",
        'Yuan et al., "Revisiting Knowledge Distillation via Label Smoothing Regularization"',
        "CVPR 2020",
        _alone("teacher_free", 0.1, 0.9),
        pairs="For ResNet-18 alone.",
        differs="It leaves the student at a temperature of 1, takes a softmax of probabilities for the target, and"
        " divides by the number of classes, for which a factor of 100 makes up.",
        here="The paper's formula, times T^2 as KD is.",
        teacher=False,
    ),
    "crld": Published(
        "CRLD",
        'Zhang et al., "Cross-View Consistency Regularisation for Knowledge Distillation"',
        "ACM MM 2024",
        {"cross_entropy": {"weight": 1.0, "views": [0, 1]}, "crld": {"weight": 1.0}},
        {"cross_entropy": {"weight": 2.0, "views": [0, 1]}, "crld": {"weight": 1.0, "temperature": 1.0}},
        pairs="As haiduo/DeepKD has it, whose authors are others. A step costs about two of KD.",
        others=RANDAUGMENT,
    ),
    "ttm": Published(
        "TTM",
        WORDS["ttm"],
        "ICLR 2024",
        _alone("ttm", 45.0, gamma=0.1),
        pairs="Weight and power are those that the code names, for VGG-13 to VGG-8.",
        here="The power of the probabilities is a temperature of the logits, which no small probability hurts.",
    ),
    "wttm": Published(
        "WTTM",
        WORDS["ttm"],
        "ICLR 2024",
        _alone("wttm", 4.0, gamma=0.2),
        pairs="Weight and power are those that the code names, there beside CRD, for VGG-13 to VGG-8.",
        here="As `ttm`; no gradient goes through the weights, which are the teacher's.",
    ),
    "normkd": Published(
        "NormKD",
        'Chi et al., "NormKD: Normalized Logits for Knowledge Distillation"',
        "2023",
        _alone("normkd", 0.9, 0.1, temperature=2.0),
        _alone("normkd", 0.5, 0.5, temperature=1.0),
        differs="A row of equal logits is divided by zero.",
        here="It has the uniform distribution.",
    ),
    "luminet": Published(
        "LumiNet",
        'Hossain et al., "LumiNet: Perception-Driven Knowledge Distillation via Statistical Logit Calibration"',
        "TMLR 2025",
        _alone("luminet", 1089.0, 2.0, temperature=4.0, warmup_epochs=20),
        _alone("luminet", 4.0, 1.0, temperature=0.7, warmup_epochs=1),
        of_pairs=_of_pairs(
            "luminet.weight luminet.temperature cross_entropy.weight",
            {
                "wrn_40_2-wrn_40_1": (5625.0, 8.0, 1.0),
                "vgg13-vgg8": (4900.0, 8.0, 1.0),
                "wrn_40_2-shufflenetv1": (1225.0, 4.0, 1.0),
                "vgg13-mobilenetv2_half": (4900.0, 8.0),
                "resnet50-mobilenetv2_half": (4900.0, 8.0),
            },
        ),
        differs="The factor T^2 is missing; the square of alpha (33, on ImageNet 2) is the weight.",
        here="The same, with the square as the weight.",
    ),
    "abkd": Published(
        "ABKD",
        'Wang et al., "ABKD: Pursuing a Proper Allocation of the Probability Mass in Knowledge Distillation via'
        ' alpha-beta-Divergence"',
        "ICML 2025",
        _alone("abkd", 32.0, alpha=0.8, beta=0.3),
        pairs="The terms are those of the code's example, for ResNet-56 to ResNet-20; a comment beside it has a weight"
        " of 64.",
        differs="At limits where the formula tends to 1 / alpha^2 or 1 / beta^2 it has 1 / alpha or 1 / beta.",
        here="The formula, whose limits are smooth.",
    ),
    "js": Published(
        "Jensen-Shannon",
        'Lin, "Divergence Measures Based on the Shannon Entropy"',
        "IEEE Transactions on Information Theory 1991",
        _alone("js", 0.9, 0.1),
        pairs="No published setting: weights and temperature are those of KD.",
    ),
    "bce": Published(
        "BKD",
        'Hao et al., "Revisit the Power of Vanilla Knowledge Distillation: from Small Scale to Large Scale"',
        "NeurIPS 2023",
        _alone("bce", 1.0),
        pairs="Published for ImageNet alone, with long schedules; the weights are chosen here.",
        differs="A mean over the classes, so the loss is K times smaller than a sum.",
        here="The mean, too.",
    ),
    "binary_kd": Published(
        "binary KD",
        'Yang et al., "Dual-Head Knowledge Distillation: Enhancing Logits Utilization with an Auxiliary Head"',
        "2024",
        _alone("binary_kd", 1.0, temperature=2.0),
        _alone("binary_kd", 0.1, temperature=2.0),
        pairs="Published on a head of its own: see `dhkd`.",
        differs="Probabilities are held at 1e-8 from zero and one.",
        here="All is computed from logarithms.",
    ),
    "dhkd": Published(
        "DHKD",
        'Yang et al., "Dual-Head Knowledge Distillation: Enhancing Logits Utilization with an Auxiliary Head"',
        "2024",
        _alone("dhkd", 1.0),
        _alone("dhkd", 0.1),
        differs="Where the distillation's gradient of the backbone points against that of the labels, that part of it"
        " is taken away.",
        here="`optimizer.gradients` is `project`, which does the same; with `sum` the two gradients are added.",
        others={"optimizer.gradients": "project"},
    ),
    "ctkd": Published(
        "CTKD",
        'Li et al., "Curriculum Temperature for Knowledge Distillation"',
        "AAAI 2023",
        _alone("ctkd", 0.9, 0.1),
        _alone("ctkd", 1.0, 1.0, curriculum_epochs=5.0),
        pairs="On ImageNet with 120 epochs, of which the curriculum takes 5.",
        imagenet_epochs=120,
        differs="The gradient goes through the factor T^2 too, and weight decay acts on the trained temperature.",
        here="The same.",
    ),
    "sdd": Published(
        "SD-KD",
        'Wei et al., "Scale Decoupled Distillation"',
        "CVPR 2024",
        _alone("sdd", 0.9, 0.1, scales=[1, 2]),
        pairs="With DKD inside, SD-DKD, there are 20 epochs of warm-up.",
        of_pairs=_of_pairs(
            "sdd.scales",
            {
                pair: ([1, 2, 4],)
                for pair in (
                    *("vgg13-mobilenetv2_half", "resnet50-mobilenetv2_half", "wrn_40_2-mobilenetv2_half"),
                    *("resnet50-vgg8", "resnet32x4-shufflenetv1", "resnet32x4-shufflenetv2", "wrn_40_2-shufflenetv1"),
                )
            },
        ),
        differs="Each scale is averaged from the one before, and what is no number counts as zero.",
        here="Each scale is averaged from the map, and everything is finite.",
    ),
    "deit": Published(
        "DeiT",
        'Touvron et al., "Training Data-Efficient Image Transformers and Distillation through Attention"',
        "ICML 2021",
        _alone("deit", 0.5, 0.5),
        _alone("deit", 0.5, 0.5),
        pairs="Published for transformers alone: 83.4 for RegNetY-16GF to DeiT-B on ImageNet, in the paper; the soft"
        " form with 0.1 and labels 0.9.",
        differs="The soft form is divided by the number of classes.",
        here="It is not; for a student without a distillation token the second head reads the embedding.",
    ),
    # Of embeddings.
    "rkd_distance": Published(
        "RKD-D",
        WORDS["rkd"],
        "CVPR 2019",
        _alone("rkd_distance", 25.0),
        pairs="Weight of Tian et al., ICLR 2020, where it stands beside `rkd_angle`: see `rkd` below.",
        here="The mean is over all pairs, the diagonal included, as in the official code.",
    ),
    "rkd_angle": Published(
        "RKD-A",
        WORDS["rkd"],
        "CVPR 2019",
        _alone("rkd_angle", 50.0),
        pairs="Weight of Tian et al., ICLR 2020, where it stands beside `rkd_distance`: see `rkd` below.",
    ),
    "crd": Published(
        "CRD",
        'Tian et al., "Contrastive Representation Distillation"',
        "ICLR 2020",
        _alone("crd", 0.8, negatives=16384),
        _alone("crd", 0.8, negatives=16384),
        pairs="With KD beside it (weight 1) as CRD+KD.",
        differs="It draws the negatives of an image without replacement, on the host.",
        here="They are drawn with replacement, on the device.",
        smaller={
            "small": {"crd": {"negatives": 4096}},
            "lite": {"crd": {"negatives": 256}},
            "laptop": {"crd": {"negatives": 256}},
            "smoke": {"crd": {"negatives": 256}},
        },
    ),
    "sp": Published(
        "SP",
        'Tung and Mori, "Similarity-Preserving Knowledge Distillation"',
        "ICCV 2019",
        _alone("sp", 3000.0),
    ),
    "pkt": Published(
        "PKT",
        'Passalis and Tefas, "Learning Deep Representations with Probabilistic Knowledge Transfer"',
        "ECCV 2018",
        _alone("pkt", 30000.0),
        differs="A mean over all pairs of images, which explains the weight; 1e-7 is added to norms and inside of the"
        " logarithm.",
        here="The same, but for the 1e-7 of the norms.",
    ),
    "dist": Published(
        "DIST",
        'Huang et al., "Knowledge Distillation from A Stronger Teacher"',
        "NeurIPS 2022",
        _alone("dist", 2.0, temperature=4.0),
        _alone("dist", 2.0, temperature=1.0),
        pairs="beta and gamma are 1.",
        differs="For classification it has a factor of T^2, that for segmentation none.",
        here="The factor of T^2.",
    ),
    "skd": Published(
        "SKD",
        'Jeong et al., "Streamlined Knowledge Distillation"',
        "CVPR 2026",
        _alone("skd", 1.0),
        _alone("skd", 1.0),
        pairs="The weights are those of torchdistill's sample config, which is for ImageNet.",
    ),
    "cc": Published(
        "CC",
        'Peng et al., "Correlation Congruence for Knowledge Distillation"',
        "ICCV 2019",
        _alone("cc", 0.02),
        differs="The paper compares all pairs by a Gaussian kernel; the authors' code for Tian et al. neighbours in the"
        " batch by inner products.",
        here="That code's form.",
    ),
    "srd": Published(
        "SRD",
        'Miles and Mikolajczyk, "Understanding the Role of the Projector in Knowledge Distillation"',
        "AAAI 2024",
        {"cross_entropy": {"weight": 1.0}, "kd": {"weight": 1.0, "temperature": 1.0}, "srd": {"weight": 1.0}},
        {"cross_entropy": {"weight": 1.0}, "kd": {"weight": 1.0, "temperature": 1.0}, "srd": {"weight": 1.0}},
        differs="For ImageNet it takes the logarithm of the bare sum, for DeiT that of the sum and 1e-5.",
        here="The factor 2 of the first and the 1e-5 of the second.",
    ),
    "vkd": Published(
        "VkD",
        'Miles et al., "VkD: Improving Knowledge Distillation using Orthogonal Projections"',
        "CVPR 2024",
        _alone("vkd", 1.0),
        pairs="Published for transformers, beside KD at T 1 on a second head; the weight is chosen here.",
        differs="The projector is PyTorch's parametrization of an orthogonal matrix.",
        here="The orthogonal factor of a matrix that trains freely.",
    ),
    "pefd": Published(
        "PEFD",
        'Chen et al., "Improved Feature Distillation via Projector Ensemble"',
        "NeurIPS 2022",
        _alone("pefd", 25.0, projectors=3),
        _alone("pefd", 25.0, projectors=3),
    ),
    "embedding": Published("embedding", "", "", _alone("embedding", 1.0), pairs="The weight is chosen here."),
    "nd": Published(
        "ND",
        WORDS["nd"],
        "ECCV 2024",
        _alone("nd", 2.0),
        pairs="Published beside KD, see `kd++` below.",
        of_pairs=_of_pairs("nd.weight", {pair: weights[1:] for pair, weights in OF_ND.items()}),
        differs="The means of the classes are taken over the training set before the start.",
        here="They are those of all images seen so far.",
    ),
    "rrd": Published(
        "RRD",
        'Giakoumoglou and Stathaki, "Relational Representation Distillation"',
        "2024",
        _alone("rrd", 1.0),
        differs="It has the two temperatures of the paper the other way round, and the teacher's"
        " embedding goes through a layer that never trains.",
        here="The paper's temperatures, and the teacher's embedding itself.",
    ),
    # Of maps.
    "fitnet": Published(
        "FitNet",
        'Romero et al., "FitNets: Hints for Thin Deep Nets"',
        "ICLR 2015",
        _alone("fitnet", 100.0, stage=2),
        pairs="Weight and stage are those of Tian et al., ICLR 2020.",
        differs="The paper trains in two phases, the hints first; the code with these numbers in one, and its mean"
        " stands where the paper has half the sum.",
        here='As that code; `"epochs"` on the terms makes two phases.',
    ),
    "simkd": Published(
        "SimKD",
        'Chen et al., "Knowledge Distillation with the Reused Teacher Classifier"',
        "CVPR 2022",
        {"simkd": {"weight": 1.0}},
        pairs="The authors' number is of another protocol, in which the student alone has 73.09 and KD 74.42. Factor 4"
        " has 77.88, factor 8 has 76.73.",
        here="The projector is part of what predicts, in every command; `export` alone writes the student without it.",
    ),
    "at": Published(
        "AT",
        'Zagoruyko and Komodakis, "Paying More Attention to Attention: Improving the Performance of Convolutional'
        ' Neural Networks via Attention Transfer"',
        "ICLR 2017",
        _alone("at", 1000.0),
        _alone("at", 1000.0, on=["feature:-2", "feature:-1"]),
        differs="The mean of squares stands where the paper has the norm of a difference.",
        here="The mean of squares.",
    ),
    "nst": Published(
        "NST",
        'Huang and Wang, "Like What You Like: Knowledge Distill via Neuron Selectivity Transfer"',
        "2017",
        _alone("nst", 50.0),
        here="The same numbers from one product of channels, without all pairs of maps in memory.",
    ),
    "fsp": Published(
        "FSP",
        'Yim et al., "A Gift from Knowledge Distillation: Fast Optimization, Network Minimization and Transfer'
        ' Learning"',
        "CVPR 2017",
        _first("fsp", 30),
        pairs="Both networks need the same widths. The first phase comes before the 240 epochs.",
        differs="Maps are averaged down, where the paper takes the largest values.",
        here="They are averaged down.",
        epochs=270,
    ),
    "ickd": Published(
        "ICKD",
        'Liu et al., "Exploring Inter-Channel Correlation for Diversity-preserved Knowledge Distillation"',
        "ICCV 2021",
        _alone("ickd", 2.5),
        pairs="The numbers are those without KD beside it.",
        differs="For CIFAR-100 it divides by the channels, the paper by their square.",
        here="Divided by the channels.",
    ),
    "wkd_features": Published(
        "WKD-F",
        WORDS["wkd"],
        "NeurIPS 2024",
        _alone("wkd_features", 0.08, ratio=4.0, decay_epochs=[150, 240]),
        _alone("wkd_features", 0.02, ratio=2.0, grid=4, decay_epochs=[0, 100]),
        of_pairs=_of_pairs(
            "wkd_features.weight wkd_features.ratio wkd_features.grid", {"wrn_40_2-shufflenetv1": (0.3, 3.0, 4)}
        )
        | _of_pairs("wkd_features.weight wkd_features.decay_epochs", {"resnet50-mobilenetv1": (0.005, [30, 100])}),
        differs="On ImageNet its projector is a bottleneck.",
        here="One projector for all. The variance of a single pixel is zero, where the code has no number.",
    ),
    "mgd": Published(
        "MGD",
        'Yang et al., "Masked Generative Distillation"',
        "ECCV 2022",
        _alone("mgd", 0.0012),
        _alone("mgd", 0.00007),
        pairs="The weight for CIFAR-100 is that of yzd-v/cls_KD, for ResNet-34 to ResNet-18.",
        differs="The paper leaves out pixels, the code for classification whole channels.",
        here="Whole channels; maps of another size are resized.",
    ),
    "feature_mse": Published("MSE of maps", "", "", _alone("feature_mse", 1.0), pairs="The weight is chosen here."),
    "reviewkd": Published(
        "ReviewKD",
        'Chen et al., "Distilling Knowledge via Knowledge Review"',
        "CVPR 2021",
        _alone("reviewkd", 5.0, warmup_epochs=20),
        _alone("reviewkd", 1.0, warmup_epochs=1, preactivation=True),
        pairs="The authors name no weight for ResNet-110 to ResNet-20, nor for VGG and MobileNet-V2.",
        of_pairs=_of_pairs(
            "reviewkd.weight",
            {
                "resnet56-resnet20": (0.6,),
                "resnet110-resnet32": (1.0,),
                "resnet32x4-shufflenetv2": (8.0,),
                "resnet50-mobilenetv1": (8.0,),
            },
        ),
    ),
    "vid": Published(
        "VID",
        'Ahn et al., "Variational Information Distillation for Knowledge Transfer"',
        "CVPR 2019",
        _alone("vid", 1.0),
        differs="A mean stands for the sum. In megvii-research/mdistiller the variances never train.",
        here="The mean, and variances that train.",
    ),
    "ofd": Published(
        "OFD",
        'Heo et al., "A Comprehensive Overhaul of Feature Distillation"',
        "ICCV 2019",
        _alone("ofd", 0.001),
        _alone("ofd", 0.0001),
        differs="Its teacher normalizes by the batch's statistics, which its author found better.",
        here="By its averages, unless `teacher.mode` is `train`.",
    ),
    "ab": Published(
        "AB",
        'Heo et al., "Knowledge Transfer via Distillation of Activation Boundaries Formed by Hidden Neurons"',
        "AAAI 2019",
        _first("ab", 30, weight=0.003),
        pairs="The first phase comes before the 240 epochs.",
        differs="Networks of one shape have no regressor between them.",
        here="One always, without a ReLU.",
        epochs=270,
    ),
    "ft": Published(
        "FT",
        'Kim et al., "Paraphrasing Complex Network: Network Compression via Factor Transfer"',
        "NeurIPS 2018",
        {"cross_entropy": {"weight": 1.0, "epochs": [30, None]}, "ft": {"weight": 200.0, "paraphraser_epochs": 30}},
        pairs="The paraphraser's phase comes before the 240 epochs, with a learning rate of 0.01 and a weight of 1.",
        differs="The paper compares whole factors by their absolute difference; the code with these numbers the means"
        " of their squares at each pixel.",
        here="That code's form; `spatial=false` is the paper's.",
        epochs=270,
    ),
    "srrl": Published(
        "SRRL",
        'Yang et al., "Knowledge Distillation via Softmax Regression Representation Learning"',
        "ICLR 2021",
        _alone("srrl", 1.0),
        _alone("srrl", 1.0),
        pairs="yzd-v/cls_KD has a beta of 5 for ResNet-34 to ResNet-18 on CIFAR-100.",
    ),
    "catkd": Published(
        "CAT-KD",
        'Guo et al., "Class Attention Transfer Based Knowledge Distillation"',
        "CVPR 2023",
        _alone("catkd", 15.0, size=2),
        _alone("catkd", 0.5, size=4),
        of_pairs=_of_pairs(
            "catkd.weight catkd.normalize catkd.size",
            {
                "wrn_40_2-wrn_16_2": (12.0,),
                "wrn_40_2-wrn_40_1": (1.5,),
                "resnet56-resnet20": (0.7,),
                "resnet110-resnet32": (1.8,),
                "vgg13-vgg8": (4.5,),
                "vgg13-mobilenetv2_half": (15.0, True),
                "resnet50-mobilenetv2_half": (40.0, True),
                "resnet32x4-shufflenetv1": (600.0, True, 4),
                "resnet32x4-shufflenetv2": (600.0, True, 4),
                "wrn_40_2-shufflenetv1": (80.0, True, 4),
                "resnet50-mobilenetv1": (10.0, True, 2),
            },
        ),
        differs="The networks are built with a convolution for a classifier, and the teacher loses its bias.",
        here="The maps come from the linear classifier that the networks have, without its bias; their logits keep it.",
    ),
    "gradcam_alignment": Published(
        "KD + Grad-CAM",
        'Parchami-Araghi et al., "Good Teachers Explain: Explanation-Enhanced Knowledge Distillation"',
        "ECCV 2024",
        {**_alone("kd", 0.9, 0.1, temperature=4.0), "gradcam_alignment": {"weight": 1.0}},
        differs="It has it beside KD at temperature 1 without labels, on the maps of B-cos networks,"
        " which it takes from the forward pass in training mode, at the size of the image.",
        here="Beside KD as Tian et al. have it, on Grad-CAM maps in inference mode, at the larger of their own sizes.",
    ),
    "adversarial": Published(
        "logits discriminator",
        'Xu et al., "Training Shallow and Thin Networks for Acceleration via Knowledge Distillation with Conditional'
        ' Adversarial Networks"',
        "2018",
        _alone("adversarial", 0.1, hidden=[128, 128], penalty=0.1),
        pairs="Weight, widths and penalty are chosen here, on CIFAR-10.",
    ),
    # Without a teacher.
    "mutual": Published(
        "DML",
        'Zhang et al., "Deep Mutual Learning"',
        "CVPR 2018",
        {"cross_entropy": {"weight": 1.0}, "mutual": {"weight": 1.0}},
        differs="One network moves after another, with the others' new predictions.",
        here="All move at once, and all start from scratch.",
        teacher=False,
        others={"model.pretrained": ""},
    ),
    "byot": Published(
        "BYOT",
        'Zhang et al., "Be Your Own Teacher: Improve the Performance of Convolutional Neural Networks via Self'
        ' Distillation"',
        "ICCV 2019",
        {"cross_entropy": {"weight": 1.0}, "byot": {"weight": 1.0}},
        pairs="alpha 0.3, T 3 and the feature's 0.03 are those of open-mmlab/mmrazor, whose authors are others.",
        differs="An exit is a stack of bottlenecks. mmrazor's 0.03 is of the norm of the whole batch's difference, and"
        " at the last exit 0; its divergence has no gradient.",
        here="An exit is one regressor, a mean and a linear layer; 0.03 is of the mean squared difference, at every"
        " exit, which is far less.",
        teacher=False,
    ),
    # Recipes: several methods, or one with other options.
    "rkd": Published(
        "RKD",
        WORDS["rkd"],
        "CVPR 2019",
        {**_alone("rkd_distance", 25.0), "rkd_angle": {"weight": 50.0}},
        pairs="Weights of Tian et al., ICLR 2020; the paper's are 1 and 2.",
    ),
    "function_matching": Published(
        "function matching",
        'Beyer et al., "Knowledge Distillation: A Good Teacher is Patient and Consistent"',
        "CVPR 2022",
        {"kd": {"weight": 1.0, "temperature": 1.0}},
        {"kd": {"weight": 1.0, "temperature": 1.0}},
        pairs="Published with 1200 epochs, Adam and resized crops; the patience is the point, see"
        " `--config=function_matching`. google-research/big_vision has 82.8 for BiT-M ResNet-152x2 to ResNet-50 on"
        " ImageNet.",
        others={"train.mixup": 1.0},
    ),
    "kd_ls": Published(
        "KD+LS",
        WORDS["standardized"],
        "CVPR 2024",
        _alone("kd", 9.0, 0.1, temperature=2.0, standardize=True),
        _alone("kd", 9.0, 1.0, temperature=2.0, standardize=True),
        pairs="Values of a pair are those of the authors' log.",
        of_pairs=_of_pairs(
            "kd.temperature kd.weight",
            {
                "resnet110-resnet20": (4.0, 12.0),
                "vgg13-vgg8": (3.0,),
                "vgg13-mobilenetv2_half": (3.0,),
                "resnet50-mobilenetv2_half": (3.0, 1.0),
                "resnet32x4-wrn_16_2": (3.0,),
                "resnet32x4-wrn_40_2": (3.0,),
                "wrn_40_2-mobilenetv2_half": (3.0,),
            },
        )
        | _of_pairs("cross_entropy.weight", {"resnet50-mobilenetv1": (0.5,)}),
    ),
    "dkd_ls": Published(
        "DKD+LS",
        WORDS["standardized"],
        "CVPR 2024",
        _alone("dkd", 1.0, alpha=9.0, beta=72.0, temperature=2.0, standardize=True, warmup_epochs=20),
        pairs="Values of a pair are those of the authors' log.",
        of_pairs=_of_pairs(
            "dkd.alpha dkd.beta dkd.temperature",
            {
                "wrn_40_2-wrn_16_2": (12.0, 24.0),
                "wrn_40_2-wrn_40_1": (12.0, 24.0),
                "resnet56-resnet20": (18.0, 36.0, 3.0),
                "resnet110-resnet20": (15.0, 30.0),
                "resnet110-resnet32": (15.0, 30.0),
                "vgg13-vgg8": (15.0, 30.0),
                "vgg13-mobilenetv2_half": (9.0, 18.0, 3.0),
                "resnet50-mobilenetv2_half": (15.0, 30.0),
                "resnet32x4-wrn_16_2": (9.0, 18.0),
                "wrn_40_2-resnet8x4": (18.0, 36.0),
                "wrn_40_2-mobilenetv2_half": (15.0, 30.0),
            },
        ),
    ),
    "mlkd_ls": Published(
        "MLKD+LS",
        WORDS["standardized"],
        "CVPR 2024",
        _two_views(_alone("mlkd", 9.0, 0.1, temperatures=[2.0, 2.0, 3.0, 5.0, 6.0], standardize_instances=True)),
        pairs="With 480 epochs, 960 where the student is a ShuffleNet.",
        of_pairs=_of_pairs(
            "mlkd.weight", {"vgg13-vgg8": (6.0,), "vgg13-mobilenetv2_half": (6.0,), "resnet32x4-shufflenetv2": (6.0,)}
        ),
        others=RANDAUGMENT,
    ),
    "wkd": Published(
        "WKD",
        WORDS["wkd"],
        "NeurIPS 2024",
        {
            **_transport(gamma=200.0, temperature=8.0, decay_epochs=[150, 240]),
            "wkd_features": {"weight": 0.08, "ratio": 8.0, "decay_epochs": [150, 240]},
        },
        {
            **_transport(gamma=10.0, temperature=2.0, decay_epochs=[0, 100]),
            "wkd_features": {"weight": 1.0, "ratio": 2.0, "grid": 4, "decay_epochs": [0, 100]},
        },
        pairs="In the authors' config for ResNet-34 to ResNet-18 the weight of the features is fifty times that of"
        " `wkd_features`.",
        of_pairs=_of_pairs(
            "wkd_logits.gamma wkd_logits.temperature wkd_features.weight wkd_features.ratio wkd_features.grid",
            {"wrn_40_2-shufflenetv1": (60.0, 4.0, 0.5, 3.0, 4)},
        )
        | _of_pairs(
            "wkd_logits.gamma wkd_logits.kappa wkd_features.weight", {"resnet50-mobilenetv1": (25.0, 2.0, 0.005)}
        ),
    ),
    "kd++": Published(
        "KD++",
        WORDS["nd"],
        "ECCV 2024",
        {
            **_alone("kd", 3.5, 1.0, temperature=4.0, warmup_epochs=20),
            "nd": {"weight": 2.0},
        },
        {
            **_alone("kd", 2.5, 1.0, temperature=1.0, warmup_epochs=5),
            "nd": {"weight": 1.0},
        },
        pairs="The learning rate is 0.1, on ImageNet that of others.",
        of_pairs=_of_pairs("kd.weight nd.weight", {**OF_ND, "resnet50-mobilenetv1": (4.0, 1.0)}),
        others={"optimizer.learning_rate": 0.1, "optimizer.nesterov": True},
    ),
}
