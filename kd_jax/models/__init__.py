"""Networks by name. `create("resnet18", num_classes=10)` returns a pair of pure functions."""

import functools
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from kd_jax import keys, registry, types
from kd_jax.errors import InputError, check_callable, choose
from kd_jax.models import cifar_resnet, convnext, efficientnet, mobilenet, regnet, resnet, shufflenet, vgg, vit, wrn
from kd_jax.models.function import from_function
from kd_jax.models.linen import TorchKey, from_linen
from kd_jax.models.taps import Taps
from kd_jax.types import Array, Network, Outputs, Variables

if TYPE_CHECKING:
    from kd_jax.models.nnx import from_nnx

__all__ = ["NETWORKS", "Builder", "Taps", "create", "from_function", "from_linen", "from_nnx", "register"]

Builder = Callable[..., Network]  # (num_classes, **options)

NETWORKS: dict[str, Builder] = {
    name: functools.partial(family.create, name)
    for family in (resnet, cifar_resnet, wrn, vgg, mobilenet, shufflenet, efficientnet, regnet, convnext, vit)
    for name in family.FAMILY
}
# Parameters of a builder that are not options of a config; Flax gives every module the last two.
NOT_OPTIONS = ("num_classes", "dtype", "frozen_backbone", "parent", "name")


def register(
    name: str,
    build: Callable[..., nn.Module | Network],
    *,
    head: tuple[str, ...] = (),
    torch_key: TorchKey | None = None,
) -> None:
    """Adds a network of your own, which configs then know by `name`, or replaces the one of that name.

    Args:
      name: of the network.
      build: a Flax module's class, or a function that returns a Flax module (see `from_linen`) or a `Network`. It is
        called with `num_classes`; with `dtype` (of the computation) and `frozen_backbone` (all but the head stays in
        inference mode) if it takes them; and with the options of the config, which are its other parameters.
      head, torch_key: of a Flax module, see `Network`.

    >>> class Softmax(nn.Module):
    ...     num_classes: int
    ...     @nn.compact
    ...     def __call__(self, images):
    ...         return nn.Dense(self.num_classes, name="classifier")(images.mean((1, 2)))
    >>> register("softmax", Softmax, head=("classifier",))
    >>> create("softmax", num_classes=10).head
    ('classifier',)
    """

    if isinstance(build, nn.Module):
        raise InputError(f"the network {name!r} is an instance of {type(build).__name__}; expected the class itself")
    check_callable(f"the network {name!r}", build)
    if isinstance(head, str):
        raise InputError(f"head is {head!r}; expected the names of modules, as in ({head!r},)")

    @functools.wraps(build, updated=())
    def network(**options: Any) -> Network:
        built = build(**options)
        if not isinstance(built, nn.Module | Network):
            raise InputError(f"the network {name!r} is built of type {type(built).__name__}; expected a Flax module")
        return built if isinstance(built, Network) else from_linen(built, head=head, torch_key=torch_key)

    registry.add(NETWORKS, name, network)


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
      num_classes: K, at least 2; or 0 for a network without a final layer, which reports no logits.
      dtype: of the computation. Parameters, statistics, logits and embedding are at least float32.
      frozen_backbone: all but the head stays in inference mode in training.
      options: of the network; None stands for its default.
    Raises:
      InputError: for an unknown name or option, an option of another kind or without a value, or a network that cannot
        freeze its backbone.

    >>> import jax
    >>> network = create("resnet8", num_classes=10, width=0.25)
    >>> images = jax.numpy.zeros((2, 16, 16, 3))
    >>> variables = jax.jit(network.init)(jax.random.key(0), images)
    >>> outputs = jax.jit(lambda v, x: network.apply(v, x, train=False)[0])(variables, images)
    >>> outputs.logits.shape, outputs.embedding.shape, len(outputs.features)
    ((2, 10), (2, 16), 4)
    """
    build = choose("model.name", name, NETWORKS)
    if not isinstance(num_classes, int | np.integer) or num_classes < 0 or num_classes == 1:
        raise InputError(f"num_classes is {num_classes!r}; expected a whole number of at least 2, or 0 for no classes")
    parameters = inspect.signature(build).parameters
    own = {key: parameter for key, parameter in parameters.items() if key not in NOT_OPTIONS}
    options = {key: value for key, value in options.items() if value is not None}
    keys.check_options("model", f"an option of model {name}", own, options)
    if frozen_backbone and "frozen_backbone" not in parameters:
        raise InputError(
            f"model.freeze is 'backbone_and_norms', but {name} does not take frozen_backbone;"
            " expected 'none' or 'backbone'"
        )
    given = {"num_classes": num_classes, "dtype": dtype, "frozen_backbone": frozen_backbone}
    network = build(**{key: value for key, value in given.items() if key in parameters}, **options)
    return (network if num_classes else _without_logits(network))._replace(name=name, num_classes=num_classes)


def _without_logits(network: Network) -> Network:
    def apply(variables: Variables, images: Array, **options: Any) -> tuple[Outputs, Any]:
        outputs, batch_stats = network.apply(variables, images, **options)
        return outputs._replace(logits=types.NO_LOGITS, head=None), batch_stats

    return network._replace(apply=apply, head=())


def __getattr__(name: str) -> Any:
    if name == "from_nnx":  # NNX takes a fifth of a second to import
        from kd_jax.models.nnx import from_nnx

        return from_nnx
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
