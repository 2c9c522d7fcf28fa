"""What holds for every method of the registry."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax import methods
from kd_jax.types import MethodVariables
from tests.methods.examples import ALL, EXAMPLES, NEEDS_NETWORKS, TEN_CLASSES
from tests.methods.numeric import STUDENT, TEACHER, context, outputs

PLAIN = {name for name, options in ALL.items() if options["method"] not in NEEDS_NETWORKS}
every = pytest.mark.parametrize("name", sorted(PLAIN))


def wide(name, x):
    """The logits, twice as many where the method needs ten."""
    return np.concatenate([x, -x], -1) if name in TEN_CLASSES else x


@functools.cache
def build(name):
    """A function of (parameters, student's logits, teacher's Outputs) that sums a method's terms, and parameters."""
    method = methods.create({"term": ALL[name]})

    def seen(student, teacher):
        return context(student, teacher, np.arange(len(student)) % 3 - 1, views=method.views)

    first = seen(wide(name, STUDENT), outputs(wide(name, TEACHER)))
    variables = jax.jit(lambda: method.init(jax.random.key(0), first))()

    def loss(params, student, teacher):
        terms, _ = method.apply(MethodVariables(params, variables.state), seen(student, teacher))
        return sum(terms.values())

    return loss, jax.jit(jax.value_and_grad(loss, (0, 1))), variables.params


def test_every_method_has_an_example():
    own = {name for name in methods.METHODS if name not in EXAMPLES}
    assert own - {"squared_error"} == set()  # of a doctest


CASES = {
    "the student's rows are equal": (STUDENT[[1] * 6], TEACHER),
    "the teacher's rows are equal": (STUDENT, TEACHER[[1] * 6]),
    "all rows are equal": (STUDENT[[1] * 6], STUDENT[[1] * 6]),
    "all entries are zero": (0 * STUDENT, 0 * TEACHER),
    "logits are large": (1e4 * STUDENT, 1e4 * TEACHER),
}


@every
@pytest.mark.parametrize("case", CASES)
def test_value_and_gradients_are_finite_when(name, case):
    student, teacher = (wide(name, x) for x in CASES[case])
    _, value_and_gradients, params = build(name)
    results = value_and_gradients(params, jnp.asarray(student, jnp.float32), outputs(teacher))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(results))


@every
def test_the_teacher_gets_exactly_no_gradient(name):
    loss, _, params = build(name)
    student, teacher = jnp.asarray(wide(name, STUDENT), jnp.float32), outputs(wide(name, TEACHER))
    gradients = jax.jit(jax.grad(loss, 2))(params, student, teacher)
    # What is read through a teacher's adapter that trains moves the adapter, never the teacher.
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradients))


@every
def test_students_can_be_mapped_over(name):
    loss, value_and_gradients, params = build(name)
    student, teacher = wide(name, STUDENT), outputs(wide(name, TEACHER))
    students = jnp.asarray([student, student[::-1]], jnp.float32)
    mapped = jax.jit(jax.vmap(loss, (None, 0, None)))(params, students, teacher)
    single = [value_and_gradients(params, one, teacher)[0] for one in students]
    np.testing.assert_allclose(mapped, single, rtol=1e-5, atol=1e-6)  # some are zero up to rounding
