"""Plain functions as networks."""

from collections.abc import Callable, Mapping
from typing import Any

from kd_jax.errors import InputError, check_callable
from kd_jax.types import Array, Network, Outputs, Preprocessing, Variables, at_least_float32


def from_function(
    init: Callable[[Array, Array], Mapping[str, Any]],
    apply: Callable[[Mapping[str, Any], Array], Array | Outputs],
    *,
    published: Preprocessing | None = None,
) -> Network:
    """Makes a network of a function that computes the same in training, such as one of another library.

    Args:
      init: (key, images [B, H, W, C]) -> parameters, a dict.
      apply: (parameters, images) -> logits [B, K], or `Outputs`.
      published: see `Network`.

    >>> import jax
    >>> network = from_function(
    ...     lambda key, images: {"kernel": jax.numpy.zeros((images.shape[-1], 10))},
    ...     lambda params, images: images.mean((1, 2)) @ params["kernel"],
    ... )
    >>> images = jax.numpy.zeros((2, 8, 8, 3))
    >>> network.apply(network.init(jax.random.key(0), images), images, train=False)[0].logits.shape
    (2, 10)
    """
    check_callable("the initialization of a network", init)
    check_callable("the function of a network", apply)

    def init_variables(rng: Array, images: Array) -> Variables:
        params = init(rng, images)
        if not isinstance(params, Mapping):
            raise InputError(f"a network's parameters are a {type(params).__name__}; expected a dict")
        return {"params": params, "batch_stats": {}}

    def outputs(variables: Variables, images: Array, *, train: bool, **_: Any) -> tuple[Outputs, Any]:
        del train
        said = apply(variables["params"], images)
        return (said if isinstance(said, Outputs) else Outputs(at_least_float32(said))), {}

    return Network(init_variables, outputs, published=published)
