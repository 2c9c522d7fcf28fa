"""CTKD, SDD, DeiT and DHKD against float64 numpy: values, gradients, what is trained and what predicts."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from kd_jax import methods
from kd_jax.errors import InputError
from kd_jax.types import Head, MethodVariables, student_logits
from tests import tiny
from tests.methods.numeric import STUDENT, TEACHER, assert_gradient, context, doubles, log_softmax, outputs, slope

RNG = np.random.default_rng(2)
LABELS = np.array([0, 1, 2, 3, -1, 4])


def kd(student, teacher, temperature):
    p, q = log_softmax(teacher / temperature), log_softmax(student / temperature)
    return temperature**2 * (np.exp(p) * (p - q)).sum(-1)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def init(method, seen):
    return jax.jit(lambda: method.init(jax.random.key(0), seen))()


@functools.cache
def ctkd(**options):
    """(term, gradients) as a function of (theta, student's logits, step), with four steps in an epoch."""
    method = methods.create({"ctkd": options})

    def term(theta, student, step):
        seen = context(student, TEACHER, step=step, steps_per_epoch=4)
        return method.apply(MethodVariables({"ctkd": {"theta": theta}}, {"ctkd": {}}), seen)[0]["ctkd"]

    return jax.jit(jax.value_and_grad(term, (0, 1)))


def curriculum(theta, student, t_start=1.0, t_end=20.0):
    return kd(student, TEACHER, t_start + t_end * sigmoid(theta)).mean()


def test_ctkds_temperature_begins_at_15_62():
    variables = init(methods.create({"ctkd": {}}), context(STUDENT, TEACHER))
    value, _ = ctkd()(variables.params["ctkd"]["theta"], jnp.float32(STUDENT), 0)
    np.testing.assert_allclose(value, kd(STUDENT, TEACHER, 15.621172).mean(), rtol=1e-5)


@pytest.mark.parametrize("theta", [-2.0, 0.5])
def test_ctkd_is_kd_at_the_temperature_of_its_parameter(theta):
    value, (_, gradient) = ctkd()(theta, jnp.float32(STUDENT), 0)
    np.testing.assert_allclose(value, curriculum(theta, STUDENT), rtol=1e-5)
    assert_gradient(gradient, slope(lambda x: curriculum(theta, x), STUDENT))


# (step, lambda): epochs count from one, four steps each.
CURRICULUM = {0: 0.1, 3: 0.1, 4: 0.2, 19: 0.5, 36: 1.0, 39: 1.0, 40: 1.0, 4000: 1.0}


@pytest.mark.parametrize("step", CURRICULUM)
def test_ctkds_parameter_goes_against_the_student_more_with_every_epoch(step):
    _, (gradient, _) = ctkd()(0.5, jnp.float32(STUDENT), step)
    direction = slope(lambda x: curriculum(x[0], STUDENT), np.array([0.5]))[0]
    np.testing.assert_allclose(gradient, (np.cos(np.pi * CURRICULUM[step]) - 1) / 2 * direction, rtol=1e-3)


def test_ctkds_options_are_the_range_of_the_temperature_and_the_length_of_the_curriculum():
    value, (gradient, _) = ctkd(t_start=2.0, t_end=3.0, curriculum_epochs=2.0)(0.5, jnp.float32(STUDENT), 4)
    np.testing.assert_allclose(value, curriculum(0.5, STUDENT, 2.0, 3.0), rtol=1e-5)
    direction = slope(lambda x: curriculum(x[0], STUDENT, 2.0, 3.0), np.array([0.5]))[0]
    np.testing.assert_allclose(gradient, -direction, rtol=1e-3)


MAPS = RNG.normal(scale=2.0, size=(6, 2, 3, 3)), RNG.normal(scale=2.0, size=(6, 2, 2, 4))
HEADS = [Head(RNG.normal(size=(c, 5)), RNG.normal(size=5)) for c in (3, 4)]


def reports(maps, head, dtype=jnp.float32):
    """Outputs whose logits are those of the head on the averaged last map."""
    maps, head = jnp.asarray(maps, dtype), jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), head)
    logits = maps.mean((1, 2)).astype(jnp.float32) @ head.kernel + head.bias
    return outputs(TEACHER)._replace(logits=logits, features=(maps[:, :1], maps), last=maps, head=head)


