"""Methods that distill logits with a further parameter or head, or through the heads that the networks have."""

from typing import Annotated, Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from kd_jax import losses
from kd_jax.errors import choose
from kd_jax.keys import ABOVE_0, TRACED, Factor, NonNegative, Temperature, listing, whole
from kd_jax.losses.arrays import average_down
from kd_jax.methods.base import labeled_mean, linear_head, reported
from kd_jax.models.layers import Linear
from kd_jax.types import Array, Context, Outputs, at_least_float32

SCALES = listing(whole(1, 64), least=1, most=10, expected="a list of cells along a side, as in [1, 2, 4]")


class CTKD(nn.Module):
    """Curriculum temperature: KD at T = t_start + t_end sigmoid(theta), where theta is learned against the student.

    Li et al., "Curriculum Temperature for Knowledge Distillation", AAAI 2023, its global temperature (weight 0.9,
    labels 0.1). The gradient of theta, which starts at 1, is multiplied by lambda, which goes from 0 to -1 along half a
    cosine. Lambda is constant within an epoch, the first of which counts as one; the gradient goes through the factor
    T^2 too, and theta has the student's optimizer, all as in the official code.

    Fields:
      t_start: the lowest temperature. t_end: what is added to it at most.
      curriculum_epochs: after which lambda is -1.
    """

    t_start: Temperature = 1.0
    t_end: NonNegative = 20.0
    curriculum_epochs: Annotated[float, ABOVE_0, TRACED] = 10.0

    @nn.compact
    def __call__(self, context: Context) -> Array:
        student = at_least_float32(context.student.logits)
        theta = self.param("theta", nn.initializers.ones, (), student.dtype)
        epoch = context.step // context.steps_per_epoch + 1
        factor = 0.5 * (jnp.cos(jnp.pi * jnp.minimum(epoch / self.curriculum_epochs, 1.0)) - 1)
        value = jax.lax.stop_gradient(theta)
        reversed_theta = value + factor * (theta - value)
        temperature: Any = self.t_start + self.t_end * jax.nn.sigmoid(reversed_theta)
        return losses.kd(student, context.teacher.logits, temperature=temperature).mean()


class SDD(nn.Module):
    """Scale-decoupled distillation: a loss between what the two heads say of every cell of the last maps.

    Wei et al., "Scale Decoupled Distillation", CVPR 2024. Each map is averaged to m x m cells for every scale m, and a
    network's own head reads each cell; the student's is trained by it too. The mean is over all cells of all scales,
    and a cell counts twice where the teacher is right about it and wrong about the image, or the other way round. As in
    the official code, but each scale is averaged from the map itself. An image without a label has equal weights. The
    variants "kd" and "dkd" of the paper; that of DKD has 20 epochs of warm-up, and counts only images with a label.

    Fields:
      scales: cells along a side. A map with fewer pixels has cells that share them.
      inner: "kd", "dkd" or "nkd". temperature: T. alpha, beta: of "dkd". gamma: of "nkd".
    """

    scales: Annotated[tuple[int, ...], SCALES] = (1, 2, 4)
    inner: str = "kd"
    temperature: Temperature = 4.0
    alpha: Factor = 1.0
    beta: Factor = 8.0
    gamma: NonNegative = 3.5

    @property
    def needs_labels(self) -> bool:
        """Whether images without a label do not count."""
        return self.inner != "kd"

    @nn.compact
    def __call__(self, context: Context) -> Array:
        choose("inner", self.inner, ("kd", "dkd", "nkd"))
        student = cell_logits(context.student, self.scales, "the student")
        teacher = cell_logits(jax.lax.stop_gradient(context.teacher), self.scales, "the teacher")
        labels = context.batch.labels
        rows = [x.reshape(-1, x.shape[-1]) for x in (student, teacher)]
        if self.inner == "kd":
            loss = losses.kd(rows[0], rows[1], temperature=self.temperature)
        else:
            own, counts = (x.repeat(student.shape[1]) for x in (labels, labels >= 0))
            options: Any = {"temperature": self.temperature, "where": counts}
            if self.inner == "dkd":
                loss = losses.dkd(rows[0], rows[1], own, alpha=self.alpha, beta=self.beta, **options)
            else:
                loss = losses.nkd(rows[0], rows[1], own, gamma=self.gamma, **options)
        right = teacher.argmax(-1) == labels[:, None]
        right_about_the_image = context.teacher.logits.argmax(-1) == labels
        weights = jnp.where(right != right_about_the_image[:, None], 2.0, 1.0)
        each = (weights * loss.reshape(weights.shape)).mean(-1)
        return labeled_mean(each, context.batch) if self.needs_labels else each.mean()


