"""Losses of the relations between the images of a batch. Under `jit` over a mesh they see the global batch."""

import jax
import jax.numpy as jnp
import optax

from kd_jax.losses.masks import Where, fixed, keep
from kd_jax.types import Array, Float

LARGEST_INTERMEDIATE = 2**24  # elements in rkd_angle, 64 MiB in float32


def rkd_distance(
    student: Float[Array, "B ..."], teacher: Float[Array, "B ..."], *, where: Where = None
) -> Float[Array, ""]:
    """Relational distillation of distances: smooth L1 between the two matrices, each divided by its mean distance.

    Park et al., "Relational Knowledge Distillation", CVPR 2019, equations 5 to 7. As in the official code the mean of
    the loss is over all B^2 pairs, the diagonal included.

    Args:
      student: [B, D]. teacher: [B, E], another width is fine.
      where: [B] bool, the images that count.
    Returns:
      [], without unit. Zero for a batch of one.
    """
    pairs = (_relative_distances(x, where) for x in (keep(where, student), fixed(where, teacher)))
    loss = optax.losses.huber_loss(*pairs)
    return loss.mean() if where is None else loss.sum() / jnp.maximum(where.sum(), 1) ** 2


def rkd_angle(
    student: Float[Array, "B ..."], teacher: Float[Array, "B ..."], *, where: Where = None
) -> Float[Array, ""]:
    """Relational distillation of angles: smooth L1 between the cosines at i of all triples (j, i, k).

    Park et al., CVPR 2019, equations 8 to 10, with the mean over all B^3 triples. A cosine at i is taken from inner
    products, (G_jk - G_ij - G_ik + G_ii) / (d_ij d_ik), so that no [B, B, D] array of differences is made. Large
    batches go through in groups of anchors i, which bounds the memory.

    Args:
      student: [B, D]. teacher: [B, E].
      where: [B] bool, the images that count.
    Returns:
      [], without unit.
    """
    batch = student.shape[0]
    relations = tuple(
        x for side in (keep(where, student), fixed(where, teacher)) for x in _gram_and_inverse_distances(side, where)
    )

    def anchor(i: Array) -> Array:
        gram_s, inverse_s, gram_t, inverse_t = relations
        return optax.losses.huber_loss(_cosines(gram_s, inverse_s, i), _cosines(gram_t, inverse_t, i)).sum()

    anchors = jnp.arange(batch)
    group = max(1, LARGEST_INTERMEDIATE // batch**2)
    if group >= batch:
        sums = jax.vmap(anchor)(anchors)
    else:
        sums = jax.lax.map(jax.checkpoint(anchor), anchors, batch_size=group)
    return sums.sum() / (float(batch) ** 3 if where is None else jnp.maximum(where.sum(), 1).astype(sums.dtype) ** 3)


def _gram(x: Array, where: Array | None) -> Array:
    # Distances do not change with the mean, and without it less cancels.
    x = x.reshape(x.shape[0], -1)
    x = x - (x.mean(0) if where is None else x.sum(0) / jnp.maximum(where.sum(), 1))
    return jnp.matmul(x, x.T, precision=jax.lax.Precision.HIGHEST)


def _squared_distances(gram: Array, where: Array | None) -> tuple[Array, Array]:
    """[B, B] squared distances and [B, B] whether two rows differ by more than rounding (and both count)."""
    norms = jnp.diag(gram)
    total = norms[:, None] + norms[None, :]
    squared = total - 2 * gram
    distinct = squared > 16 * jnp.finfo(gram.dtype).eps * total
    distinct &= ~jnp.eye(len(gram), dtype=bool)
    distinct &= True if where is None else where[:, None] & where[None, :]
    return jnp.where(distinct, squared, 1.0), distinct


def _relative_distances(x: Array, where: Array | None) -> Array:
    squared, distinct = _squared_distances(_gram(x, where), where)
    batch = x.shape[0] if where is None else where.sum()
    # Rows that coincide are 1e-6 apart, as in the official code; only the diagonal is zero.
    apart = 1 - jnp.eye(x.shape[0], dtype=squared.dtype)
    apart *= 1 if where is None else where[:, None] & where[None, :]
    distances = jnp.where(distinct, jnp.sqrt(squared), 1e-6) * apart
    return distances / (distances.sum() / jnp.maximum(batch * (batch - 1), 1) + (batch <= 1))


def _gram_and_inverse_distances(x: Array, where: Array | None) -> tuple[Array, Array]:
    gram = _gram(x, where)
    squared, distinct = _squared_distances(gram, where)
    return gram, jnp.where(distinct, jax.lax.rsqrt(squared), 0.0)


def _cosines(gram: Array, inverse: Array, i: Array) -> Array:
    inner = gram - gram[i][:, None] - gram[i][None, :] + gram[i, i]
    return inner * inverse[i][:, None] * inverse[i][None, :]
