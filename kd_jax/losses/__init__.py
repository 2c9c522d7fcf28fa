"""Losses as plain functions of arrays, to be used in any training loop.

They return one value per image, or one value where they compare the images of a batch with one another. The teacher's
side carries no gradient, but for `cc`. `where` [B] leaves out images: these change neither values nor gradients,
whatever they hold.
"""

from kd_jax.losses.activations import ab, catkd, factor_transfer, ofd, ofd_margin, vid
from kd_jax.losses.contrastive import nce
from kd_jax.losses.divergences import abkd, bce, binary_kd, jensen_shannon, luminet, normkd, ttm, wttm
from kd_jax.losses.embeddings import cc, cosine_distance, nd, rrd, srd, vkd
from kd_jax.losses.features import hint
from kd_jax.losses.labels import class_cost, nkd, rld, swap, swapped_kd, teacher_free, wkd_logits, wsld
from kd_jax.losses.logits import cross_entropy, dkd, kd, mlkd, standardize
from kd_jax.losses.maps import at, fsp, hcl, ickd, nst, wkd_features
from kd_jax.losses.relations import rkd_angle, rkd_distance
from kd_jax.losses.saliency import gradcam_alignment
from kd_jax.losses.similarities import dist, pkt, skd, sp

__all__ = [
    "ab",
    "abkd",
    "at",
    "bce",
    "binary_kd",
    "catkd",
    "cc",
    "class_cost",
    "cosine_distance",
    "cross_entropy",
    "dist",
    "dkd",
    "factor_transfer",
    "fsp",
    "gradcam_alignment",
    "hcl",
    "hint",
    "ickd",
    "jensen_shannon",
    "kd",
    "luminet",
    "mlkd",
    "nce",
    "nd",
    "nkd",
    "normkd",
    "nst",
    "ofd",
    "ofd_margin",
    "pkt",
    "rkd_angle",
    "rkd_distance",
    "rld",
    "rrd",
    "skd",
    "sp",
    "srd",
    "standardize",
    "swap",
    "swapped_kd",
    "teacher_free",
    "ttm",
    "vid",
    "vkd",
    "wkd_features",
    "wkd_logits",
    "wsld",
    "wttm",
]
