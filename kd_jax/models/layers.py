"""Layers that follow PyTorch's arithmetic: convolution, normalizations, initializers, the head behind a backbone.

Parameters, statistics and what leaves a backbone are at least float32, whatever the type of the computation.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from kd_jax.keys import WIDTH
from kd_jax.models.convolution import convolution
from kd_jax.types import Array, Head, Norm, at_least_float32

EPSILON = 1e-5
MOMENTUM = 0.1
FAR = 8.0  # deviations: as far may a guess of the mean be off; the variance then has a relative error of about 1e-5

# kaiming_normal_(mode="fan_out"). What is compiled by itself, here and below, is traced once for all layers of a shape.
conv_init = jax.jit(nn.initializers.variance_scaling(2.0, "fan_out", "normal"), static_argnums=(1, 2))
# PyTorch's default for a convolution's kernel [k, k, fan_in / k^2, out]: uniform in +-1/sqrt(fan_in).
default_conv_init = jax.jit(nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform"), static_argnums=(1, 2))
# The same of a depthwise convolution [k, k, 1, c], whose fan_out is that of one channel.
depthwise_init = jax.jit(nn.initializers.variance_scaling(2.0, "fan_in", "normal"), static_argnums=(1, 2))
small_init = nn.initializers.normal(0.01)  # normal_(0, 0.01)
# trunc_normal_(std=0.02) of transformers, which cuts at 2: a hundred deviations.
transformer_init = jax.jit(nn.initializers.normal(0.02), static_argnums=(1, 2))
Initializer = Callable[..., Array]  # (rng, shape, dtype)


def wide(dtype: DTypeLike) -> DTypeLike:
    """The type of the parameters of a layer that computes in `dtype`: at least float32."""
    return jnp.promote_types(dtype, jnp.float32)


def scaled(widths: tuple[int, ...], factor: float) -> tuple[int, ...]:
    """Numbers of channels times a factor; raises InputError when that is out of range."""
    WIDTH.check("model.width", factor)
    return tuple(max(1, round(factor * width)) for width in widths)


def linear_init(rng: Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> Array:
    """PyTorch's default for a linear layer's weight [fan_in, fan_out]: uniform in +-1/sqrt(fan_in)."""
    bound = 1 / math.sqrt(shape[0])
    return jax.random.uniform(rng, shape, dtype, -bound, bound)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def normalize_batch(
    x: Array, scale: Array, bias: Array, guess: Array, epsilon: float = EPSILON
) -> tuple[Array, Array, Array]:
    """Batch normalization over all axes but the last, by the batch's own statistics.

    Args:
      x: [..., c]. scale, bias: [c], at least float32, the type in which statistics are computed.
      guess: [c], of the batch's mean. It changes nothing beyond rounding: where it is good, a TPU reads the batch once.
      epsilon: what is added to the biased variance.
    Returns:
      (y [..., c] of x's type, mean [c], biased variance [c]). The statistics carry no gradient, and the guess has none.
    """
    return _normalize_batch_forward(x, scale, bias, guess, epsilon)[0]


def _normalize_batch_forward(x: Array, scale: Array, bias: Array, guess: Array, epsilon: float) -> tuple[Any, Any]:
    mean, variance = jax.lax.platform_dependent(
        x, guess, tpu=_statistics_in_one_pass, default=_statistics_in_two_passes
    )
    inverse = jax.lax.rsqrt(variance + epsilon)
    y = ((x.astype(scale.dtype) - mean) * (inverse * scale) + bias).astype(x.dtype)
    return (y, mean, variance), (x, scale, mean, inverse)


def _statistics_in_two_passes(x: Array, guess: Array) -> tuple[Array, Array]:
    """Mean and biased variance [c] of x [..., c], in the type of `guess` [c]."""
    axes = tuple(range(x.ndim - 1))
    wide = x.astype(guess.dtype)
    mean = wide.mean(axes)
    return mean, jnp.square(wide - mean).mean(axes)


def _statistics_in_one_pass(x: Array, guess: Array) -> tuple[Array, Array]:
    """The same by two sums about the guess, which a TPU adds up while it convolves, and exchanges at once.

    Squares about a guess that is far from the mean cancel: then two passes follow. Such a branch costs a TPU nothing; a
    GPU waits for the host.
    """
    axes = tuple(range(x.ndim - 1))
    moved = x.astype(guess.dtype) - guess
    offset = moved.mean(axes)
    variance = jnp.maximum(jnp.square(moved).mean(axes) - jnp.square(offset), 0)
    far = jnp.any(jnp.square(offset) > FAR**2 * (variance + EPSILON))
    return jax.lax.cond(far, lambda: _statistics_in_two_passes(x, guess), lambda: (guess + offset, variance))


def _normalize_batch_backward(epsilon: float, residuals: Any, gradients: Any) -> tuple[Array, Array, Array, Array]:
    """The closed form, with two reductions over the batch: autodiff takes more, and twice the time on a CPU."""
    del epsilon  # which is in the inverse
    x, scale, mean, inverse = residuals
    dy = gradients[0].astype(scale.dtype)
    axes = tuple(range(x.ndim - 1))
    standardized = (x.astype(scale.dtype) - mean) * inverse
    d_bias = dy.sum(axes)
    d_scale = (dy * standardized).sum(axes)
    count = x.size // x.shape[-1]
    dx = (scale * inverse) * (dy - (d_bias + standardized * d_scale) / count)
    return dx.astype(x.dtype), d_scale, d_bias, jnp.zeros_like(mean)


normalize_batch.defvjp(_normalize_batch_forward, _normalize_batch_backward)


@functools.partial(jax.jit, static_argnums=5)
def _train(
    x: Array, scale: Array, bias: Array, mean: Array, variance: Array, epsilon: float
) -> tuple[Array, Array, Array]:
    """(y, the next running mean, the next running variance)."""
    y, batch_mean, batch_variance = normalize_batch(x, scale, bias, mean, epsilon)
    count = x.size // x.shape[-1]
    unbiased = batch_variance * (count / max(count - 1, 1))
    mean, variance = ((1 - MOMENTUM) * a + MOMENTUM * b for a, b in ((mean, batch_mean), (variance, unbiased)))
    return y, mean, variance


@functools.partial(jax.jit, static_argnums=5)
def _infer(x: Array, scale: Array, bias: Array, mean: Array, variance: Array, epsilon: float) -> Array:
    factor = scale * jax.lax.rsqrt(variance + epsilon)
    return (x * factor + (bias - mean * factor)).astype(x.dtype)


class BatchNorm(nn.Module):
    """Batch normalization as in PyTorch: its epsilon and momentum, and an unbiased running variance.

    Under `jit` over a mesh the statistics are those of the global batch.
    """

    epsilon: float = EPSILON
    scale_init: Initializer = nn.initializers.ones

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """x [..., c] -> [..., c] of the same type."""
        channels, dtype = x.shape[-1], wide(x.dtype)
        scale = self.param("scale", self.scale_init, (channels,), dtype)
        bias = self.param("bias", nn.initializers.zeros, (channels,), dtype)
        mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,), dtype)
        variance = self.variable("batch_stats", "var", jnp.ones, (channels,), dtype)
        if not train:
            return _infer(x, scale, bias, mean.value, variance.value, self.epsilon)
        y, *averages = _train(x, scale, bias, mean.value, variance.value, self.epsilon)
        if not self.is_initializing():
            mean.value, variance.value = averages
        return y

    @property
    def affine(self) -> Norm:
        params = self.variables["params"]
        return Norm(params["scale"], params["bias"])


@functools.partial(jax.jit, static_argnums=3)
def normalize_features(x: Array, scale: Array, bias: Array, epsilon: float) -> Array:
    """Layer normalization over the last axis: x [..., c] -> [..., c] of the same type.

    Args:
      scale, bias: [c], at least float32, the type in which it is computed.
      epsilon: what is added to the biased variance.
    """
    wide = x.astype(scale.dtype)
    centered = wide - wide.mean(-1, keepdims=True)
    inverse = jax.lax.rsqrt(jnp.square(centered).mean(-1, keepdims=True) + epsilon)
    return (centered * inverse * scale + bias).astype(x.dtype)


class LayerNorm(nn.Module):
    """Layer normalization over the last axis as in PyTorch, whose epsilon is 1e-5 by default."""

    epsilon: float = EPSILON

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """x [..., c] -> [..., c] of the same type."""
        channels, dtype = x.shape[-1], wide(x.dtype)
        scale = self.param("scale", nn.initializers.ones, (channels,), dtype)
        bias = self.param("bias", nn.initializers.zeros, (channels,), dtype)
        return normalize_features(x, scale, bias, self.epsilon)


class Conv(nn.Module):
    """A square convolution, padded as PyTorch's networks pad it unless `padding` is "same", see `convolution`."""

    features: int
    size: int = 1
    stride: int = 1
    groups: int = 1
    use_bias: bool = False
    padding: str = "half"
    kernel_init: Initializer = conv_init
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """x [B, H, W, C] -> [B, ceil(H / stride), ceil(W / stride), features] of `dtype`."""
        shape = (self.size, self.size, x.shape[-1] // self.groups, self.features)
        kernel = self.param("kernel", self.kernel_init, shape, wide(self.dtype))
        y = convolution(x.astype(self.dtype), kernel, self.stride, self.groups, self.padding)
        if not self.use_bias:
            return y
        return y + self.param("bias", nn.initializers.zeros, (self.features,), wide(self.dtype)).astype(y.dtype)


class Patches(nn.Module):
    """A convolution whose stride is its size, without padding, as one product of matrices. Rests of a patch are cut."""

    features: int
    size: int
    kernel_init: Initializer = default_conv_init
    bias_init: Initializer | None = None  # as PyTorch's: uniform in +-1/sqrt(fan_in)
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """x [B, H, W, C] -> [B, H // size, W // size, features] of `dtype`."""
        (_, height, width, channels), size = x.shape, self.size
        kernel = self.param("kernel", self.kernel_init, (size, size, channels, self.features), wide(self.dtype))
        bound = 1 / math.sqrt(size * size * channels)
        uniform = functools.partial(jax.random.uniform, minval=-bound, maxval=bound)
        bias = self.param("bias", self.bias_init or uniform, (self.features,), wide(self.dtype))
        h, w = height // size, width // size
        whole = x[:, : h * size, : w * size].astype(self.dtype)
        parts = whole.reshape(-1, h, size, w, size, channels).swapaxes(2, 3).reshape(-1, h, w, size * size * channels)
        return parts @ kernel.astype(self.dtype).reshape(-1, self.features) + bias.astype(self.dtype)


class Mlp(nn.Module):
    """Two linear layers with an exact GELU between them, from c channels to four times as many and back."""

    linear: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """x [..., c] -> [..., c]."""
        channels = x.shape[-1]
        return self.linear(channels, name="fc2")(nn.gelu(self.linear(4 * channels, name="fc1")(x), approximate=False))


def dense(dtype: DTypeLike) -> Callable[..., nn.Module]:
    """The linear layer of a transformer, computed in `dtype`."""
    return functools.partial(nn.Dense, dtype=dtype, param_dtype=wide(dtype), kernel_init=transformer_init)


def pointwise(dtype: DTypeLike) -> Callable[..., nn.Module]:
    """The same as a 1x1 convolution."""
    return functools.partial(Conv, use_bias=True, kernel_init=transformer_init, dtype=dtype)


def linear_rates(last: float, count: int) -> list[float]:
    """The rates of stochastic depth of so many blocks: from 0 to `last`, by equal steps."""
    return [last * i / max(count - 1, 1) for i in range(count)]


def drop_path(x: Array, rate: float, *, train: bool) -> Array:
    """Stochastic depth: in training what a block adds [B, ...] is zero for some images, and larger for the others."""
    y: Array = nn.Dropout(rate, broadcast_dims=tuple(range(1, x.ndim)), deterministic=not train)(x)
    return y


class Linear(nn.Module):
    """A linear layer, computed in at least float32. PyTorch's initialization, unless a kernel's is given.

    With no features, as of a network without classes, it has no parameters.
    """

    features: int
    kernel_init: Initializer = linear_init
    bias_init: Initializer | None = None  # as PyTorch's: uniform in +-1/sqrt(fan_in)

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """x [B, D] -> [B, features]."""
        x = at_least_float32(x)
        if not self.features:
            return x[:, :0]
        bound = 1 / math.sqrt(x.shape[-1])
        uniform = functools.partial(jax.random.uniform, minval=-bound, maxval=bound)
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features), x.dtype)
        bias = self.param("bias", self.bias_init or uniform, (self.features,), x.dtype)
        return x @ kernel + bias

    @property
    def head(self) -> Head | None:
        if not self.features:
            return None
        params = self.variables["params"]
        return Head(params["kernel"], params["bias"])


class SqueezeExcite(nn.Module):
    """Scales channels by a gate that two 1x1 convolutions compute of their averages."""

    width: int  # between the two
    names: tuple[str, str] = ("fc1", "fc2")
    activation: Callable[[Array], Array] = nn.relu
    gate: Callable[[Array], Array] = nn.sigmoid
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """x [B, h, w, c] -> [B, h, w, c] of the same type."""
        y = at_least_float32(x).mean((1, 2), keepdims=True)
        conv = functools.partial(Conv, use_bias=True, dtype=self.dtype)
        y = self.activation(conv(self.width, name=self.names[0])(y))
        return x * self.gate(conv(x.shape[-1], name=self.names[1])(y)).astype(x.dtype)


class MlpHead(nn.Module):
    """The original project's head before the last linear layer: Linear 1000, dropout 0.5, batch norm, ReLU."""

    width: int = 1000

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """x [B, c] -> [B, 1000]."""
        x = Linear(self.width, name="fc")(x)
        x = nn.Dropout(0.5, deterministic=not train)(x)
        return nn.relu(BatchNorm(name="bn")(x, train=train))
