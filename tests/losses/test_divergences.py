"""Losses that soften or compare otherwise than KD, against float64 numpy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax import losses
from kd_jax.errors import InputError
from tests.methods.numeric import STUDENT, TEACHER, assert_gradient, log_softmax, slope

RNG = np.random.default_rng(3)
ARRAYS = {6: (STUDENT, TEACHER), 3: tuple(RNG.normal(scale=2.0, size=(2, 3, 7)))}
WEIGHTS = RNG.uniform(0.5, 2.0, 6)  # of the images, so that an image's gradient shows whose it is
KEPT = np.array([True, True, False, True, False, True])


def softmax(x):
    return np.exp(log_softmax(x))


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def divergence(p, q):
    return (p * np.log(p / q)).sum(-1)


def entropy(p):
    return -(p * np.log(p)).sum(-1)


def ttm(student, teacher, gamma):
    powers = softmax(teacher) ** gamma
    return divergence(powers / powers.sum(-1, keepdims=True), softmax(student))


def wttm(student, teacher, gamma):
    return (softmax(teacher) ** gamma).sum(-1) * ttm(student, teacher, gamma)


def normkd(student, teacher, temperature):
    scales = [temperature * x.std(-1, ddof=1, keepdims=True) for x in (student, teacher)]
    return scales[1][:, 0] ** 2 * divergence(softmax(teacher / scales[1]), softmax(student / scales[0]))


def luminet(student, teacher, temperature):
    q, p = (softmax((x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5) / temperature) for x in (student, teacher))
    return divergence(p, q)


def abkd(student, teacher, alpha, beta, temperature):
    p, q = softmax(teacher / temperature), softmax(student / temperature)
    both = alpha + beta
    if alpha == beta == 0:
        classes = np.log(q / p) ** 2 / 2
    elif beta == 0:
        classes = (q**alpha - p**alpha + p**alpha * np.log(p**alpha / q**alpha)) / alpha**2
    elif alpha == 0:
        classes = (p**beta - q**beta + q**beta * np.log(q**beta / p**beta)) / beta**2
    elif both == 0:
        classes = (np.log(q**alpha / p**alpha) + p**alpha / q**alpha - 1) / alpha**2
    else:
        classes = p**both / (beta * both) + q**both / (alpha * both) - p**alpha * q**beta / (alpha * beta)
    return classes.sum(-1)


def jensen_shannon(student, teacher, temperature):
    p, q = softmax(teacher / temperature), softmax(student / temperature)
    return temperature**2 * (entropy((p + q) / 2) - (entropy(p) + entropy(q)) / 2)


def bce(student, teacher):
    p, q = softmax(teacher), sigmoid(student)
    return -(p * np.log(q) + (1 - p) * np.log(1 - q)).mean(-1)


def binary_kd(student, teacher, norm, temperature):
    p, q = sigmoid(teacher / temperature), sigmoid(student / temperature)
    if norm:
        p, q = 0.5, sigmoid((student - teacher) / temperature)
    return temperature**2 * (p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))).sum(-1)


CASES = {
    "ttm": (ttm, {"gamma": 0.3}),
    "wttm": (wttm, {"gamma": 0.3}),
    "normkd": (normkd, {"temperature": 1.5}),
    "luminet": (luminet, {"temperature": 3.0}),
    "abkd": (abkd, {"alpha": 0.8, "beta": 0.3, "temperature": 2.0}),
    "jensen_shannon": (jensen_shannon, {"temperature": 3.0}),
    "bce": (bce, {}),
    "binary_kd": (binary_kd, {"norm": False, "temperature": 3.0}),
    "binary_kd, norm": (binary_kd, {"norm": True, "temperature": 3.0}),
}
every = pytest.mark.parametrize("name", CASES)
each_size = pytest.mark.parametrize("size", ARRAYS)


@functools.cache
def program(name):
    """(student, teacher, where) -> ((gradients of student and teacher of the weighted sum), values [B])."""
    loss, options = getattr(losses, name.partition(",")[0]), CASES[name][1]

    def weighted(student, teacher, where):
        values = loss(student, teacher, where=where, **options)
        return (values * WEIGHTS[: len(values)]).sum(), values

    return jax.jit(jax.grad(weighted, (0, 1), has_aux=True))


def run(name, student, teacher, where=None, dtype=jnp.float32):
    """Values [B], and the gradients of student and teacher of their weighted sum."""
    gradients, values = program(name)(jnp.asarray(student, dtype), jnp.asarray(teacher, dtype), where)
    return values, gradients


def expected(name, student, teacher):
    function, options = CASES[name]
    return function(student, teacher, **options)


@every
@each_size
def test_the_value_is_that_of_the_formula(name, size):
    values, _ = run(name, *ARRAYS[size])
    np.testing.assert_allclose(values, expected(name, *ARRAYS[size]), rtol=1e-5)


@every
@each_size
def test_the_gradient_is_that_of_finite_differences(name, size):
    student, teacher = ARRAYS[size]
    _, (gradient, _) = run(name, student, teacher)
    assert_gradient(gradient, slope(lambda x: (WEIGHTS[:size] * expected(name, x, teacher)).sum(), student))


@every
def test_the_teacher_has_no_gradient(name):
    _, (_, gradient) = run(name, STUDENT, TEACHER)
    assert not gradient.any()


@every
def test_images_that_are_left_out_change_nothing(name):
    student, teacher = (np.where(KEPT[:, None], x, np.nan) for x in (STUDENT, TEACHER))
    values, _ = run(name, student, teacher, KEPT)
    np.testing.assert_allclose(values[KEPT], expected(name, STUDENT[KEPT], TEACHER[KEPT]), rtol=1e-5)


@every
def test_an_image_that_is_left_out_has_a_loss_of_zero(name):
    values, _ = run(name, STUDENT, TEACHER, KEPT)
    assert not values[~KEPT].any()


@every
def test_images_that_are_left_out_have_no_gradient_and_do_not_change_the_others(name):
    student, teacher = (np.where(KEPT[:, None], x, np.nan) for x in (STUDENT, TEACHER))
    _, (gradient, _) = run(name, student, teacher, KEPT)
    weights, kept = WEIGHTS[KEPT], TEACHER[KEPT]
    assert_gradient(gradient[KEPT], slope(lambda x: (weights * expected(name, x, kept)).sum(), STUDENT[KEPT]))
    assert not gradient[~KEPT].any()


@every
def test_without_any_image_value_and_gradient_are_zero(name):
    values, (gradient, _) = run(name, STUDENT, TEACHER, np.zeros(6, bool))
    assert not values.any()
    assert not gradient.any()


@every
def test_bfloat16_is_finite_and_near_float32(name):
    values, (gradient, _) = run(name, STUDENT, TEACHER, dtype=jnp.bfloat16)
    np.testing.assert_allclose(values, expected(name, STUDENT, TEACHER), rtol=2e-2, atol=2e-2)
    assert values.dtype == jnp.float32
    assert np.isfinite(np.float32(gradient)).all()


@every
def test_images_in_another_order_have_the_same_losses(name):
    order = np.array([3, 0, 5, 1, 4, 2])
    values, _ = run(name, STUDENT, TEACHER)
    permuted, _ = run(name, STUDENT[order], TEACHER[order])
    np.testing.assert_allclose(permuted, values[order], rtol=1e-5)


@pytest.mark.parametrize("name", [name for name in CASES if name != "bce"])
def test_it_is_zero_and_flat_where_both_agree(name):
    softened = 0.3 * TEACHER if name in ("ttm", "wttm") else TEACHER
    values, (gradient, _) = run(name, softened, TEACHER)
    np.testing.assert_allclose(values, 0, atol=1e-5)
    np.testing.assert_allclose(gradient, 0, atol=1e-5)


@pytest.mark.parametrize("name", [name for name, (_, options) in CASES.items() if "temperature" in options])
def test_a_temperature_of_zero_is_refused(name):
    loss = functools.partial(getattr(losses, name.partition(",")[0]), temperature=0.0)
    with pytest.raises(InputError, match=r"temperature is 0\.0; expected a number above 0"):
        jax.eval_shape(loss, STUDENT, TEACHER)


@every
def test_other_numbers_of_classes_are_refused(name):
    with pytest.raises(InputError, match="expected equal shapes"):
        jax.eval_shape(getattr(losses, name.partition(",")[0]), STUDENT, TEACHER[:, :4])


def test_ttm_is_kd_of_which_the_teacher_alone_has_a_temperature():
    temperature = 1 / CASES["ttm"][1]["gamma"]
    kd = jax.jit(functools.partial(losses.kd, temperature=temperature))(temperature * STUDENT, TEACHER)
    np.testing.assert_allclose(run("ttm", STUDENT, TEACHER)[0], kd / temperature**2, rtol=1e-5)


def test_wttms_weight_is_largest_where_the_teacher_is_not_sure():
    ratios = [run("wttm", STUDENT, x * TEACHER)[0] / run("ttm", STUDENT, x * TEACHER)[0] for x in (0, 1, 1000)]
    np.testing.assert_allclose(ratios[0], 5**0.7, rtol=1e-5)
    assert (ratios[0] > ratios[1]).all()
    np.testing.assert_allclose(ratios[2], 1, rtol=1e-5)


def test_normkd_does_not_see_the_students_scale_or_anybodys_offset():
    values, _ = run("normkd", STUDENT, TEACHER)
    np.testing.assert_allclose(run("normkd", 7 * STUDENT + 3, TEACHER - 2)[0], values, rtol=1e-4)


def test_normkd_grows_with_the_square_of_the_teachers_scale():
    values, _ = run("normkd", STUDENT, TEACHER)
    np.testing.assert_allclose(run("normkd", STUDENT, 3 * TEACHER)[0], 9 * values, rtol=1e-4)


def test_luminet_does_not_see_the_offset_or_scale_of_a_class():
    scales, offsets = RNG.uniform(1, 5, (2, 5)), RNG.normal(scale=5.0, size=(2, 5))
    values, _ = run("luminet", STUDENT, TEACHER)
    moved, _ = run("luminet", scales[0] * STUDENT + offsets[0], scales[1] * TEACHER + offsets[1])
    np.testing.assert_allclose(moved, values, rtol=1e-3)


def test_jensen_shannon_is_symmetric():
    values, _ = run("jensen_shannon", STUDENT, TEACHER)
    np.testing.assert_allclose(run("jensen_shannon", TEACHER, STUDENT)[0], values, rtol=1e-5)


def test_jensen_shannon_of_two_certain_opposites_is_its_bound():
    certain = 1e3 * np.eye(6, 5)
    values, _ = run("jensen_shannon", certain[[0, 1, 2, 3, 4, 0]], certain[[1, 2, 3, 4, 0, 2]])
    np.testing.assert_allclose(values, 9 * np.log(2), rtol=1e-6)


def test_bce_is_least_where_the_students_sigmoid_is_the_teachers_probability():
    p = softmax(TEACHER)
    _, (gradient, _) = run("bce", np.log(p / (1 - p)), TEACHER)
    np.testing.assert_allclose(gradient, 0, atol=1e-6)


@pytest.mark.parametrize("name", ["binary_kd", "binary_kd, norm"])
def test_binary_kd_sees_a_constant_that_is_added_to_all_logits(name):
    values, _ = run(name, TEACHER + 3, TEACHER)
    assert (values > 0.1).all()


def test_binary_kd_with_the_norm_sees_the_difference_of_the_logits_alone():
    values, _ = run("binary_kd, norm", STUDENT, TEACHER)
    np.testing.assert_allclose(run("binary_kd, norm", TEACHER - STUDENT, 0 * TEACHER)[0], values, rtol=1e-5)


@functools.cache
def exact_program():
    def total(student, teacher, alpha, beta):
        values = losses.abkd(student, teacher, alpha=alpha, beta=beta, temperature=2.0)
        return values.sum(), values

    return jax.jit(jax.value_and_grad(total, has_aux=True))


def exact(alpha, beta, student=STUDENT, teacher=TEACHER):
    """Values [B] and the student's gradient of `abkd` in float64; the same program whatever alpha and beta are."""
    with jax.enable_x64(True):
        (_, values), gradient = exact_program()(*(jnp.asarray(x, jnp.float64) for x in (student, teacher, alpha, beta)))
        return np.asarray(values), np.asarray(gradient)


