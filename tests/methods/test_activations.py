"""VID, OFD, AB and FT against float64 numpy: values, gradients, what they read, and the phases of FT."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from kd_jax import methods
from kd_jax.errors import InputError
from kd_jax.losses.arrays import same_size
from kd_jax.types import MethodVariables, Norm
from tests.methods.numeric import assert_gradient, context, convolve, doubles, outputs, slope

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(4, 5))
# The stem's map, which no method reads, and two stages.
STUDENT = [RNG.normal(size=(4, *shape)) for shape in ((3, 3, 2), (4, 4, 3), (2, 4, 2))]
TEACHER = [RNG.normal(size=(4, *shape)) for shape in ((5, 5, 2), (2, 2, 4), (2, 2, 3))]
UNREAD = tuple(jnp.full(x.shape, np.nan) for x in STUDENT)
SCALES = [np.abs(RNG.normal(size=x.shape[-1])) + 0.5 for x in TEACHER]
BIASES = [RNG.normal(size=x.shape[-1]) for x in TEACHER]
OPTIONS = {
    "vid": {"variance": 2.0},
    "ofd": {},
    "ab": {"margin": 0.5},
    "ft": {"paraphraser_epochs": 2, "rate": 0.7},
}
AFTER = 6  # a step of the third epoch, with two an epoch


def seen(name, student, teacher, step=AFTER):
    """A context with these maps, before the ReLU for those methods that read them there, and NaN in its place."""
    common = {"norms": tuple(Norm(jnp.asarray(s), jnp.asarray(b)) for s, b in zip(SCALES, BIASES, strict=True))}
    read, unread = ("features", "preactivations") if name in ("vid", "ft") else ("preactivations", "features")
    sides = (
        outputs(LOGITS[: len(maps[0])])._replace(
            **{read: tuple(jnp.asarray(x, jnp.float32) for x in maps), unread: UNREAD}, **common
        )
        for maps in (student, teacher)
    )
    return context(*sides, step=step, steps_per_epoch=2)


@functools.cache
def method(name):
    return methods.create({name: OPTIONS[name]})


@functools.cache
def initial(name):
    variables = jax.jit(lambda: method(name).init(jax.random.key(0), seen(name, STUDENT, TEACHER)))()

    def moved(path, x):
        """Scales below zero, and biases: as they are made, neither would show."""
        if "bn" not in path[-2].key:
            return x
        return x - 1.5 if path[-1].key == "scale" else x + 0.2 * np.arange(1, 1 + x.size)

    params = jax.tree_util.tree_map_with_path(moved, variables.params)
    return MethodVariables(params, variables.state)


@functools.cache
def program(name):
    """(params, student's maps, teacher's maps, step) -> ((terms, state), gradients of their sum)."""

    def total(params, student, teacher, step):
        variables = MethodVariables(params, initial(name).state)
        terms, state = method(name).apply(variables, seen(name, student, teacher, step))
        return sum(terms.values()), (terms, state)

    def run(*arguments):
        (_, result), gradients = jax.value_and_grad(total, (0, 1, 2), has_aux=True)(*arguments)
        return result, gradients

    return jax.jit(run)


@functools.cache
def results(name, count=4, step=AFTER):
    maps = ([jnp.asarray(x[:count], jnp.float32) for x in side] for side in (STUDENT, TEACHER))
    return program(name)(initial(name).params, *maps, step)


def down(x, height, width):
    """The means of blocks."""
    return x.reshape(len(x), height, x.shape[1] // height, width, x.shape[2] // width, -1).mean((2, 4))


def normalized(x, params):
    mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2))
    return (x - mean) / np.sqrt(variance + 1e-5) * params["scale"] + params["bias"]


def vid(params, student, teacher):
    total = 0
    for stage in (1, 2):
        x, target = down(student[stage], 2, 2), down(teacher[stage], 2, 2)
        kernels = [params[f"stage{stage}_conv{i}"]["kernel"][0, 0] for i in (1, 2, 3)]
        mean = np.maximum(np.maximum(x @ kernels[0], 0) @ kernels[1], 0) @ kernels[2]
        variance = np.log(1 + np.exp(params[f"stage{stage}_scale"])) + 1e-5
        total += (0.5 * ((mean - target) ** 2 / variance + np.log(variance))).mean()
    return total


def ofd(params, student, teacher):
    total = 0
    for stage in (1, 2):
        own = params[f"stage{stage}"]
        x = normalized(down(student[stage], 2, 2) @ own["conv"]["kernel"][0, 0], own["bn"])
        margin = scipy.stats.truncnorm.mean(
            -np.inf, -BIASES[stage] / SCALES[stage], loc=BIASES[stage], scale=SCALES[stage]
        )
        target = np.maximum(teacher[stage], margin)
        counts = (x > target) | (teacher[stage] > 0)
        total += ((x - target) ** 2 * counts).sum() / len(x) / (2 if stage == 1 else 1)
    return total


def ab(params, student, teacher):
    total = 0
    for stage in (1, 2):
        own = params[f"stage{stage}"]
        # 4x4 to 2x2 with a stride of two; 2x4 to 2x2 by a kernel of the difference.
        x = convolve(student[stage], own["conv"]["kernel"], **({"stride": 2, "padding": 1} if stage == 1 else {}))
        x = normalized(x, own["bn"])
        on, off = (x <= 0.5) * (teacher[stage] > 0), (x > -0.5) * (teacher[stage] <= 0)
        total += ((x + 0.5) ** 2 * off + (x - 0.5) ** 2 * on).sum() / len(x) / (2 if stage == 1 else 1)
    return total


def coded(x, params):
    for i in (1, 2, 3):
        x = convolve(x, params[f"conv{i}"]["kernel"], padding=1) + params[f"conv{i}"]["bias"]
        x = normalized(x, params[f"bn{i}"]) if f"bn{i}" in params else x
        x = np.where(x > 0, x, 0.1 * x)
    return x


def factor(params, student, teacher):
    sides = []
    for x in (coded(student[-1], params["translator"]), coded(teacher[-1], params["encoder"])):
        energy = (down(x, 2, 2) ** 2).mean(-1).reshape(len(x), -1)
        sides.append(energy / np.linalg.norm(energy, axis=1, keepdims=True))
    return np.abs(sides[0] - sides[1]).mean()


def rebuilding(params, student, teacher):
    return ((coded(coded(teacher[-1], params["encoder"]), params["decoder"]) - teacher[-1]) ** 2).mean()


EXPECTED = {"vid": vid, "ofd": ofd, "ab": ab, "ft": factor}
every = pytest.mark.parametrize("name", EXPECTED)


@every
@pytest.mark.parametrize("count", [4, 3])
def test_the_term_is_the_papers(name, count):
    (terms, _), _ = results(name, count)
    params = doubles(initial(name).params[name])
    expected = EXPECTED[name](params, *([x[:count] for x in side] for side in (STUDENT, TEACHER)))
    np.testing.assert_allclose(sum(terms.values()), expected, rtol=1e-5)


@every
def test_the_gradients_to_the_students_maps_are_those_of_finite_differences(name):
    _, (_, by_student, _) = results(name)
    params = doubles(initial(name).params[name])
    for stage in (1, 2) if name != "ft" else (2,):

        def loss(x, stage=stage):
            maps = list(STUDENT)
            maps[stage] = x
            return EXPECTED[name](params, maps, TEACHER)

        assert_gradient(by_student[stage], slope(loss, STUDENT[stage]))
    assert not np.any(by_student[0])


# One parameter of every kind.
TRAINED = {
    "vid": ["stage1_conv2/kernel", "stage1_scale", "stage2_conv1/kernel"],
    "ofd": ["stage1/conv/kernel", "stage2/bn/scale"],
    "ab": ["stage1/conv/kernel", "stage2/bn/bias"],
    "ft": ["translator/conv1/kernel", "translator/bn3/scale"],
}


def changed(tree, path, leaf):
    first, _, rest = path.partition("/")
    return {**tree, first: changed(tree[first], rest, leaf) if rest else leaf}


def at(tree, path):
    return functools.reduce(lambda tree, key: tree[key], path.split("/"), tree)


@pytest.mark.parametrize(("name", "path"), [(name, path) for name in TRAINED for path in TRAINED[name]])
def test_the_gradient_to_a_parameter_is_that_of_finite_differences(name, path):
    _, (by_params, _, _) = results(name)
    params = doubles(initial(name).params[name])
    expected = slope(lambda x: EXPECTED[name](changed(params, path, x), STUDENT, TEACHER), at(params, path))
    assert_gradient(at(by_params[name], path), expected)


@every
def test_the_teachers_maps_get_no_gradient(name):
    _, (_, _, by_teacher) = results(name)
    assert not any(np.any(x) for x in by_teacher)


def test_vids_variance_starts_where_it_is_told():
    scale = doubles(initial("vid").params["vid"]["stage2_scale"])
    np.testing.assert_allclose(np.log(1 + np.exp(scale)) + 1e-5, [2.0] * 3, rtol=1e-6)


@pytest.mark.parametrize("name", ["vid", "ofd", "ab"])
def test_other_numbers_of_stages_are_refused(name):
    with pytest.raises(
        InputError, match=f"method.{name}: the student has 1 maps to compare, and the teacher 2; expected"
    ):
        jax.eval_shape(lambda: method(name).init(jax.random.key(0), seen(name, STUDENT[:2], TEACHER)))


def test_a_network_of_one_map_is_refused():
    with pytest.raises(InputError, match="has 0 maps to compare, and the teacher 0; expected equally many, at least 1"):
        jax.eval_shape(lambda: method("vid").init(jax.random.key(0), seen("vid", STUDENT[:1], TEACHER[:1])))


# Steps of two epochs, two steps in each, and the first of the next.
@pytest.mark.parametrize(("step", "first"), [(0, True), (3, True), (4, False), (AFTER, False)])
def test_each_part_of_ft_counts_in_its_own_phase(step, first):
    (terms, _), _ = results("ft", step=step)
    params = doubles(initial("ft").params["ft"])
    expected = {
        "ft/paraphraser": rebuilding(params, STUDENT, TEACHER) if first else 0,
        "ft/factor": 0 if first else factor(params, STUDENT, TEACHER),
    }
    assert terms.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(terms[name], value, rtol=1e-5, err_msg=name)


@pytest.mark.parametrize(("step", "moving"), [(0, {"encoder", "decoder"}), (AFTER, {"translator"})])
def test_the_half_of_ft_whose_phase_it_is_not_has_exactly_no_gradient(step, moving):
    _, (by_params, by_student, _) = results("ft", step=step)
    for name, tree in by_params["ft"].items():
        assert any(np.any(x) for x in jax.tree.leaves(tree)) == (name in moving), name
    assert np.any(by_student[-1]) == ("translator" in moving)


@pytest.mark.parametrize("path", ["encoder/conv2/kernel", "decoder/conv1/kernel", "decoder/conv3/bias"])
def test_the_paraphrasers_gradient_is_that_of_finite_differences(path):
    _, (by_params, _, _) = results("ft", step=0)
    params = doubles(initial("ft").params["ft"])
    expected = slope(lambda x: rebuilding(changed(params, path, x), STUDENT, TEACHER), at(params, path))
    assert_gradient(at(by_params["ft"], path), expected)


def test_the_translators_statistics_wait_for_its_phase():
    before = initial("ft").state["ft"]["batch_stats"]["translator"]
    for step, waits in ((0, True), (AFTER, False)):
        (_, state), _ = results("ft", step=step)
        after = state["ft"]["batch_stats"]["translator"]
        same = jax.tree.map(lambda a, b: np.array_equal(a, b), before, after)
        assert jax.tree.leaves(same) == [waits] * 6


def test_the_translators_statistics_move_to_the_batchs_mean():
    (_, state), _ = results("ft")
    params = doubles(initial("ft").params["ft"]["translator"])
    x = convolve(STUDENT[-1], params["conv1"]["kernel"], padding=1) + params["conv1"]["bias"]
    got = state["ft"]["batch_stats"]["translator"]["bn1"]["mean"]
    np.testing.assert_allclose(got, 0.1 * x.mean((0, 1, 2)), rtol=1e-4, atol=1e-6)


def test_a_factor_has_the_rates_share_of_the_channels_and_one_at_least():
    assert initial("ft").params["ft"]["encoder"]["conv3"]["kernel"].shape == (3, 3, 2, 2)  # 0.7 of 3
    least = methods.create({"ft": {"rate": 0.1}})
    shapes = jax.eval_shape(lambda: least.init(jax.random.key(0), seen("ft", STUDENT, TEACHER))).params["ft"]
    assert shapes["translator"]["conv3"]["kernel"].shape == (3, 3, 1, 1)


def test_fts_first_phase_lasts_thirty_epochs_unless_it_is_told():
    options = methods.METHODS["ft"].__signature__.parameters
    assert [options[name].default for name in ("paraphraser_epochs", "rate", "spatial")] == [30, 0.5, True]


def test_ft_compares_whole_factors_where_it_is_told():
    whole = methods.create({"ft": {"paraphraser_epochs": 0, "rate": 0.7, "spatial": False}})
    variables = initial("ft")
    got = jax.jit(lambda: whole.apply(variables, seen("ft", STUDENT, TEACHER))[0]["ft/factor"])()
    params = doubles(variables.params["ft"])
    sides = coded(STUDENT[-1], params["translator"]), coded(TEACHER[-1], params["encoder"])
    rows = [down(x, 2, 2).reshape(4, -1) for x in sides]
    units = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in rows]
    np.testing.assert_allclose(got, np.abs(units[0] - units[1]).mean(), rtol=1e-5)


def test_a_map_is_averaged_down_where_it_is_longer_than_the_other():
    x, y = RNG.normal(size=(2, 4, 2, 3)), RNG.normal(size=(2, 2, 4, 5))
    student, teacher = jax.jit(same_size)(x, y)
    np.testing.assert_allclose(student, down(x, 2, 2), rtol=1e-5)
    np.testing.assert_allclose(teacher, down(y, 2, 2), rtol=1e-5)


def test_the_terms_weight_is_that_of_the_factor_and_not_of_the_paraphraser():
    assert methods.create({"ft": {"weight": 200.0}}).weights == {"ft": 200.0, "ft/paraphraser": 1.0}
