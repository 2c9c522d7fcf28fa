"""Training data that lies on the devices as a whole."""

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from kd_jax import balance, sharding
from kd_jax.steps import StepOptions
from kd_jax.types import Array, Feed, RawBatch, Split

EXAMPLES = 32  # images of the batch that initialization sees
LANES = 128  # of a TPU's vectors


def put(split: Split, mesh: jax.sharding.Mesh) -> Split:
    """The split on every device, its images [N, h, w, C] as [N, ceil(h * w * C / 128), 128], filled up with zeros.

    In this form a TPU gathers images as they lie; from [N, h, w, C] it first copies the whole set into another layout,
    at every call.
    """
    images = np.asarray(split.images).reshape(len(split.images), -1)
    if missing := -images.shape[1] % LANES:
        images = np.pad(images, ((0, 0), (0, missing)))
    rows = images.reshape(len(images), -1, LANES)
    return sharding.put(Split(rows, split.labels), sharding.replicated(mesh))


def shapes(split: Split) -> Split:
    """The shapes of what `put` returns."""
    count, *image = split.images.shape
    rows = -(-math.prod(image) // LANES)
    return Split(
        jax.ShapeDtypeStruct((count, rows, LANES), split.images.dtype),
        jax.ShapeDtypeStruct(split.labels.shape, split.labels.dtype),
    )


def feed(
    train: Split,
    *,
    seed: int,
    batch_size: int,
    steps_per_call: int,
    total_steps: int,
    mesh: jax.sharding.Mesh,
    options: StepOptions,
    sampling: str = "shuffle",
) -> Feed:
    """The feed of a split, which is put on every device.

    Args:
      train: the images.
      seed: of their order.
      batch_size: of all devices together.
      steps_per_call: how many steps one call runs at most. Calls end at its multiples and at an epoch's end, so they
        are the same wherever a run restarted.
      total_steps: of the run.
      mesh: the devices.
      options: of the step.
      sampling: one of `balance.SAMPLING`, see `orders`.
    """
    length = len(train.labels) // batch_size
    order_of = orders(train.labels, seed=seed, sampling=sampling)
    on_devices = put(train, mesh)
    order_sharding = NamedSharding(mesh, PartitionSpec(None, sharding.AXIS))

    def calls(step: int) -> Iterator[tuple[Array, int]]:
        for epoch in range(step // length, math.ceil(total_steps / length)):
            order = order_of(epoch)[: length * batch_size].reshape(length, batch_size)
            start, last = max(step - epoch * length, 0), min(length, total_steps - epoch * length)
            while start < last:
                end = min(start - start % steps_per_call + steps_per_call, last)
                yield sharding.put(order[start:end], order_sharding), epoch * length + end
                start = end

    return Feed(
        steps_per_epoch=length,
        constants=on_devices,
        calls=calls,
        fetch=fetch(options),
        example=example(train),
        labels=on_devices.labels,
    )


def gather(split: Split, ids: Array, *, options: StepOptions) -> RawBatch:
    """The images at `ids` [B] of a split on the devices, see `put`, divided among them.

    The constraint keeps them divided, whatever the compiler would choose: no result would show that every device
    computes the whole batch.
    """
    flat = split.images[ids].reshape(len(ids), -1)[:, : math.prod(options.image_shape)]
    batch = RawBatch(flat.reshape(len(ids), *options.image_shape), split.labels[ids], ids)
    sharding = options.batch_sharding
    return batch if sharding is None else jax.lax.with_sharding_constraint(batch, sharding)


@functools.cache
def fetch(options: StepOptions) -> Callable[[Split, Array], RawBatch]:
    """`Feed.fetch` of a split that lies on every device: one function, whoever asks."""
    return functools.partial(gather, options=options)


def example(train: Split) -> RawBatch:
    """The first images of a split, for initialization."""
    images: Any = np.asarray(train.images[:EXAMPLES])
    labels = train.labels[:EXAMPLES]
    return RawBatch(images, labels, jnp.arange(len(labels), dtype=jnp.int32))


def orders(labels: np.ndarray, *, seed: int, sampling: str) -> Callable[[int], np.ndarray]:
    """epoch -> the order [N] int32 in which it visits the training images, of which these are the labels."""
    if sampling == "balanced":
        return functools.partial(balance.order, seed, labels=labels)
    return functools.partial(epoch_order, seed, images=len(labels))


def epoch_order(seed: int, epoch: int, images: int) -> np.ndarray:
    """The order [images] int32 in which an epoch visits the training images: a function of its arguments only."""
    return np.random.default_rng((seed, epoch)).permutation(images).astype(np.int32)
