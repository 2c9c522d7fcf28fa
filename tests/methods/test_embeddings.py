"""Methods of embeddings against float64 numpy: values, gradients, what is projected, what is remembered."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax import methods
from kd_jax.errors import InputError
from kd_jax.methods.embeddings import orthogonal
from kd_jax.types import MethodVariables, Outputs
from tests.losses.test_embeddings import cc, cosine_distance, nd, rrd, srd, unit, vkd
from tests.methods.numeric import assert_gradient, context, doubles, outputs, slope

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(6, 3))
STUDENT, TEACHER = RNG.normal(size=(6, 5)), RNG.normal(size=(6, 7))
LABELS = np.array([0, 1, -1, 0, 2, 1])


def seen(student=STUDENT, teacher=TEACHER, labels=LABELS):
    """The teacher has no classes."""
    embedded = Outputs(jnp.zeros((len(teacher), 0)), embedding=jnp.asarray(teacher))
    given = context(outputs(LOGITS, student), embedded)
    (view,) = given.views
    batch = view.batch._replace(labels=jnp.asarray(labels, jnp.int32))
    return dataclasses.replace(given, views=(view._replace(batch=batch),))


@functools.cache
def built(name, width=7, **options):
    """(initial variables, step as a function of (variables, student, teacher, labels) -> (term, state, gradients))."""
    method = methods.create({name: options})
    variables = jax.jit(lambda: method.init(jax.random.key(0), seen(teacher=TEACHER[:, :width])))()

    @jax.jit
    def step(variables, student, teacher, labels):
        def term(params, student):
            terms, state = method.apply(MethodVariables(params, variables.state), seen(student, teacher, labels))
            return terms[name], state

        (value, state), gradients = jax.value_and_grad(term, (0, 1), has_aux=True)(variables.params, student)
        return value, state, gradients

    return variables, step


def params_of(name, width, **options):
    """The shapes of a method's parameters for a teacher of this width; nothing is compiled."""
    method = methods.create({name: options})
    return jax.eval_shape(lambda: method.init(jax.random.key(0), seen(teacher=TEACHER[:, :width]))).params[name]


def linear(x, layer):
    return x @ layer["kernel"] + layer["bias"]


def pefd(params, student, teacher):
    every = np.maximum(linear(student, params["projectors"]), 0)
    ensemble = sum(every[:, i : i + 7] for i in (0, 7, 14)) / 3
    return cosine_distance(ensemble, teacher).mean()


def squared(params, student, teacher):
    return ((linear(student, params["projector"]) - teacher) ** 2).mean()


# name: (options, term as a function of (params, student, teacher), the kernel whose gradient is compared)
PROJECTED = {
    "cosine": (
        {"method": "embedding"},
        lambda p, s, t: cosine_distance(linear(s, p["projector"]), t).mean(),
        "projector",
    ),
    "mse": ({"method": "embedding", "objective": "mse"}, squared, "projector"),
    "pefd": ({}, pefd, "projectors"),
    "srd": ({}, lambda p, s, t: srd(linear(s, p["projector"]), t), "projector"),
    "cc": (
        {"features": 4},
        lambda p, s, t: cc(linear(s, p["student_embed"]), linear(t, p["teacher_embed"])),
        "teacher_embed",
    ),
}


def run(name, **options):
    variables, step = built(name, **options)
    return variables, *step(variables, jnp.float32(STUDENT), jnp.float32(TEACHER), LABELS)


@pytest.mark.parametrize("name", PROJECTED)
def test_the_term_is_the_formulas(name):
    options, formula, _ = PROJECTED[name]
    variables, value, _, _ = run(name, **options)
    np.testing.assert_allclose(value, formula(doubles(variables.params[name]), STUDENT, TEACHER), rtol=1e-5)


@pytest.mark.parametrize("name", PROJECTED)
def test_the_gradients_are_those_of_finite_differences(name):
    options, formula, layer = PROJECTED[name]
    variables, _, _, (by_params, by_student) = run(name, **options)
    params = doubles(variables.params[name])
    assert_gradient(by_student, slope(lambda x: formula(params, x, TEACHER), STUDENT))

    def loss(kernel):
        return formula({**params, layer: {**params[layer], "kernel": kernel}}, STUDENT, TEACHER)

    assert_gradient(by_params[name][layer]["kernel"], slope(loss, params[layer]["kernel"]))


