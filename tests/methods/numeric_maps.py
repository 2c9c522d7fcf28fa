"""Float64 numpy of feature maps [B, h, w, c]: pooling, interpolation, batch normalization, and outputs with maps."""

import jax
import jax.numpy as jnp
import numpy as np

from kd_jax.types import MethodVariables
from tests.methods.numeric import outputs


def cells(x, rows, columns):
    """The windows of PyTorch's adaptive pooling, row by row."""
    for i in range(rows):
        for j in range(columns):
            top, bottom = int(np.floor(i * x.shape[1] / rows)), int(np.ceil((i + 1) * x.shape[1] / rows))
            left, right = int(np.floor(j * x.shape[2] / columns)), int(np.ceil((j + 1) * x.shape[2] / columns))
            yield x[:, top:bottom, left:right]


def pooled(x, rows, columns):
    """Adaptive average pooling to [B, rows, columns, c]."""
    values = np.stack([cell.mean((1, 2)) for cell in cells(x, rows, columns)], 1)
    return values.reshape(len(x), rows, columns, -1)


def smaller(x, y):
    """Both maps at the smaller height and the smaller width."""
    rows, columns = np.minimum(x.shape[1:3], y.shape[1:3])
    return pooled(x, rows, columns), pooled(y, rows, columns)


def resized(x, rows, columns):
    """Pooled where that is smaller, interpolated linearly between the centers of pixels where it is larger."""
    x = pooled(x, min(rows, x.shape[1]), min(columns, x.shape[2]))
    for axis, length in ((1, rows), (2, columns)):
        own = x.shape[axis]
        places = (np.arange(length) + 0.5) * own / length - 0.5
        shares = np.stack([np.interp(places, np.arange(own), row) for row in np.eye(own)], 1)  # [length, own]
        x = np.moveaxis(np.tensordot(shares, x, (1, axis)), 0, axis)
    return x


def batch_norm(x, params):
    """By the batch's statistics."""
    centered = x - x.mean((0, 1, 2))
    return centered / np.sqrt(np.square(centered).mean((0, 1, 2)) + 1e-5) * params["scale"] + params["bias"]


def with_maps(features, embedding=None, preactivations=()):
    """A network's outputs with these maps."""
    own = outputs(jnp.zeros((len(features[0]), 2)))._replace(
        features=tuple(jnp.asarray(x, jnp.float32) for x in features),
        preactivations=tuple(jnp.asarray(x, jnp.float32) for x in preactivations),
    )
    return own if embedding is None else own._replace(embedding=jnp.asarray(embedding, jnp.float32))


def shapes(method, seen):
    """The shapes of a method's variables, which compiles nothing."""
    return jax.eval_shape(lambda: method.init(jax.random.key(0), seen))


def drawn(method, seen, rng):
    """Variables of a method, all of them drawn: a bias that starts at zero would hide a mistake."""

    def draw(path, leaf):
        return jnp.asarray(0.5 * rng.normal(size=leaf.shape) + ("scale" in jax.tree_util.keystr(path)), leaf.dtype)

    found = shapes(method, seen)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), found.state)
    return MethodVariables(jax.tree_util.tree_map_with_path(draw, found.params), zeros)
