"""Flax modules as networks."""

import inspect
import warnings
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from kd_jax.types import Array, Network, Outputs, Variables


def from_linen(
    module: nn.Module,
    *,
    head: tuple[str, ...] = (),
    torch_key: Callable[[tuple[str, ...]], str] | None = None,
) -> Network:
    """Wraps a Flax module whose `__call__(images, *, train, perturbations)` returns `Outputs`, or logits [B, K] alone.

    It may lack `train` and `perturbations`: it is then the same in training, and has no Grad-CAM.
    """
    takes = inspect.signature(type(module).__call__).parameters

    def told(train: bool, perturbations: tuple[Array | None, ...] | None = None) -> dict[str, Any]:
        options = {"train": train, "perturbations": perturbations}
        return {key: value for key, value in options.items() if key in takes}

    def init(rng: Array, images: Array) -> Variables:
        _warn_of_stem(getattr(module, "stem", None), images.shape[1])
        variables = module.init(rng, images, **told(False))
        return {"params": variables["params"], "batch_stats": variables.get("batch_stats", {})}

    def apply(
        variables: Variables,
        images: Array,
        *,
        train: bool,
        rng: Array | None = None,
        perturbations: tuple[Array | None, ...] | None = None,
    ) -> tuple[Outputs, Any]:
        rngs = None if rng is None else {"dropout": rng}
        result: Any = module.apply(variables, images, **told(train, perturbations), rngs=rngs, mutable=["batch_stats"])
        outputs, changed = result
        if not isinstance(outputs, Outputs):
            outputs = Outputs(outputs.astype(jnp.promote_types(outputs.dtype, jnp.float32)))
        return outputs, changed.get("batch_stats", {})

    return Network(init, apply, head, torch_key)


def _warn_of_stem(stem: str | None, size: int) -> None:
    if stem == "imagenet" and size < 64:
        advice = f'the "imagenet" stem divides a {size}-pixel image by four before the first stage; use stem="cifar"'
    elif stem == "cifar" and size > 96:
        advice = f'the "cifar" stem keeps {size}-pixel images at full size, which costs 16 times; use stem="imagenet"'
    else:
        return
    warnings.warn(advice, stacklevel=2)
