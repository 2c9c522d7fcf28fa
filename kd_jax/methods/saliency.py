"""Methods that compare where the networks look."""

from typing import Any

from kd_jax import gradcam, losses
from kd_jax.errors import InputError, choose
from kd_jax.losses import saliency
from kd_jax.types import Array, Context, Method, MethodVariables, Terms


def gradcam_alignment(name: str, *, stage: int = -1, variant: str = "gradcam", similarity: str = "cosine") -> Method:
    """The mean `losses.gradcam_alignment` of the two networks' Grad-CAM maps, for the class that the teacher predicts.

    Both networks are in inference mode here, as when they are explained, so that no image influences another's map; the
    official code takes the student's maps from the forward pass in training mode. This adds one forward and one
    backward pass of the student per step. No image needs a label. With `teacher.mode` "train" the class is what the
    teacher predicts by the batch's statistics.

    Args:
      name: of the term.
      stage, variant: of both networks, see `gradcam.gradcam`.
      similarity: see `losses.gradcam_alignment`.
    Raises:
      InputError: for an unknown variant or similarity, a stage that a network does not have, maps of one pixel, and a
        teacher that is not a network.
    """
    choose(f"method.{name}.variant", variant, gradcam.VARIANTS)
    choose(f"method.{name}.similarity", similarity, saliency.SIMILARITIES)

    def init(rng: Array, context: Context) -> MethodVariables:
        return MethodVariables({}, {})

    def apply(variables: MethodVariables, context: Context) -> tuple[Terms, Any]:
        networks = context.networks
        if networks is None or networks.teacher is None or networks.teacher_images is None:
            raise InputError("it runs the teacher itself; expected a teacher that is a single network")
        classes = context.teacher.logits.argmax(-1)
        each = (networks.student, context.batch.images), (networks.teacher, networks.teacher_images)
        maps = [gradcam.gradcam(*pair, images, classes, stage=stage, variant=variant) for pair, images in each]
        return {name: losses.gradcam_alignment(*maps, similarity=similarity).mean()}, variables.state

    return Method(init, apply, needs_teacher=True)