def test_embeddings_of_one_width_are_compared_as_they_are():
    variables, step = built("embedding", width=5)
    value, _, _ = step(variables, jnp.float32(STUDENT), jnp.float32(TEACHER[:, :5]), LABELS)
    assert not variables.params["embedding"]
    np.testing.assert_allclose(value, cosine_distance(STUDENT, TEACHER[:, :5]).mean(), rtol=1e-5)


def test_embeddings_of_one_width_are_projected_on_demand():
    assert params_of("embedding", 5, project=True)["projector"]["kernel"].shape == (5, 5)


@pytest.mark.parametrize("name", ["srd", "pefd", "cc", "vkd"])
def test_embeddings_of_one_width_are_projected_as_in_the_original(name):
    assert params_of(name, 5)


@pytest.mark.parametrize("name", ["nd", "rrd"])
def test_embeddings_of_one_width_are_not_projected_by(name):
    assert not params_of(name, 5)


def test_an_unknown_objective_is_refused_with_the_choices():
    with pytest.raises(InputError, match="expected one of: cosine, mse"):
        methods.create({"embedding": {"objective": "l1"}})


@pytest.mark.parametrize("name", ["embedding", "pefd", "cc", "srd", "vkd", "nd", "rrd"])
def test_a_teacher_without_an_embedding_is_refused(name):
    given = context(outputs(LOGITS, STUDENT), Outputs(jnp.zeros((6, 3))), LABELS)
    with pytest.raises(InputError, match=f"method.{name}: the teacher reports logits and no embedding"):
        methods.create({name: {}}).init(jax.random.key(0), given)


# VkD


def gram_schmidt(columns):
    """The orthonormal columns [m, n] that keep the directions of these, each without those before it."""
    done = []
    for column in columns.T:
        rest = column - sum((column @ one) * one for one in done)
        done.append(rest / np.sqrt(rest @ rest))
    return np.array(done).T


def projected(free, student):
    tall = free.shape[0] >= free.shape[1]
    return student @ (gram_schmidt(free) if tall else gram_schmidt(free.T).T)


@pytest.mark.parametrize("width", [7, 5, 3])
def test_vkd_is_the_papers_for_a_wider_equal_and_narrower_teacher(width):
    variables, step = built("vkd", width=width)
    teacher, free = TEACHER[:, :width], RNG.normal(size=(5, width))
    moved = variables._replace(params={"vkd": {"projector": jnp.float32(free)}})
    value, _, (by_params, by_student) = step(moved, jnp.float32(STUDENT), jnp.float32(teacher), LABELS)
    np.testing.assert_allclose(value, vkd(projected(free, STUDENT), teacher).mean(), rtol=1e-5)
    assert_gradient(by_student, slope(lambda x: vkd(projected(free, x), teacher).mean(), STUDENT))
    expected = slope(lambda f: vkd(projected(f, STUDENT), teacher).mean(), free)
    assert_gradient(by_params["vkd"]["projector"], expected)


@pytest.mark.parametrize("width", [7, 5, 3])
def test_vkds_projector_stays_orthogonal_under_gradient_steps(width):
    variables, step = built("vkd", width=width)
    params, first = variables.params, None
    for _ in range(5):
        values = step(variables._replace(params=params), jnp.float32(STUDENT), jnp.float32(TEACHER[:, :width]), LABELS)
        first = values[0] if first is None else first
        params = jax.tree.map(lambda p, g: p - 0.5 * g, params, values[2][0])
    projector = np.float64(jax.jit(orthogonal)(params["vkd"]["projector"]))
    narrow = min(5, width)
    identity = projector @ projector.T if width > 5 else projector.T @ projector
    np.testing.assert_allclose(identity, np.eye(narrow), atol=1e-6)
    assert values[0] < first


@pytest.mark.parametrize("width", [7, 3])
def test_vkds_free_matrix_begins_as_the_projector(width):
    free = built("vkd", width=width)[0].params["vkd"]["projector"]
    np.testing.assert_allclose(jax.jit(orthogonal)(free), free, atol=1e-6)