@functools.cache
def sdd(inner, scales=(1, 2)):
    method = methods.create({"sdd": {"inner": inner, "scales": scales, "temperature": 3.0, "alpha": 0.7, "beta": 5.0}})

    def term(maps, head, labels):
        seen = context(reports(maps, head, maps.dtype), reports(MAPS[1], HEADS[1]))
        view = seen.views[0]
        seen = dataclasses.replace(seen, views=(view._replace(batch=view.batch._replace(labels=labels)),))
        return method.apply(MethodVariables({"sdd": {}}, {"sdd": {}}), seen)[0]["sdd"]

    return jax.jit(jax.value_and_grad(term, (0, 1))), jax.jit(term)


def run_sdd(inner, labels=LABELS):
    """The value of two scales and its gradients to the student's map and head."""
    return sdd(inner)[0](jnp.float32(MAPS[0]), jax.tree.map(jnp.float32, HEADS[0]), jnp.int32(labels))


def sdd_value(scales=(1, 2), dtype=jnp.float32):
    """The value alone, with KD."""
    return sdd("kd", scales)[1](jnp.asarray(MAPS[0], dtype), jax.tree.map(jnp.float32, HEADS[0]), jnp.int32(LABELS))


def pooled(x, m):
    """The m * m cells [B, c] of maps, each side cut into m: a cell has every pixel that it touches."""
    sides = []
    for length in x.shape[1:3]:
        touches = [[p for p in range(length) if p < (i + 1) * length / m and p + 1 > i * length / m] for i in range(m)]
        sides.append(touches)
    return [x[:, rows][:, :, columns].mean((1, 2)) for rows in sides[0] for columns in sides[1]]


def dkd(student, teacher, label):
    p, q = (np.exp(log_softmax(x / 3.0)) for x in (teacher, student))
    target = p[label] * np.log(p[label] / q[label]) + (1 - p[label]) * np.log((1 - p[label]) / (1 - q[label]))
    a, b = (np.delete(x, label) / (1 - x[label]) for x in (p, q))
    return 9 * (0.7 * target + 5.0 * (a * np.log(a / b)).sum())


def scale_decoupled(maps, kernel, bias, inner, scales=(1, 2), labels=LABELS):
    """Image by image and cell by cell."""
    images = []
    for image, label in enumerate(labels):
        losses = []
        global_right = (MAPS[1][image].mean((0, 1)) @ HEADS[1].kernel + HEADS[1].bias).argmax() == label
        for m in scales:
            for own, theirs in zip(pooled(maps, m), pooled(MAPS[1], m), strict=True):
                student, teacher = own[image] @ kernel + bias, theirs[image] @ HEADS[1].kernel + HEADS[1].bias
                weight = 2 if (teacher.argmax() == label) != global_right else 1
                losses.append(weight * (kd(student, teacher, 3.0) if inner == "kd" else dkd(student, teacher, label)))
        if inner == "kd" or label >= 0:
            images.append(np.mean(losses))
    return np.mean(images)


both = pytest.mark.parametrize("inner", ["kd", "dkd"])


def test_the_teacher_of_these_tests_is_right_about_cells_alone_and_about_images_alone():
    right = np.array([(x @ HEADS[1].kernel + HEADS[1].bias).argmax(-1) == LABELS for x in pooled(MAPS[1], 2)])
    globally = (MAPS[1].mean((1, 2)) @ HEADS[1].kernel + HEADS[1].bias).argmax(-1) == LABELS
    assert (right & ~globally).any()
    assert (~right & globally).any()


