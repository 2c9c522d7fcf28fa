"""Methods of logits that keep something, or read several views of an image."""

from typing import Annotated

import flax.linen as nn
import jax
import jax.numpy as jnp

from kd_jax import losses
from kd_jax.errors import InputError
from kd_jax.keys import ABOVE_0, AT_LEAST_0, TRACED, NonNegative, Temperature, number, whole
from kd_jax.methods.base import labeled_mean, reported
from kd_jax.types import Array, Context

CONFIDENCE = number(least=0, most=1, expected="a number from 0 to 1")


class WKDLogits(nn.Module):
    """Wasserstein distillation of logits: `losses.wkd_logits`, with the cost from the teacher's head.

    Lv et al., "Wasserstein Distance Rivals Kullback-Leibler Divergence for Knowledge Distillation", NeurIPS 2024,
    WKD-L. The cost between two classes is `losses.class_cost` of the head, read once; the paper's default is the
    centred kernel alignment of the classes' features over the training set, which the official code computes
    beforehand. Gamma alone falls to zero along a cosine from epoch 150 of 240, so that as published there are two
    terms: one with a gamma of 0, and one with an alpha of 0 and `decay_epochs`.

    Fields:
      alpha: weight of the label's part. gamma: of the transport. temperature: of the other classes. kappa: sharpens
      the cost.
      regularization, iterations: of Sinkhorn.
    """

    needs_labels = True

    alpha: NonNegative = 1.0
    gamma: Annotated[float, AT_LEAST_0] = 600.0
    temperature: Temperature = 8.0
    kappa: Annotated[float, ABOVE_0] = 1.0
    regularization: Annotated[float, ABOVE_0, TRACED] = 0.05
    iterations: Annotated[int, whole(1, 10000)] = 10

    @nn.compact
    def __call__(self, context: Context) -> Array:
        kernel = reported(context.teacher, "head", "the teacher").kernel
        if kernel.shape[1] != context.student.logits.shape[1]:
            raise InputError(
                f"the teacher's head has {kernel.shape[1]} classes, the student {context.student.logits.shape[1]};"
                " expected as many"
            )
        cost = self.variable("head", "cost", lambda: losses.class_cost(kernel, kappa=self.kappa)).value
        loss = losses.wkd_logits(
            context.student.logits,
            context.teacher.logits,
            context.batch.labels,
            cost=cost,
            alpha=self.alpha,
            gamma=self.gamma,
            temperature=self.temperature,
            regularization=self.regularization,
            iterations=self.iterations,
            where=context.batch.labels >= 0,
        )
        return labeled_mean(loss, context.batch)


class CRLD(nn.Module):
    """Consistency regularization: `losses.kd` between student and teacher within and across a weak and a strong view.

    Zhang et al., "Cross-View Consistency Regularisation for Knowledge Distillation", ACM MM 2024, as the code of
    DeepKD has it: an image counts within the views where the teacher's largest probability, at a temperature of 1,
    reaches `weak_confidence` on the weak view (0), and across them where it reaches `strong_confidence` on the strong
    one (1). The mean is over all images. Published with labels on both views, `views` [0, 1] of `cross_entropy`.

    Fields:
      temperature: of both networks. within, across: weights of the two parts.
      weak_confidence, strong_confidence: of the teacher, from 0 to 1.
    """

    views = 2

    temperature: Temperature = 4.0
    within: NonNegative = 2.0
    across: NonNegative = 0.5
    weak_confidence: Annotated[float, CONFIDENCE, TRACED] = 0.9
    strong_confidence: Annotated[float, CONFIDENCE, TRACED] = 0.2

    @nn.compact
    def __call__(self, context: Context) -> dict[str, Array]:
        students = [view.student.logits for view in context.views[:2]]
        teachers = [view.teacher_outputs.logits for view in context.views[:2]]
        sure = [jax.nn.softmax(teacher).max(-1) for teacher in teachers]

        def both(weak: Array, strong: Array) -> Array:
            """The student's weak and strong view against these logits of the teacher, [B]."""
            pairs = zip(students, (weak, strong), strict=True)
            first, second = (losses.kd(*pair, temperature=self.temperature) for pair in pairs)
            return first + second

        within = jnp.where(sure[0] >= self.weak_confidence, both(*teachers), 0)
        across = jnp.where(sure[1] >= self.strong_confidence, both(*teachers[::-1]), 0)
        return {"within": self.within * within.mean(), "across": self.across * across.mean()}
