"""Convolution in the form that each platform computes fastest, with the same gradients on all of them."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from kd_jax.types import Array

DIMENSIONS = ("NHWC", "HWIO", "NHWC")
PADDINGS = ("half", "same")
Edges = tuple[tuple[Any, Any], tuple[Any, Any]]  # rows and columns of zeros (before, after), where symbolic not numbers
# For XLA on a CPU, which otherwise removes every `optimization_barrier`, and then computes whatever made the input of a
# convolution once for each of its readers, for the gradient of the kernel in the slow order of a transposition.
KEEP_BARRIERS = {"xla_disable_hlo_passes": "cse_barrier_expander"}


@functools.partial(jax.jit, static_argnums=(2, 3, 4))  # so that layers of one shape are traced once
def convolution(x: Array, kernel: Array, stride: int = 1, groups: int = 1, padding: str = "half") -> Array:
    """A square convolution, computed in the type of x.

    On a CPU, where XLA's own take many times as long, 1x1 convolutions are matrix products, depthwise ones (as many
    groups as channels, in and out) sums of shifted products, and others in groups a loop over these. `jit` with the
    compiler options `KEEP_BARRIERS` there.

    Args:
      x: [B, H, W, C].
      kernel: [k, k, C / groups, O], k odd. Its gradient is computed in the wider of both types: that of a float32
        kernel is not rounded to a bfloat16 x's type before it is summed over the devices. On a GPU it is, whose
        convolutions would otherwise be float32 altogether.
      stride: of both axes.
      groups: of channels, each convolved for itself.
      padding: "half", half the kernel on every side, as PyTorch's networks have it; or "same", TensorFlow's: no more
        than the windows need, and of an odd number of rows the larger half below. They differ where a stride meets a
        size that it divides.
    Returns:
      [B, ceil(H / stride), ceil(W / stride), O], of x's type. It can be differentiated backwards, any number of times;
      not forwards, as by `jax.jvp`.
    """
    assert kernel.shape[0] == kernel.shape[1], "the kernel is square"
    assert kernel.shape[0] % 2, "its size is odd"
    assert padding in PADDINGS, "it is padded in one of both ways"
    return _convolution(x, kernel, stride, groups, padding)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _convolution(x: Array, kernel: Array, stride: int, groups: int, padding: str) -> Array:
    return _forward(x, kernel, stride, groups, padding)[0]


def _forward(x: Array, kernel: Array, stride: int, groups: int, padding: str) -> tuple[Array, tuple[Array, Array]]:
    edges = _edges(x, kernel, stride, padding)
    on_cpu, anywhere = (functools.partial(f, stride=stride, groups=groups, edges=edges) for f in (_on_cpu, _anywhere))
    return lax.platform_dependent(x, kernel.astype(x.dtype), cpu=on_cpu, default=anywhere), (x, kernel)


def _backward(stride: int, groups: int, padding: str, residuals: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    x, kernel = residuals
    edges = _edges(x, kernel, stride, padding)
    on_cpu, on_tpu, anywhere = (
        functools.partial(f, stride=stride, groups=groups, edges=edges)
        for f in (_gradients_on_cpu, _gradients, _gradients_of_rounded_kernel)
    )
    wide = kernel.astype(jnp.promote_types(kernel.dtype, x.dtype))
    dx, d_kernel = lax.platform_dependent(x, wide, dy, cpu=on_cpu, tpu=on_tpu, default=anywhere)
    return dx, d_kernel.astype(kernel.dtype)


_convolution.defvjp(_forward, _backward)


def _edges(x: Array, kernel: Array, stride: int, padding: str) -> Edges:
    """The rows and columns of zeros around x."""
    size = kernel.shape[0]
    if padding == "half" or stride == 1:
        return ((size // 2,) * 2,) * 2

    def around(length: Any) -> tuple[Any, Any]:  # which may be symbolic
        missing = max(size - stride + -length % stride, 0) if size > 1 else 0
        return missing // 2, missing - missing // 2

    return around(x.shape[1]), around(x.shape[2])


def _are_known(edges: Edges) -> bool:
    """Whether they are numbers: those of TensorFlow's padding are not where the size of the images is symbolic."""
    return all(isinstance(n, int) for pair in edges for n in pair)