@both
def test_sdd_is_the_mean_over_all_cells_of_which_ambiguous_ones_count_twice(inner):
    value, _ = run_sdd(inner)
    np.testing.assert_allclose(value, scale_decoupled(MAPS[0], *HEADS[0], inner), rtol=1e-5)


@both
def test_sdds_gradients_to_the_map_and_the_students_head_are_those_of_finite_differences(inner):
    _, (by_maps, by_head) = run_sdd(inner)
    kernel, bias = HEADS[0]
    assert_gradient(by_maps, slope(lambda x: scale_decoupled(x, kernel, bias, inner), MAPS[0]))
    assert_gradient(by_head.kernel, slope(lambda x: scale_decoupled(MAPS[0], x, bias, inner), kernel))
    assert_gradient(by_head.bias, slope(lambda x: scale_decoupled(MAPS[0], kernel, x, inner), bias))


def test_sdd_of_one_cell_is_kd_of_the_logits():
    value = sdd_value((1,))
    logits = [x.mean((1, 2)) @ head.kernel + head.bias for x, head in zip(MAPS, HEADS, strict=True)]
    np.testing.assert_allclose(value, kd(*logits, 3.0).mean(), rtol=1e-5)


def test_cells_of_a_map_with_fewer_pixels_share_them():
    value = sdd_value((4,))
    np.testing.assert_allclose(value, scale_decoupled(MAPS[0], *HEADS[0], "kd", (4,)), rtol=1e-5)


def test_with_dkd_images_without_a_label_do_not_count():
    value, _ = run_sdd("dkd", np.full(6, -1))
    assert value == 0


def test_with_kd_images_without_a_label_count_with_equal_weights():
    value, _ = run_sdd("kd", np.full(6, -1))
    np.testing.assert_allclose(value, scale_decoupled(MAPS[0], *HEADS[0], "kd", labels=np.full(6, -1)), rtol=1e-5)


def test_sdd_of_bfloat16_maps_is_near_that_of_float32():
    value = sdd_value(dtype=jnp.bfloat16)
    np.testing.assert_allclose(value, scale_decoupled(MAPS[0], *HEADS[0], "kd"), rtol=2e-2)


def test_sdd_refuses_a_head_that_does_not_read_the_last_map():
    def start():
        seen = context(reports(MAPS[0], HEADS[0]), reports(MAPS[1], HEADS[1])._replace(head=HEADS[0]))
        return methods.create({"sdd": {}}).init(jax.random.key(0), seen)

    message = "method.sdd: the teacher's head reads 3 values, and its last map has 4 channels; expected a network"
    with pytest.raises(InputError, match=message):
        jax.eval_shape(start)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "sdd", "inner": "rkd"}, "inner is 'rkd'; expected one of: dkd, kd"),
        ({"method": "deit", "distillation": "warm"}, "distillation is 'warm'; expected one of: hard, soft"),
    ],
)
def test_an_unknown_variant_is_refused(options, message):
    with pytest.raises(InputError, match=message):
        methods.create({"term": options}).init(jax.random.key(0), context(STUDENT, TEACHER))


EMBEDDING = RNG.normal(size=(6, 3))
HEAD_TERMS = {
    "deit": {},
    "deit, soft": {"distillation": "soft", "temperature": 2.0},
    "dhkd": {"temperature": 3.0},
    "dhkd, without the norm": {"norm": False, "temperature": 3.0},
}
every_head = pytest.mark.parametrize("name", HEAD_TERMS)


@functools.cache
def second_head(name):
    """(method, variables, the term and its gradients as a function of (params, embedding, student's logits))."""
    method = methods.create({"term": {"method": name.partition(",")[0], **HEAD_TERMS[name]}})

    def seen(embedding, logits):
        return context(outputs(logits, embedding), TEACHER, np.full(6, -1))

    variables = init(method, seen(EMBEDDING, STUDENT))

    def term(params, embedding, logits):
        return method.apply(MethodVariables(params, variables.state), seen(embedding, logits))[0]["term"]

    return method, variables, jax.jit(jax.value_and_grad(term, (0, 1, 2)))