# ND


def stepped(name, batches, **options):
    """(variables, terms of the batches, state after them)."""
    variables, step = built(name, **options)
    state, terms = variables.state, []
    for student, teacher, labels in batches:
        value, state, _ = step(
            MethodVariables(variables.params, state), jnp.float32(student), jnp.float32(teacher), np.array(labels)
        )
        terms.append(value)
    return variables, terms, state[name]


THREE = [(RNG.normal(size=(6, 5)), RNG.normal(size=(6, 5)), RNG.integers(-1, 3, 6)) for _ in range(3)]
THREE[0] = (*THREE[0][:2], np.array([0, 0, -1, 1, 0, -1]))  # not of class 2


def class_means(batches):
    """{class: mean of the teacher's embeddings} over all images that have a label."""
    by_class = {}
    for _, teacher, labels in batches:
        for row, label in zip(teacher, labels, strict=True):
            if label >= 0:
                by_class.setdefault(int(label), []).append(row)
    return {label: (np.mean(rows, 0), len(rows)) for label, rows in by_class.items()}


@pytest.mark.parametrize("after", [1, 3])
def test_nds_means_are_those_of_all_images_seen(after):
    _, _, state = stepped("nd", THREE[:after], width=5)
    means = class_means(THREE[:after])
    for label in range(3):
        mean, count = means.get(label, (np.zeros(5), 0))
        np.testing.assert_allclose(state["classes"]["mean"][label], mean, rtol=1e-5, atol=1e-6)
        assert state["classes"]["count"][label] == count


def test_nd_is_the_papers_with_the_means_of_this_batch_too():
    _, terms, _ = stepped("nd", THREE, width=5)
    for i, term in enumerate(terms):
        means = class_means(THREE[: i + 1])
        student, teacher, labels = THREE[i]
        kept = labels >= 0
        of_image = np.array([means[label][0] for label in labels[kept]])
        np.testing.assert_allclose(term, nd(student[kept], teacher[kept], of_image).mean(), rtol=1e-5)


def test_nds_means_do_not_see_images_without_a_label():
    student, teacher, labels = THREE[0]
    dirty = np.where((labels >= 0)[:, None], teacher, np.nan)
    _, terms, state = stepped("nd", [(student, dirty, labels)], width=5)
    assert np.isfinite(terms[0])
    assert np.isfinite(state["classes"]["mean"]).all()


def test_nd_without_any_label_is_zero():
    _, terms, _ = stepped("nd", [(*THREE[0][:2], [-1] * 6)], width=5)
    assert terms == [0]


def test_nds_initialization_remembers_nothing():
    assert not np.any(built("nd", width=5)[0].state["nd"]["classes"]["count"])


def test_nds_projection_is_batch_norm_dropout_and_a_linear_layer():
    variables, value, _, (by_params, by_student) = run("nd", dropout=0.0)
    params = doubles(variables.params["nd"])
    kept = LABELS >= 0
    means = class_means([(STUDENT, TEACHER, LABELS)])
    of_image = np.array([means[label][0] for label in LABELS[kept]])

    def loss(student, kernel):
        normal = (student - student.mean(0)) / np.sqrt(student.var(0) + 1e-5)
        layer = {**params["embtrans"], "kernel": kernel}
        own = linear(normal * params["bn"]["scale"] + params["bn"]["bias"], layer)
        return nd(own[kept], TEACHER[kept], of_image).mean()

    kernel = params["embtrans"]["kernel"]
    np.testing.assert_allclose(value, loss(STUDENT, kernel), rtol=1e-5)
    assert_gradient(by_student, slope(lambda x: loss(x, kernel), STUDENT))
    assert_gradient(by_params["nd"]["embtrans"]["kernel"], slope(lambda k: loss(STUDENT, k), kernel))


def test_nds_dropout_is_the_steps():
    method = methods.create({"nd": {}})
    variables, _ = built("nd")

    @jax.jit
    def term(key):
        given = context(outputs(LOGITS, STUDENT), seen().teacher, LABELS, rng=jax.random.wrap_key_data(key))
        return method.apply(variables, given)[0]["nd"]

    keys = [jax.random.key_data(jax.random.key(i)) for i in (0, 0, 1)]
    first, again, other = map(term, keys)
    assert first == again
    assert first != other


