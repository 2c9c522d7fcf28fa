"""Options for every method of the registry, with which the tests of all methods run it.

A method that is missing here fails `test_all.py`.
"""

EXAMPLES = {
    "cross_entropy": {},
    "kd": {},
    "dkd": {},
    "mlkd": {"views": [0, 1]},
    "nkd": {},
    "wsld": {},
    "rld": {},
    "swap": {},
    "wkd_logits": {},
    "teacher_free": {},
    "crld": {},
    "ttm": {},
    "wttm": {},
    "normkd": {},
    "luminet": {},
    "abkd": {},
    "js": {},
    "bce": {},
    "binary_kd": {},
    "ctkd": {},
    "sdd": {"scales": [1, 2]},
    "deit": {},
    "dhkd": {},
    "rkd_distance": {},
    "rkd_angle": {},
    "sp": {},
    "pkt": {},
    "dist": {},
    "skd": {},
    "embedding": {},
    "pefd": {},
    "cc": {"features": 4},
    "srd": {},
    "vkd": {},
    "nd": {},
    "rrd": {"queue": 8},
    "fitnet": {"stage": 1},
    "vid": {},
    "ofd": {"weight": 1e-3},
    "ab": {"weight": 3e-3},
    "ft": {"paraphraser_epochs": 1},
    "simkd": {},
    "feature_mse": {},
    "at": {},
    "nst": {},
    "fsp": {},
    "ickd": {},
    "wkd_features": {},
    "mgd": {"weight": 7e-5},
    "reviewkd": {},
    "srrl": {},
    "catkd": {},
    "crd": {"features": 4, "negatives": 8},
    "adversarial": {"hidden": [8]},
    "gradcam_alignment": {"stage": -2},
    "mse": {},
    "mutual": {},
    "byot": {},
    "original_cross_entropy": {},
    "original_kd": {},
    "original_rkd_distance": {},
    "original_rkd_angle": {},
    "original_adversarial": {},
}
# The same method with options that change its arithmetic.
VARIANTS = {
    "kd, standardized": {"method": "kd", "standardize": True},
    "feature_mse, normalized": {"method": "feature_mse", "normalize": True},
    "wkd_features, in cells": {"method": "wkd_features", "stage": 1, "grid": 2},
    "sdd, dkd": {"method": "sdd", "inner": "dkd"},
    "sdd, nkd": {"method": "sdd", "inner": "nkd"},
    "deit, soft": {"method": "deit", "distillation": "soft"},
    "dhkd, without the norm": {"method": "dhkd", "norm": False},
    "abkd, the limit of logarithms": {"method": "abkd", "alpha": 0.0, "beta": 0.0},
    "abkd, below zero": {"method": "abkd", "alpha": -1.0, "beta": 1.0},
    "embedding, squared error of a projection": {"method": "embedding", "objective": "mse", "project": True},
    "ft, second phase": {"method": "ft", "paraphraser_epochs": 0, "spatial": False},
    "catkd, normalized": {"method": "catkd", "normalize": True},
    "wasserstein": {"method": "adversarial", "hidden": [8], "objective": "wasserstein"},
}
ALL = {**{name: {"method": name, **options} for name, options in EXAMPLES.items()}, **VARIANTS}

# What a method cannot do by its nature.
PREDICTS = {"deit"}  # it replaces the student's prediction, as simkd does, and only one of a run's terms may
NEEDS_NETWORKS = {"gradcam_alignment", "mutual"}  # it runs the networks itself, so plain outputs are not enough
EQUAL_WIDTHS = {"fsp"}  # of student and teacher
TEN_CLASSES = {"original_adversarial"}  # its convolutions need so many
ALONE = TEN_CLASSES | EQUAL_WIDTHS | PREDICTS  # what cannot share one program of a narrow student and a wide teacher
FLOAT32 = {"original_adversarial"}  # its networks are of that type, whatever it reads
