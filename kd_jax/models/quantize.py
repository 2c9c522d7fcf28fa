"""Networks as 8-bit arithmetic would compute them, in training too: quantization-aware training.

Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference", CVPR 2018.
Every convolution and linear layer of Flax reads rounded inputs and has a rounded kernel. A kernel has 255 values for
each channel that leaves it, symmetric about zero, so that folding a batch norm into it changes none; an input has 256
over its range, which includes zero. Gradients pass through the rounding, but not through what was cut off.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from kd_jax.errors import InputError
from kd_jax.models import layers
from kd_jax.types import Array, Network, Outputs, Variables, at_least_float32

QUANTIZED = (layers.Conv, layers.Linear, layers.Patches, nn.Conv, nn.Dense)
RANGE = ("input_low", "input_high")  # in the batch statistics of a layer: of its inputs, averaged as a batch norm's are


@jax.custom_vjp
def fake_quant(x: Array, low: Array, high: Array) -> Array:
    """x rounded to 256 values from `low` to `high`, shifted so that zero is one of them; x itself where both are zero.

    Args:
      x: any shape, at least float32.
      low, high: [], at most and at least 0.
    Returns:
      As TensorFlow's `fake_quant_with_min_max_vars`, whose gradient it has; the range has none.
    """
    return _fake_quant(x, low, high)[0]


def _fake_quant(x: Array, low: Array, high: Array) -> tuple[Array, Array]:
    empty = high <= low
    scale = jnp.where(empty, 1, high - low) / 255
    zero = jnp.clip(jnp.round(-low / scale), 0, 255)
    least, most = -zero * scale, (255 - zero) * scale
    rounded = jnp.floor((jnp.clip(x, least, most) - least) / scale + 0.5) * scale + least
    return jnp.where(empty, x, rounded), empty | ((x >= least) & (x <= most))


def _fake_quant_backward(inside: Array, dy: Array) -> tuple[Array, Array, Array]:
    none = jnp.zeros((), dy.dtype)
    return jnp.where(inside, dy, 0), none, none


fake_quant.defvjp(_fake_quant, _fake_quant_backward)


def fake_quant_kernel(kernel: Array) -> Array:
    """A kernel [..., O] with 255 values from -m to m in each of O channels, m being its largest magnitude there."""
    scale = jnp.abs(kernel).max(tuple(range(kernel.ndim - 1))) / 127
    rounded = jnp.round(kernel / jnp.where(scale == 0, 1, scale)) * scale
    return kernel + jax.lax.stop_gradient(rounded - kernel)


def is_range(path: tuple[str, ...]) -> bool:
    """Whether the variable of a path is one that a quantized network has and the same in float32 lacks."""
    return path[-1] in RANGE


def quantized(network: Network) -> Network:
    """The same network with 8 bits, simulated: trained by a batch's ranges, and evaluated by their averages.

    Args:
      network: of Flax modules.
    Returns:
      A network whose batch statistics also hold the range of each layer's input. Variables of `network` without these
      are variables of it, which are rounded only where a range is known.
      Its `init` raises InputError for a network without such layers.
    """

    def layers_of(train: bool) -> Any:
        def intercept(next_call: Callable[..., Any], inputs: Any, named: Any, context: Any) -> Any:
            if context.method_name != "__call__" or not isinstance(context.module, QUANTIZED):
                return next_call(*inputs, **named)
            return next_call(_rounded(inputs[0], context.module.scope, train), *inputs[1:], **named)

        return nn.intercept_methods(intercept)

    def init(rng: Array, images: Array) -> Variables:
        with layers_of(train=False):
            variables = network.init(rng, images)
        if not any(is_range(path) for path in flatten_dict(dict(variables["batch_stats"]))):
            raise InputError(
                f"model.quantize is 'int8', and {network.name} has no convolution or linear layer of Flax; expected ''"
            )
        return variables

    def apply(variables: Variables, images: Array, *, train: bool, **options: Any) -> tuple[Outputs, Any]:
        flat = flatten_dict(dict(variables["params"]))
        ranged = {path[:-1] for path in flatten_dict(dict(variables["batch_stats"])) if is_range(path)}
        own = [path for path in flat if path[-1] == "kernel" and path[:-1] in ranged]
        kernels = {path: fake_quant_kernel(flat[path]) for path in own}
        with layers_of(train):
            return network.apply(
                {**variables, "params": unflatten_dict({**flat, **kernels})}, images, train=train, **options
            )

    def torch_key(path: tuple[str, ...]) -> str:
        assert network.torch_key is not None
        if not is_range(path):
            return network.torch_key(path)
        return network.torch_key(("params", *path[1:-1], "kernel")).rpartition(".")[0] + f".{path[-1]}"

    return network._replace(init=init, apply=apply, torch_key=network.torch_key and torch_key)


def _rounded(x: Array, scope: Any, train: bool) -> Array:
    """The input of the layer in a scope, rounded by the batch's range in training, and by the averaged one else."""
    wide = at_least_float32(x)
    low, high = (scope.variable("batch_stats", name, jnp.zeros, (), wide.dtype) for name in RANGE)
    if not train:
        return fake_quant(wide, low.value, high.value).astype(x.dtype)
    least, most = (jax.lax.stop_gradient(y) for y in (jnp.minimum(wide.min(), 0), jnp.maximum(wide.max(), 0)))
    for average, new in ((low, least), (high, most)):
        average.value = (1 - layers.MOMENTUM) * average.value + layers.MOMENTUM * new
    return fake_quant(wide, least, most).astype(x.dtype)
