"""The same function of plain operations alone, which every converter knows."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend import core

from kd_jax.types import Array

Rules = Mapping[str, Callable[..., Array]]  # what to compute in the place of an operation, by its name
CALLS = {"jit": "jaxpr", "custom_jvp_call": "call_jaxpr", "custom_vjp_call": "call_jaxpr"}


def plain(function: Callable[[Array], Array], *, pools: bool = True) -> Callable[[Array], Array]:
    """A function of one array without calls, barriers, or derivatives of its own.

    Where it has a form for each platform, as `models.convolution` has, the form for all others is taken: in it a
    convolution is one operation. What does not depend on the array, such as the scale of a batch norm, is computed
    here and now.

    Args:
      function: images [B, H, W, C] -> an array.
      pools: whether the converter has a maximum over windows; otherwise it is one of shifted images.
    """
    rules: Rules = {
        "dot_general": _dot,
        "reduce_window_sum": _sum_pool,
        "reduce_window_max": _max_pool if pools else _max_of_shifted,
    }

    def of_plain(x: Array) -> Array:
        traced = jax.make_jaxpr(function)(x)
        return _evaluate(traced, [x], rules)[0]

    return of_plain


def _evaluate(closed: core.ClosedJaxpr, arguments: Sequence[Any], rules: Rules) -> list[Any]:
    jaxpr = closed.jaxpr
    values = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*closed.consts, *arguments), strict=True))

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, core.Literal) else values[atom]

    for equation in jaxpr.eqns:
        out = _call(equation, [read(atom) for atom in equation.invars], rules)
        values.update(zip(equation.outvars, out, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _call(equation: Any, given: list[Any], rules: Rules) -> list[Any]:
    name, parameters = equation.primitive.name, equation.params
    if name in CALLS:
        return _evaluate(parameters[CALLS[name]], given, rules)
    if name == "platform_index":
        return [None]
    if platforms := parameters.get("branches_platforms"):
        return _evaluate(parameters["branches"][platforms.index(None)], given[1:], rules)
    if name == "optimization_barrier":
        return given
    # Where all is known it is computed, but no large array is made of a small one.
    if name != "broadcast_in_dim" and not any(isinstance(x, jax.core.Tracer) for x in given):
        with jax.ensure_compile_time_eval():
            return _bind(equation, given)
    if name in rules:
        return [rules[name](*given, **parameters)]
    return _bind(equation, given)


def _bind(equation: Any, given: Sequence[Any]) -> list[Any]:
    primitive = equation.primitive
    out = primitive.bind(*given, **primitive.get_bind_params(equation.params))
    return out if primitive.multiple_results else [out]


def _dot(x: Array, y: Array, *, dimension_numbers: Any, **parameters: Any) -> Array:
    """Of an image and a matrix, as in a resizing, as a 1x1 convolution: XNNPACK's product of integers is wrong."""
    (of_x, of_y), batch = dimension_numbers
    if any(batch) or sorted((x.ndim, y.ndim)) != [2, 4] or len(of_x) != 1:
        return lax.dot_general_p.bind(x, y, dimension_numbers=dimension_numbers, **parameters)
    first = x.ndim == 2
    image, axis, matrix, of_matrix = (y, of_y, x, of_x) if first else (x, of_x, y, of_y)
    out = lax.conv_general_dilated(
        jnp.moveaxis(image, axis, (-1,)),
        jnp.moveaxis(matrix, of_matrix, (0,))[None, None],
        (1, 1),
        "VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=parameters["precision"],
        preferred_element_type=parameters["preferred_element_type"],
    )
    return jnp.moveaxis(out, -1, 0) if first else out


def _sum_pool(
    x: Array, *, window_dimensions: Any, window_strides: Any, padding: Any, base_dilation: Any, window_dilation: Any
) -> Array:
    """As a depthwise convolution with ones: TensorFlow Lite has no sum over windows, nor zeros around an average."""
    assert {window_dimensions[0], window_dimensions[3], *base_dilation, *window_dilation} == {1}, "it is of an image"
    channels = x.shape[-1]
    return lax.conv_general_dilated(
        x,
        jnp.ones((*window_dimensions[1:3], 1, channels), x.dtype),
        window_strides[1:3],
        padding[1:3],
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=channels,
    )


def _edge_repeated(x: Array, padding: Any) -> Array:
    """Around a maximum in the place of minus infinity, which 8-bit integers lack: each window has the edge anyway."""
    for axis, (before, after) in enumerate(padding):
        if before or after:
            first, last = lax.slice_in_dim(x, 0, 1, axis=axis), lax.slice_in_dim(x, -1, None, axis=axis)
            x = lax.concatenate([first] * before + [x] + [last] * after, axis)
    return x


def _max_pool(x: Array, *, padding: Any, **parameters: Any) -> Array:
    return lax.reduce_window_max_p.bind(_edge_repeated(x, padding), padding=((0, 0),) * x.ndim, **parameters)


def _max_of_shifted(x: Array, *, window_dimensions: Any, window_strides: Any, padding: Any, **dilations: Any) -> Array:
    x = _edge_repeated(x, padding)
    (_, rows, columns, _), (_, down, right, _) = window_dimensions, window_strides
    height, width = x.shape[1] - rows + 1, x.shape[2] - columns + 1
    shifted = [x[:, i : i + height : down, j : j + width : right] for i in range(rows) for j in range(columns)]
    return functools.reduce(jnp.maximum, shifted)
