"""Contrastive losses."""

import jax.numpy as jnp

from kd_jax.types import Array, Float

EPSILON = 1e-7  # of the official code


def nce(positive: Float[Array, " B"], negatives: Float[Array, "B M"], *, num_examples: int) -> Float[Array, " B"]:
    """Noise-contrastive estimation: is this pair from the data, or one of M drawn uniformly from N images?

    -log(P / (P + M/N)) of the positive pair, and -log((M/N) / (P + M/N)) of each negative one, with P the normalized
    probability of a pair. Tian et al., "Contrastive Representation Distillation", ICLR 2020, equations 10 and 18, as
    the official code has them.

    Args:
      positive: [B], P of each image's own pair. negatives: [B, M], P of the pairs drawn for it. Both above zero.
      num_examples: N.
    Returns:
      [B], in nats.
    """
    noise = negatives.shape[-1] / num_examples
    own = jnp.log(positive / (positive + noise + EPSILON))
    others = jnp.log(noise / (negatives + noise + EPSILON)).sum(-1)
    return -(own + others)