# RRD


def queue_after(batches, size):
    """The latest teacher's embeddings of norm one, as rows in no order."""
    return np.concatenate([unit(teacher) for _, teacher, _ in batches])[-size:]


def in_order(rows):
    return np.array(sorted(np.asarray(rows).tolist()))


# A queue that three batches of six fill up twice, one that they do not fill, one that is smaller than a batch.
SIZES = [8, 32, 4]


@pytest.mark.parametrize("size", SIZES)
def test_rrds_queue_holds_the_latest_embeddings_after_three_batches(size):
    _, _, state = stepped("rrd", THREE, width=5, queue=size)
    memory, expected = state["memory"], queue_after(THREE, size)
    assert memory["filled"] == len(expected)
    np.testing.assert_allclose(in_order(memory["queue"][: len(expected)]), in_order(expected), rtol=1e-5)
    assert not np.any(memory["queue"][len(expected) :])


@pytest.mark.parametrize("size", SIZES)
def test_rrd_is_the_divergence_over_the_queue_with_this_batch_in_it(size):
    _, terms, _ = stepped("rrd", THREE, width=5, queue=size)
    for i, term in enumerate(terms):
        student, teacher, _ = THREE[i]
        expected = rrd(student, teacher, queue_after(THREE[: i + 1], size)).mean()
        np.testing.assert_allclose(term, expected, rtol=1e-5)


def test_rrd_projects_the_student_to_another_width_and_has_its_temperatures():
    options = {"queue": 8, "teacher_temperature": 0.3, "student_temperature": 0.5}
    variables, value, _, (by_params, by_student) = run("rrd", **options)
    params, queue = doubles(variables.params["rrd"]["projector"]), unit(TEACHER)

    def loss(student, kernel):
        return rrd(student @ kernel + params["bias"], TEACHER, queue, 0.3, 0.5).mean()

    np.testing.assert_allclose(value, loss(STUDENT, params["kernel"]), rtol=1e-5)
    assert_gradient(by_student, slope(lambda x: loss(x, params["kernel"]), STUDENT))
    kernel = by_params["rrd"]["projector"]["kernel"]
    assert_gradient(kernel, slope(lambda k: loss(STUDENT, k), params["kernel"]))


def test_rrds_initialization_remembers_nothing():
    memory = built("rrd", width=5, queue=8)[0].state["rrd"]["memory"]
    assert not any(np.any(x) for x in jax.tree.leaves(memory))


# All


@pytest.mark.parametrize("name", ["embedding", "pefd", "cc", "srd", "vkd", "nd", "rrd"])
def test_float64_stays_float64(name):
    method = methods.create({name: {"rrd": {"queue": 8}}.get(name, {})})
    with jax.enable_x64(True):
        double = [jax.ShapeDtypeStruct(x.shape, jnp.float64) for x in (STUDENT, TEACHER)]

        def both(student, teacher):
            given = seen(student, teacher)
            variables = method.init(jax.random.key(0), given)
            return variables, method.apply(variables, given)

        shapes = jax.eval_shape(both, *double)
    floats = [x.dtype for x in jax.tree.leaves(shapes) if jnp.issubdtype(x.dtype, jnp.floating)]
    assert set(floats) == {jnp.dtype("float64")}


@pytest.mark.parametrize("name", ["nd", "rrd"])
def test_what_is_remembered_goes_through_a_scan(name):
    variables, terms, _ = stepped(name, THREE, width=5, **{"rrd": {"queue": 8}}.get(name, {}))
    _, step = built(name, width=5, **{"rrd": {"queue": 8}}.get(name, {}))

    def body(state, batch):
        value, state, _ = step(MethodVariables(variables.params, state), *batch)
        return state, value

    batches = [jnp.stack([jnp.asarray(x) for x in xs]) for xs in zip(*THREE, strict=True)]
    scanned = jax.jit(lambda: jax.lax.scan(body, variables.state, batches)[1])()
    np.testing.assert_allclose(scanned, terms, rtol=1e-5)