def cell_logits(outputs: Outputs, scales: tuple[int, ...], who: str) -> Array:
    """What a network's head says of the cells of its last map: [B, N, K], N being the sum of the squared scales.

    Raises:
      InputError: where the head does not read the map's channels.
    """
    x, head = linear_head(outputs, who)
    cells = [average_down(x, (m, m)).reshape(len(x), m * m, -1) for m in scales]
    return jnp.concatenate(cells, 1) @ head.kernel + head.bias


class SecondHead(nn.Module):
    """One more linear layer from the student's embedding to the classes."""

    @nn.compact
    def __call__(self, outputs: Outputs) -> Array:
        """Logits [B, K]."""
        x = at_least_float32(reported(outputs, "embedding", "the student"))
        return Linear(outputs.logits.shape[-1], name="linear")(x)


class DeiT(nn.Module):
    """A second head learns from the teacher, the student's own from the labels; the mean of their logits predicts.

    Touvron et al., "Training data-efficient image transformers & distillation through attention", ICML 2021 (weight
    0.5, labels 0.5; "soft": 0.1 and 0.9). "hard" is the cross entropy with the class that the teacher predicts, "soft"
    is KD, whose sum over the classes the official code divides by their number. The second head is that of the
    distillation token, as in the paper, where the student has one (`deit_tiny_distilled_patch16_224`), and otherwise
    one more on the student's embedding, which any network has. The head is part of what is deployed.

    Fields:
      distillation: "hard" or "soft". temperature: of "soft".
    """

    distillation: str = "hard"
    temperature: Temperature = 3.0

    def setup(self) -> None:
        self.head = SecondHead()

    def __call__(self, context: Context) -> Array:
        choose("distillation", self.distillation, ("hard", "soft"))
        logits, teacher = self.second(context.student), context.teacher.logits
        if self.distillation == "soft":
            return losses.kd(logits, teacher, temperature=self.temperature).mean()
        targets = jax.nn.one_hot(teacher.argmax(-1), teacher.shape[-1], dtype=logits.dtype)
        return losses.cross_entropy(logits, targets).mean()

    def predict(self, outputs: Outputs) -> Array:
        """The mean [B, K] of the two heads' logits."""
        first = outputs.members["class"] if outputs.members else outputs  # whose logits are already the mean
        logits: Array = 0.5 * (first.logits + self.second(outputs))
        return logits

    def second(self, outputs: Outputs) -> Array:
        """The logits [B, K] of the second head."""
        logits: Array = outputs.members["dist"].logits if outputs.members else self.head(outputs)
        return logits


class DHKD(nn.Module):
    """Dual-head distillation: `losses.binary_kd` of a second head, which is not deployed; the labels have the first.

    Yang et al., "Dual-Head Knowledge Distillation: Enhancing Logits Utilization with an Auxiliary Head", 2024 (weight
    1). The backbone learns from both losses, a head from one. With `optimizer.gradients` "project" the gradient of
    this loss also loses what opposes that of the labels, as in the paper.

    Fields:
      norm, temperature: of the loss. The official code trains with the norm.
    """

    norm: bool = True
    temperature: Temperature = 2.0

    @nn.compact
    def __call__(self, context: Context) -> Array:
        logits = SecondHead(name="head")(context.student)
        return losses.binary_kd(logits, context.teacher.logits, norm=self.norm, temperature=self.temperature).mean()
