"""Grad-CAM maps of a network, and measures of how well two networks' maps agree. Pure and differentiable.

Selvaraju et al., "Grad-CAM", ICCV 2017; Chattopadhay et al., "Grad-CAM++", WACV 2018 (equations as numbered in
arXiv 1710.11063).
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from kd_jax.errors import InputError, choose
from kd_jax.types import Network, Outputs, Variables, at_least_float32

VARIANTS = ("gradcam", "gradcam++")
TOP_FRACTION = 0.2  # of the pixels, for `iou`
# In the denominator of Grad-CAM++, as in the PyTorch package grad-cam; the paper has none. It matters where gradients
# are below about 1e-3: their weights are smaller than the paper's.
GRADCAM_PP_EPSILON = 1e-6


def gradcam(
    network: Network,
    variables: Variables,
    images: jax.Array,
    labels: jax.Array,
    *,
    stage: int = -1,
    variant: str = "gradcam",
) -> jax.Array:
    """Computes Grad-CAM maps in inference mode.

    With A the stage's feature map, y the logit of the label and G = dy/dA, the result is ReLU(sum_c w_c A_c) (Grad-CAM,
    equation 2). For "gradcam" the weight w_c is the spatial mean of G_c (equation 1). For "gradcam++" it is the spatial
    sum of alpha ReLU(G_c) (Grad-CAM++, equation 5), with alpha = G_c^2 / (2 G_c^2 + G_c^3 sum(A_c)) (equation 19; the
    paper's score is exp(y), which only scales the whole map and is omitted). Grad-CAM++ assumes nonnegative feature
    maps.

    Args:
      network: one that adds `perturbations` to its maps, see `kd_jax.types.Network`.
      variables: of the network.
      images: [B, H, W, C], normalized as the network expects them.
      labels: [B] int from 0 to K - 1, the class that each map explains; not checked.
      stage: which of `Outputs.features`, from 0 (the stem), or from -1 (the last) backwards.
      variant: one of `VARIANTS`.
    Returns:
      [B, h, w] at the stage's resolution, at least float32, nonnegative, not normalized; zero without evidence for the
      class. One backward pass serves the whole batch, and no image influences another's map. Under `jit`, fix
      `network`, `stage` and `variant`. A loss on the maps can be differentiated with respect to `variables["params"]`.
    Raises:
      InputError: for an unknown stage or variant, or a network whose `apply` ignores `perturbations`. A jitted `apply`
        hides that it ignores them: its maps are zero.

    >>> from kd_jax import models
    >>> network = models.create("resnet8", num_classes=10, width=0.25)
    >>> images = jnp.zeros((2, 16, 16, 3))
    >>> variables = jax.jit(network.init)(jax.random.key(0), images)
    >>> maps = jax.jit(lambda v, x: gradcam(network, v, x, jnp.array([3, 7]), stage=-2))(variables, images)
    >>> maps.shape
    (2, 8, 8)
    """
    return gradcam_and_outputs(network, variables, images, labels, stage=stage, variant=variant)[0]


def gradcam_and_outputs(
    network: Network,
    variables: Variables,
    images: jax.Array,
    labels: jax.Array,
    *,
    stage: int = -1,
    variant: str = "gradcam",
) -> tuple[jax.Array, Outputs]:
    """Computes the maps of `gradcam`, and returns with them the network's outputs of the same forward pass."""
    choose("variant", variant, VARIANTS)
    stages = jax.eval_shape(lambda: network.apply(variables, images, train=False)[0]).features
    if not stages:
        raise InputError("the network reports no feature maps; expected one that does")
    if not (isinstance(stage, int | np.integer) and -len(stages) <= stage < len(stages)):
        raise InputError(
            f"stage is {stage}; expected 0 (the stem) to {len(stages) - 1}, or {-len(stages)} to -1 (the last)"
        )
    before, after = (None,) * (stage % len(stages)), (None,) * (len(stages) - 1 - stage % len(stages))

    def score(perturbation: jax.Array) -> tuple[jax.Array, Outputs]:
        perturbations = (*before, perturbation, *after)
        outputs = network.apply(variables, images, train=False, perturbations=perturbations)[0]
        return jnp.take_along_axis(outputs.logits, labels[:, None], axis=1).sum(), outputs

    zero = jnp.zeros(stages[stage].shape, stages[stage].dtype)
    if not _depends_on(score, zero):
        raise InputError("the network ignores `perturbations`; expected one that adds them to its maps")
    gradients, outputs = jax.grad(score, has_aux=True)(zero)
    maps = at_least_float32(outputs.features[stage])
    gradients = at_least_float32(gradients)
    if variant == "gradcam":
        weights = gradients.mean((1, 2), keepdims=True)
    else:
        positive = jax.nn.relu(gradients)
        denominator = 2 * positive**2 + positive**3 * maps.sum((1, 2), keepdims=True)
        # The maximum matters only for negative maps, which it keeps finite.
        weights = (positive**3 / (jnp.maximum(denominator, 0) + GRADCAM_PP_EPSILON)).sum((1, 2), keepdims=True)
    return jax.nn.relu((weights * maps).sum(-1)), outputs


def _depends_on(function: Callable, x: jax.Array) -> bool:
    """Whether the traced program of `function` uses its argument."""
    program = jax.make_jaxpr(function)(x).jaxpr
    return any(variable is program.invars[0] for equation in program.eqns for variable in equation.invars)


def upsample(maps: jax.Array, size: int | tuple[int, int]) -> jax.Array:
    """Maps [B, h, w] resized to [B, H, W], linear between pixel centers. `size`: (H, W), or one number for both."""
    height, width = (size, size) if isinstance(size, int) else size
    return jax.image.resize(maps, (len(maps), height, width), "linear")


def at_one_size(maps: Sequence[jax.Array]) -> list[jax.Array]:
    """Maps [B, h, w] of several networks, upsampled to the largest of their sizes.

    Raises:
      InputError: when that is one pixel, which locates nothing.
    """
    height, width = (max(x.shape[axis] for x in maps) for axis in (1, 2))
    if height == width == 1:
        raise InputError("the maps of this stage have one pixel, which locates nothing; expected an earlier stage")
    return [upsample(x, (height, width)) for x in maps]


def normalize(maps: jax.Array) -> jax.Array:
    """Maps [B, h, w], each rescaled to [0, 1]: (map - min) / (max - min). A constant map becomes zero."""
    low, high = maps.min((1, 2), keepdims=True), maps.max((1, 2), keepdims=True)
    constant = _constant(maps)
    return jnp.where(constant, 0.0, (maps - low) / jnp.where(constant, 1.0, high - low))


def cosine(a: jax.Array, b: jax.Array) -> jax.Array:
    """Maps [B, h, w], [B, h, w] -> [B]: sum(a b) / (|a| |b|), in [0, 1] for nonnegative maps.

    Zero where either map is zero.
    """
    a, b = _unit(a), _unit(b)
    return (a * b).sum((1, 2))


def pearson(a: jax.Array, b: jax.Array) -> jax.Array:
    """Maps [B, h, w], [B, h, w] -> [B]: the correlation over pixels, `cosine` of a - mean(a), b - mean(b), in [-1, 1].

    Zero where either map is constant.
    """
    return cosine(*(jnp.where(_constant(x), 0.0, x - x.mean((1, 2), keepdims=True)) for x in (a, b)))


def iou(a: jax.Array, b: jax.Array) -> jax.Array:
    """Maps [B, h, w], [B, h, w] -> [B]: |T(a) and T(b)| / |T(a) or T(b)|, in [0, 1]; it has no gradient.

    T(x) is the set of positive pixels among the top 20%: those not below the k-th largest value, with k = 0.2 h w
    rounded, at least 1. Ties are all included, so T may hold more than k pixels. Zero where both maps are zero.
    """
    a, b = _top(a), _top(b)
    union = (a | b).sum((1, 2))
    return (a & b).sum((1, 2)) / jnp.maximum(union, 1)


def center_distance(a: jax.Array, b: jax.Array) -> jax.Array:
    """Nonnegative maps [B, h, w], [B, h, w] -> [B]: |c(a) - c(b)|, in pixels of the maps.

    c(x) = sum(p x_p) / sum(x_p) over pixels p = (row, column) is the center of mass. A zero map counts as a constant
    one: its center is the middle of the image.
    """
    return _norm(_center(a) - _center(b), axis=-1)[:, 0]


AGREEMENT = {"cosine": cosine, "pearson": pearson, "iou": iou, "center_distance": center_distance}


def _norm(x: jax.Array, axis: int | tuple[int, ...]) -> jax.Array:
    """The Euclidean norm, with the axes kept, and with a zero gradient where the norm is zero."""
    squares = jnp.square(x).sum(axis, keepdims=True)
    return jnp.where(squares == 0, 0.0, jnp.sqrt(jnp.where(squares == 0, 1.0, squares)))


def _unit(maps: jax.Array) -> jax.Array:
    """Maps of unit norm; a zero map stays zero. Dividing by the largest value first keeps squares from underflowing."""
    largest = jnp.abs(maps).max((1, 2), keepdims=True)
    maps = maps / jnp.where(largest == 0, 1.0, largest)
    return maps / jnp.where(largest == 0, 1.0, _norm(maps, (1, 2)))


def _constant(maps: jax.Array) -> jax.Array:
    """Whether a map is constant up to rounding errors such as those of `upsample`."""
    low, high = maps.min((1, 2), keepdims=True), maps.max((1, 2), keepdims=True)
    return high - low <= 8 * jnp.finfo(maps.dtype).eps * jnp.maximum(jnp.abs(low), jnp.abs(high))


def _top(maps: jax.Array) -> jax.Array:
    """The pixels [B, h, w] bool that `iou` compares."""
    count = max(1, round(TOP_FRACTION * maps[0].size))
    least = jax.lax.top_k(maps.reshape(len(maps), -1), count)[0][:, -1]
    return (maps >= least[:, None, None]) & (maps > 0)


def _center(maps: jax.Array) -> jax.Array:
    """Centers of mass [B, 2], as (row, column)."""
    total = maps.sum((1, 2), keepdims=True)
    mass = jnp.where(total == 0, 1 / maps[0].size, maps / jnp.where(total == 0, 1.0, total))
    rows, columns = (jnp.arange(n, dtype=mass.dtype) for n in maps.shape[1:])
    return jnp.stack([mass.sum(2) @ rows, mass.sum(1) @ columns], axis=-1)
