"""FitNet and SimKD against float64 numpy: values, gradients, what is trained and what predicts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax import methods
from kd_jax.errors import InputError
from kd_jax.losses.arrays import average_down
from kd_jax.types import Head, MethodVariables, Outputs
from tests.methods.numeric import (
    assert_gradient,
    batch_norm_relu,
    context,
    convolve,
    doubles,
    outputs,
    slope,
)

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(2, 4, 5))
HEAD = Head(RNG.normal(size=(6, 5)), RNG.normal(size=5))


def reports(logits, *maps) -> Outputs:
    """A network's outputs with these maps [B, h, w, c]."""
    features = tuple(jnp.asarray(x, jnp.float32) for x in maps)
    return outputs(logits)._replace(features=features, last=features[-1], head=HEAD)


SIZES = {"half": (4, 2), "twice": (2, 4), "by the difference": (4, 3), "equal": (2, 2)}


@functools.cache
def fitnet(case):
    """(student's maps, teacher's maps, variables, term as a function of (params, student's maps))."""
    own, theirs = SIZES[case]
    student, teacher = RNG.normal(size=(4, own, own, 3)), RNG.normal(size=(4, theirs, theirs, 6))
    method = methods.create({"fitnet": {"stage": 0}})

    def seen(student):
        return context(reports(LOGITS[0], student), reports(LOGITS[1], teacher))

    variables = jax.jit(lambda: method.init(jax.random.key(0), seen(student)))()

    def term(params, student):
        return method.apply(MethodVariables(params, variables.state), seen(student))[0]["fitnet"]

    return student, teacher, variables, jax.jit(jax.value_and_grad(term, (0, 1)))


def regressed(case, student, kernel, norm):
    if case == "half":
        x = convolve(student, kernel, stride=2, padding=1)
    elif case == "twice":  # a transposed convolution: zeros between the pixels, then an ordinary one
        apart = np.zeros((4, 3, 3, 3))
        apart[:, ::2, ::2] = student
        x = convolve(apart, kernel, padding=2)
    else:
        x = convolve(student, kernel)
    return batch_norm_relu(x, norm)


@pytest.mark.parametrize("case", SIZES)
def test_fitnet_is_the_squared_error_of_the_regressed_map(case):
    student, teacher, variables, term = fitnet(case)
    params = doubles(variables.params["fitnet"]["regressor"])
    expected = np.square(regressed(case, student, params["conv"]["kernel"], params["bn"]) - teacher).mean()
    np.testing.assert_allclose(term(variables.params, jnp.float32(student))[0], expected, rtol=1e-5)


@pytest.mark.parametrize("case", ["half", "equal"])
def test_fitnets_gradients_are_those_of_finite_differences(case):
    student, teacher, variables, term = fitnet(case)
    params = doubles(variables.params["fitnet"]["regressor"])
    _, (by_params, by_student) = term(variables.params, jnp.float32(student))

    def loss(student, kernel):
        return np.square(regressed(case, student, kernel, params["bn"]) - teacher).mean()

    assert_gradient(by_student, slope(lambda x: loss(x, params["conv"]["kernel"]), student))
    kernel = by_params["fitnet"]["regressor"]["conv"]["kernel"]
    assert_gradient(kernel, slope(lambda k: loss(student, k), params["conv"]["kernel"]))


def test_fitnet_reads_the_stages_that_it_is_told():
    method = methods.create({"fitnet": {"stage": 1, "teacher_stage": 0}})
    maps = [RNG.normal(size=(4, 2, 2, c)) for c in (3, 4, 5)]
    seen = context(reports(LOGITS[0], maps[0], maps[1]), reports(LOGITS[1], maps[2], maps[0]))
    kernel = method.init(jax.random.key(0), seen).params["fitnet"]["regressor"]["conv"]["kernel"]
    assert kernel.shape == (1, 1, 4, 5)


def test_a_map_of_any_other_size_is_resized_before_it_is_regressed():
    student, teacher = RNG.normal(size=(4, 6, 2, 3)), RNG.normal(size=(4, 1, 4, 6))
    method = methods.create({"fitnet": {"stage": 0}})
    seen = context(reports(LOGITS[0], student), reports(LOGITS[1], teacher))

    @jax.jit
    def term():
        variables = method.init(jax.random.key(0), seen)
        return variables.params["fitnet"]["regressor"], method.apply(variables, seen)[0]["fitnet"]

    params, got = term()
    params = doubles(params)
    # Rows are averaged; of two columns the linear interpolation makes four at -1/4, 1/4, 3/4 and 5/4, held at the ends.
    rows, shares = student.mean(1, keepdims=True), np.array([0, 0.25, 0.75, 1])[:, None]
    fitted = (1 - shares) * rows[:, :, :1] + shares * rows[:, :, 1:]
    expected = np.square(batch_norm_relu(convolve(fitted, params["conv"]["kernel"]), params["bn"]) - teacher).mean()
    np.testing.assert_allclose(got, expected, rtol=1e-5)