PAIRS = [(0.8, 0.3), (0.5, 0.5), (2.0, 1.0), (-0.5, 1.5), (1.5, -0.5), (1.0, -2.0)]
LIMITS = [(1.0, 0.0), (0.0, 1.0), (0.0, 0.0), (0.5, 0.0), (0.0, 0.5), (1.0, -1.0), (-0.5, 0.5)]


@pytest.mark.parametrize(("alpha", "beta"), PAIRS + LIMITS)
def test_abkd_in_float64_is_the_papers_and_at_its_limits_theirs(alpha, beta):
    values, _ = exact(alpha, beta)
    np.testing.assert_allclose(values, abkd(STUDENT, TEACHER, alpha, beta, 2.0), rtol=1e-12)


@pytest.mark.parametrize(("alpha", "beta"), PAIRS + LIMITS)
def test_abkds_gradient_in_float64_is_that_of_finite_differences(alpha, beta):
    _, gradient = exact(alpha, beta)
    assert_gradient(gradient, slope(lambda x: abkd(x, TEACHER, alpha, beta, 2.0).sum(), STUDENT))


@pytest.mark.parametrize(("alpha", "beta"), LIMITS)
@pytest.mark.parametrize("away", [1e-3, 1e-6, 1e-9, 1e-15])
def test_abkd_tends_to_its_limits(alpha, beta, away):
    at, near = exact(alpha, beta), exact(alpha + away, beta - 2 * away)
    for one, other in zip(at, near, strict=True):
        np.testing.assert_allclose(one, other, rtol=20 * away + 1e-12, atol=20 * away + 1e-12)


