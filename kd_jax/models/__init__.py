"""Networks by name. `create("resnet18", num_classes=10)` returns a pair of pure functions."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike

from kd_jax import registry
from kd_jax.errors import InputError, choose
from kd_jax.models import cifar_resnet, resnet
from kd_jax.models.linen import from_linen
from kd_jax.models.taps import Taps
from kd_jax.types import Network

__all__ = ["NETWORKS", "Builder", "Taps", "create", "from_linen", "register"]

Builder = Callable[..., Network | nn.Module]  # (num_classes, **options)

NETWORKS: dict[str, Builder] = {
    **{name: functools.partial(resnet.create, name) for name in resnet.FAMILY},
    **{name: functools.partial(cifar_resnet.create, name) for name in cifar_resnet.FAMILY},
}
GIVEN = ("num_classes", "dtype", "frozen_backbone", "parent", "name")  # parameters that are no options of a config


def register(
    name: str,
    build: Builder,
    *,
    head: tuple[str, ...] = (),
    torch_key: Callable[[tuple[str, ...]], str] | None = None,
) -> None:
    """Adds a network of your own, which configs then know by `name`, or replaces it.

    Args:
      name: of the network.
      build: a Flax module's class, or a function (num_classes, **options) that returns a Flax module (see `from_linen`)
        or a `Network`. Its other parameters are the options of the config. It is told `dtype` (of the computation) and
        `frozen_backbone` (everything but the head stays in inference mode) where it takes them.
      head, torch_key: see `Network`, for a module that does not say them itself.
    """
    registry.add(NETWORKS, name, functools.wraps(build)(functools.partial(_wrap, build, head, torch_key)))


def _wrap(
    build: Builder,
    head: tuple[str, ...],
    torch_key: Callable[[tuple[str, ...]], str] | None,
    *arguments: Any,
    **options: Any,
) -> Network:
    built = build(*arguments, **options)
    return built if isinstance(built, Network) else from_linen(built, head=head, torch_key=torch_key)


def create(
    name: str,
    num_classes: int,
    *,
    dtype: DTypeLike = jnp.float32,
    frozen_backbone: bool = False,
    **options: Any,
) -> Network:
    """Builds a network.

    Args:
      name: one of `NETWORKS`.
      num_classes: K, at least 2.
      dtype: of the computation. Parameters, statistics, logits and embedding are at least float32.
      frozen_backbone: all but the head stays in inference mode in training.
      options: of the network; None stands for its default.
    Raises:
      InputError: for an unknown name or option, or an option of another type.

    >>> import jax
    >>> network = create("resnet8", num_classes=10, width=0.25)
    >>> images = jax.numpy.zeros((2, 16, 16, 3))
    >>> variables = network.init(jax.random.key(0), images)
    >>> outputs, _ = network.apply(variables, images, train=False)
    >>> outputs.logits.shape, outputs.embedding.shape, len(outputs.features)
    ((2, 10), (2, 16), 4)
    """
    build = choose("model.name", name, NETWORKS)
    if num_classes < 2:
        raise InputError(f"num_classes is {num_classes}; expected at least 2")
    parameters = inspect.signature(build).parameters
    known = {key: p.default for key, p in parameters.items() if key not in GIVEN and p.kind is not p.VAR_KEYWORD}
    chosen = {key: value for key, value in options.items() if value is not None}
    for key, value in chosen.items():
        choose(f"an option of {name}", key, known)
        default = known[key]
        if isinstance(default, bool | int | float | str) and not _of_kind(value, default):
            expected = "true or false" if isinstance(default, bool) else f"a value like {default!r}"
            raise InputError(f"model.{key} is {value!r}; expected {expected}")
    if frozen_backbone and "frozen_backbone" not in parameters:
        raise InputError(f"model.freeze is 'backbone_and_norms', which {name} cannot do; expected 'none' or 'backbone'")
    given = {"dtype": dtype, "frozen_backbone": frozen_backbone}
    told = {key: value for key, value in given.items() if key in parameters}
    network = build(num_classes=num_classes, **told, **chosen)
    return (network if isinstance(network, Network) else from_linen(network))._replace(name=name)


def _of_kind(value: Any, default: Any) -> bool:
    if isinstance(default, bool) or isinstance(value, bool):
        return isinstance(default, bool) and isinstance(value, bool)
    number = isinstance(default, int | float)
    return isinstance(value, int | float) if number else isinstance(value, str)
