"""Losses of where two networks look."""

from kd_jax import gradcam
from kd_jax.errors import choose
from kd_jax.losses.masks import Where, fixed, keep
from kd_jax.types import Array, Float

SIMILARITIES = {"cosine": gradcam.cosine, "pearson": gradcam.pearson}  # those that have a gradient


def gradcam_alignment(
    student: Float[Array, "B h w"],
    teacher: Float[Array, "B i j"],
    *,
    similarity: str = "cosine",
    where: Where = None,
) -> Float[Array, " B"]:
    """How far the student's Grad-CAM maps are from the teacher's: one minus their similarity.

    Parchami-Araghi et al., "Good Teachers Explain: Explanation-Enhanced Knowledge Distillation", ECCV 2024, section 3,
    with the cosine. The official code brings all maps to the size of the image, here they keep the larger of their own.

    Args:
      student: [B, h, w], not negative. teacher: [B, i, j], fixed.
      similarity: "cosine" or "pearson".
      where: [B] bool, the images that count.
    Returns:
      [B], without unit; one where a map is zero (for "pearson": constant), without a gradient there.
    Raises:
      InputError: for an unknown similarity, and for maps of one pixel.
    """
    measure = choose("similarity", similarity, SIMILARITIES)
    return keep(where, 1 - measure(*gradcam.at_one_size([keep(where, student), fixed(where, teacher)])))