def of_second_head(name, embedding, kernel, bias):
    logits = embedding @ kernel + bias
    if name == "deit":
        return -log_softmax(logits)[np.arange(6), TEACHER.argmax(-1)].mean()
    if name == "deit, soft":
        return kd(logits, TEACHER, 2.0).mean()
    if name == "dhkd":
        p, q = 0.5, sigmoid((logits - TEACHER) / 3)
    else:
        p, q = sigmoid(TEACHER / 3), sigmoid(logits / 3)
    return 9 * (p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))).sum(-1).mean()


@every_head
def test_the_second_heads_term_is_that_of_the_formula(name):
    _, variables, term = second_head(name)
    head = doubles(variables.params["term"]["head"]["linear"])
    value, _ = term(variables.params, jnp.float32(EMBEDDING), jnp.float32(STUDENT))
    np.testing.assert_allclose(value, of_second_head(name, EMBEDDING, **head), rtol=1e-5)


@every_head
def test_the_second_heads_gradients_are_those_of_finite_differences(name):
    _, variables, term = second_head(name)
    head = doubles(variables.params["term"]["head"]["linear"])
    _, (by_params, by_embedding, _) = term(variables.params, jnp.float32(EMBEDDING), jnp.float32(STUDENT))
    assert_gradient(by_embedding, slope(lambda x: of_second_head(name, x, **head), EMBEDDING))
    kernel = by_params["term"]["head"]["linear"]["kernel"]
    assert_gradient(kernel, slope(lambda x: of_second_head(name, EMBEDDING, x, head["bias"]), head["kernel"]))


@every_head
def test_the_students_own_head_learns_nothing_from_the_second(name):
    _, variables, term = second_head(name)
    _, (_, _, by_logits) = term(variables.params, jnp.float32(EMBEDDING), jnp.float32(STUDENT))
    assert not by_logits.any()


def test_deit_predicts_the_mean_of_both_heads():
    method, variables, _ = second_head("deit")
    head = doubles(variables.params["term"]["head"]["linear"])
    got = jax.jit(method.predict)(variables, outputs(STUDENT, EMBEDDING))
    expected = (STUDENT + EMBEDDING @ head["kernel"] + head["bias"]) / 2
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


def test_dhkd_predicts_as_the_student_does():
    assert second_head("dhkd")[0].predict is student_logits


@pytest.mark.parametrize("name", ["deit", "dhkd"])
def test_a_second_head_needs_an_embedding(name):
    seen = context(outputs(STUDENT)._replace(embedding=None), TEACHER)
    with pytest.raises(InputError, match=f"method.{name}: the student reports logits, .* and no embedding"):
        methods.create({name: {}}).init(jax.random.key(0), seen)


@pytest.mark.parametrize("name", ["ctkd", "deit", "dhkd"])
def test_parameters_have_the_precision_of_what_they_read(name):
    method = methods.create({name: {}})
    with jax.enable_x64(True):
        # Copies: JAX remembers what an array of numpy's became in float32.
        double = outputs(STUDENT.copy(), EMBEDDING.copy())
        variables = jax.eval_shape(lambda: method.init(jax.random.key(0), context(double, TEACHER)))
    assert {x.dtype for x in jax.tree.leaves(variables.params)} == {np.dtype("float64")}


def test_deit_on_two_devices_is_that_on_one():
    # The test of all methods in one program leaves it out.
    _, variables, term = second_head("deit")
    mesh = Mesh(jax.devices()[:2], ("batch",))
    arrays = [jnp.float32(x) for x in (EMBEDDING, STUDENT)]
    halves = [jax.device_put(x, NamedSharding(mesh, PartitionSpec("batch"))) for x in arrays]
    one, two = (term(variables.params, *x) for x in (arrays, halves))
    assert tiny.largest_difference(one, two) < 1e-6
