"""Networks by name. `create("resnet18", num_classes=10)` returns a pair of pure functions."""

import warnings
from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp

from kd_jax.errors import InputError, choose
from kd_jax.models import cifar_resnet, resnet
from kd_jax.types import Network

NAMES: dict[str, Callable[..., nn.Module]] = {
    **dict.fromkeys(resnet.FAMILY, resnet.resnet),
    **dict.fromkeys(cifar_resnet.FAMILY, cifar_resnet.cifar_resnet),
}
STEMS = ("imagenet", "cifar")
HEADS = ("linear", "mlp")
SHORTCUTS = ("conv", "pad")


def register(name: str, build: Callable[..., nn.Module]) -> None:
    """Adds a network of your own, which configs then know by `name`.

    Args:
      name: not yet taken.
      build: (name, num_classes, **options) -> Flax module (see `from_linen`); the options are those of `create`, and
        `stem` only where one is given. Modules called "fc" or "mlp" are its head, for freezing.
    """
    if name in NAMES:
        raise InputError(f"the network {name!r} is registered already; expected another name")
    NAMES[name] = build


def create(
    name: str,
    num_classes: int,
    *,
    stem: str | None = None,
    width: float = 1.0,
    head: str = "linear",
    shortcut: str = "conv",
    frozen_trunk: bool = False,
    dtype: jnp.dtype = jnp.float32,
) -> Network:
    """Builds a network.

    Args:
      name: one of `NAMES`.
      num_classes: K, at least 2.
      stem: "imagenet" (for images of about 64 pixels and more), "cifar" (for smaller ones), or None for the one
        that the family was published with.
      width: factor on every number of channels.
      head: "linear", or "mlp" (Linear 1000, dropout 0.5, batch norm, ReLU before the last layer).
      shortcut: "conv", or "pad" for shortcuts without parameters (basic blocks only).
      frozen_trunk: all but the head stays in inference mode in training.
      dtype: of the computation. Parameters, statistics, logits and embedding are at least float32.

    Raises:
      InputError: for an unknown name or option.

    >>> import jax
    >>> network = create("resnet8", num_classes=10, width=0.25)
    >>> images = jax.numpy.zeros((2, 16, 16, 3))
    >>> variables = network.init(jax.random.key(0), images)
    >>> outputs, _ = network.apply(variables, images, train=False)
    >>> outputs.logits.shape, outputs.embedding.shape, len(outputs.features)
    ((2, 10), (2, 16), 4)
    """
    build = choose("model.name", name, NAMES)
    choose("model.head", head, HEADS)
    choose("model.shortcut", shortcut, SHORTCUTS)
    options = {} if stem is None else {"stem": choose("model.stem", stem, STEMS)}
    if num_classes < 2:
        raise InputError(f"num_classes is {num_classes}; expected at least 2")
    if not 0 < width <= 64:
        raise InputError(f"model.width is {width}; expected a factor above 0 and at most 64")
    return from_linen(
        build(
            name,
            num_classes,
            width=width,
            head=head,
            shortcut=shortcut,
            frozen_trunk=frozen_trunk,
            dtype=dtype,
            **options,
        )
    )


def from_linen(module: nn.Module) -> Network:
    """Wraps a Flax module whose `__call__(images, *, train, perturbations)` returns `Outputs`."""

    def init(rng, images):
        _warn_of_stem(getattr(module, "stem", None), images.shape[1])
        variables = module.init(rng, images, train=False)
        return {"params": variables["params"], "batch_stats": variables.get("batch_stats", {})}

    def apply(variables, images, *, train, rng=None, perturbations=None):
        rngs = None if rng is None else {"dropout": rng}
        outputs, changed = module.apply(
            variables, images, train=train, perturbations=perturbations, rngs=rngs, mutable=["batch_stats"]
        )
        return outputs, changed.get("batch_stats", {})

    return Network(init, apply)


def _warn_of_stem(stem: str | None, size: int) -> None:
    if stem == "imagenet" and size < 64:
        advice = f'the "imagenet" stem divides a {size}-pixel image by four before the first stage; use stem="cifar"'
    elif stem == "cifar" and size > 96:
        advice = f'the "cifar" stem keeps {size}-pixel images at full size, which costs 16 times; use stem="imagenet"'
    else:
        return
    warnings.warn(advice, stacklevel=2)
