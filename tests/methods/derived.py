"""What PyTorch and JAX derive alike for the recordings of the originals, of which only the outputs are stored.

A case is named "METHOD/CASE". Its inputs are the arrays "METHOD/CASE/student" and "METHOD/CASE/teacher" (several maps:
"METHOD/CASE/student/0" and so on), its adapters' parameters "METHOD/CASE/ADAPTER.KEY", KEY being PyTorch's. Everything
is in PyTorch's layout: maps [B, c, h, w], kernels [out, in, h, w], of a transposed convolution [in, out, h, w], linear
layers [out, in].
"""

import zlib

import numpy as np

LOGITS = {"student": (6, 5), "teacher": (6, 5), "scale": 2.0}
PROTOTYPES = {**LOGITS, "prototypes": (5, 4)}
CELLS = {"student": (6, 3, 4, 4), "teacher": (6, 4, 4, 4), "classes": 5, "scales": (1, 2, 4)}

# The shapes and options of every case. "scale" is that of the inputs.
CASES = {
    # Logits.
    "kd/t4": {**LOGITS, "temperature": 4.0},
    "kd/t1": {**LOGITS, "temperature": 1.0},
    "kd_standardized/t2": {**LOGITS, "temperature": 2.0},
    "dkd/cifar": {**LOGITS, "alpha": 1.0, "beta": 8.0, "temperature": 4.0},
    "dkd/imagenet": {**LOGITS, "alpha": 1.0, "beta": 0.5, "temperature": 1.0},
    "dkd_standardized/t2": {**LOGITS, "alpha": 9.0, "beta": 72.0, "temperature": 2.0},
    "mlkd/one_view": {**LOGITS, "temperatures": (2.0, 3.0, 4.0, 5.0, 6.0)},
    "nkd/imagenet": {**LOGITS, "temperature": 1.0, "gamma": 1.5},
    "nkd/cifar": {**LOGITS, "temperature": 3.0, "gamma": 3.5},
    "wsld/t4": {**LOGITS, "temperature": 4.0, "alpha": 2.25},
    "wsld/t2": {**LOGITS, "temperature": 2.0, "alpha": 1.0},
    "dist/t1": {**LOGITS, "beta": 2.0, "gamma": 0.5, "tau": 1.0},
    "dist/t4": {**LOGITS, "beta": 1.0, "gamma": 1.0, "tau": 4.0},
    "ttm/published": {**LOGITS, "exponent": 0.1},
    "ttm/sharp": {**LOGITS, "exponent": 1.5},
    "wttm/published": {**LOGITS, "exponent": 0.1},
    "wttm/half": {**LOGITS, "exponent": 0.5},
    "ctkd/warm": {**LOGITS, "theta": 1.0, "start": 1.0, "end": 20.0, "factor": -0.5},
    "ctkd/cool": {**LOGITS, "theta": -2.0, "start": 1.0, "end": 20.0, "factor": -1.0},
    "wkd_logits/cosine": {**PROTOTYPES, "temperature": 2.0, "gamma": 30.0, "sharpening": 1.0, "reg": 0.05, "steps": 10},
    "wkd_logits/plain_cost": {
        **PROTOTYPES,
        "temperature": 8.0,
        "gamma": 3.0,
        "sharpening": 0.0,
        "reg": 0.1,
        "steps": 20,
    },
    "rld/cifar": {**LOGITS, "alpha": 1.0, "beta": 8.0, "temperature": 4.0, "alpha_temperature": 1.0},
    "rld/same_temperature": {**LOGITS, "alpha": 1.0, "beta": 0.5, "temperature": 4.0, "alpha_temperature": 4.0},
    "rld_standardized/t2": {**LOGITS, "alpha": 9.0, "beta": 72.0, "temperature": 2.0, "alpha_temperature": 1.0},
    "swap/t4": {**LOGITS, "temperature": 4.0},
    "luminet/cifar": {**LOGITS, "alpha": 33.0, "temperature": 4.0},
    "luminet/imagenet": {**LOGITS, "alpha": 2.0, "temperature": 0.7},
    "normkd/cifar": {**LOGITS, "temperature": 2.0},
    "normkd/imagenet": {**LOGITS, "temperature": 1.0},
    "abkd/general": {**LOGITS, "alpha": 0.8, "beta": 0.2, "temperature": 4.0},
    "abkd/t1": {**LOGITS, "alpha": 1.2, "beta": -0.4, "temperature": 1.0},
    "abkd/alpha_zero": {**LOGITS, "alpha": 0.0, "beta": 1.0, "temperature": 4.0},
    "abkd/alpha_zero_beta_half": {**LOGITS, "alpha": 0.0, "beta": 0.5, "temperature": 4.0},
    "abkd/beta_zero": {**LOGITS, "alpha": 1.0, "beta": 0.0, "temperature": 4.0},
    "abkd/beta_zero_alpha_half": {**LOGITS, "alpha": 0.5, "beta": 0.0, "temperature": 4.0},
    "abkd/opposite": {**LOGITS, "alpha": 0.5, "beta": -0.5, "temperature": 4.0},
    "abkd/both_zero": {**LOGITS, "alpha": 0.0, "beta": 0.0, "temperature": 4.0},
    "skd/published": {**LOGITS, "temperature": 4.0, "ridge": 0.1},
    "bce/plain": {**LOGITS},
    "binary_kd/plain": {**LOGITS, "norm": False, "temperature": 2.0},
    "binary_kd/norm": {**LOGITS, "norm": True, "temperature": 2.0},
    # Of a weak and a strong view.
    "crld/published": {
        "student": [(6, 5), (6, 5)],
        "teacher": [(6, 5), (6, 5)],
        "scale": 2.0,
        "temperature": 4.0,
        "weights": (2.0, 0.5),
        "confidences": (0.7, 0.5),
    },
    # Beside the labels, as the project has them that this one reimplements.
    "original_kd/published": {**LOGITS, "alpha": 0.5, "temperature": 1.5},
    "original_rkd_distance/published": {**LOGITS, "weight": 5.0, "temperature": 1.5},
    "original_rkd_angle/published": {**LOGITS, "weight": 5.0, "temperature": 1.5},
    # Embeddings.
    "rkd_distance/unequal_widths": {"student": (6, 4), "teacher": (6, 7)},
    "rkd_angle/unequal_widths": {"student": (6, 4), "teacher": (6, 7)},
    "pkt/unequal_widths": {"student": (6, 4), "teacher": (6, 7)},
    "cc/equal_widths": {"student": (6, 4), "teacher": (6, 4)},
    "cc/embedded": {"student": (6, 4), "teacher": (6, 7), "features": 3},
    "nce/positive": {"student": (4, 7), "num_examples": 10},  # the first column is the pair's own
    "crd/first": {"student": (4, 5), "teacher": (4, 7), "features": 4, "negatives": 6, "num_examples": 10},
    "crd/second": {"student": (4, 5), "teacher": (4, 7), "features": 4, "negatives": 6, "num_examples": 10},
    "nd/equal_widths": {"student": (6, 4), "teacher": (6, 4), "num_classes": 5},
    "srd/unequal_widths": {"student": (6, 4), "teacher": (6, 7)},
    "pefd/three_projectors": {"student": (6, 4), "teacher": (6, 7)},
    "vkd/projected": {"student": (6, 7), "teacher": (6, 7), "scale": 1.5},  # behind its projector
    "deit/hard": {"student": (6, 4), "teacher": (6, 5), "temperature": 3.0},  # the teacher's logits
    "deit/soft": {"student": (6, 4), "teacher": (6, 5), "temperature": 3.0},
    # Maps.
    "fitnet/equal": {"student": (4, 3, 4, 4), "teacher": (4, 5, 4, 4)},
    "fitnet/half": {"student": (4, 3, 4, 4), "teacher": (4, 5, 2, 2)},
    "fitnet/twice": {"student": (4, 3, 2, 2), "teacher": (4, 5, 4, 4)},
    "fitnet/difference": {"student": (4, 3, 4, 4), "teacher": (4, 5, 3, 3)},
    "at/equal": {"student": (4, 3, 4, 4), "teacher": (4, 5, 4, 4)},
    "at/larger_student": {"student": (4, 3, 5, 5), "teacher": (4, 5, 3, 3)},
    "at/larger_teacher": {"student": (4, 3, 2, 2), "teacher": (4, 5, 4, 4)},
    "sp/unequal_sizes": {"student": (5, 3, 4, 4), "teacher": (5, 6, 8, 8)},
    "nst/equal": {"student": (4, 3, 4, 4), "teacher": (4, 5, 4, 4)},
    "nst/larger_student": {"student": (4, 3, 5, 5), "teacher": (4, 5, 3, 3)},
    "nst/larger_teacher": {"student": (4, 3, 2, 2), "teacher": (4, 5, 4, 4)},
    "vid/equal": {"student": (4, 3, 4, 4), "teacher": (4, 5, 4, 4)},
    "vid/larger_student": {"student": (4, 3, 5, 5), "teacher": (4, 5, 3, 3)},
    "vid/larger_teacher": {"student": (4, 3, 2, 2), "teacher": (4, 5, 4, 4)},
    "ab/connected": {"student": [(4, 3, 4, 4), (4, 4, 2, 2)], "teacher": [(4, 5, 4, 4), (4, 6, 2, 2)], "scale": 1.5},
    "ab/plain": {"student": [(4, 5, 4, 4)], "teacher": [(4, 5, 4, 4)], "scale": 1.5},
    "fsp/three_maps": {
        "student": [(4, 3, 4, 4), (4, 4, 4, 4), (4, 5, 2, 2)],
        "teacher": [(4, 3, 4, 4), (4, 4, 2, 2), (4, 5, 2, 2)],
    },
    "ft/factors": {"student": (4, 3, 4, 4), "teacher": (4, 6, 4, 4), "rate": 0.5},
    "ft/larger_teacher": {"student": (4, 3, 2, 2), "teacher": (4, 6, 4, 4), "rate": 0.5},
    "ft/reconstruction": {"student": (4, 6, 4, 4), "rate": 0.5},  # of the teacher's map by the paraphraser
    "ofd/equal": {
        "student": [(4, 3, 4, 4), (4, 4, 2, 2), (4, 3, 2, 2)],
        "teacher": [(4, 5, 4, 4), (4, 6, 2, 2), (4, 4, 2, 2)],
        "scale": 2.0,
    },
    "ofd/larger_teacher": {"student": [(4, 3, 2, 2)], "teacher": [(4, 5, 4, 4)], "scale": 2.0},
    # The last of both are the pooled features; the student's first map, that of the stem, is not read.
    "reviewkd/equal": {
        "student": [(4, 4, 8, 8), (4, 5, 4, 4), (4, 6, 2, 2), (4, 6)],
        "teacher": [(4, 5, 8, 8), (4, 6, 4, 4), (4, 7, 2, 2), (4, 7)],
    },
    "reviewkd/larger_student": {
        "student": [(4, 4, 8, 8), (4, 5, 4, 4), (4, 6)],
        "teacher": [(4, 5, 4, 4), (4, 7, 2, 2), (4, 7)],
    },
    "mgd/unmasked": {"student": (4, 3, 4, 4), "teacher": (4, 5, 4, 4), "alpha": 7e-5, "ratio": 0.0},
    "mgd/masked": {"student": (4, 3, 4, 4), "teacher": (4, 5, 4, 4), "alpha": 7e-5, "ratio": 0.5},
    "mgd/equal_widths": {"student": (4, 5, 4, 4), "teacher": (4, 5, 4, 4), "alpha": 7e-5, "ratio": 0.0},
    "ickd/equal_sizes": {"student": (4, 3, 4, 4), "teacher": (4, 5, 4, 4)},
    "wkd_features/whole": {"student": (4, 3, 4, 4), "teacher": (4, 5, 4, 4), "ratio": 4.0, "grid": 1},
    "wkd_features/half": {"student": (4, 3, 4, 4), "teacher": (4, 5, 2, 2), "ratio": 4.0, "grid": 1},
    "wkd_features/grid": {"student": (4, 3, 4, 4), "teacher": (4, 5, 4, 4), "ratio": 2.0, "grid": 2},
    "sdd/kd": {**CELLS, "teacher": (6, 4, 8, 8), "temperature": 4.0},
    "sdd/kd_two_scales": {**CELLS, "student": (6, 3, 8, 8), "scales": (1, 2), "temperature": 2.0},
    "sdd/dkd": {**CELLS, "alpha": 1.0, "beta": 8.0, "temperature": 4.0},
    "simkd/equal": {"student": (4, 3, 4, 4), "teacher": (4, 6, 4, 4), "factor": 2},
    "simkd/larger_student": {"student": (4, 3, 5, 5), "teacher": (4, 6, 3, 3), "factor": 2},
    "simkd/larger_teacher": {"student": (4, 3, 2, 2), "teacher": (4, 6, 4, 4), "factor": 2},
    "srrl/equal": {"student": (4, 3, 4, 4), "teacher": (4, 6, 4, 4), "classes": 5, "alpha": 1.0, "beta": 5.0},
    # The maps of the classes.
    "catkd/plain": {"student": (4, 5, 4, 4), "teacher": (4, 5, 8, 8), "size": 2, "normalize": False},
    "catkd/normalized": {"student": (4, 5, 5, 5), "teacher": (4, 5, 4, 4), "size": 2, "normalize": True},
}