def test_abkd_of_one_and_none_is_the_divergence_and_its_reverse():
    p, q = softmax(TEACHER / 2), softmax(STUDENT / 2)
    np.testing.assert_allclose(exact(1.0, 0.0)[0], divergence(p, q), rtol=1e-12)
    np.testing.assert_allclose(exact(0.0, 1.0)[0], divergence(q, p), rtol=1e-12)


@pytest.mark.parametrize(("alpha", "beta"), PAIRS + LIMITS)
def test_abkd_of_nearly_equal_logits_keeps_its_digits(alpha, beta):
    student = TEACHER + 1e-7 * STUDENT
    difference = log_softmax(student / 2) - log_softmax(TEACHER / 2)
    first_term = 0.5 * (softmax(TEACHER / 2) ** (alpha + beta) * difference**2).sum(-1)
    np.testing.assert_allclose(exact(alpha, beta, student)[0], first_term, rtol=1e-5)


@pytest.mark.parametrize(("alpha", "beta"), [(0.8, 0.3), (0.0, 0.0), (1.0, -1.0), (-3.0, 1.0), (1.0, -3.0)])
def test_abkd_of_certain_opposites_is_finite_with_a_finite_gradient(alpha, beta):
    # In float32, with the same program for all.
    certain = np.float32(1e4 * np.eye(6, 5))
    (_, values), gradient = exact_program()(certain, certain[::-1], np.float32(alpha), np.float32(beta))
    assert np.isfinite(values).all()
    assert np.isfinite(gradient).all()
