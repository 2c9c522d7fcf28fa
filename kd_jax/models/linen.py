"""Flax modules as networks."""

import inspect
from collections.abc import Callable
from typing import Any

import flax.errors
import flax.linen as nn
import jax

from kd_jax.errors import InputError, choose
from kd_jax.types import Array, Network, Outputs, Preprocessing, Variables, at_least_float32

TorchKey = Callable[[tuple[str, ...]], str]  # path in the variables, as ("params", "fc", "kernel") -> PyTorch's key


def from_linen(
    module: nn.Module,
    *,
    head: tuple[str, ...] = (),
    torch_key: TorchKey | None = None,
    published: Preprocessing | None = None,
    other_key: Callable[[str], str] | None = None,
) -> Network:
    """Wraps a Flax module whose `__call__(images, *, train, perturbations)` returns `Outputs` or logits [B, K].

    `__call__` may lack `train`, for a module that computes the same in training, and `perturbations`, for one without
    Grad-CAM.

    Args:
      module: with or without batch statistics.
      head, torch_key, published, other_key: see `Network`.
    Returns:
      A network, whose `init` raises InputError when `head` names a module that does not exist.
    """
    parameters = inspect.signature(type(module).__call__).parameters

    def accepted(**options: Any) -> dict[str, Any]:
        return {key: value for key, value in options.items() if key in parameters}

    def init(rng: Array, images: Array) -> Variables:
        variables = dict(module.init(rng, images, **accepted(train=False)))
        kept = {name: variables.pop(name, {}) for name in ("params", "batch_stats")}
        if variables:  # what is sown may be left out, what is read may not
            try:
                jax.eval_shape(lambda: apply(kept, images, train=False))
            except flax.errors.ScopeCollectionNotFound as error:
                raise InputError(
                    f"the network reads the collection {min(variables)!r}; expected 'params' and 'batch_stats' alone"
                ) from error
        for name in head if getattr(module, "num_classes", None) != 0 else ():  # then no layer is made of it
            choose("a module of the network's head", name, kept["params"])
        return kept

    def apply(
        variables: Variables,
        images: Array,
        *,
        train: bool,
        rng: Array | None = None,
        perturbations: tuple[Array | None, ...] | None = None,
    ) -> tuple[Outputs, Any]:
        options = accepted(train=train, perturbations=perturbations)
        rngs = None if rng is None else {"dropout": rng}
        result: Any = module.apply(variables, images, **options, rngs=rngs, mutable=["batch_stats"])
        outputs, changed = result
        if not isinstance(outputs, Outputs):
            outputs = Outputs(at_least_float32(outputs))
        return outputs, changed.get("batch_stats", {})

    return Network(init, apply, head, torch_key, published=published, other_key=other_key)
