"""Contrastive losses against float64 numpy."""

import jax.numpy as jnp
import numpy as np

import kd_jax.losses
from tests.methods.numeric import assert_gradient, grad, jitted, slope

losses = jitted(kd_jax.losses)
POSITIVE, NEGATIVES = (np.random.default_rng(0).exponential(0.1, size=size) for size in (4, (4, 7)))
N = 50


def nce(positive, negatives):
    """Tian et al., equations 10 and 18, pair by pair, with the official code's 1e-7."""
    noise = negatives.shape[1] / N
    losses = []
    for p, others in zip(positive, negatives, strict=True):
        losses.append(-np.log(p / (p + noise + 1e-7)) - sum(np.log(noise / (q + noise + 1e-7)) for q in others))
    return np.array(losses)


def test_nce_is_the_official_codes():
    np.testing.assert_allclose(losses.nce(POSITIVE, NEGATIVES, num_examples=N), nce(POSITIVE, NEGATIVES), rtol=1e-5)


def test_its_gradients_are_those_of_finite_differences():
    gradients = grad(lambda p, n: losses.nce(p, n, num_examples=N).sum(), (0, 1))(
        jnp.float32(POSITIVE), jnp.float32(NEGATIVES)
    )
    assert_gradient(gradients[0], slope(lambda p: nce(p, NEGATIVES).sum(), POSITIVE))
    assert_gradient(gradients[1], slope(lambda n: nce(POSITIVE, n).sum(), NEGATIVES))
