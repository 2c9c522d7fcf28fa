"""Images of a batch mixed with one another, and their targets with them: mixup and CutMix."""

import jax
import jax.numpy as jnp

from kd_jax.types import Array, Batch


def mixup(rng: Array, batch: Batch, alpha: float) -> Batch:
    """Each image and its target mixed with another of the batch, with one Beta(alpha, alpha) share per batch.

    Zhang et al., "mixup: Beyond Empirical Risk Minimization", ICLR 2018. An image mixed with an unlabeled one is
    unlabeled; otherwise it keeps its label. The images become floating point.
    """
    share, order = _draw(rng, batch, alpha)
    images = share * batch.images + (1 - share) * batch.images[order]
    return _with_targets(batch, images, share, order)


def cutmix(rng: Array, batch: Batch, alpha: float) -> Batch:
    """Each image with a rectangle of another of the batch in its place, the same in all, and the targets by area.

    Yun et al., "CutMix: Regularization Strategy to Train Strong Classifiers with Localizable Features", ICCV 2019,
    algorithm 1: the rectangle has the image's proportions and a share of its area that is 1 - Beta(alpha, alpha), is
    centered anywhere and cut off at the border; what is left of it decides the targets. Labels as in `mixup`.
    """
    rng_draw, rng_center = jax.random.split(rng)
    share, order = _draw(rng_draw, batch, alpha)
    inside = jnp.ones((), bool)
    for i, length in enumerate(batch.images.shape[1:3]):
        center = jax.random.randint(jax.random.fold_in(rng_center, i), (), 0, length)
        half = jnp.floor(length * jnp.sqrt(1 - share)).astype(jnp.int32) // 2
        at = jnp.arange(length)
        within = (at >= center - half) & (at < center + half)
        inside = inside & within.reshape((length, 1) if i == 0 else (1, length))
    images = jnp.where(inside[None, :, :, None], batch.images[order], batch.images)
    return _with_targets(batch, images, 1 - inside.mean(dtype=batch.targets.dtype), order)


def _draw(rng: Array, batch: Batch, alpha: float) -> tuple[Array, Array]:
    """(the share [] of each image itself, the order [B] of the others)."""
    rng_share, rng_order = jax.random.split(rng)
    share = jax.random.beta(rng_share, alpha, alpha, dtype=batch.targets.dtype)
    return share, jax.random.permutation(rng_order, len(batch.labels))


def _with_targets(batch: Batch, images: Array, share: Array, order: Array) -> Batch:
    labeled = (batch.labels >= 0) & (batch.labels[order] >= 0)
    targets = (share * batch.targets + (1 - share) * batch.targets[order]) * labeled[:, None]
    weights = batch.weights
    if weights is not None:
        weights = (share * weights + (1 - share) * weights[order]).astype(weights.dtype)
    return batch._replace(
        images=images,
        targets=targets.astype(batch.targets.dtype),
        labels=jnp.where(labeled, batch.labels, -1),
        weights=weights,
    )
