"""Teachers: functions of (variables, batch, rng)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax import models, teachers
from tests.methods.numeric import batch


@pytest.fixture(scope="module")
def live():
    """A teacher with dropout and batch norm, its variables, and a batch of images."""
    network = models.create("resnet8", 5, width=1 / 8, head="mlp")
    images = jnp.asarray(np.random.default_rng(0).normal(size=(4, 8, 8, 3)), jnp.float32)
    return (
        teachers.live(network),
        jax.jit(network.init)(jax.random.key(0), images),
        batch([0] * 4)._replace(images=images),
    )


def test_a_live_teacher_is_in_inference_mode(live):
    teacher, variables, images = live
    first, second = (jax.jit(teacher)(variables, images, jax.random.key(seed)).logits for seed in (0, 1))
    np.testing.assert_array_equal(first, second)
    alone = jax.jit(teacher)(variables, images._replace(images=images.images[:1]), jax.random.key(0)).logits
    np.testing.assert_allclose(alone, first[:1], atol=1e-5)


def test_a_live_teacher_gets_no_gradient(live):
    teacher, variables, images = live
    gradient = jax.jit(jax.grad(lambda v: teacher(v, images, jax.random.key(0)).logits.sum()))(variables)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradient))
