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


def test_a_teacher_of_batch_statistics_normalises_by_the_batch_and_drops_out(live):
    _, variables, images = live
    teacher = jax.jit(teachers.batch_statistics(models.create("resnet8", 5, width=1 / 8, head="mlp")))
    first, again, other = (teacher(variables, images, jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.logits, again.logits)
    assert not np.allclose(first.logits, other.logits)  # dropout
    np.testing.assert_array_equal(first.pooled, other.pooled)  # before it
    alone = teacher(variables, images._replace(images=images.images[:2]), jax.random.key(0))
    assert not np.allclose(alone.pooled, first.pooled[:2])


def test_in_evaluation_a_teacher_of_batch_statistics_is_in_inference_mode(live):
    teacher, variables, images = live
    other = teachers.batch_statistics(models.create("resnet8", 5, width=1 / 8, head="mlp"))
    np.testing.assert_array_equal(other(variables, images, None).logits, teacher(variables, images, None).logits)
