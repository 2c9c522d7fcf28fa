"""Data parallelism over all devices: one mesh axis, batches split along it, everything else on every device."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXIS = "data"


def mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A one-axis mesh over the devices, by default those of all processes.

    The axis is Auto: statistics and losses over a batch are then those of the global batch.
    """
    devices = jax.devices() if devices is None else devices
    return Mesh(np.array(devices), (AXIS,), axis_types=(AxisType.Auto,))


def platform(mesh: Mesh) -> str:
    """ "cpu", "gpu" or "tpu": that of the devices, which need not be the process's own."""
    return mesh.devices.flat[0].platform


def replicated(mesh: Mesh) -> NamedSharding:
    """Whole on every device."""
    return NamedSharding(mesh, PartitionSpec())


def split(mesh: Mesh) -> NamedSharding:
    """The first dimension, the batch's, split over the devices."""
    return NamedSharding(mesh, PartitionSpec(AXIS))


def put(tree: Any, sharding: NamedSharding) -> Any:
    """Puts arrays, which every process has whole, on the devices."""
    if jax.process_count() == 1:
        return jax.device_put(tree, sharding)

    def of_own(x: Any) -> jax.Array:  # `device_put` would compare what the processes have, at their every call
        array = np.asarray(x)
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    return jax.tree.map(of_own, tree)
