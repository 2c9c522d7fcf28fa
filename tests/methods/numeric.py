"""Float64 numpy beside JAX: finite differences, the formulas' small pieces, outputs to feed to a method."""

import jax.numpy as jnp
import numpy as np

from kd_jax.types import Batch, Head, Outputs

RNG = np.random.default_rng(0)
STUDENT, TEACHER = RNG.normal(scale=2.0, size=(2, 6, 5))


def slope(function, x, step=1e-6):
    """The gradient of a scalar numpy function by central differences."""
    gradient = np.zeros_like(x)
    for index in np.ndindex(x.shape):
        up, down = x.copy(), x.copy()
        up[index] += step
        down[index] -= step
        gradient[index] = (function(up) - function(down)) / (2 * step)
    return gradient


def assert_gradient(gradient, expected):
    """Within 1e-4 of the largest entry."""
    np.testing.assert_allclose(gradient, expected, atol=1e-4 * np.abs(expected).max())


def log_softmax(x):
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def huber(x):
    x = np.abs(x)
    return np.where(x < 1, 0.5 * x * x, x - 0.5)


def standardized(x):
    return (x - x.mean(-1, keepdims=True)) / (1e-7 + x.std(-1, ddof=1, keepdims=True))


def outputs(logits, embedding=None) -> Outputs:
    """Outputs of a network with these logits [B, K] and this embedding [B, D], by default the logits."""
    embedding = jnp.asarray(logits if embedding is None else embedding, jnp.float32)
    logits = jnp.asarray(logits, jnp.float32)
    head = Head(jnp.zeros((embedding.shape[1], logits.shape[1])), jnp.zeros(logits.shape[1]))
    maps = tuple(jnp.ones((len(logits), 4 // 2**i, 4 // 2**i, 3)) * (i + 1) for i in range(3))
    return Outputs(logits, maps, maps, embedding, embedding, head, ())


def batch(labels, num_classes=5) -> Batch:
    """A batch of which a method may read the labels (-1 for none) and the targets."""
    labels = np.asarray(labels)
    targets = np.eye(num_classes)[labels] * (labels >= 0)[:, None]
    index = jnp.arange(len(labels))
    return Batch(
        jnp.zeros((len(labels), 1, 1, 1)), jnp.asarray(labels), jnp.asarray(targets, jnp.float32), index, index
    )
