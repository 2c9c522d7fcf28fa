"""Float64 numpy beside JAX: finite differences, the formulas' small pieces, outputs to feed to a method.

What runs in JAX is compiled whole: eagerly every operation would be a program of its own.
"""

import inspect
import types

import jax
import jax.numpy as jnp
import numpy as np

from kd_jax.types import Batch, Context, Head, Networks, Norm, Outputs, View

RNG = np.random.default_rng(0)
STUDENT, TEACHER = RNG.normal(scale=2.0, size=(2, 6, 5))


def jitted(module):
    """The functions of a module, each under `jit`; options are static."""

    def jit(function):
        options = [p.name for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY]
        return jax.jit(function, static_argnames=[name for name in options if name != "where"])

    names = getattr(module, "__all__", None) or vars(module)
    functions = {name: getattr(module, name) for name in names}
    return types.SimpleNamespace(**{name: jit(f) for name, f in functions.items() if inspect.isfunction(f)})


def grad(function, argnums=0):
    return jax.jit(jax.grad(function, argnums))


def value_and_grad(function, argnums=0):
    return jax.jit(jax.value_and_grad(function, argnums))


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


def convolve(x, kernel, *, stride=1, padding=0):
    """A convolution of maps [B, h, w, c] with [k, l, c, d], as PyTorch pads it."""
    x = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    height, width = (1 + (n - k) // stride for n, k in zip(x.shape[1:3], kernel.shape[:2], strict=True))
    result = np.zeros((len(x), height, width, kernel.shape[-1]))
    for i, j in np.ndindex(*kernel.shape[:2]):
        result += x[:, i : i + stride * height : stride, j : j + stride * width : stride] @ kernel[i, j]
    return result


def batch_norm_relu(x, params, stats=None):
    """By the batch's statistics, or by running ones."""
    mean, variance = (x.mean((0, 1, 2)), x.var((0, 1, 2))) if stats is None else (stats["mean"], stats["var"])
    return np.maximum((x - mean) / np.sqrt(variance + 1e-5) * params["scale"] + params["bias"], 0)


def doubles(tree):
    """The same tree of float64 numpy arrays."""
    return jax.tree.map(lambda x: np.asarray(x, np.float64), tree)


def outputs(logits, embedding=None) -> Outputs:
    """Outputs of a network with these logits [B, K] and this embedding [B, D], by default the logits.

    The maps are [B, 4, 4, D], [B, 2, 2, D] and [B, 2, 2, D], a function of the embedding.
    """
    embedding = jnp.asarray(logits if embedding is None else embedding)
    embedding, logits = (x.astype(jnp.promote_types(x.dtype, jnp.float32)) for x in (embedding, jnp.asarray(logits)))
    return _outputs(logits, embedding)


@jax.jit
def _outputs(logits, embedding):
    head = Head(jnp.ones((embedding.shape[1], logits.shape[1])), jnp.zeros(logits.shape[1]))
    maps = tuple(
        embedding[:, None, None, :] * (1 + jnp.arange(float(size * size)).reshape(size, size, 1)) for size in (4, 2, 2)
    )
    norms = (Norm(jnp.ones(embedding.shape[1]), jnp.zeros(embedding.shape[1])),) * 3
    return Outputs(logits, maps, maps, embedding, embedding, head, norms, maps[-1])


def batch(labels, num_classes=5) -> Batch:
    """A batch of which a method may read the labels (-1 for none) and the targets."""
    labels = np.asarray(labels, np.int32)
    targets = np.eye(num_classes, dtype=np.float32)[labels] * (labels >= 0)[:, None]
    ids = np.arange(len(labels), dtype=np.int32)
    images = np.zeros((len(labels), 1, 1, 1), np.float32)
    return Batch(*(jnp.asarray(x) for x in (images, labels, targets, ids, ids)))


def context(student, teacher=None, labels=None, *, views=1, networks: Networks | None = None, **fields) -> Context:
    """What a method sees of a step: student and teacher are Outputs, or logits [B, K].

    Every view holds the same. The training set has as many images as the batch.
    """
    student = student if isinstance(student, Outputs) else outputs(student)
    teacher = teacher if teacher is None or isinstance(teacher, Outputs) else outputs(teacher)
    labels = np.zeros(len(student.logits), np.int32) if labels is None else np.asarray(labels, np.int32)
    one = View(batch(labels, student.logits.shape[-1]), student, teacher)
    defaults = {"rng": jax.random.key(5), "num_examples": len(labels), "train_labels": jnp.asarray(labels)}
    return Context((one,) * views, networks=networks, **defaults | fields)


def terms(method, *arguments, variables=None, **fields) -> dict:
    """The terms of a method for `context(*arguments, **fields)`, with its initial variables unless others are given."""

    def run(variables):
        seen = context(*arguments, views=method.views, **fields)
        return method.apply(method.init(jax.random.key(0), seen) if variables is None else variables, seen)[0]

    return jax.jit(run)(variables)
