"""Whether a network computes what was recorded of PyTorch's, from weights that both derive from their names."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from kd_jax.models import torch_names
from tests.models import fixed

jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 2})


class Recorded:
    """What was recorded of one network in a file of arrays."""

    def __init__(self, file, name):
        self.found = {key.removeprefix(f"{name} "): file[key] for key in file.files if key.split(" ")[0] == name}

    def __getitem__(self, key):
        return self.found[key]

    def state_dict(self):
        """The fixed weights under PyTorch's keys, with running statistics that matter."""
        shapes = zip(self["keys"].tolist(), self["shapes"].tolist(), strict=True)
        return {key: fixed.weight(key, tuple(n for n in shape if n)) for key, shape in shapes}


def close(got, expected, *, scale=None):
    """Within 1e-4 of the largest."""
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-4 * (np.abs(expected).max() if scale is None else scale))


def close_maps(maps, prints):
    """Maps [B, h, w, c] or [B, n, c] against the fingerprints of PyTorch's."""
    assert len(maps) == len(prints)
    for i, (x, expected) in enumerate(zip(maps, prints, strict=True)):
        x = np.asarray(x, np.float64)
        x = x.transpose(0, 3, 1, 2) if x.ndim == 4 else x
        close(fixed.fingerprint(f"map {i}", x), expected, scale=expected[1])  # the second number is the map's norm


def variables_of(network, recorded, size):
    """The recorded network's variables, each key accounted for."""
    shapes = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, size, size, 3)))
    names = torch_names.keys(shapes, network)
    return torch_names.match(torch_names.renamed(recorded.state_dict(), names.values(), network), shapes, network)


def outputs_of(network, variables, name, count, size, **options):
    images = fixed.images(name, count, size).astype(jax.tree.leaves(variables)[0].dtype)
    return jit(functools.partial(network.apply, **options))(variables, images)


def statistics(network, variables, stats, recorded):
    """The fingerprints of running statistics, in PyTorch's order."""
    state = torch_names.to_state_dict({"batch_stats": stats}, network)
    keys = [key for key in recorded["keys"].tolist() if "running" in key]
    state = torch_names.renamed(state, keys)
    assert state.keys() == set(keys)
    return np.stack([fixed.fingerprint(key, np.float64(state[key])) for key in keys])


def parameters(network, size=32):
    """The number of parameters, and of running statistics."""
    shapes = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, size, size, 3)))
    return tuple(sum(x.size for x in jax.tree.leaves(shapes.get(key, {}))) for key in ("params", "batch_stats"))
