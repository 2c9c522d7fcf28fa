"""Convolution in the form that each platform computes fastest, with the same gradients on all of them."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from kd_jax.types import Array

DIMENSIONS = ("NHWC", "HWIO", "NHWC")
# For XLA on a CPU, which otherwise removes every `optimization_barrier`, and then computes whatever made the input of a
# convolution once for each of its readers, for the gradient of the kernel in the slow order of a transposition.
KEEP_BARRIERS = {"xla_disable_hlo_passes": "cse_barrier_expander"}


@functools.partial(jax.jit, static_argnums=(2, 3))  # so that layers of one shape are traced once
def convolution(x: Array, kernel: Array, stride: int = 1, groups: int = 1) -> Array:
    """A square convolution, padded by half the kernel on every side, computed in the type of x.

    On a CPU, where XLA's own take many times as long, 1x1 convolutions are matrix products, and depthwise ones (as many
    groups as channels, in and out) sums of shifted products. `jit` with the compiler options `KEEP_BARRIERS` there.

    Args:
      x: [B, H, W, C].
      kernel: [k, k, C / groups, O], k odd. Its gradient is computed in the wider of both types: that of a float32
        kernel is not rounded to a bfloat16 x's type before it is summed over the devices. On a GPU it is, whose
        convolutions would otherwise be float32 altogether.
      stride: of both axes.
      groups: of channels, each convolved for itself.
    Returns:
      [B, ceil(H / stride), ceil(W / stride), O], of x's type. It can be differentiated backwards, any number of times;
      not forwards, as by `jax.jvp`.
    """
    assert kernel.shape[0] == kernel.shape[1], "the kernel is square"
    assert kernel.shape[0] % 2, "its size is odd"
    return _convolution(x, kernel, stride, groups)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _convolution(x: Array, kernel: Array, stride: int, groups: int) -> Array:
    return _forward(x, kernel, stride, groups)[0]


def _forward(x: Array, kernel: Array, stride: int, groups: int) -> tuple[Array, tuple[Array, Array]]:
    on_cpu, anywhere = (functools.partial(f, stride=stride, groups=groups) for f in (_on_cpu, _anywhere))
    return lax.platform_dependent(x, kernel.astype(x.dtype), cpu=on_cpu, default=anywhere), (x, kernel)


def _backward(stride: int, groups: int, residuals: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    x, kernel = residuals
    on_cpu, on_tpu, anywhere = (
        functools.partial(f, stride=stride, groups=groups)
        for f in (_gradients_on_cpu, _gradients, _gradients_of_rounded_kernel)
    )
    wide = kernel.astype(jnp.promote_types(kernel.dtype, x.dtype))
    dx, d_kernel = lax.platform_dependent(x, wide, dy, cpu=on_cpu, tpu=on_tpu, default=anywhere)
    return dx, d_kernel.astype(kernel.dtype)


_convolution.defvjp(_forward, _backward)


def _anywhere(x: Array, kernel: Array, *, stride: int, groups: int) -> Array:
    padding = (kernel.shape[0] // 2,) * 2
    return lax.conv_general_dilated(
        x, kernel, (stride,) * 2, (padding,) * 2, dimension_numbers=DIMENSIONS, feature_group_count=groups
    )


def _gradients(x: Array, kernel: Array, dy: Array, *, stride: int, groups: int) -> tuple[Array, Array]:
    forward = functools.partial(_anywhere, kernel=kernel.astype(x.dtype), stride=stride, groups=groups)
    size = kernel.shape[0]
    padding = [
        (size // 2, size - 1 - size // 2 + stride * (out - 1) + 1 - length)
        for length, out in zip(x.shape[1:3], dy.shape[1:3], strict=True)
    ]
    d_kernel = lax.conv_general_dilated(  # the batch is in the place of the channels, which are summed over
        x,
        dy,
        (1, 1),
        padding,
        rhs_dilation=(stride,) * 2,
        dimension_numbers=("CHWN", "IHWO", "HWNC"),
        batch_group_count=groups,
        preferred_element_type=kernel.dtype,
    )
    return jax.linear_transpose(forward, x)(dy)[0], d_kernel


def _gradients_of_rounded_kernel(
    x: Array, kernel: Array, dy: Array, *, stride: int, groups: int
) -> tuple[Array, Array]:
    dx, d_kernel = _gradients(x, kernel.astype(x.dtype), dy, stride=stride, groups=groups)
    return dx, d_kernel.astype(kernel.dtype)


def _is_depthwise(x: Array, kernel: Array, groups: int) -> bool:
    return groups == x.shape[-1] == kernel.shape[-1]


def _on_cpu(x: Array, kernel: Array, *, stride: int, groups: int) -> Array:
    if _is_depthwise(x, kernel, groups):
        taps = list(kernel.reshape(-1, kernel.shape[-1]))
        wide = jnp.promote_types(x.dtype, jnp.float32)  # of the sum: in bfloat16 each tap would round it
        products = [part.astype(wide) * tap for part, tap in zip(_shifted(x, kernel, stride), taps, strict=True)]
        return functools.reduce(jnp.add, products).astype(x.dtype)
    if kernel.shape[:2] == (1, 1) and groups == 1:
        return jnp.einsum("bhwc,co->bhwo", _strided(x, stride), kernel[0, 0])
    return _anywhere(lax.optimization_barrier(x), kernel, stride=stride, groups=groups)


def _gradients_on_cpu(x: Array, kernel: Array, dy: Array, *, stride: int, groups: int) -> tuple[Array, Array]:
    if _is_depthwise(x, kernel, groups):
        spread = _spread(dy, x, stride)
        flipped = kernel.astype(x.dtype)[::-1, ::-1]
        return _on_cpu(spread, flipped, stride=1, groups=groups), _depthwise_of_kernel(x, kernel, dy, stride)
    if kernel.shape[:2] == (1, 1) and groups == 1:
        d_kernel = jnp.einsum("bhwc,bhwo->co", _strided(x, stride), dy, preferred_element_type=kernel.dtype)
        dx = jnp.einsum("bhwo,co->bhwc", dy, kernel[0, 0].astype(x.dtype))
        return _spread(dx, x, stride), d_kernel[None, None]
    x, dy = lax.optimization_barrier((x, dy))
    return _gradients(x, kernel, dy, stride=stride, groups=groups)


def _depthwise_of_kernel(x: Array, kernel: Array, dy: Array, stride: int) -> Array:
    """The gradient of the kernel, four images after another: XLA adds up over all of them four times slower.

    The four are far from one another, so that each group is split over the devices as the batch is. The rows of the
    kernel come one after another too: the 49 sums of 7x7 at once take twice as long, and to compile five times as long.
    """
    batch = x.shape[0]  # it may be symbolic
    groups = batch // 4 if isinstance(batch, int) and batch % 4 == 0 else 1
    padded, height, width = _padded(x, kernel)

    def grouped(a: Array) -> Array:
        return a.astype(kernel.dtype).reshape(-1, groups, *a.shape[1:]).swapaxes(0, 1)

    def add(total: Array, images: tuple[Array, Array]) -> tuple[Array, None]:
        own, d_own = images

        def row(i: Array) -> Array:
            read = lax.dynamic_slice_in_dim(own, i, height, 1)
            parts = (_strided(read[:, :, j : j + width], stride) for j in range(kernel.shape[1]))
            return jnp.stack([(part * d_own).sum((0, 1, 2)) for part in parts])

        return total + lax.map(row, jnp.arange(kernel.shape[0])), None

    zeros = jnp.zeros((*kernel.shape[:2], kernel.shape[-1]), kernel.dtype)
    return lax.scan(add, zeros, (grouped(padded), grouped(dy)))[0].reshape(kernel.shape)


def _padded(x: Array, kernel: Array) -> tuple[Array, Any, Any]:
    """x with zeros around, and the height and width of what a tap of the kernel reads at a stride of 1."""
    size = kernel.shape[0]
    edges = (size // 2,) * 2
    padded = jnp.pad(x, ((0, 0), edges, edges, (0, 0)))
    height, width = (length - size + 1 for length in padded.shape[1:3])
    return padded, height, width


def _shifted(x: Array, kernel: Array, stride: int) -> list[Array]:
    """What each tap of the kernel reads, of the shape of the result."""
    size, (padded, height, width) = kernel.shape[0], _padded(x, kernel)
    return [_strided(padded[:, i : i + height, j : j + width], stride) for i in range(size) for j in range(size)]


def _strided(x: Array, stride: int) -> Array:
    """The rows and columns that a 1x1 convolution of a stride reads, also where their number is symbolic."""
    height, width = (stride * ((length - 1) // stride) + 1 for length in x.shape[1:3])
    return x[:, :height:stride, :width:stride]


def _spread(x: Array, like: Array, stride: int) -> Array:
    """x with zeros in the place of what a stride of `like` leaves out."""
    if stride == 1:
        return x
    ends = [length - 1 - stride * (out - 1) for length, out in zip(like.shape[1:3], x.shape[1:3], strict=True)]
    none: Any = (0, 0, 0)
    return lax.pad(x, jnp.zeros((), x.dtype), (none, *((0, end, stride - 1) for end in ends), none))
