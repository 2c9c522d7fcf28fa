"""Losses of the relations between the images of a batch. Under `jit` over a mesh they see the global batch."""

import jax
import jax.numpy as jnp
import optax

LARGEST = 2**24  # elements of the largest intermediate of rkd_angle, 64 MiB in float32


def rkd_distance(student: jax.Array, teacher: jax.Array) -> jax.Array:
    """Relational distillation of distances: smooth L1 between the two matrices, each divided by its mean distance.

    Park et al., "Relational Knowledge Distillation", CVPR 2019, equations 5 to 7. As in the official code the mean of
    the loss is over all B^2 pairs, the diagonal included.

    Args:
      student: [B, D]. teacher: [B, E], another width is fine.
    Returns:
      [], without unit. Zero for a batch of one.
    """
    return optax.losses.huber_loss(_relative_distances(student), _relative_distances(_fixed(teacher))).mean()


def rkd_angle(student: jax.Array, teacher: jax.Array) -> jax.Array:
    """Relational distillation of angles: smooth L1 between the cosines at i of all triples (j, i, k).

    Park et al., CVPR 2019, equations 8 to 10, with the mean over all B^3 triples. A cosine at i is taken from inner
    products, (G_jk - G_ij - G_ik + G_ii) / (d_ij d_ik), so that no [B, B, D] array of differences is made. Large
    batches go through in groups of anchors i, which bounds the memory.

    Args:
      student: [B, D]. teacher: [B, E].
    Returns:
      [], without unit.
    """
    batch = student.shape[0]
    relations = (*_gram_and_inverse_distances(student), *_gram_and_inverse_distances(_fixed(teacher)))

    def anchor(i):
        gram_s, inverse_s, gram_t, inverse_t = relations
        return optax.losses.huber_loss(_cosines(gram_s, inverse_s, i), _cosines(gram_t, inverse_t, i)).sum()

    anchors = jnp.arange(batch)
    group = max(1, LARGEST // batch**2)
    if group >= batch:
        sums = jax.vmap(anchor)(anchors)
    else:
        sums = jax.lax.map(jax.checkpoint(anchor), anchors, batch_size=group)
    return sums.sum() / batch**3


def _fixed(x):
    return jax.lax.stop_gradient(x)


def _gram(x):
    # Distances do not change with the mean, and without it less cancels.
    x = x.reshape(x.shape[0], -1)
    x = x - x.mean(0)
    return jnp.matmul(x, x.T, precision=jax.lax.Precision.HIGHEST)


def _squared_distances(gram):
    """[B, B] squared distances and [B, B] whether two rows differ by more than rounding."""
    norms = jnp.diag(gram)
    total = norms[:, None] + norms[None, :]
    squared = total - 2 * gram
    distinct = squared > 16 * jnp.finfo(gram.dtype).eps * total
    distinct &= ~jnp.eye(len(gram), dtype=bool)
    return jnp.where(distinct, squared, 1.0), distinct


def _relative_distances(x):
    squared, distinct = _squared_distances(_gram(x))
    batch = x.shape[0]
    # Rows that coincide are 1e-6 apart, as in the official code; only the diagonal is zero.
    distances = jnp.where(distinct, jnp.sqrt(squared), 1e-6) * (1 - jnp.eye(batch, dtype=squared.dtype))
    return distances / (distances.sum() / max(batch * (batch - 1), 1) + (batch == 1))


def _gram_and_inverse_distances(x):
    gram = _gram(x)
    squared, distinct = _squared_distances(gram)
    return gram, jnp.where(distinct, jax.lax.rsqrt(squared), 0.0)


def _cosines(gram, inverse, i):
    inner = gram - gram[i][:, None] - gram[i][None, :] + gram[i, i]
    return inner * inverse[i][:, None] * inverse[i][None, :]
