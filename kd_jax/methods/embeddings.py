"""Methods of embeddings: what the student's is projected by, and a loss between it and its teacher's.

The teacher needs no classes, and its embedding may have any width.
"""

from typing import Annotated

import flax.linen as nn
import jax
import jax.numpy as jnp

from kd_jax import losses
from kd_jax.keys import FRACTION, SIZE, TRACED, Kind, number, whole
from kd_jax.losses import masks
from kd_jax.methods.base import labeled_mean, reported
from kd_jax.models.layers import BatchNorm, Linear
from kd_jax.types import Array, Context

OBJECTIVES = {"cosine": losses.cosine_distance, "mse": losses.hint}
OBJECTIVE = Kind(lambda v: v in tuple(OBJECTIVES), f"one of: {', '.join(OBJECTIVES)}")


def embeddings(context: Context) -> tuple[Array, Array]:
    """The student's embedding [B, D] and its teacher's [B, E], which carries no gradient."""
    teacher = jax.lax.stop_gradient(reported(context.teacher, "embedding", "the teacher"))
    return reported(context.student, "embedding", "the student"), teacher


class OfEachImage(nn.Module):
    """A method whose loss is the mean over the images of `distances`, which evaluations report too."""

    def __call__(self, context: Context) -> Array:
        return self.distances(context).mean()

    def distances(self, context: Context) -> Array:
        """[B], how far each image's embedding is from its teacher's."""
        raise NotImplementedError


class Embedding(OfEachImage):
    """The cosine distance or the squared error of the embeddings; needs no label, and a teacher of any kind.

    Where the widths differ, a linear layer brings the student's embedding to its teacher's.

    Fields:
      objective: "cosine" or "mse". project: by the layer also where the widths are equal.
    """

    objective: Annotated[str, OBJECTIVE] = "cosine"
    project: bool = False

    @nn.compact
    def distances(self, context: Context) -> Array:
        student, teacher = embeddings(context)
        if self.project or student.shape != teacher.shape:
            student = Linear(teacher.shape[-1], name="projector")(student)
        return OBJECTIVES[self.objective](student, teacher)


class PEFD(OfEachImage):
    """Projector ensemble: the cosine distance of the mean of several projections, each a linear layer and a ReLU.

    Chen et al., "Improved Feature Distillation via Projector Ensemble", NeurIPS 2022 (weight 25, with three
    projectors). As the embedding of a network that ends in a ReLU, a projection is nowhere negative.

    Fields:
      projectors: how many; they lie side by side in one layer.
    """

    projectors: Annotated[int, whole(1, 64)] = 3

    @nn.compact
    def distances(self, context: Context) -> Array:
        student, teacher = embeddings(context)
        projected = nn.relu(Linear(self.projectors * teacher.shape[-1], name="projectors")(student))
        ensemble = projected.reshape(len(student), self.projectors, -1).mean(1)
        return losses.cosine_distance(ensemble, teacher)


class CC(nn.Module):
    """Correlation congruence: `losses.cc` between two linear layers, of the student's and the teacher's embedding.

    Peng et al., "Correlation Congruence for Knowledge Distillation", ICCV 2019, as RepDistiller has it (weight 0.02).
    Both layers train, so that both may shrink: the term stands beside others.

    Fields:
      features: width of both layers.
    """

    features: Annotated[int, SIZE] = 128

    @nn.compact
    def __call__(self, context: Context) -> Array:
        student, teacher = embeddings(context)
        student = Linear(self.features, name="student_embed")(student)
        return losses.cc(student, Linear(self.features, name="teacher_embed")(teacher))


class SRD(nn.Module):
    """A simple recipe for distillation: `losses.srd` with a linear layer on the student's embedding.

    Miles and Mikolajczyk, "Understanding the Role of the Projector in Knowledge Distillation", AAAI 2024. Published
    beside `kd` at a temperature of 1, both of weight 1.

    Fields:
      exponent: of the absolute difference.
    """

    exponent: Annotated[float, number(least=1, expected="a number of at least 1"), TRACED] = 4.0

    @nn.compact
    def __call__(self, context: Context) -> Array:
        student, teacher = embeddings(context)
        projected = Linear(teacher.shape[-1], name="projector")(student)
        return losses.srd(projected, teacher, exponent=self.exponent)


class VKD(OfEachImage):
    """Orthogonal projection: `losses.vkd` of the student's embedding through a projector that keeps angles and norms.

    Miles et al., "VkD: Improving Knowledge Distillation using Orthogonal Projections", CVPR 2024. The projector has no
    bias, and orthonormal rows, or columns where the student's embedding is the wider one. It is the orthogonal factor
    of a matrix that trains freely (QR), where the official code has PyTorch's parametrization. That code adds `kd` at a
    temperature of 1 on a second head.
    """

    @nn.compact
    def distances(self, context: Context) -> Array:
        student, teacher = embeddings(context)
        shape = student.shape[-1], teacher.shape[-1]
        # The projector moves as fast as the matrix only where that is about orthogonal itself, as it is at the start.
        free = self.param("projector", nn.initializers.orthogonal(), shape, student.dtype)
        return losses.vkd(student @ orthogonal(free), teacher)


def orthogonal(free: Array) -> Array:
    """The orthogonal factor [D, E] of a matrix [D, E] of full rank, with a triangle of positive diagonal."""
    tall = free.shape[0] >= free.shape[1]
    factor, triangle = jnp.linalg.qr(free if tall else free.T)
    # Which of two signs a library chooses is open; of this one the factor is a smooth function of the matrix.
    factor *= jnp.where(jnp.diag(triangle) < 0, -1, 1).astype(free.dtype)
    return factor if tall else factor.T


class ND(nn.Module):
    """Norm and direction: `losses.nd`, with the mean embedding of each class by the teacher.

    Wang et al., "Improving Knowledge Distillation via Regularizing Feature Direction and Norm", ECCV 2024: KD++ with
    `kd` (weights 0.5 to 2). The official code takes the means of the training images before it starts; here they are
    those of all images seen so far, this batch's included. Where the widths differ, batch norm, dropout and a linear
    layer bring the student's embedding to its teacher's, as there.

    Fields:
      dropout: of that layer.
    """

    needs_labels = True
    dropout: Annotated[float, FRACTION] = 0.5

    @nn.compact
    def __call__(self, context: Context) -> Array:
        student, teacher = embeddings(context)
        if student.shape != teacher.shape:
            student = BatchNorm(name="bn")(student, train=True)
            student = nn.Dropout(self.dropout, deterministic=False, rng_collection="method")(student)
            student = Linear(teacher.shape[-1], name="embtrans")(student)
        labels, classes = context.batch.labels, context.batch.targets.shape[-1]
        count = self.variable("classes", "count", jnp.zeros, (classes,), jnp.int32)
        means = self.variable("classes", "mean", jnp.zeros, (classes, teacher.shape[-1]), teacher.dtype)
        is_label = jax.nn.one_hot(labels, classes, dtype=teacher.dtype)  # of label -1, zeros
        new_count = count.value + is_label.sum(0).astype(jnp.int32)
        change = is_label.T @ masks.keep(labels >= 0, teacher) - is_label.sum(0)[:, None] * means.value
        new_means = means.value + change / jnp.maximum(new_count, 1)[:, None]
        if not self.is_initializing():
            count.value, means.value = new_count, new_means
        loss = losses.nd(student, teacher, new_means[labels], where=labels >= 0)
        return labeled_mean(loss, context.batch)
