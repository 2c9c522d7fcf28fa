"""CRD against float64 numpy: values, gradients, its memory, whom it contrasts an image with."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax import methods
from kd_jax.errors import InputError
from kd_jax.methods.contrastive import _range_of_own, draw_negatives
from kd_jax.types import MethodVariables
from tests.methods.numeric import assert_gradient, context, doubles, outputs, slope

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(4, 3))
STUDENT, TEACHER = RNG.normal(size=(4, 5)), RNG.normal(size=(4, 7))
ALL_LABELS = np.array([0, 1, 2, 0, 1, 2, 0, 1, 2, -1], np.int32)
IDS = np.array([7, 2, 9, 0])
N, M, T = len(ALL_LABELS), 6, 0.07


def seen(student=STUDENT, rng=0):
    given = context(
        outputs(LOGITS, student),
        outputs(LOGITS, TEACHER),
        ALL_LABELS[IDS],
        rng=jax.random.key(rng),
        num_examples=N,
        train_labels=jnp.asarray(ALL_LABELS),
    )
    (view,) = given.views
    batch = view.batch._replace(ids=jnp.asarray(IDS))
    return dataclasses.replace(given, views=(view._replace(batch=batch),))


@functools.partial(jax.jit, static_argnums=3)
def draw(rng, labels, ids, count):
    return draw_negatives(rng, labels, jnp.argsort(labels), ids, count)


@functools.cache
def crd():
    """(method, variables after a first step, the negatives [4, M] that a step draws)."""
    method = methods.create({"crd": {"features": 4, "negatives": M}})
    variables = jax.jit(lambda: method.init(jax.random.key(1), seen()))()
    _, state = jax.jit(lambda v: method.apply(v, seen()))(variables)
    after = MethodVariables(variables.params, state)
    labels = jnp.asarray(ALL_LABELS)
    rng = jax.random.fold_in(seen().rng, 0)  # of the first term
    drawn = draw(rng, labels, IDS, M)
    return method, variables, after, np.asarray(drawn)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def anchors(params, student):
    sides = {}
    for side, x in (("student", student), ("teacher", TEACHER)):
        layer = params[f"{side}_embed"]
        sides[side] = unit(x @ layer["kernel"] + layer["bias"])
    return sides


def loss(params, memory, student, drawn):
    """The sum over both directions of the mean of the NCE loss, with the official code's 1e-7."""
    sides, total = anchors(params, student), 0.0
    for side, other in (("student", "teacher"), ("teacher", "student")):
        bank, scale = memory[f"{other}_bank"], memory[f"{side}_scale"]
        for i, anchor in enumerate(sides[side]):
            p = np.exp(bank[IDS[i]] @ anchor / T) / scale
            q = np.exp(bank[drawn[i]] @ anchor / T) / scale
            pair = np.log(p / (p + M / N + 1e-7)) + np.log((M / N) / (q + M / N + 1e-7)).sum()
            total -= pair / len(IDS)
    return total


@functools.cache
def term():
    method, _, after, _ = crd()
    return jax.jit(
        jax.value_and_grad(
            lambda params, x: method.apply(MethodVariables(params, after.state), seen(x))[0]["crd"], (0, 1)
        )
    )


def test_crd_is_the_official_codes():
    _, _, after, drawn = crd()
    params, memory = doubles(after.params["crd"]), doubles(after.state["crd"]["memory"])
    got = term()(after.params, jnp.float32(STUDENT))[0]
    np.testing.assert_allclose(got, loss(params, memory, STUDENT, drawn), rtol=1e-5)


def test_crds_gradients_are_those_of_finite_differences():
    _, _, after, drawn = crd()
    params, memory = doubles(after.params["crd"]), doubles(after.state["crd"]["memory"])
    by_params, by_student = term()(after.params, jnp.float32(STUDENT))[1]
    assert_gradient(by_student, slope(lambda x: loss(params, memory, x, drawn), STUDENT))
    for side in ("student_embed", "teacher_embed"):  # both layers are trained
        kernel = params[side]["kernel"]
        expected = slope(
            lambda k, s=side: loss({**params, s: {**params[s], "kernel": k}}, memory, STUDENT, drawn), kernel
        )
        assert_gradient(by_params["crd"][side]["kernel"], expected)


def test_the_memory_moves_half_way_and_stays_on_the_sphere():
    _, before, after, _ = crd()
    params = doubles(before.params["crd"])
    for side, new in anchors(params, STUDENT).items():
        old, moved = (doubles(v.state["crd"]["memory"][f"{side}_bank"]) for v in (before, after))
        expected = old.copy()
        expected[IDS] = unit(0.5 * old[IDS] + 0.5 * new)
        np.testing.assert_allclose(moved, expected, rtol=1e-4, atol=1e-6)


def test_the_normalizer_is_that_of_the_first_batch():
    method, _, after, _ = crd()
    scale = after.state["crd"]["memory"]["student_scale"]
    _, state = jax.jit(lambda v: method.apply(v, seen(STUDENT[::-1], rng=3)))(after)
    assert scale > 0
    assert state["crd"]["memory"]["student_scale"] == scale


def test_negatives_are_all_images_of_other_classes():
    labels = jnp.asarray(ALL_LABELS)
    drawn = draw(jax.random.key(0), labels, np.arange(N), 2000)
    for i, own in enumerate(np.asarray(drawn)):
        same = (ALL_LABELS[i] == ALL_LABELS) if ALL_LABELS[i] >= 0 else np.arange(N) == i
        assert set(own.tolist()) == set(np.flatnonzero(~same).tolist())
        # Each as often as any other, within five deviations of a count.
        counts = np.bincount(own, minlength=N)[~same]
        share = 2000 / len(counts)
        assert np.abs(counts - share).max() < 5 * np.sqrt(share)


def test_a_class_lies_together_in_the_order():
    labels = jnp.asarray(ALL_LABELS)
    order = np.argsort(ALL_LABELS, stable=True).astype(np.int32)
    first, count = jax.jit(_range_of_own)(labels, jnp.asarray(order), jnp.asarray(np.arange(N)))
    for i in range(N):
        own = order[first[i] : first[i] + count[i]]
        expected = np.flatnonzero(ALL_LABELS[i] == ALL_LABELS) if ALL_LABELS[i] >= 0 else [i]
        assert sorted(own.tolist()) == list(expected)


def test_a_set_that_does_not_lie_in_memory_is_refused():
    method = methods.create({"crd": {}})
    given = dataclasses.replace(seen(), train_labels=None)
    with pytest.raises(InputError, match=r"method.crd: it needs the labels of all training images"):
        method.init(jax.random.key(0), given)
