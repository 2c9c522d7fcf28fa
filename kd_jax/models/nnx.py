"""NNX modules as networks."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict

from kd_jax.errors import InputError, check_callable, choose
from kd_jax.models.linen import TorchKey
from kd_jax.types import Array, Network, Outputs, Preprocessing, Variables, at_least_float32

COLLECTIONS: dict[str, Any] = {"params": nnx.Param, "batch_stats": nnx.BatchStat}


def from_nnx(
    build: Callable[[nnx.Rngs], nnx.Module],
    *,
    head: tuple[str, ...] = (),
    torch_key: TorchKey | None = None,
    published: Preprocessing | None = None,
) -> Network:
    """Wraps NNX modules whose `__call__(images)` returns `Outputs` or logits [B, K].

    `__call__` may take `perturbations`, as Grad-CAM needs it, see `NetworkApply`. In training it is called after
    `module.train()`, and else after `module.eval()`, which batch norms and dropout follow.

    Args:
      build: makes the module with its random numbers, as in `lambda rngs: MyNetwork(num_classes=10, rngs=rngs)`. It is
        called again for each program that is traced.
      head, torch_key, published: see `Network`. A module in a list has its number for a name.
    Returns:
      A network, whose `init` raises InputError when `head` names a module that does not exist, and for a module with
      variables that are neither parameters, batch statistics nor random numbers.

    >>> class Softmax(nnx.Module):
    ...     def __init__(self, num_classes, rngs):
    ...         self.fc = nnx.Linear(3, num_classes, rngs=rngs)
    ...     def __call__(self, images):
    ...         return self.fc(images.mean((1, 2)))
    >>> network = from_nnx(lambda rngs: Softmax(10, rngs), head=("fc",))
    >>> variables = network.init(jax.random.key(0), jax.numpy.zeros((2, 8, 8, 3)))
    >>> {name: x.shape for name, x in variables["params"].pop("fc").items()}
    {'bias': (10,), 'kernel': (3, 10)}
    """
    check_callable("the builder of a network", build)

    def init(rng: Array, images: Array) -> Variables:
        del images  # the module knows its shapes
        module = _built(build, rng, rng)
        kept = (*COLLECTIONS.values(), nnx.RngState)
        for path, variable in nnx.to_flat_state(nnx.state(module)):
            if not isinstance(variable, kept):
                name, kind = ".".join(map(str, path)), type(variable).__name__
                raise InputError(f"the network's {name} is a {kind}; expected Param and BatchStat")
        variables = {name: _read(module, kind) for name, kind in COLLECTIONS.items()}
        for name in head:
            choose("a module of the network's head", name, variables["params"])
        return variables

    def apply(
        variables: Variables,
        images: Array,
        *,
        train: bool,
        rng: Array | None = None,
        perturbations: tuple[Array | None, ...] | None = None,
    ) -> tuple[Outputs, Any]:
        key = jax.random.key(0)  # what it draws is replaced, or is not used
        module: Any = _built(build, key, key if rng is None else rng)
        for name, kind in COLLECTIONS.items():
            _write(module, kind, variables[name])
        module.train() if train else module.eval()
        takes = "perturbations" in inspect.signature(type(module).__call__).parameters
        outputs = module(images, perturbations=perturbations) if takes else module(images)
        if not isinstance(outputs, Outputs):
            outputs = Outputs(at_least_float32(outputs))
        return outputs, _read(module, nnx.BatchStat)

    return Network(init, apply, head, torch_key, published=published)


def _built(build: Callable[[nnx.Rngs], nnx.Module], rng: Array, dropout: Array) -> nnx.Module:
    module = build(nnx.Rngs(params=rng, dropout=dropout))
    if not isinstance(module, nnx.Module):
        raise InputError(f"the builder of a network returns a {type(module).__name__}; expected an NNX module")
    return module


def _read(module: nnx.Module, kind: Any) -> dict[str, Any]:
    """The variables of a kind, {module: {...: array}}."""
    flat = nnx.to_flat_state(nnx.state(module, kind))
    return unflatten_dict({tuple(map(str, path)): variable[...] for path, variable in flat})


def _write(module: nnx.Module, kind: Any, values: Mapping[str, Any]) -> None:
    """Sets the variables of a kind to what `_read` returned."""
    flat = flatten_dict(dict(values))
    own = nnx.to_flat_state(nnx.state(module, kind))
    nnx.update(module, nnx.from_flat_state([(path, x.replace(flat[tuple(map(str, path))])) for path, x in own]))
