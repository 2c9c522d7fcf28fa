"""SRRL and CAT-KD against float64 numpy: values, gradients, which classifiers they read."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax import methods
from kd_jax.errors import InputError
from kd_jax.types import Head, MethodVariables
from tests.methods.numeric import assert_gradient, batch_norm_relu, context, doubles, outputs, slope

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(2, 4, 5))
STUDENT, TEACHER = RNG.normal(size=(4, 4, 6, 3)), RNG.normal(size=(4, 2, 2, 6))
HEADS = {
    "student": Head(RNG.normal(size=(3, 5)), RNG.normal(size=5)),
    "teacher": Head(RNG.normal(size=(6, 5)), RNG.normal(size=5)),
}
OPTIONS = {
    "srrl": {"method": "srrl", "alpha": 0.5, "beta": 3.0},
    "catkd": {"method": "catkd"},
    "catkd, normalized": {"method": "catkd", "normalize": True},
}


def seen(student, teacher, own=HEADS["student"], other=HEADS["teacher"]):
    """A context with these last maps, and classifiers."""
    logits = [x[: len(student)] for x in LOGITS]
    sides = (
        outputs(z)._replace(
            features=(jnp.asarray(x, jnp.float32),),
            last=jnp.asarray(x, jnp.float32),
            head=Head(*map(jnp.float32, head)),
        )
        for z, x, head in ((logits[0], student, own), (logits[1], teacher, other))
    )
    return context(*sides)


@functools.cache
def method(name):
    return methods.create({"term": OPTIONS[name]})


@functools.cache
def initial(name):
    variables = jax.jit(lambda: method(name).init(jax.random.key(0), seen(STUDENT, TEACHER)))()
    return MethodVariables(jax.tree.map(lambda x: x + 0.3, variables.params), variables.state)


@functools.cache
def program(name):
    """(params, student's map, its head) -> (the term, gradients to all three)."""

    def term(params, student, own):
        variables = MethodVariables(params, initial(name).state)
        return method(name).apply(variables, seen(student, TEACHER[: len(student)], own))[0]["term"]

    return jax.jit(jax.value_and_grad(term, (0, 1, 2)))


@functools.cache
def results(name, count=4):
    own = Head(*map(jnp.float32, HEADS["student"]))
    return program(name)(initial(name).params, jnp.asarray(STUDENT[:count], jnp.float32), own)


def srrl(student, params):
    projector = params["projector"]
    embedding = batch_norm_relu(student @ projector["conv"]["kernel"][0, 0], projector["bn"]).mean((1, 2))
    kernel, bias = HEADS["teacher"]
    count = len(student)
    features = (embedding - TEACHER[:count].mean((1, 2))) ** 2
    logits = (embedding @ kernel + bias - LOGITS[1][:count]) ** 2
    return 0.5 * features.mean() + 3.0 * logits.mean()


def catkd(student, params, kernel=HEADS["student"].kernel, normalize=False):
    del params
    own = (student.reshape(len(student), 2, 2, 2, 3, 3).mean((2, 4))) @ kernel
    other = TEACHER[: len(student)] @ HEADS["teacher"].kernel
    if normalize:
        own, other = (x / np.sqrt((x**2).sum((1, 2), keepdims=True)) for x in (own, other))
    return ((own - other) ** 2).mean()


EXPECTED = {"srrl": srrl, "catkd": catkd, "catkd, normalized": functools.partial(catkd, normalize=True)}
every = pytest.mark.parametrize("name", EXPECTED)


@every
@pytest.mark.parametrize("count", [4, 3])
def test_the_term_is_the_papers(name, count):
    expected = EXPECTED[name](STUDENT[:count], doubles(initial(name).params["term"]))
    np.testing.assert_allclose(results(name, count)[0], expected, rtol=1e-5)


@every
def test_the_gradient_to_the_students_map_is_that_of_finite_differences(name):
    params = doubles(initial(name).params["term"])
    assert_gradient(results(name)[1][1], slope(lambda x: EXPECTED[name](x, params), STUDENT))


def test_srrls_projector_gets_the_gradient_of_finite_differences():
    params = doubles(initial("srrl").params["term"])
    got = results("srrl")[1][0]["term"]["projector"]["conv"]["kernel"]

    def loss(kernel):
        return srrl(STUDENT, {"projector": {**params["projector"], "conv": {"kernel": kernel}}})

    assert_gradient(got, slope(loss, params["projector"]["conv"]["kernel"]))


def test_srrls_parts_count_alike_unless_they_are_weighted():
    options = methods.METHODS["srrl"].__signature__.parameters
    assert [options[name].default for name in ("alpha", "beta")] == [1.0, 1.0]


def test_srrl_does_not_train_the_students_own_classifier():
    assert not any(np.any(x) for x in results("srrl")[1][2])


@pytest.mark.parametrize("name", ["catkd", "catkd, normalized"])
def test_catkd_trains_the_kernel_of_the_students_own_classifier(name):
    by_head = results(name)[1][2]
    expected = slope(lambda kernel: EXPECTED[name](STUDENT, {}, kernel), HEADS["student"].kernel)
    assert_gradient(by_head.kernel, expected)


def test_catkd_leaves_out_the_bias():
    assert not np.any(results("catkd")[1][2].bias)


def test_catkd_has_no_parameters():
    assert not jax.tree.leaves(initial("catkd"))


@pytest.mark.parametrize(("name", "who"), [("srrl", "teacher"), ("catkd", "teacher"), ("catkd", "student")])
def test_a_head_that_does_not_read_the_last_map_is_refused(name, who):
    maps = {"student": STUDENT, "teacher": TEACHER} | {who: np.ones((4, 2, 2, 4))}
    width = HEADS[who].kernel.shape[0]
    with pytest.raises(InputError, match=f"the {who}'s head reads {width} values, and its last map has 4 channels"):
        jax.eval_shape(lambda: method(name).init(jax.random.key(0), seen(**maps)))


def test_catkd_of_other_classes_is_refused():
    other = Head(np.ones((6, 7)), np.ones(7))
    with pytest.raises(InputError, match="the student has 5 classes, the teacher 7; expected as many"):
        jax.eval_shape(lambda: method("catkd").init(jax.random.key(0), seen(STUDENT, TEACHER, other=other)))
