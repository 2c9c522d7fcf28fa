"""Grad-CAM: which part of an image speaks for a class, and how far two networks' maps agree. Pure and differentiable.

Selvaraju et al., "Grad-CAM", ICCV 2017; Chattopadhay et al., "Grad-CAM++", WACV 2018 (equations as numbered in
arXiv 1710.11063).
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from kd_jax.errors import InputError, choose
from kd_jax.models.layers import at_least_float32
from kd_jax.types import Network, Outputs, Variables

VARIANTS = ("gradcam", "gradcam++")
TOP = 0.2  # share of the pixels that `iou` compares
# In the denominator of Grad-CAM++, as in the PyTorch package grad-cam; the paper has none. It matters where gradients
# are below about 1e-3: their weights are smaller than the paper's.
EPSILON = 1e-6
# Nine colours of matplotlib's "inferno", from 0 to 1: brighter is more, also in grey and to a colour-blind reader.
COLOURS = np.array(
    [
        [0.001, 0.000, 0.014],
        [0.129, 0.047, 0.291],
        [0.342, 0.062, 0.429],
        [0.541, 0.135, 0.415],
        [0.736, 0.216, 0.330],
        [0.894, 0.353, 0.194],
        [0.978, 0.558, 0.035],
        [0.975, 0.798, 0.206],
        [0.988, 0.998, 0.645],
    ],
    np.float32,
)


def gradcam(
    network: Network,
    variables: Variables,
    images: jax.Array,
    labels: jax.Array,
    *,
    stage: int = -1,
    variant: str = "gradcam",
) -> jax.Array:
    """Where a network, in inference mode, sees evidence for a class.

    With A the stage's map, y the logit of the label and G = dy/dA, the map is ReLU(sum_c w_c A_c) (Grad-CAM, equation
    2). For "gradcam" the weight w_c is the mean of G_c over the map (equation 1). For "gradcam++" it is the sum of
    alpha ReLU(G_c) over the map (Grad-CAM++, equation 5), with alpha = G_c^2 / (2 G_c^2 + G_c^3 sum(A_c)) (equation 19;
    the paper's score is exp(y), whose factor scales the whole map and is left out). It is meant for maps that are not
    negative.

    Args:
      network: one that adds `perturbations` to its maps, see `kd_jax.types.Network`.
      variables: of the network.
      images: [B, H, W, C], normalised as the network reads them.
      labels: [B] int from 0 to K - 1, the class that each map explains; not checked.
      stage: which of `Outputs.features`, from 0 (the stem), or from -1 (the last) backwards.
      variant: one of `VARIANTS`.
    Returns:
      [B, h, w] of the stage's size, at least float32, not negative, not normalised; zero where nothing speaks for the
      class. One backward pass serves the batch: no image influences another's map. `jit` it with `network`, `stage` and
      `variant` fixed; `jax.grad` of a loss on the maps by `variables["params"]` works.
    Raises:
      InputError: for an unknown stage or variant, and for a network whose `apply` does not read `perturbations` (in the
        program that JAX traces; a jitted `apply` hides that, and its maps would be zero).

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
    """`gradcam`, and what the network reports in the same forward pass."""
    choose("variant", variant, VARIANTS)
    stages = jax.eval_shape(lambda: network.apply(variables, images, train=False)[0]).features
    if not (isinstance(stage, int | np.integer) and -len(stages) <= stage < len(stages)):
        raise InputError(
            f"stage is {stage}; expected 0 (the stem) to {len(stages) - 1}, or {-len(stages)} to -1 (the last)"
        )
    before, after = (None,) * (stage % len(stages)), (None,) * (len(stages) - 1 - stage % len(stages))

    def score(perturbation):
        perturbations = (*before, perturbation, *after)
        outputs = network.apply(variables, images, train=False, perturbations=perturbations)[0]
        return jnp.take_along_axis(outputs.logits, labels[:, None], axis=1).sum(), outputs

    zero = jnp.zeros(stages[stage].shape, stages[stage].dtype)
    if not _reads(score, zero):
        raise InputError("the network ignores `perturbations`; expected one that adds them to its maps")
    gradients, outputs = jax.grad(score, has_aux=True)(zero)
    maps = at_least_float32(outputs.features[stage])
    gradients = at_least_float32(gradients)
    if variant == "gradcam":
        weights = gradients.mean((1, 2), keepdims=True)
    else:
        positive = jax.nn.relu(gradients)
        denominator = 2 * positive**2 + positive**3 * maps.sum((1, 2), keepdims=True)
        # The maximum changes nothing unless maps are negative: it keeps those finite.
        weights = (positive**3 / (jnp.maximum(denominator, 0) + EPSILON)).sum((1, 2), keepdims=True)
    return jax.nn.relu((weights * maps).sum(-1)), outputs


def _reads(function: Callable, x: jax.Array) -> bool:
    """Whether a function's result depends on x, as far as its program shows."""
    program = jax.make_jaxpr(function)(x).jaxpr
    return any(variable is program.invars[0] for equation in program.eqns for variable in equation.invars)


def upsample(maps: jax.Array, size: int | tuple[int, int]) -> jax.Array:
    """Maps [B, h, w] -> [B, H, W], linear between the centres of pixels. `size`: (H, W), or one number for both."""
    height, width = (size, size) if isinstance(size, int) else size
    return jax.image.resize(maps, (len(maps), height, width), "linear")


def at_one_size(maps: Sequence[jax.Array]) -> list[jax.Array]:
    """Maps [B, h, w] of several networks, brought to the largest of their sizes.

    Raises:
      InputError: where that is one pixel, which shows no place.
    """
    height, width = (max(x.shape[axis] for x in maps) for axis in (1, 2))
    if height == width == 1:
        raise InputError("the maps of this stage are one pixel, which shows no place; expected an earlier stage")
    return [upsample(x, (height, width)) for x in maps]


def normalize(maps: jax.Array) -> jax.Array:
    """Maps [B, h, w], each brought to [0, 1]: (map - min) / (max - min). A constant map becomes zeros."""
    low, high = maps.min((1, 2), keepdims=True), maps.max((1, 2), keepdims=True)
    constant = _constant(maps)
    return jnp.where(constant, 0.0, (maps - low) / jnp.where(constant, 1.0, high - low))


def overlay(images: jax.Array, maps: jax.Array) -> jax.Array:
    """Images with their maps over them, to look at.

    Args:
      images: [B, H, W, C] of pixels in [0, 1], C 1 (grey) or 3 (RGB).
      maps: [B, h, w] of any size and range; each is normalised by itself.
    Returns:
      [B, H, W, 3] in [0, 1]: half the image, in grey, and half the map in colour.
    """
    height, width = images.shape[1:3]
    heat = normalize(upsample(maps, (height, width)))
    levels = np.linspace(0, 1, len(COLOURS), dtype=np.float32)
    colours = jnp.stack([jnp.interp(heat, levels, COLOURS[:, channel]) for channel in range(3)], axis=-1)
    return (images.mean(-1, keepdims=True) + colours) / 2


def cosine(a: jax.Array, b: jax.Array) -> jax.Array:
    """Maps [B, h, w], [B, h, w] -> [B]: sum(a b) / (|a| |b|), in [0, 1] for maps that are not negative.

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

    T(x) are the pixels above zero among the top 20%: those not below the k-th largest value, k = 0.2 h w rounded, at
    least 1. Equal values count together, so T may hold more than k. Zero where both maps are zero.
    """
    a, b = _top(a), _top(b)
    union = (a | b).sum((1, 2))
    return (a & b).sum((1, 2)) / jnp.maximum(union, 1)


def centre_distance(a: jax.Array, b: jax.Array) -> jax.Array:
    """Maps [B, h, w], [B, h, w], not negative -> [B]: |c(a) - c(b)|, in pixels of the maps.

    c(x) = sum(p x_p) / sum(x_p) over pixels p = (row, column) is the centre of mass; that of a zero map is the middle
    of the image, as for a constant one.
    """
    return _norm(_centre(a) - _centre(b), axis=-1)[:, 0]


AGREEMENT = {"cosine": cosine, "pearson": pearson, "iou": iou, "centre_distance": centre_distance}


def _norm(x: jax.Array, axis) -> jax.Array:
    """The root of the sum of squares, with the axes kept, and with a gradient of zero where it is zero."""
    squares = jnp.square(x).sum(axis, keepdims=True)
    return jnp.where(squares == 0, 0.0, jnp.sqrt(jnp.where(squares == 0, 1.0, squares)))


def _unit(maps: jax.Array) -> jax.Array:
    """Maps of norm 1; a zero map stays zero. Divided by their largest value first, so that no square underflows."""
    largest = jnp.abs(maps).max((1, 2), keepdims=True)
    maps = maps / jnp.where(largest == 0, 1.0, largest)
    return maps / jnp.where(largest == 0, 1.0, _norm(maps, (1, 2)))


def _constant(maps: jax.Array) -> jax.Array:
    """Whether a map is constant but for rounding, of which `upsample` has some."""
    low, high = maps.min((1, 2), keepdims=True), maps.max((1, 2), keepdims=True)
    return high - low <= 8 * jnp.finfo(maps.dtype).eps * jnp.maximum(jnp.abs(low), jnp.abs(high))


def _top(maps: jax.Array) -> jax.Array:
    count = max(1, round(TOP * maps[0].size))
    least = jax.lax.top_k(maps.reshape(len(maps), -1), count)[0][:, -1]
    return (maps >= least[:, None, None]) & (maps > 0)


def _centre(maps: jax.Array) -> jax.Array:
    """Rows and columns [B, 2]."""
    total = maps.sum((1, 2), keepdims=True)
    mass = jnp.where(total == 0, 1 / maps[0].size, maps / jnp.where(total == 0, 1.0, total))
    rows, columns = (jnp.arange(n, dtype=mass.dtype) for n in maps.shape[1:])
    return jnp.stack([mass.sum(2) @ rows, mass.sum(1) @ columns], axis=-1)