def _anywhere(x: Array, kernel: Array, *, stride: int, groups: int, edges: Edges) -> Array:
    padding: Any = edges if _are_known(edges) else "SAME"
    return lax.conv_general_dilated(
        x, kernel, (stride,) * 2, padding, dimension_numbers=DIMENSIONS, feature_group_count=groups
    )


def _gradients(x: Array, kernel: Array, dy: Array, *, stride: int, groups: int, edges: Edges) -> tuple[Array, Array]:
    forward = functools.partial(_anywhere, kernel=kernel.astype(x.dtype), stride=stride, groups=groups, edges=edges)
    d_kernel = lax.conv_general_dilated(  # the batch is in the place of the channels, which are summed over
        x,
        dy,
        (1, 1),
        _edges_of_kernel(x, kernel, dy, stride, edges),
        rhs_dilation=(stride,) * 2,
        dimension_numbers=("CHWN", "IHWO", "HWNC"),
        batch_group_count=groups,
        preferred_element_type=kernel.dtype,
    )
    return jax.linear_transpose(forward, x)(dy)[0], d_kernel


def _edges_of_kernel(x: Array, kernel: Array, dy: Array, stride: int, edges: Edges) -> list[tuple[Any, Any]]:
    """The zeros around x where dy is its kernel."""
    return [
        (before, kernel.shape[0] - 1 - before + stride * (out - 1) + 1 - length)
        for length, out, (before, _) in zip(x.shape[1:3], dy.shape[1:3], edges, strict=True)
    ]


def _gradients_of_rounded_kernel(
    x: Array, kernel: Array, dy: Array, *, stride: int, groups: int, edges: Edges
) -> tuple[Array, Array]:
    dx, d_kernel = _gradients(x, kernel.astype(x.dtype), dy, stride=stride, groups=groups, edges=edges)
    return dx, d_kernel.astype(kernel.dtype)


def _is_depthwise(x: Array, kernel: Array, groups: int) -> bool:
    return groups == x.shape[-1] == kernel.shape[-1]


def _on_cpu(x: Array, kernel: Array, *, stride: int, groups: int, edges: Edges) -> Array:
    if not _are_known(edges):
        return _anywhere(x, kernel, stride=stride, groups=groups, edges=edges)
    if _is_depthwise(x, kernel, groups):
        taps = list(kernel.reshape(-1, kernel.shape[-1]))
        wide = jnp.promote_types(x.dtype, jnp.float32)  # of the sum: in bfloat16 each tap would round it
        shifted = _shifted(x, kernel, stride, edges)
        products = [part.astype(wide) * tap for part, tap in zip(shifted, taps, strict=True)]
        return functools.reduce(jnp.add, products).astype(x.dtype)
    if groups > 1:
        return _each_group(functools.partial(_on_cpu, stride=stride, groups=1, edges=edges), groups, x, kernel)[0]
    if kernel.shape[:2] == (1, 1):
        return jnp.einsum("bhwc,co->bhwo", _strided(x, stride), kernel[0, 0])
    return _anywhere(lax.optimization_barrier(x), kernel, stride=stride, groups=1, edges=edges)


def _gradients_on_cpu(
    x: Array, kernel: Array, dy: Array, *, stride: int, groups: int, edges: Edges
) -> tuple[Array, Array]:
    if _is_depthwise(x, kernel, groups):
        spread = _spread(dy, x, stride)
        flipped = kernel.astype(x.dtype)[::-1, ::-1]
        size = kernel.shape[0]
        behind: Any = tuple((size - 1 - before, before) for before, _ in edges)
        dx = _on_cpu(spread, flipped, stride=1, groups=groups, edges=behind)
        return dx, _depthwise_of_kernel(x, kernel, dy, stride, edges)
    if groups > 1:
        dx, d_kernel = _each_group(
            functools.partial(_gradients_in_loop, stride=stride, edges=edges), groups, x, kernel, dy
        )
        return dx, d_kernel
    if kernel.shape[:2] == (1, 1):
        d_kernel = jnp.einsum("bhwc,bhwo->co", _strided(x, stride), dy, preferred_element_type=kernel.dtype)
        dx = jnp.einsum("bhwo,co->bhwc", dy, kernel[0, 0].astype(x.dtype))
        return _spread(dx, x, stride), d_kernel[None, None]
    x, dy = lax.optimization_barrier((x, dy))
    return _gradients(x, kernel, dy, stride=stride, groups=1, edges=edges)


