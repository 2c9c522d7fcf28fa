"""Methods of single maps against float64 numpy: values, gradients, adapters, what is masked."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax import methods
from kd_jax.errors import InputError
from kd_jax.types import MethodVariables
from tests.losses.test_maps import at, fsp, ickd, nst, wkd_features
from tests.methods.numeric import assert_gradient, batch_norm_relu, context, convolve, doubles, slope
from tests.methods.numeric_maps import batch_norm, drawn, resized, shapes, with_maps


def linear(x, params):
    return convolve(x, params["kernel"], padding=len(params["kernel"]) // 2) + params["bias"]


def feature_mse(x, teacher, params):
    return np.square(linear(resized(x, *teacher.shape[1:3]), params["adapter"]) - teacher).mean()


def normalized_mse(x, teacher, params):
    pair = linear(resized(x, *teacher.shape[1:3]), params["adapter"]), teacher
    own, other = (y / np.linalg.norm(y, axis=-1, keepdims=True) for y in pair)
    return np.square(own - other).mean()


def ickd_behind_a_norm(x, teacher, params):
    return ickd(batch_norm(convolve(x, params["conv"]["kernel"]), params["bn"]), teacher).mean()


def wkd_of_regressed(x, teacher, params, **options):
    params = params["regressor"]
    regressed = batch_norm_relu(convolve(x, params["conv"]["kernel"]), params["bn"])
    return wkd_features(regressed, teacher, **options).mean()


def mgd(x, teacher, params):
    """Without a mask."""
    x = resized(x, *teacher.shape[1:3])
    x = linear(x, params["align"]) if "align" in params else x
    generated = linear(np.maximum(linear(x, params["conv1"]), 0), params["conv2"])
    return np.square(generated - teacher).sum() / len(x)


# The formula, the method with its options, the maps of student and teacher without the batch, and a trained layer.
CASES = {
    "feature_mse": (feature_mse, {"method": "feature_mse"}, (4, 2, 3), (2, 3, 4), "adapter"),
    "normalized": (normalized_mse, {"method": "feature_mse", "normalize": True}, (2, 2, 3), (2, 2, 4), "adapter"),
    "ickd": (ickd_behind_a_norm, {"method": "ickd"}, (4, 2, 3), (2, 3, 4), "conv"),
    "wkd_features": (wkd_of_regressed, {"method": "wkd_features"}, (2, 3, 3), (2, 3, 4), "regressor"),
    "wkd_features in cells": (
        functools.partial(wkd_of_regressed, ratio=2.0, grid=2),
        {"method": "wkd_features", "ratio": 2.0, "grid": 2},
        (4, 3, 2),
        (4, 3, 3),
        "regressor",
    ),
    "mgd": (mgd, {"method": "mgd", "masked": 0.0}, (4, 2, 3), (2, 3, 4), "align"),
    "mgd of equal widths": (mgd, {"method": "mgd", "masked": 0.0}, (2, 2, 3), (2, 2, 3), "conv1"),
}
every = pytest.mark.parametrize("case", CASES)


@functools.cache
def made(case, batch):
    """(student's map, teacher's, parameters, value and gradients by both as a function of (parameters, map))."""
    rng = np.random.default_rng(batch)
    _, options, own, other, _ = CASES[case]
    student, teacher = rng.normal(size=(batch, *own)), rng.normal(size=(batch, *other))
    method = methods.create({"term": options})

    def seen(student):
        return context(with_maps([student]), with_maps([teacher]))

    variables = drawn(method, seen(student), rng)

    def term(params, student):
        return method.apply(MethodVariables(params, variables.state), seen(student))[0]["term"]

    return student, teacher, variables.params, jax.jit(jax.value_and_grad(term, (0, 1)))


@every
@pytest.mark.parametrize("batch", [2, 3])
def test_a_method_is_its_formula_of_the_adapted_map(case, batch):
    student, teacher, params, term = made(case, batch)
    expected = CASES[case][0](student, teacher, doubles(params["term"]))
    np.testing.assert_allclose(term(params, jnp.float32(student))[0], expected, rtol=1e-5)


@every
def test_its_gradients_are_those_of_finite_differences(case):
    student, teacher, params, term = made(case, 2)
    formula, _, _, _, layer = CASES[case]
    own = doubles(params["term"])
    _, (by_params, by_student) = term(params, jnp.float32(student))
    assert_gradient(by_student, slope(lambda x: formula(x, teacher, own), student))
    got = by_params["term"][layer]
    if layer == "regressor":
        params, got = own[layer]["conv"]["kernel"], got["conv"]["kernel"]

        def changed(kernel):
            return {layer: {**own[layer], "conv": {"kernel": kernel}}}
    else:
        params, got = own[layer]["kernel"], got["kernel"]

        def changed(kernel):
            return {**own, layer: {**own[layer], "kernel": kernel}}

    assert_gradient(got, slope(lambda kernel: formula(student, teacher, changed(kernel)), params))


def test_there_is_no_alignment_of_equal_widths():
    _, _, params, _ = made("mgd of equal widths", 2)
    assert list(params["term"]) == ["conv1", "conv2"]


@pytest.mark.parametrize("name", ["feature_mse", "ickd", "wkd_features", "mgd"])
def test_a_method_reads_the_stages_that_it_is_told(name):
    rng = np.random.default_rng(0)
    maps = [jnp.asarray(rng.normal(size=(2, 2, 2, c)), jnp.float32) for c in (3, 4, 5)]
    method = methods.create({name: {"stage": 1, "teacher_stage": 0}})
    seen = context(with_maps([maps[0], maps[1]]), with_maps([maps[2], maps[0]]))
    assert (1, 1, 4, 5) in [leaf.shape for leaf in jax.tree.leaves(shapes(method, seen).params)]


@pytest.mark.parametrize(("name", "formula"), [("at", at), ("nst", nst)])
def test_it_is_summed_over_all_stages_but_the_stem(name, formula):
    rng = np.random.default_rng(0)
    students, teachers = (
        [rng.normal(size=(2, *shape)) for shape in sizes]
        for sizes in ([(4, 4, 2), (4, 2, 3), (1, 2, 3)], [(2, 2, 5), (2, 2, 4), (2, 3, 5)])
    )
    got = jax.jit(
        lambda: methods.create({name: {}}).apply(
            MethodVariables({name: {}}, {name: {}}), context(with_maps(students), with_maps(teachers))
        )[0][name]
    )()
    expected = sum(formula(s, t).mean() for s, t in zip(students[1:], teachers[1:], strict=True))
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def flows(student, teacher):
    seen = context(with_maps(student), with_maps(teacher))
    return methods.create({"fsp": {}}).apply(MethodVariables({"fsp": {}}, {"fsp": {}}), seen)[0]["fsp"]


def test_flows_are_summed_over_successive_stages_the_stem_among_them():
    rng = np.random.default_rng(0)
    sizes = [(4, 4, 2), (4, 2, 3), (1, 2, 3)], [(2, 2, 2), (3, 2, 3), (2, 1, 3)]
    students, teachers = ([rng.normal(size=(2, *shape)) for shape in side] for side in sizes)
    expected = sum(fsp(*students[i : i + 2], *teachers[i : i + 2]).mean() for i in (0, 1))
    np.testing.assert_allclose(jax.jit(flows)(students, teachers), expected, rtol=1e-5)


def test_flows_of_other_numbers_of_stages_are_refused():
    one = np.ones((2, 2, 2, 3))
    with pytest.raises(
        InputError, match=r"method\.fsp: the student has 3 maps to compare, and the teacher 2; expected"
    ):
        flows([one] * 3, [one] * 2)


@functools.cache
def masks():
    """Whether each channel of [8, 2, 2, 40] is kept, as a function of the key: the generation is the identity."""
    method = methods.create({"mgd": {}})
    student, teacher = np.ones((8, 2, 2, 40)), np.zeros((8, 2, 2, 40))
    identity = np.zeros((3, 3, 40, 40))
    identity[1, 1] = np.eye(40)
    layer = {"kernel": jnp.asarray(identity, jnp.float32), "bias": jnp.zeros(40)}
    variables = MethodVariables({"mgd": {"conv1": layer, "conv2": layer}}, {"mgd": {}})

    def term(student, key):
        return method.apply(variables, context(with_maps([student]), with_maps([teacher]), rng=key))[0]["mgd"]

    gradient = jax.jit(jax.grad(term))
    return lambda seed: np.asarray(gradient(jnp.float32(student), jax.random.key(seed)) * 8 / 2)


def test_whole_channels_are_masked_and_the_others_not_rescaled():
    kept = masks()(0)
    assert set(np.unique(kept)) == {0, 1}
    np.testing.assert_array_equal(kept, np.broadcast_to(kept[:, :1, :1], kept.shape))


def test_as_many_channels_are_masked_as_it_says():
    # Of 640 draws with probability 0.15 the share lies within four deviations, 0.056.
    assert abs(np.mean([1 - masks()(seed)[:, 0, 0] for seed in (0, 1)]) - 0.15) < 0.056


def test_every_image_and_step_has_a_mask_of_its_own():
    first, second = masks()(0)[:, 0, 0], masks()(1)[:, 0, 0]
    assert len(np.unique([*first, *second], axis=0)) == 16
