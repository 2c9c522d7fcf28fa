"""What a network's taps collect, and what they add."""

import jax.numpy as jnp
import numpy as np

from kd_jax.models import Taps
from kd_jax.types import Head, Norm

LOGITS = jnp.ones((2, 5))
MAPS = [jnp.full((2, 4, 4, 3), 1.0), jnp.full((2, 2, 2, 6), 2.0)]
NORMS = [Norm(jnp.ones(3), jnp.zeros(3)), Norm(jnp.ones(6), jnp.zeros(6))]


def test_logits_alone_are_outputs_without_the_rest():
    assert Taps().outputs(LOGITS)._replace(logits=None) == (None, (), (), None, None, None, (), None, None)


def test_maps_preactivations_and_norms_are_kept_in_the_order_of_the_stages():
    taps = Taps()
    for x, norm in zip(MAPS, NORMS, strict=True):
        taps(x, preactivation=-x, norm=norm)
    outputs = taps.outputs(LOGITS)
    assert [x.shape for x in outputs.features] == [x.shape for x in MAPS]
    assert [float(x.max()) for x in outputs.preactivations] == [-1.0, -2.0]
    assert outputs.norms == tuple(NORMS)


def test_what_is_behind_the_maps_keeps_its_name():
    pooled, embedding, head = jnp.zeros((2, 6)), jnp.zeros((2, 8)), Head(jnp.zeros((8, 5)), jnp.zeros(5))
    outputs = Taps().outputs(LOGITS, pooled=pooled, embedding=embedding, head=head)
    assert (outputs.pooled is pooled, outputs.embedding is embedding, outputs.head is head) == (True, True, True)


def test_a_perturbation_is_added_to_its_own_stage_only():
    taps = Taps((None, jnp.full((2, 2, 2, 6), 0.5)))
    read = [taps(x) for x in MAPS]
    np.testing.assert_array_equal([float(x.max()) for x in read], [1.0, 2.5])
    np.testing.assert_array_equal(taps.outputs(LOGITS).features[1], read[1])
