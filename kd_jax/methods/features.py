"""Methods that bring the student's feature maps to its teacher's: an adapter, and a loss between the maps."""

from typing import Annotated

import flax.linen as nn
import jax

from kd_jax import losses
from kd_jax.keys import SIZE, whole
from kd_jax.losses.arrays import same_size
from kd_jax.methods.adapters import Regressor
from kd_jax.methods.base import linear_head, stage_map
from kd_jax.models.layers import BatchNorm
from kd_jax.types import Array, Context, Outputs


class FitNet(nn.Module):
    """Hints: `losses.hint` between the regressed map of one of the student's stages and one of the teacher's.

    Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015, in one phase beside the labels, as RepDistiller has
    it (weight 100); `"epochs": [0, N]` on the term, and on no other, makes the paper's first phase.

    Fields:
      stage: of the student, the stem being 0 and the last -1. teacher_stage: of the teacher; None for the same.
    """

    stage: Annotated[int, whole(-1000, 1000)] = 2
    teacher_stage: Annotated[int, whole(-1000, 1000)] | None = None

    @nn.compact
    def __call__(self, context: Context) -> Array:
        student = stage_map(context.student, self.stage, "the student")
        stage = self.stage if self.teacher_stage is None else self.teacher_stage
        teacher = stage_map(context.teacher, stage, "the teacher")
        return losses.hint(Regressor(teacher.shape[1:], name="regressor")(student, train=True), teacher).mean()


class SimKD(nn.Module):
    """The student's last map, projected to its teacher's; the teacher's own classifier then predicts.

    Chen et al., "Knowledge Distillation with the Reused Teacher Classifier", CVPR 2022, equations 2 and 3. Meant to
    stand alone, without labels (weight 1). The student's own head is not used, and the projector is part of what is
    deployed. Where the maps differ in size, the larger is averaged down, as in the official code.

    Fields:
      factor: by which the projector's inner width is smaller than the teacher's.
    """

    factor: Annotated[int, SIZE] = 2

    def setup(self) -> None:
        self.projector = Projector(self.factor)

    @nn.compact
    def __call__(self, context: Context) -> Array:
        teacher, head = linear_head(context.teacher, "the teacher")
        self.variable("head", "kernel", lambda: head.kernel)
        self.variable("head", "bias", lambda: head.bias)
        student, teacher = same_size(stage_map(context.student, -1, "the student"), jax.lax.stop_gradient(teacher))
        return losses.hint(self.projector(student, teacher.shape[-1], train=True), teacher).mean()

    def predict(self, outputs: Outputs) -> Array:
        """The teacher's classifier [B, K] on the projected map; averaging its pixels commutes with averaging down."""
        kernel: Array = self.get_variable("head", "kernel")
        bias: Array = self.get_variable("head", "bias")
        projected = self.projector(stage_map(outputs, -1, "the student"), kernel.shape[0], train=False)
        return projected.mean((1, 2)) @ kernel + bias


class Projector(nn.Module):
    """1x1, 3x3 and 1x1 convolutions, each with batch norm and ReLU: [B, h, w, c] -> [B, h, w, features]."""

    factor: int

    @nn.compact
    def __call__(self, x: Array, features: int, *, train: bool) -> Array:
        inner = max(1, features // self.factor)
        for i, (width, size) in enumerate(((inner, 1), (inner, 3), (features, 1)), start=1):
            x = nn.Conv(width, (size, size), use_bias=False, param_dtype=x.dtype, name=f"conv{i}")(x)
            x = nn.relu(BatchNorm(name=f"bn{i}")(x, train=train))
        return x
