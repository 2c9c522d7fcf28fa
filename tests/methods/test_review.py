"""ReviewKD against float64 numpy: the chain of fusions, its gradients, which maps are read."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax import methods
from kd_jax.errors import InputError
from kd_jax.methods.review import nearest
from kd_jax.types import MethodVariables
from tests.losses.test_maps import hcl
from tests.methods.numeric import assert_gradient, context, convolve, doubles, slope
from tests.methods.numeric_maps import batch_norm, drawn, shapes, with_maps

# Without the batch: the student's stem and stages, its embedding; the teacher's stages and embedding.
STUDENT, EMBEDDING = [(4, 4, 2), (4, 4, 3), (2, 3, 4)], 5
TEACHER, TEACHERS_EMBEDDING = [(4, 4, 2), (3, 5, 4), (2, 1, 6)], 7


def to_size(x, rows, columns):
    """Pixel i of n is the one at floor(i h / n)."""
    result = np.zeros((len(x), rows, columns, x.shape[-1]))
    for i, j in np.ndindex(rows, columns):
        result[:, i, j] = x[:, int(i * x.shape[1] / rows), int(j * x.shape[2] / columns)]
    return result


def review(students, teachers, params):
    """The loss of maps from the first stage to the embedding, the chain as a recursion from its end."""

    def chain(stage):
        own = params[f"abf{stage + 1}"]
        x = batch_norm(convolve(students[stage], own["conv1"]["kernel"]), own["bn1"])
        below = 0.0
        if stage + 1 < len(students):
            deeper, below = chain(stage + 1)
            deeper = to_size(deeper, *x.shape[1:3])
            kernel, bias = own["attention"]["kernel"][0, 0], own["attention"]["bias"]
            scores = x @ kernel[: x.shape[-1]] + deeper @ kernel[x.shape[-1] :] + bias
            shares = 1 / (1 + np.exp(-scores))
            x = shares[..., [0]] * x + shares[..., [1]] * deeper
        x = to_size(x, *teachers[stage].shape[1:3])
        result = batch_norm(convolve(x, own["conv2"]["kernel"], padding=1), own["bn2"])
        return x, below + hcl(result, teachers[stage]).mean()

    return chain(0)[1]


@functools.cache
def arrays(batch):
    """(student's maps, its embedding, teacher's maps, its embedding)."""
    rng = np.random.default_rng(batch)
    draw = [
        [rng.normal(size=(batch, *shape)) for shape in shapes]
        for shapes in (STUDENT, [(EMBEDDING,)], TEACHER, [(TEACHERS_EMBEDDING,)])
    ]
    return draw[0], draw[1][0], draw[2], draw[3][0]


@functools.cache
def made(batch):
    """(parameters, value and gradients by both as a function of (parameters, (student's maps, embedding)))."""
    _, _, teachers, teachers_embedding = arrays(batch)
    method = methods.create({"reviewkd": {}})

    def seen(maps, embedding):
        elsewhere = [jnp.full_like(jnp.asarray(x, jnp.float32), jnp.nan) for x in teachers]
        teacher = with_maps(elsewhere, teachers_embedding, preactivations=teachers)
        return context(with_maps(maps, embedding), teacher)

    variables = drawn(method, seen(*arrays(batch)[:2]), np.random.default_rng(batch))

    def term(params, student):
        return method.apply(MethodVariables(params, variables.state), seen(*student))[0]["reviewkd"]

    return variables.params, jax.jit(jax.value_and_grad(term, (0, 1)))


def levels(maps, embedding):
    return [*maps[1:], embedding[:, None, None]]


def student32(batch):
    maps, embedding, _, _ = arrays(batch)
    return [jnp.asarray(x, jnp.float32) for x in maps], jnp.asarray(embedding, jnp.float32)


@pytest.mark.parametrize("batch", [2, 3])
def test_review_is_the_hierarchical_loss_along_the_chain(batch):
    maps, embedding, teachers, teachers_embedding = arrays(batch)
    params, term = made(batch)
    expected = review(levels(maps, embedding), levels(teachers, teachers_embedding), doubles(params["reviewkd"]))
    np.testing.assert_allclose(term(params, student32(batch))[0], expected, rtol=1e-5)


def test_its_gradients_by_the_student_are_those_of_finite_differences():
    maps, embedding, teachers, teachers_embedding = arrays(3)
    params, term = made(3)
    own, targets = doubles(params["reviewkd"]), levels(teachers, teachers_embedding)
    _, (_, (by_maps, by_embedding)) = term(params, student32(3))
    assert not np.any(by_maps[0])  # the stem's
    for i in (1, 2):
        expected = slope(lambda x: review(levels([*maps[:i], x, *maps[i + 1 :]], embedding), targets, own), maps[i])
        assert_gradient(by_maps[i], expected)
    assert_gradient(by_embedding, slope(lambda x: review(levels(maps, x), targets, own), embedding))


@pytest.mark.parametrize("layer", ["conv1", "attention"])
def test_its_gradients_by_the_parameters_are_those_of_finite_differences(layer):
    maps, embedding, teachers, teachers_embedding = arrays(3)
    params, term = made(3)
    own = doubles(params["reviewkd"])
    _, (by_params, _) = term(params, student32(3))

    def loss(kernel):
        changed = {**own, "abf2": {**own["abf2"], layer: {**own["abf2"][layer], "kernel": kernel}}}
        return review(levels(maps, embedding), levels(teachers, teachers_embedding), changed)

    assert_gradient(by_params["reviewkd"]["abf2"][layer]["kernel"], slope(loss, own["abf2"][layer]["kernel"]))


def parameters(options, student, teacher=None):
    """The shapes of the parameters."""
    seen = context(student, student if teacher is None else teacher)
    return shapes(methods.create({"reviewkd": options}), seen).params["reviewkd"]


def network(features, preactivations, width=3):
    """Outputs with one map of these channels a stage."""
    maps = [[np.ones((2, 2, 2, c)) for c in channels] for channels in (features, preactivations)]
    return with_maps(maps[0], np.ones((2, width)), preactivations=maps[1])


def test_the_chain_is_as_wide_as_the_embedding():
    assert parameters({}, network([1, 2], [1, 2], width=6))["abf1"]["conv1"]["kernel"].shape == (1, 1, 2, 6)


def test_the_chain_is_at_most_as_wide_as_it_says():
    assert parameters({"width": 4}, network([1, 2], [1, 2], width=6))["abf1"]["conv1"]["kernel"].shape == (1, 1, 2, 4)


@pytest.mark.parametrize(("preactivation", "channels"), [(False, 2), (True, 5)])
def test_the_student_is_seen_before_its_last_relu_where_that_is_asked(preactivation, channels):
    found = parameters({"preactivation": preactivation}, network([1, 2], [1, 5]))
    assert found["abf1"]["conv1"]["kernel"].shape[2] == channels


def test_every_number_of_stages_has_its_chain():
    found = parameters({}, network([1, 2, 3, 4, 5], [1, 2, 3, 4, 5]))
    assert {name: "attention" in fusion for name, fusion in found.items()} == {
        "abf1": True,
        "abf2": True,
        "abf3": True,
        "abf4": True,
        "abf5": False,
    }


def test_other_numbers_of_stages_are_refused():
    with pytest.raises(InputError, match="the student has 2 maps to compare, and the teacher 1; expected equally many"):
        parameters({}, network([1, 2, 3], [1, 2, 3]), network([1, 2], [1, 2]))


def test_a_teacher_without_preactivations_is_refused():
    with pytest.raises(InputError, match="no preactivations; expected a network that does"):
        parameters({}, network([1, 2], [1, 2]), network([1, 2], [1, 2])._replace(preactivations=()))


@pytest.mark.parametrize(
    ("own", "size", "taken"),
    [(2, 4, [0, 0, 1, 1]), (3, 4, [0, 0, 1, 2]), (4, 2, [0, 2]), (5, 3, [0, 1, 3]), (3, 3, [0, 1, 2])],
)
def test_nearest_pixels_are_those_of_pytorch(own, size, taken):
    line = jnp.arange(float(own)).reshape(1, 1, own, 1)
    np.testing.assert_array_equal(nearest(line, (1, size))[0, 0, :, 0], taken)
    np.testing.assert_array_equal(nearest(line.swapaxes(1, 2), [size, 1])[0, :, 0, 0], taken)