@functools.cache
def simkd():
    """(student's maps, teacher's maps, variables, method, term as a function of (params, student's maps))."""
    student, teacher = RNG.normal(size=(4, 4, 4, 3)), RNG.normal(size=(4, 2, 2, 6))
    method = methods.create({"simkd": {}})

    def seen(student):
        return context(reports(LOGITS[0], student), reports(LOGITS[1], teacher))

    variables = jax.jit(lambda: method.init(jax.random.key(0), seen(student)))()

    def term(params, student):
        return method.apply(MethodVariables(params, variables.state), seen(student))[0]["simkd"]

    return student, teacher, variables, method, jax.jit(jax.value_and_grad(term, (0, 1)))


def projected(x, params, stats=None):
    for i, padding in ((1, 0), (2, 1), (3, 0)):
        x = convolve(x, params[f"conv{i}"]["kernel"], padding=padding)
        x = batch_norm_relu(x, params[f"bn{i}"], stats and stats[f"bn{i}"])
    return x


def halved(x):
    return x.reshape(4, 2, 2, 2, 2, -1).mean((2, 4))


def test_simkd_is_the_squared_error_of_the_projected_map():
    student, teacher, variables, _, term = simkd()
    params = doubles(variables.params["simkd"]["projector"])
    expected = np.square(projected(halved(student), params) - teacher).mean()
    np.testing.assert_allclose(term(variables.params, jnp.float32(student))[0], expected, rtol=1e-5)


def test_simkds_gradients_are_those_of_finite_differences():
    student, teacher, variables, _, term = simkd()
    params = doubles(variables.params["simkd"]["projector"])
    _, (by_params, by_student) = term(variables.params, jnp.float32(student))

    def loss(student, kernel):
        changed = {**params, "conv2": {"kernel": kernel}}
        return np.square(projected(halved(student), changed) - teacher).mean()

    assert_gradient(by_student, slope(lambda x: loss(x, params["conv2"]["kernel"]), student))
    kernel = by_params["simkd"]["projector"]["conv2"]["kernel"]
    assert_gradient(kernel, slope(lambda k: loss(student, k), params["conv2"]["kernel"]))


def test_simkd_predicts_by_the_teachers_head_and_running_statistics():
    student, _, variables, method, _ = simkd()
    params, state = doubles(variables.params["simkd"]["projector"]), doubles(variables.state["simkd"])
    stats = {name: {**one, "mean": one["mean"] + 0.1} for name, one in state["batch_stats"]["projector"].items()}
    moved = {"simkd": {**state, "batch_stats": {"projector": stats}}}
    got = method.predict(MethodVariables(variables.params, moved), reports(LOGITS[0], student))
    expected = projected(student, params, stats).mean((1, 2)) @ HEAD.kernel + HEAD.bias
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_simkds_head_is_the_teachers_and_is_not_trained():
    _, _, variables, _, _ = simkd()
    np.testing.assert_array_equal(variables.state["simkd"]["head"]["kernel"], np.float32(HEAD.kernel))
    assert list(variables.params["simkd"]) == ["projector"]


def test_a_head_that_does_not_read_the_last_map_is_refused():
    seen = context(reports(LOGITS[0], np.ones((4, 2, 2, 3))), reports(LOGITS[1], np.ones((4, 2, 2, 4))))
    with pytest.raises(InputError, match="the teacher's head reads 6 values, and its last map has 4 channels"):
        methods.create({"simkd": {}}).init(jax.random.key(0), seen)


def test_a_head_that_reads_no_averaged_map_is_refused():
    teacher = reports(LOGITS[1], np.ones((4, 2, 2, 6)))._replace(last=None)
    seen = context(reports(LOGITS[0], np.ones((4, 2, 2, 3))), teacher)
    with pytest.raises(InputError, match="the teacher's head reads no averaged map; expected a network with a linear"):
        methods.create({"simkd": {}}).init(jax.random.key(0), seen)


def test_averaging_down_is_pytorchs_adaptive_pooling():
    # From 5 to 3: pixels 0-1, 1-3 and 3-4, as adaptive_avg_pool2d takes them.
    x = np.arange(25.0).reshape(1, 5, 5, 1)
    rows = [x[:, 0:2], x[:, 1:4], x[:, 3:5]]
    expected = np.stack([r.mean(1) for r in rows], 1)
    expected = np.stack([expected[:, :, 0:2].mean(2), expected[:, :, 1:4].mean(2), expected[:, :, 3:5].mean(2)], 2)
    np.testing.assert_allclose(average_down(jnp.float32(x), (3, 3)), expected, rtol=1e-6)
