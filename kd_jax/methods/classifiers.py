"""Methods that look at the student's last map through a classifier."""

from typing import Annotated

import flax.linen as nn
import jax

from kd_jax import losses
from kd_jax.errors import InputError
from kd_jax.keys import SIZE, NonNegative
from kd_jax.methods.adapters import Regressor
from kd_jax.methods.base import linear_head, stage_map
from kd_jax.types import Array, Context


class SRRL(nn.Module):
    """Softmax regression representation learning: the teacher's classifier reads the student's projected embedding.

    alpha |e_s - e_t|^2 + beta |h(e_s) - h(e_t)|^2, both means over the elements, with h the teacher's last layer and
    e_s the average of the student's last map behind a 1x1 convolution, batch norm and ReLU. Yang et al., "Knowledge
    Distillation via Softmax Regression Representation Learning", ICLR 2021 (weight 1). As in the official code the
    averages over the pixels are compared, so that maps may differ in size.

    Fields:
      alpha, beta: weights of the two parts.
    """

    alpha: NonNegative = 1.0
    beta: NonNegative = 1.0

    @nn.compact
    def __call__(self, context: Context) -> Array:
        student = stage_map(context.student, -1, "the student")
        teacher, head = jax.lax.stop_gradient(linear_head(context.teacher, "the teacher"))
        projector = Regressor((*student.shape[1:3], teacher.shape[-1]), name="projector")
        embedding = projector(student, train=True).mean((1, 2))
        features = losses.hint(embedding, teacher.mean((1, 2)))
        logits = losses.hint(embedding @ head.kernel + head.bias, context.teacher.logits)
        return (self.alpha * features + self.beta * logits).mean()


class CATKD(nn.Module):
    """Class attention transfer: `losses.catkd` of both networks' class activation maps.

    Guo et al., "Class Attention Transfer Based Knowledge Distillation", CVPR 2023. The weight is that of the pair: 15
    for resnet32x4 to resnet8x4, with `normalize` up to 600. A map is the last one times the kernel of the network's
    own classifier; the official networks are built without the bias that is left out here.

    Fields:
      size: of the maps that are compared. normalize: divide each class's map by its norm.
    """

    size: Annotated[int, SIZE] = 2
    normalize: bool = False

    @nn.compact
    def __call__(self, context: Context) -> Array:
        student, own = linear_head(context.student, "the student")
        teacher, other = linear_head(context.teacher, "the teacher")
        if own.kernel.shape[1] != other.kernel.shape[1]:
            raise InputError(
                f"the student has {own.kernel.shape[1]} classes, the teacher {other.kernel.shape[1]}; expected as many"
            )
        maps = student @ own.kernel, teacher @ other.kernel
        return losses.catkd(*maps, size=self.size, normalize=self.normalize).mean()
