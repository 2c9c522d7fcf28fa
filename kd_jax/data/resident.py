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
from kd_jax.batches import Epoch
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
    divided: Epoch,
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
      divided: an epoch into batches.
      steps_per_call: how many steps one call runs at most, see `Epoch.end_of_call`.
      total_steps: of the run.
      mesh: the devices.
      options: of the step.
      sampling: one of `balance.SAMPLING`, see `orders`.
    """
    order_of = orders(train.labels, seed=seed, sampling=sampling)
    on_devices = put(train, mesh)
    order_sharding = NamedSharding(mesh, PartitionSpec(None, sharding.AXIS))

    def calls(step: int) -> Iterator[tuple[Array, int]]:
        for epoch in range(step // divided.steps, math.ceil(total_steps / divided.steps)):
            order, first = order_of(epoch), epoch * divided.steps
            while step < min(first + divided.steps, total_steps):
                end = divided.end_of_call(step, steps_per_call, total_steps)
                ids = order[(step - first) * divided.batch_size : (end - first) * divided.batch_size]
                yield sharding.put(ids.reshape(end - step, -1), order_sharding), end
                step = end

    return Feed(
        steps_per_epoch=divided.steps,
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
