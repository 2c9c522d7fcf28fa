"""Methods that compare what single maps hold, behind an adapter of the student's where they need one."""

import itertools
from typing import Annotated

import flax.linen as nn
import jax
import jax.numpy as jnp

from kd_jax import losses
from kd_jax.keys import FRACTION, NonNegative, whole
from kd_jax.losses.arrays import unit
from kd_jax.methods.adapters import Regressor, resized
from kd_jax.methods.base import stage_map, stage_pairs
from kd_jax.models.layers import BatchNorm
from kd_jax.types import Array, Context

Stage = Annotated[int, whole(-1000, 1000)]  # the stem being 0 and the last -1


def maps_of(context: Context, stage: int, teacher_stage: int | None) -> tuple[Array, Array]:
    """The student's map of a stage, and the teacher's of its own (None for the same)."""
    student = stage_map(context.student, stage, "the student")
    return student, stage_map(context.teacher, stage if teacher_stage is None else teacher_stage, "the teacher")


class FeatureMSE(nn.Module):
    """The mean squared error between the maps of two stages, the student's behind a 1x1 convolution.

    The plain form that toolboxes have: `losses.hint` without the batch norm and ReLU of FitNet's regressor. The
    student's map is brought to its teacher's size, averaged down or interpolated.

    Fields:
      stage: of the student. teacher_stage: of the teacher; None for the same.
      normalize: divide the channels at each pixel by their norm, on both sides.
    """

    stage: Stage = -1
    teacher_stage: Stage | None = None
    normalize: bool = False

    @nn.compact
    def __call__(self, context: Context) -> Array:
        student, teacher = maps_of(context, self.stage, self.teacher_stage)
        student = resized(student, teacher.shape[1:3])
        student = nn.Conv(teacher.shape[-1], (1, 1), param_dtype=student.dtype, name="adapter")(student)
        if self.normalize:
            student, teacher = unit(student), unit(teacher)
        return losses.hint(student, teacher).mean()


class FSP(nn.Module):
    """`losses.fsp` of each two successive stages, the stem among them, and the sum over these.

    Yim et al., "A Gift from Knowledge Distillation", CVPR 2017. The original trains with it alone in a first phase, of
    30 epochs in RepDistiller, and then with the labels alone: `"epochs": [0, 30]` on this term, and `"epochs":
    [30, null]` on the others. Both networks need the same stages of the same widths.
    """

    @nn.compact
    def __call__(self, context: Context) -> Array:
        pairs = stage_pairs(context, first=0)
        terms = [
            losses.fsp(student, student_next, teacher, teacher_next).mean()
            for (student, teacher), (student_next, teacher_next) in itertools.pairwise(pairs)
        ]
        return sum(terms[1:], terms[0])


class ICKD(nn.Module):
    """`losses.ickd` of the last maps, the student's behind a 1x1 convolution and batch norm.

    Liu et al., "Exploring Inter-Channel Correlation for Diversity-Preserved Knowledge Distillation", ICCV 2021, for
    classification (weight 2.5). The maps may differ in size.

    Fields:
      stage: of the student. teacher_stage: of the teacher; None for the same.
    """

    stage: Stage = -1
    teacher_stage: Stage | None = None

    @nn.compact
    def __call__(self, context: Context) -> Array:
        student, teacher = maps_of(context, self.stage, self.teacher_stage)
        x = nn.Conv(teacher.shape[-1], (1, 1), use_bias=False, param_dtype=student.dtype, name="conv")(student)
        return losses.ickd(BatchNorm(name="bn")(x, train=True), teacher).mean()


class WKDFeatures(nn.Module):
    """WKD-F: `losses.wkd_features` between the regressed map of the student's last stage and the teacher's.

    Lv, Yang and Li, NeurIPS 2024. For ResNet-32x4 to 8x4 on CIFAR-100 the weight is 0.08, from the 150th epoch on
    along a cosine to zero (`"decay_epochs"`).

    Fields:
      stage: of the student. teacher_stage: of the teacher; None for the same. ratio, grid: see the loss.
    """

    stage: Stage = -1
    teacher_stage: Stage | None = None
    ratio: NonNegative = 4.0
    grid: Annotated[int, whole(1, 16)] = 1

    @nn.compact
    def __call__(self, context: Context) -> Array:
        student, teacher = maps_of(context, self.stage, self.teacher_stage)
        student = Regressor(teacher.shape[1:], name="regressor")(student, train=True)
        return losses.wkd_features(student, teacher, ratio=self.ratio, grid=self.grid).mean()


class MGD(nn.Module):
    """Masked generative distillation: the teacher's map, generated from a part of the channels of the student's.

    Yang et al., "Masked Generative Distillation", ECCV 2022, in the form for classification, where whole channels are
    set to zero, for each image others (weight 7e-5, at the last stage). Two 3x3 convolutions with a ReLU between them
    generate. The loss is the squared error, summed over the map. A 1x1 convolution comes first where the widths differ.
    Maps of another size, which the official code refuses, are resized before it.

    Fields:
      masked: the probability with which a channel is left out.
      stage: of the student. teacher_stage: of the teacher; None for the same.
    """

    masked: Annotated[float, FRACTION] = 0.15
    stage: Stage = -1
    teacher_stage: Stage | None = None

    @nn.compact
    def __call__(self, context: Context) -> Array:
        x, teacher = maps_of(context, self.stage, self.teacher_stage)
        width = teacher.shape[-1]
        x = resized(x, teacher.shape[1:3])
        if x.shape[-1] != width:
            x = nn.Conv(width, (1, 1), param_dtype=x.dtype, name="align")(x)
        kept = jax.random.bernoulli(self.make_rng("method"), 1 - self.masked, (len(x), 1, 1, width))
        x = nn.Conv(width, (3, 3), padding=1, param_dtype=x.dtype, name="conv1")(jnp.where(kept, x, 0))
        x = nn.Conv(width, (3, 3), padding=1, param_dtype=x.dtype, name="conv2")(nn.relu(x))
        return losses.hint(x, teacher).mean() * teacher[0].size
