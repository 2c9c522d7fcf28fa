"""Data parallelism over all local devices: one mesh axis, batches split along it, everything else on every device."""

from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXIS = "data"


def mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A one-axis mesh over the devices, by default all local ones.

    The axis is Auto: statistics and losses over a batch are then those of the global batch.
    """
    devices = jax.local_devices() if devices is None else devices
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