def generator(name: str) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(name.encode()))


def array(name: str, shape: tuple[int, ...], scale: float = 1.0) -> np.ndarray:
    """Normal numbers, float64, a function of the name."""
    return scale * generator(name).standard_normal(shape)


def integers(name: str, shape: tuple[int, ...], high: int) -> np.ndarray:
    """From 0 to high - 1, int64."""
    return generator(name).integers(0, high, shape)


def inputs(case: str, side: str) -> np.ndarray | list[np.ndarray]:
    """The arrays of one side of a case, one or a list."""
    shapes, scale = CASES[case][side], CASES[case].get("scale", 1.0)
    if isinstance(shapes, tuple):
        return array(f"{case}/{side}", shapes, scale)
    return [array(f"{case}/{side}/{i}", shape, scale) for i, shape in enumerate(shapes)]


def parameter(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """An adapter's parameter: about 1 where it scales (a vector called weight), otherwise about 0."""
    scales = len(shape) == 1 and name.endswith("weight")
    return 1 + array(name, shape, 0.1) if scales else array(name, shape, 0.5)


def labels(case: str, teacher_logits: np.ndarray) -> np.ndarray:
    """[B] int64, drawn, but the teacher is right about the first image, and as wrong as can be about the second."""
    drawn = integers(f"{case}/labels", (len(teacher_logits),), teacher_logits.shape[1])
    drawn[0], drawn[1] = teacher_logits[0].argmax(), teacher_logits[1].argmin()
    return drawn


def cosine_cost(prototypes: np.ndarray, sharpening: float) -> np.ndarray:
    """[K, K]: one minus the cosine of the rows, sharpened where that is above zero."""
    unit = prototypes / np.linalg.norm(prototypes, axis=1, keepdims=True)
    distance = 1 - unit @ unit.T
    return 1 - np.exp(-sharpening * distance) if sharpening else distance


def drawn_pairs(case: str) -> tuple[np.ndarray, np.ndarray]:
    """Images [B] of the training set, and for each itself and its negatives [B, 1 + M]."""
    options = CASES[case]
    rng = generator(f"{case}/pairs")
    batch, size = options["student"][0], options["num_examples"]
    ids = rng.permutation(size)[:batch]
    others = np.stack([(i + 1 + rng.integers(0, size - 1, options["negatives"])) % size for i in ids])
    return ids, np.concatenate([ids[:, None], others], 1)


def norm(name: str, channels: int) -> tuple[np.ndarray, np.ndarray]:
    """Scale and bias [c] of a batch normalization; hardly anything of the first channel is below zero."""
    scale, bias = array(f"{name}.weight", (channels,)), array(f"{name}.bias", (channels,))
    bias[0] = 4 * np.abs(scale[0])
    return scale, bias
