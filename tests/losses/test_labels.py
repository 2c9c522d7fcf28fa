"""Losses that set the label's class apart, against float64 numpy, image by image."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax import losses
from kd_jax.errors import InputError
from tests.methods.numeric import assert_gradient, jitted, log_softmax, slope

RNG = np.random.default_rng(3)
LABELS = np.array([0, 1, 2, 3, 4, 0], np.int32)
SMALL = (*RNG.normal(scale=2.0, size=(2, 6, 5)), LABELS)
LARGE = (*RNG.normal(scale=2.0, size=(2, 4, 7)), np.array([6, 3, 3, 0], np.int32))
SIZES = {"six images of five classes": SMALL, "four images of seven classes": LARGE}
# Not symmetric, so that an exchange of student and teacher is seen; negative entries count as zero.
COSTS = {k: RNG.uniform(-0.1, 0.8, size=(k, k)) * (1 - np.eye(k)) for k in (5, 7)}


def softmax(x):
    return np.exp(log_softmax(x))


def kl(p, q):
    return (p * np.log(p / q)).sum()


def without(x, label):
    return np.delete(x, label)


def nkd(student, teacher, label):
    """Yang et al.: gamma 3.5, T 3."""
    q, p = (softmax(without(x, label) / 3) for x in (student, teacher))
    return -softmax(teacher)[label] * np.log(softmax(student)[label]) - 3.5 * 9 * (p * np.log(q)).sum()


def wsld_weight(student, teacher, label):
    return 1 - np.exp(-log_softmax(student)[label] / log_softmax(teacher)[label])


def wsld(student, teacher, label, weight=None):
    """Zhou et al.: T 4."""
    weight = wsld_weight(student, teacher, label) if weight is None else weight
    return -16 * weight * (softmax(teacher / 4) * np.log(softmax(student / 4))).sum()


def rld(student, teacher, label):
    """Sun et al.: alpha 0.7, beta 6, T 3, T_a 2."""
    top, own = softmax(teacher / 2).max(), softmax(student / 2)[label]
    single = kl(np.array([top, 1 - top]), np.array([own, 1 - own]))
    below = teacher < teacher[label]
    masked = kl(softmax(teacher[below] / 3), softmax(student[below] / 3)) if below.any() else 0
    return 0.7 * 4 * single + 6 * 9 * masked


def swapped(teacher, label):
    teacher = teacher.copy()
    top = teacher.argmax()
    teacher[[label, top]] = teacher[[top, label]]
    return teacher


def swapped_kd(student, teacher, label):
    """Wen et al., KD at T 4 with the swapped teacher."""
    return 16 * kl(softmax(swapped(teacher, label) / 4), softmax(student / 4))


def sinkhorn(p, q, cost):
    """Lv et al.: what the plan costs after ten iterations with a regularization of 0.05."""
    cost = np.maximum(cost, 0) + 1e-8
    kernel, u = np.exp(-cost / 0.05), np.full(len(p), 1 / len(p))
    for _ in range(10):
        v = q / (kernel.T @ u + 1e-8)
        u = p / (kernel @ v + 1e-8)
    return (np.diag(u) @ kernel @ np.diag(v) * cost).sum()


def wkd_logits(student, teacher, label):
    """Lv et al.: half of the label's part, gamma 5, T 2, with the label's row and column cut out of the cost."""
    cost = np.delete(np.delete(COSTS[len(student)], label, 0), label, 1)
    p, q = (softmax(without(x, label) / 2) for x in (student, teacher))
    return -0.5 * softmax(teacher)[label] * np.log(softmax(student)[label]) + 5 * sinkhorn(p, q, cost)


def teacher_free(student, _, label):
    """Yuan et al.: T 2, 0.9 on the label; softened probabilities are powers of them."""
    by_hand = np.full(len(student), 0.1 / (len(student) - 1))
    by_hand[label] = 0.9
    softened = by_hand ** (1 / 2)
    return 4 * kl(softened / softened.sum(), softmax(student / 2))


LOSSES = {  # under test, and in numpy
    "nkd": (losses.nkd, nkd),
    "wsld": (losses.wsld, wsld),
    "rld": (functools.partial(losses.rld, alpha=0.7, beta=6.0, temperature=3.0, label_temperature=2.0), rld),
    "swapped_kd": (losses.swapped_kd, swapped_kd),
    "wkd_logits": (
        lambda s, t, y, *, where: losses.wkd_logits(
            s, t, y, cost=jnp.asarray(COSTS[s.shape[1]]), alpha=0.5, gamma=5.0, temperature=2.0, where=where
        ),
        wkd_logits,
    ),
    "teacher_free": (
        lambda s, t, y, *, where: losses.teacher_free(s, y, correct=0.9, temperature=2.0, where=where),
        teacher_free,
    ),
}
every = pytest.mark.parametrize("name", LOSSES)


@functools.cache
def program(name):
    def run(student, teacher, labels, where):
        def total(student, teacher):
            values = LOSSES[name][0](student, teacher, labels, where=where)
            return values.sum(), values

        gradients, values = jax.grad(total, (0, 1), has_aux=True)(student, teacher)
        return values, *gradients

    return jax.jit(run)


def computed(name, student, teacher, labels, where=None, dtype=jnp.float32):
    """Values [B], and the gradients of their sum to the student and the teacher."""
    where = np.ones(len(labels), bool) if where is None else where
    return program(name)(jnp.asarray(student, dtype), jnp.asarray(teacher, dtype), labels, where)


def expected(name, student, teacher, labels):
    return np.array([LOSSES[name][1](*image) for image in zip(student, teacher, labels, strict=True)])


@every
@pytest.mark.parametrize("size", SIZES)
def test_the_values_are_the_papers(name, size):
    np.testing.assert_allclose(computed(name, *SIZES[size])[0], expected(name, *SIZES[size]), rtol=1e-5, atol=1e-6)


@every
@pytest.mark.parametrize("size", SIZES)
def test_the_gradient_is_that_of_finite_differences(name, size):
    student, teacher, labels = SIZES[size]
    weights = [wsld_weight(*image) for image in zip(student, teacher, labels, strict=True)]

    def total(student):
        if name == "wsld":  # its weight is no function of the student's parameters
            return sum(map(wsld, student, teacher, labels, weights))
        return expected(name, student, teacher, labels).sum()

    assert_gradient(computed(name, student, teacher, labels)[1], slope(total, student))


@every
def test_the_teacher_gets_no_gradient(name):
    assert not np.any(computed(name, *SMALL)[2])


WHERE = np.array([True, False, True, True, False, True])


def with_nan(x):
    return np.where(WHERE[:, None], x, np.nan)


@every
def test_images_that_are_left_out_change_nothing(name):
    student, teacher, labels = SMALL
    values, gradient, _ = computed(name, student, teacher, labels)
    got = computed(name, with_nan(student), with_nan(teacher), np.where(WHERE, labels, -1), WHERE)
    np.testing.assert_allclose(got[0], np.where(WHERE, values, 0), rtol=1e-6)
    np.testing.assert_allclose(got[1], np.where(WHERE[:, None], gradient, 0), rtol=1e-5, atol=1e-6)
    assert not np.any(got[2])


@every
def test_without_any_image_the_loss_is_zero(name):
    nothing = np.zeros(6, bool)
    values, gradient, _ = computed(name, *(np.full_like(x, np.nan) for x in SMALL[:2]), -np.ones(6, np.int32), nothing)
    assert not np.any(values)
    assert not np.any(gradient)


@every
def test_a_constant_added_to_all_logits_of_an_image_changes_nothing(name):
    student, teacher, labels = SMALL
    shift = np.arange(6)[:, None]
    moved = computed(name, student + shift, teacher - 2 * shift, labels)
    for got, kept in zip(moved, computed(name, *SMALL), strict=True):
        np.testing.assert_allclose(got, kept, rtol=1e-4, atol=1e-4)


@every
def test_each_image_has_its_own_value(name):
    order = np.array([3, 0, 5, 1, 4, 2])
    reordered = computed(name, *(x[order] for x in SMALL))
    np.testing.assert_allclose(reordered[0], computed(name, *SMALL)[0][order], rtol=1e-6)


@every
def test_bfloat16_logits_are_near_those_of_float32(name):
    student, teacher = (np.float32(jnp.asarray(x, jnp.bfloat16)) for x in SMALL[:2])
    values, gradient, _ = computed(name, student, teacher, LABELS, dtype=jnp.bfloat16)
    assert values.dtype == jnp.float32
    assert np.isfinite(np.float32(gradient)).all()
    np.testing.assert_allclose(values, expected(name, student, teacher, LABELS), rtol=2e-2)


EXTREMES = {
    "the teacher is certain of the label": (0, 1e4 * np.eye(5)[LABELS]),
    "the student is certain of the label": (1e4 * np.eye(5)[LABELS], 0),
    "both are certain of different classes": (1e4 * np.eye(5)[LABELS - 1], 1e4 * np.eye(5)[LABELS - 2]),
    "both are certain of it that it is not the label": (-1e4 * np.eye(5)[LABELS], -1e4 * np.eye(5)[LABELS]),
    "all logits are equal": (0, 0),
    "logits are large": (1e4 * SMALL[0], 1e4 * SMALL[1]),
}


@every
@pytest.mark.parametrize("case", EXTREMES)
def test_values_and_gradients_are_finite_where(name, case):
    student, teacher = (np.broadcast_to(x, (6, 5)) for x in EXTREMES[case])
    assert all(np.isfinite(x).all() for x in computed(name, student, teacher, LABELS))


@every
def test_values_and_gradients_are_finite_where_one_class_is_present(name):
    assert all(np.isfinite(x).all() for x in computed(name, *SMALL[:2], np.zeros(6, np.int32)))


labels = jitted(losses.labels)
labels.wkd_logits = jax.jit(losses.wkd_logits, static_argnames=("temperature", "iterations"))  # the cost is an array
logits = jitted(losses.logits)
TOP = SMALL[1].argmax(-1)


def test_nkds_other_classes_are_dkds_and_their_own_entropy():
    student, teacher, _ = SMALL
    whole, own = (labels.nkd(student, teacher, LABELS, gamma=g, temperature=3.0) for g in (1.0, 0.0))
    q = [softmax(without(x, label) / 3) for x, label in zip(teacher, LABELS, strict=True)]
    entropy = np.array([-(p * np.log(p)).sum() for p in q])
    others = logits.dkd(student, teacher, LABELS, alpha=0.0, beta=1.0, temperature=3.0)
    np.testing.assert_allclose(whole - own, others + 9 * entropy, rtol=1e-5)


def test_wsld_of_a_teacher_that_is_certain_is_kd():
    certain = 1e3 * np.eye(5)[LABELS]
    np.testing.assert_allclose(
        labels.wsld(SMALL[0], certain, LABELS), logits.kd(SMALL[0], certain, temperature=4.0), rtol=1e-5
    )


def test_wsld_of_a_student_that_is_certain_is_zero():
    assert not np.any(labels.wsld(1e3 * np.eye(5)[LABELS], SMALL[1], LABELS))


def test_rld_of_a_teacher_that_is_right_is_dkd():
    options = {"alpha": 0.7, "beta": 6.0, "temperature": 3.0}
    refined, decoupled = (f(*SMALL[:2], TOP, **options) for f in (labels.rld, logits.dkd))
    np.testing.assert_allclose(refined, decoupled, rtol=1e-5)


def test_rlds_masked_part_is_zero_where_the_label_is_the_teachers_last():
    last = SMALL[1].argmin(-1)
    np.testing.assert_array_equal(labels.rld(*SMALL[:2], last, beta=8.0), labels.rld(*SMALL[:2], last, beta=0.0))


def test_swapping_exchanges_the_labels_logit_and_the_largest():
    expected = [swapped(*image) for image in zip(SMALL[1], LABELS, strict=True)]
    np.testing.assert_array_equal(labels.swap(np.float32(SMALL[1]), LABELS), np.float32(expected))


def test_swapping_leaves_a_row_without_a_label():
    teacher = np.float32(SMALL[1])
    np.testing.assert_array_equal(labels.swap(teacher, -np.ones(6, np.int32)), teacher)


def test_a_teacher_that_is_right_is_not_swapped():
    np.testing.assert_allclose(
        labels.swapped_kd(*SMALL[:2], TOP, temperature=4.0), logits.kd(*SMALL[:2], temperature=4.0), rtol=1e-6
    )


def others(x, label, temperature):
    return np.insert(softmax(without(x, label) / temperature), label, 0)


def carried(student, teacher, cost, own=LABELS, **options):
    """W alone."""
    found = (labels.wkd_logits(student, teacher, own, cost=cost, gamma=g, temperature=2.0, **options) for g in (1.0, 0))
    return np.subtract(*found)


EQUAL = np.float32(0.5 * (1 - np.eye(5)))


def test_wkd_is_the_total_variation_where_all_classes_are_equally_far():
    student, teacher, _ = SMALL
    p, q = (np.array([others(*image, 2) for image in zip(x, LABELS, strict=True)]) for x in (student, teacher))
    np.testing.assert_allclose(
        carried(student, teacher, EQUAL, iterations=1000), 0.5 * np.abs(p - q).sum(-1) / 2, atol=1e-3
    )


def test_wkd_carries_nothing_where_both_agree():
    np.testing.assert_allclose(carried(SMALL[0], SMALL[0], EQUAL), 0, atol=1e-3)


def test_wkd_does_not_see_what_the_label_costs():
    own, dear = np.full(6, 2, np.int32), COSTS[5].astype(np.float32)
    dear[2], dear[:, 2] = 9, 9
    np.testing.assert_allclose(
        carried(*SMALL[:2], dear, own), carried(*SMALL[:2], COSTS[5].astype(np.float32), own), rtol=1e-6
    )


def test_wkd_of_two_certain_networks_is_the_cost_between_their_classes():
    student, teacher, own = 50 * np.eye(5)[[1] * 6], 50 * np.eye(5)[[2] * 6], np.zeros(6, np.int32)
    cost = np.float32(0.25 * (1 - np.eye(5)))
    cost[1, 2] = 0.125
    np.testing.assert_allclose(carried(student, teacher, cost, own), 0.125, atol=1e-3)


def test_wkd_is_finite_where_carrying_is_so_dear_that_nothing_is_carried():
    student, teacher = 50 * np.eye(5)[LABELS - 1], 50 * np.eye(5)[LABELS - 2]
    loss = functools.partial(losses.wkd_logits, teacher_logits=teacher, labels=LABELS, cost=1e3 * EQUAL)
    results = jax.jit(jax.value_and_grad(lambda x: loss(x).sum()))(jnp.float32(student))
    assert all(np.isfinite(x).all() for x in results)


def test_a_cost_of_other_classes_is_refused():
    with pytest.raises(InputError, match=r"cost is \[4, 4\]; expected \[K, K\] with K = 5 classes"):
        losses.wkd_logits(*SMALL, cost=jnp.ones((4, 4)))


KERNEL = RNG.normal(size=(3, 5))


def test_the_cost_of_classes_is_of_the_angle_between_their_rows():
    unit = KERNEL / np.sqrt((KERNEL**2).sum(0))
    cost = 1 - np.exp(-2 * (1 - unit.T @ unit))
    np.testing.assert_allclose(labels.class_cost(KERNEL, kappa=2.0), cost, rtol=1e-5, atol=1e-7)


def test_a_class_costs_nothing_to_itself_though_its_row_is_zero():
    cost = labels.class_cost(KERNEL * np.array([1, 0, 1, 1, 1]))
    assert not np.diag(cost).any()
    np.testing.assert_allclose(cost[1, [0, 2, 3, 4]], 1 - np.exp(-1), rtol=1e-6)


def test_the_cost_of_classes_has_no_gradient_to_the_head():
    assert not np.any(jax.jit(jax.grad(lambda kernel: losses.class_cost(kernel).sum()))(jnp.asarray(KERNEL)))


def test_tf_kd_at_a_temperature_of_one_is_label_smoothing():
    smoothed = np.full((6, 5), 0.1 / 4)
    smoothed[np.arange(6), LABELS] = 0.9
    entropy = -(smoothed * np.log(smoothed)).sum(-1)
    got = labels.teacher_free(SMALL[0], LABELS, correct=0.9, temperature=1.0)
    np.testing.assert_allclose(got, logits.cross_entropy(SMALL[0], smoothed) - entropy, rtol=1e-5)


@pytest.mark.parametrize("correct", [0.0, 1.0, float("nan")])
def test_a_probability_that_is_not_between_zero_and_one_is_refused(correct):
    with pytest.raises(InputError, match=r"correct is .*; expected a number above 0 and below 1"):
        losses.teacher_free(SMALL[0], LABELS, correct=correct)


WRONG = {
    "nkd": lambda t: losses.nkd(*SMALL, temperature=t),
    "wsld": lambda t: losses.wsld(*SMALL, temperature=t),
    "rld": lambda t: losses.rld(*SMALL, temperature=t),
    "rld's of the label": lambda t: losses.rld(*SMALL, label_temperature=t),
    "swapped_kd": lambda t: losses.swapped_kd(*SMALL, temperature=t),
    "wkd_logits": lambda t: losses.wkd_logits(*SMALL, cost=EQUAL, temperature=t),
    "teacher_free": lambda t: losses.teacher_free(SMALL[0], LABELS, temperature=t),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_temperature_of_zero_is_refused(name):
    with pytest.raises(InputError, match=r"temperature is 0\.0; expected a number above 0"):
        WRONG[name](0.0)


@pytest.mark.parametrize("name", ["nkd", "wsld", "rld", "swapped_kd", "wkd_logits"])
def test_logits_of_other_classes_are_refused(name):
    options = {"cost": EQUAL} if name == "wkd_logits" else {}
    with pytest.raises(InputError, match=r"the loss compares \[6, 5\] with \[6, 4\]"):
        getattr(losses, name)(SMALL[0], SMALL[1][:, :4], LABELS % 4, **options)
