"""The containers that every layer shares: what a network reports, what a batch holds, what a run carries.

Shapes: B images, H x W pixels, C channels, K classes, D embedding width, S stages (the stem counts as the first).
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.struct
import jax

Variables = Mapping[str, Any]  # {"params": tree, "batch_stats": tree}


class Head(NamedTuple):
    """The final linear layer."""

    kernel: jax.Array  # [D, K]
    bias: jax.Array  # [K]


class Norm(NamedTuple):
    """The affine part of a batch normalisation."""

    scale: jax.Array  # [c]
    bias: jax.Array  # [c]


class Outputs(NamedTuple):
    """What a network reports for a batch. Logits and embedding are at least float32, whatever the compute precision."""

    logits: jax.Array  # [B, K]
    features: tuple[jax.Array, ...]  # S post-activation maps [B, h, w, c]: what the next stage reads
    preactivations: tuple[jax.Array, ...]  # the same S maps before their last ReLU (and, for the stem, before pooling)
    pooled: jax.Array  # [B, c], global average of the last map
    embedding: jax.Array  # [B, D], the input of the final linear layer
    head: Head
    norms: tuple[Norm, ...]  # each stage's last batch normalisation


class Batch(NamedTuple):
    """Images as a network reads them, with what the losses may know about them."""

    images: jax.Array  # [B, H, W, C] float, normalised
    labels: jax.Array  # [B] int32, -1 where the image has no label
    targets: jax.Array  # [B, K] float, the label's distribution (smoothed, mixed); a zero row where there is no label
    index: jax.Array  # type: ignore[assignment]  # [B] int32, position in the training set
    view: jax.Array  # [B] int32 in [0, 162), which crop and flip was taken


class Network(NamedTuple):
    """A pair of pure functions. `perturbations` is None, or one array or None per stage, added to that stage's map."""

    init: Callable[..., Variables]  # (rng, images [B, H, W, C]) -> variables
    apply: Callable[..., tuple[Outputs, Any]]  # (variables, images, *, train, rng, perturbations) -> (Outputs, stats)


class Networks(NamedTuple):
    """Student and teacher as they are in a step, each with its variables, for a method that runs them itself.

    A second view of the images, or Grad-CAM, is not in the `Outputs` of a forward pass. Gradients flow to the student's
    parameters; the teacher's have none.
    """

    student: tuple[Network, Variables]
    teacher: tuple[Network, Variables] | None  # None without a teacher, and for one that is not a network


class MethodVariables(NamedTuple):
    """What a method carries from step to step."""

    params: Any  # trained: adapters, a discriminator
    state: Any  # not trained: memory banks, running statistics


Teacher = Callable[[Variables, Batch, jax.Array | None], Outputs]  # the key is None in evaluation
Terms = dict[str, jax.Array]


def both_move(step: jax.Array) -> dict[str, Any]:
    """The default `Method.turns`: student and method are updated at every step."""
    del step
    return {"student": True, "method": True}


def student_logits(variables: MethodVariables, outputs: Outputs) -> jax.Array:
    """The default `Method.predict`: the student's own logits [B, K]."""
    del variables
    return outputs.logits


class Method(NamedTuple):
    """A distillation method. `apply` returns named scalar terms; the loss is their sum weighted by `weights`.

    A term that `weights` does not name has weight 1. `Hyper.weights` starts as `weights` and is traced, so that
    another weight needs no other compilation.
    """

    init: Callable[..., MethodVariables]  # (rng, student, teacher) -> variables, from Outputs of ShapeDtypeStructs
    apply: Callable[..., tuple[Terms, Any]]  # (variables, student, teacher, batch, *, step, rng, train, networks)
    reads: frozenset[str] = frozenset()  # the teacher's Outputs fields that it uses; empty: no teacher is needed
    weights: Mapping[str, float] = {}
    turns: Callable[[jax.Array], dict[str, Any]] = both_move
    predict: Callable[[MethodVariables, Outputs], jax.Array] = student_logits


@flax.struct.dataclass
class Hyper:
    """Traced scalars: changing one does not recompile."""

    learning_rate: jax.Array
    weight_decay: jax.Array
    method_learning_rate: jax.Array
    weights: Mapping[str, jax.Array]


@flax.struct.dataclass
class TrainState:
    """All that a run needs to go on, and all that a checkpoint holds."""

    step: jax.Array  # [] int32, updates done
    params: dict[str, Any]  # {"student", "method"}
    stats: dict[str, Any]  # {"student": batch statistics, "method": the method's state}
    optimizer_state: dict[str, Any]  # {"student", "method"}
    ema: dict[str, Any] | None  # {"params", "batch_stats"} of the student, averaged; None when off
    rng: jax.Array  # key; randomness is fold_in(rng, step), then a named stream