def _each_group(function: Callable[..., Any], groups: int, *arrays: Array) -> list[Array]:
    """What a function gives for each group of channels of the arrays [..., c], one after another, side by side again.

    XLA computes the gradients of all groups at once tens to hundreds of times slower. Groups that are written out one
    by one would take half the time of a loop, and a minute to compile for a network of a few hundred.
    """

    def split(a: Array) -> Array:
        return jnp.moveaxis(a.reshape(*a.shape[:-1], groups, -1), -2, 0)

    def join(a: Array) -> Array:
        return jnp.moveaxis(a, 0, -2).reshape(*a.shape[1:-1], -1)

    found = lax.map(lambda own: function(*own), tuple(map(split, arrays)))
    return [join(a) for a in jax.tree.leaves(found)]


def _gradients_in_loop(x: Array, kernel: Array, dy: Array, *, stride: int, edges: Edges) -> tuple[Array, Array]:
    """`_gradients_on_cpu` of one group, with each transposition written out: in a loop XLA's own are slow."""
    if kernel.shape[:2] == (1, 1):
        return _gradients_on_cpu(x, kernel, dy, stride=stride, groups=1, edges=edges)
    columns, d_columns, flipped = lax.optimization_barrier(
        (x.transpose(3, 1, 2, 0), dy.transpose(1, 2, 0, 3), kernel.astype(x.dtype)[::-1, ::-1].swapaxes(2, 3))
    )
    d_kernel = lax.conv_general_dilated(
        columns,
        d_columns,
        (1, 1),
        _edges_of_kernel(x, kernel, dy, stride, edges),
        rhs_dilation=(stride,) * 2,
        dimension_numbers=DIMENSIONS,
        preferred_element_type=kernel.dtype,
    )
    behind = [
        (kernel.shape[0] - 1 - before, length + before - stride * (out - 1) - 1)
        for length, out, (before, _) in zip(x.shape[1:3], dy.shape[1:3], edges, strict=True)
    ]
    dx = lax.conv_general_dilated(dy, flipped, (1, 1), behind, lhs_dilation=(stride,) * 2, dimension_numbers=DIMENSIONS)
    return dx, d_kernel.transpose(1, 2, 0, 3)


def _depthwise_of_kernel(x: Array, kernel: Array, dy: Array, stride: int, edges: Edges) -> Array:
    """The gradient of the kernel, four images after another: XLA adds up over all of them four times slower.

    The four are far from one another, so that each group is split over the devices as the batch is. The rows of the
    kernel come one after another too: the 49 sums of 7x7 at once take twice as long, and to compile five times as long.
    """
    batch = x.shape[0]  # it may be symbolic
    groups = batch // 4 if isinstance(batch, int) and batch % 4 == 0 else 1
    padded, height, width = _padded(x, kernel, edges)

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


def _padded(x: Array, kernel: Array, edges: Edges) -> tuple[Array, Any, Any]:
    """x with zeros around, and the height and width of what a tap of the kernel reads at a stride of 1."""
    size = kernel.shape[0]
    padded = jnp.pad(x, ((0, 0), *edges, (0, 0)))
    height, width = (length - size + 1 for length in padded.shape[1:3])
    return padded, height, width


def _shifted(x: Array, kernel: Array, stride: int, edges: Edges) -> list[Array]:
    """What each tap of the kernel reads, of the shape of the result."""
    size, (padded, height, width) = kernel.shape[0], _padded(x, kernel, edges)
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
