"""Losses on where the networks look: the student's Grad-CAM maps should be its teacher's."""

import jax

from kd_jax import gradcam
from kd_jax.errors import InputError, choose
from kd_jax.types import Method, MethodVariables

SIMILARITIES = {"cosine": gradcam.cosine, "pearson": gradcam.pearson}  # those that have a gradient


def alignment(student: jax.Array, teacher: jax.Array, *, similarity: str = "cosine") -> jax.Array:
    """How far the student's maps are from the teacher's: one minus their similarity.

    Parchami-Araghi et al., "Good Teachers Explain: Explanation-Enhanced Knowledge Distillation", ECCV 2024, section 3,
    with the cosine. The official code brings all maps to the size of the image, here they keep the larger of their own.

    Args:
      student: [B, h, w], not negative. teacher: [B, i, j], fixed.
      similarity: a key of `SIMILARITIES`.
    Returns:
      [B], without unit; one where a map is zero (for "pearson": constant), without a gradient there.
    Raises:
      InputError: for an unknown similarity, and for maps of one pixel.
    """
    measure = choose("similarity", similarity, SIMILARITIES)
    return 1 - measure(*gradcam.at_one_size([student, jax.lax.stop_gradient(teacher)]))


def gradcam_alignment(name: str, *, stage: int = -1, variant: str = "gradcam", similarity: str = "cosine") -> Method:
    """The mean `alignment` of the two networks' Grad-CAM maps, for the class that the teacher predicts.

    Both networks are in inference mode here, as when they are explained, so that no image influences another's map; the
    official code takes the student's maps from the forward pass in training mode. The student therefore has a forward
    and a backward pass more in each step. No image needs a label. With `teacher.batch_statistics` the class is what the
    teacher predicts by the batch's statistics.

    Args:
      name: of the term.
      stage, variant: of both networks, see `gradcam.gradcam`.
      similarity: see `alignment`.
    Raises:
      InputError: for an unknown variant or similarity, a stage that a network does not have, maps of one pixel, and a
        teacher that is not a network.
    """
    choose(f"method.{name}.variant", variant, gradcam.VARIANTS)
    choose(f"method.{name}.similarity", similarity, SIMILARITIES)

    def init(rng, student, teacher):
        del rng, student, teacher
        return MethodVariables({}, {})

    def apply(variables, student, teacher, batch, *, step, rng, train, networks):
        del student, step, rng, train
        if networks.teacher is None:
            raise InputError(f"method.{name} runs the teacher itself; expected a teacher that is a network")
        classes = teacher.logits.argmax(-1)
        try:
            maps = [
                gradcam.gradcam(*pair, batch.images, classes, stage=stage, variant=variant)
                for pair in (networks.student, networks.teacher)
            ]
            return {name: alignment(*maps, similarity=similarity).mean()}, variables.state
        except InputError as error:
            raise InputError(f"method.{name}: {error}") from error

    return Method(init, apply, frozenset({"logits"}))
