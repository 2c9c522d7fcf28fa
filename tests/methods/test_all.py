"""What holds for every method of the registry."""

import dataclasses
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


LABELS = np.array([-1, 0, 1, -1, 0, 1], np.int32)


@functools.cache
def build(name):
    """A function of (parameters, student's logits, teacher's Outputs, labels) that sums the terms, and parameters."""
    method = methods.create({"term": ALL[name]})
    everywhere = {"num_examples": len(LABELS), "train_labels": jnp.asarray(LABELS)}

    def seen(student, teacher, labels):
        given = context(student, teacher, np.zeros(len(student), int), views=method.views, **everywhere)
        targets = jax.nn.one_hot(labels, student.shape[-1])
        views = [view._replace(batch=view.batch._replace(labels=labels, targets=targets)) for view in given.views]
        return dataclasses.replace(given, views=tuple(views))

    first = seen(jnp.asarray(wide(name, STUDENT)), outputs(wide(name, TEACHER)), jnp.asarray(LABELS))
    variables = jax.jit(lambda: method.init(jax.random.key(0), first))()

    def loss(params, student, teacher, labels):
        terms, _ = method.apply(MethodVariables(params, variables.state), seen(student, teacher, labels))
        return sum(terms.values())

    return loss, jax.jit(jax.value_and_grad(loss, (0, 1, 2))), variables.params


def run(name, student=STUDENT, teacher=TEACHER, labels=LABELS):
    """(value, gradients by the parameters, the student and the teacher)."""
    _, value_and_gradients, params = build(name)
    student = jnp.asarray(wide(name, student), jnp.float32)
    return value_and_gradients(params, student, outputs(wide(name, teacher)), jnp.asarray(labels))


def is_finite(tree):
    return all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(tree))


def test_every_method_has_an_example():
    own = {name for name in methods.METHODS if name not in EXAMPLES}
    assert own - {"squared_error"} == set()  # of a doctest


CASES = {
    "the student's rows are equal": (STUDENT[[1] * 6], TEACHER, LABELS),
    "the teacher's rows are equal": (STUDENT, TEACHER[[1] * 6], LABELS),
    "all rows are equal": (STUDENT[[1] * 6], STUDENT[[1] * 6], LABELS),
    "all entries are zero": (0 * STUDENT, 0 * TEACHER, LABELS),
    "logits are large": (1e4 * STUDENT, 1e4 * TEACHER, LABELS),
    "one class is present": (STUDENT, TEACHER, np.ones_like(LABELS)),
    "no image has a label": (STUDENT, TEACHER, -np.ones_like(LABELS)),
    "there is one image": (STUDENT[:1], TEACHER[:1], LABELS[1:2]),
}


@every
@pytest.mark.parametrize("case", CASES)
def test_value_and_gradients_are_finite_when(name, case):
    assert is_finite(run(name, *CASES[case]))


@every
def test_the_teacher_gets_exactly_no_gradient(name):
    _, (_, _, of_teacher) = run(name)
    # What is read through a teacher's adapter that trains moves the adapter, never the teacher.
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(of_teacher))


@every
def test_students_can_be_mapped_over(name):
    loss, _, params = build(name)
    students = jnp.asarray([wide(name, x) for x in (STUDENT, STUDENT[::-1])], jnp.float32)
    teacher, labels = outputs(wide(name, TEACHER)), jnp.asarray(LABELS)
    mapped = jax.jit(jax.vmap(loss, (None, 0, None, None)))(params, students, teacher, labels)
    single = [run(name, student)[0] for student in (STUDENT, STUDENT[::-1])]
    np.testing.assert_allclose(mapped, single, rtol=1e-5, atol=1e-6)  # some are zero up to rounding


TRACED = {name: methods.create({"term": ALL[name]}).traced.get("term", {}) for name in sorted(PLAIN)}
# Options that count for nothing in an example: others leave them unread, or all classes are alike.
UNREAD = {
    "sdd": {"alpha", "beta", "gamma"},
    "sdd, dkd": {"gamma"},
    "sdd, nkd": {"alpha", "beta"},
    "deit": {"temperature"},
    "wkd_logits": {"regularization"},
}


def other(value):
    """Another number that the same options may have."""
    return jax.tree.map(lambda x: (x + 0.9) / 2, value)


@pytest.mark.parametrize("name", [name for name, traced in TRACED.items() if traced])
def test_an_option_that_a_step_is_told_counts_as_one_that_a_config_has(name):
    first = context(outputs(wide(name, STUDENT)), outputs(wide(name, TEACHER)), [0, 1, 2, 3, 4, 0], views=2)
    variables = jax.jit(lambda: methods.create({"term": ALL[name]}).init(jax.random.key(0), first))()

    def run(method, options):
        """The terms, the next state, and the gradient of the terms' sum by the parameters."""

        def loss(params):
            told = dataclasses.replace(first, options={"term": options})
            terms, state = method.apply(MethodVariables(params, variables.state), told)
            return sum(terms.values()), (terms, state)

        return jax.grad(loss, has_aux=True)(variables.params)

    traced = TRACED[name]
    told = jax.jit(functools.partial(run, methods.create({"term": ALL[name]})))
    built = jax.jit(functools.partial(run, methods.create({"term": {**ALL[name], **other(traced)}}), {}))()
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), told(other(traced)), built)
    before = told(traced)
    for option in traced.keys() - UNREAD.get(name, set()):
        after = told({**traced, option: other(traced[option])})
        assert not jax.tree.all(jax.tree.map(np.array_equal, before, after)), option
