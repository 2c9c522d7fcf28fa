"""Methods that bring the student's activations to its teacher's at all stages, or factors of the last ones."""

import math
import types
from collections.abc import Sequence
from typing import Annotated

import flax.linen as nn
import jax
import jax.numpy as jnp

from kd_jax import losses
from kd_jax.keys import WIDTH, NonNegative, number, whole
from kd_jax.losses.arrays import same_size
from kd_jax.methods.adapters import Regressor
from kd_jax.methods.base import reported, stage_map, stage_pairs
from kd_jax.models.layers import BatchNorm
from kd_jax.types import Array, Context

LEAST_VARIANCE = 1e-5  # of VID
VARIANCE = number(least=1e-3, most=1e6, expected="a number from 0.001 to a million")


class VID(nn.Module):
    """Variational information distillation: `losses.vid` at every stage but the stem's, summed (weight 1).

    Ahn et al., "Variational Information Distillation for Knowledge Transfer", CVPR 2019. The mean comes from three 1x1
    convolutions with ReLUs between them, the variance is softplus(a) + 1e-5 with one trained number a a channel. Where
    maps differ in size, the larger is averaged down, as in RepDistiller.

    Fields:
      variance: at the start.
    """

    variance: Annotated[float, VARIANCE] = 5.0

    @nn.compact
    def __call__(self, context: Context) -> Array:
        terms = []
        for stage, (student, teacher) in enumerate(stage_pairs(context), start=1):
            x, teacher = same_size(student, teacher)
            features = teacher.shape[-1]
            for i in range(1, 4):
                x = nn.relu(x) if i > 1 else x
                x = nn.Conv(features, (1, 1), use_bias=False, param_dtype=x.dtype, name=f"stage{stage}_conv{i}")(x)
            rest = self.variance - LEAST_VARIANCE
            start = rest + math.log(-math.expm1(-rest))  # the inverse of softplus, which overflows for no value
            scale = self.param(f"stage{stage}_scale", nn.initializers.constant(start, x.dtype), (features,), x.dtype)
            terms.append(losses.vid(x, teacher, jax.nn.softplus(scale) + LEAST_VARIANCE).mean())
        return sum(terms[1:], terms[0])


class OFD(nn.Module):
    """Overhaul of feature distillation: `losses.ofd` before the ReLU of every stage but the stem's.

    Each stage counts half as much as the next. Heo et al., "A Comprehensive Overhaul of Feature Distillation", ICCV
    2019 (weight 0.001). The student's maps go through a 1x1 convolution and batch norm; the margins come from the
    teacher's last batch norm of each stage. The official teacher normalizes by the batch's statistics
    (`teacher.mode = "train"`). Where maps differ in size, the larger is averaged down.
    """

    @nn.compact
    def __call__(self, context: Context) -> Array:
        norms = reported(context.teacher, "norms", "the teacher")
        terms = []
        for stage, (student, teacher) in enumerate(stage_pairs(context, "preactivations"), start=1):
            student, teacher = same_size(student, teacher)
            shape = (*student.shape[1:3], teacher.shape[-1])
            connected = Regressor(shape, activation=False, name=f"stage{stage}")(student, train=True)
            margin = losses.ofd_margin(norms[stage].scale, norms[stage].bias)
            terms.append(losses.ofd(connected, teacher, margin).mean())
        return halved(terms)


class AB(nn.Module):
    """Activation boundaries: `losses.ab` before the ReLU of every stage but the stem's.

    Each stage counts half as much as the next. Heo et al., "Knowledge Transfer via Distillation of Activation
    Boundaries Formed by Hidden Neurons", AAAI 2019, with RepDistiller's weight of 0.003. The original has it alone in
    a first phase: `"epochs": [0, 30]` here, and `[30, null]` on the other terms. A regressor without ReLU stands
    between the maps, also where they have one shape, where RepDistiller has none.

    Fields:
      margin: to either side of zero.
    """

    margin: NonNegative = 1.0

    @nn.compact
    def __call__(self, context: Context) -> Array:
        terms = []
        for stage, (student, teacher) in enumerate(stage_pairs(context, "preactivations"), start=1):
            regressor = Regressor(teacher.shape[1:], activation=False, name=f"stage{stage}")
            terms.append(losses.ab(regressor(student, train=True), teacher, margin=self.margin).mean())
        return halved(terms)


class FT(nn.Module):
    """Factor transfer in two phases: `paraphraser`, then `factor`, the loss `losses.factor_transfer`.

    Kim et al., "Paraphrasing Complex Network: Network Compression via Factor Transfer", NeurIPS 2018, with the layers
    of RepDistiller (weight 200, which is that of `factor` alone). First the paraphraser learns to rebuild the teacher's
    last map from a factor of it; then it stands still, and a translator brings the student's last map to the factor.
    `"epochs": [30, null]` on the other terms has the student wait for it. Where factors differ in size, the larger is
    averaged down.

    Fields:
      paraphraser_epochs: of the first phase. rate: channels of a factor, as a share of the teacher's.
      spatial: see the loss; with False, the paper's.
    """

    paraphraser_epochs: Annotated[int, whole(0, 10**6)] = 30
    rate: Annotated[float, WIDTH] = 0.5
    spatial: bool = True
    phases = True
    weights = types.MappingProxyType({"paraphraser": 1.0})  # whatever that of the term is

    @nn.compact
    def __call__(self, context: Context) -> dict[str, Array]:
        student = stage_map(context.student, -1, "the student")
        teacher = jax.lax.stop_gradient(stage_map(context.teacher, -1, "the teacher"))
        channels = teacher.shape[-1]
        width = max(1, int(channels * self.rate))
        first = jnp.asarray(context.step // context.steps_per_epoch < self.paraphraser_epochs)

        factor = Coder((channels, width, width), name="encoder")(teacher)
        rebuilt = Coder((width, channels, channels), name="decoder")(factor)
        translator = Coder((student.shape[-1], width, width), norm=True, name="translator")
        sides = same_size(translator(student, waits=first), jax.lax.stop_gradient(factor))
        transfer = losses.factor_transfer(*sides, spatial=self.spatial).mean()
        # A choice between two finite numbers: the part that is left out gives exactly no gradient.
        return {
            "paraphraser": jnp.where(first, losses.hint(rebuilt, teacher).mean(), 0),
            "factor": jnp.where(first, 0, transfer),
        }


class Coder(nn.Module):
    """Three 3x3 convolutions with leaky ReLUs, and with batch norm or not: [B, h, w, c] -> [B, h, w, widths[-1]].

    RepDistiller's decoder has transposed ones, which with a stride of one are the same functions.
    """

    widths: Sequence[int]
    norm: bool = False

    @nn.compact
    def __call__(self, x: Array, *, waits: Array | bool = False) -> Array:
        """`waits`: leave the running statistics as they are."""
        for i, width in enumerate(self.widths, start=1):
            x = nn.Conv(width, (3, 3), param_dtype=x.dtype, name=f"conv{i}")(x)
            if self.norm:
                norm = BatchNorm(name=f"bn{i}")
                before = dict(norm.variables.get("batch_stats", {}))
                x = norm(x, train=True)
                for name, value in before.items():
                    norm.put_variable(
                        "batch_stats", name, jnp.where(waits, value, norm.get_variable("batch_stats", name))
                    )
            x = nn.leaky_relu(x, 0.1)
        return x


def halved(terms: Sequence[Array]) -> Array:
    """Their sum, each counting half as much as the next."""
    scaled = [term / 2 ** (len(terms) - 1 - i) for i, term in enumerate(terms)]
    return sum(scaled[1:], scaled[0])
