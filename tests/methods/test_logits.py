"""WKD of logits and CRLD against float64 numpy, and the methods that are plain losses of labels."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax import losses, methods
from kd_jax.errors import InputError
from kd_jax.types import Head
from tests.losses.test_labels import kl, sinkhorn, softmax, without
from tests.methods.numeric import STUDENT, TEACHER, assert_gradient, context, log_softmax, outputs, slope, terms

LABELS = np.array([0, 1, -1, 3, 4, 0], np.int32)
KERNEL = np.random.default_rng(4).normal(size=(3, 5))


def taught(kernel=KERNEL):
    """The teacher's outputs, with this head."""
    return outputs(TEACHER)._replace(head=Head(jnp.float32(kernel), jnp.zeros(kernel.shape[1])))


@functools.cache
def wkd():
    """(variables, term and its gradient as a function of (student's logits, labels))."""
    method = methods.create({"wkd_logits": {"kappa": 2.0}})
    variables = jax.jit(lambda: method.init(jax.random.key(0), context(STUDENT, taught())))()

    def term(student, labels):
        # What is read of the head later counts for nothing.
        seen = context(student, taught(np.ones((3, 5))))
        view = seen.views[0]._replace(batch=seen.batch._replace(labels=labels))
        return method.apply(variables, dataclasses.replace(seen, views=(view,)))[0]["wkd_logits"]

    return variables, jax.jit(jax.value_and_grad(term))


def expected_wkd(student):
    """The mean over the images with a label, with gamma 600 and T 8."""
    unit = KERNEL / np.sqrt((KERNEL**2).sum(0))
    cost, values = 1 - np.exp(-2 * (1 - unit.T @ unit)), []
    for s, t, label in zip(student, TEACHER, LABELS, strict=True):
        if label >= 0:
            p, q = (softmax(without(x, label) / 8) for x in (s, t))
            own = np.delete(np.delete(cost, label, 0), label, 1)
            values.append(-softmax(t)[label] * log_softmax(s)[label] + 600 * sinkhorn(p, q, own))
    return np.mean(values)


def test_wkd_takes_its_cost_from_the_head_that_it_saw_first():
    np.testing.assert_allclose(wkd()[1](jnp.float32(STUDENT), LABELS)[0], expected_wkd(STUDENT), rtol=1e-5)


def test_wkds_gradient_is_that_of_finite_differences():
    assert_gradient(wkd()[1](jnp.float32(STUDENT), LABELS)[1], slope(expected_wkd, STUDENT))


def test_wkd_of_no_labelled_image_is_zero():
    value, gradient = wkd()[1](jnp.float32(STUDENT), -np.ones(6, np.int32))
    assert value == 0
    assert not gradient.any()


def test_wkd_trains_nothing_of_its_own():
    variables, _ = wkd()
    assert not jax.tree.leaves(variables.params)
    assert variables.state["wkd_logits"]["head"]["cost"].shape == (5, 5)


def test_a_head_of_other_classes_is_refused():
    with pytest.raises(InputError, match="the teacher's head has 4 classes, the student 5; expected as many"):
        methods.create({"wkd_logits": {}}).init(jax.random.key(0), context(STUDENT, taught(np.ones((3, 4)))))


def test_a_teacher_without_a_head_is_refused():
    with pytest.raises(InputError, match=r"method\.wkd_logits: the teacher reports .* and no head"):
        methods.create({"wkd_logits": {}}).init(jax.random.key(0), context(STUDENT, taught()._replace(head=None)))


# Of the student and the teacher, each on the weak and the strong view.
RNG = np.random.default_rng(6)
STUDENTS, TEACHERS = RNG.normal(scale=2.0, size=(2, 2, 6, 5))
SURE = softmax(TEACHERS).max(-1)
# Between the confidences of the images, so that some count and some do not.
OPTIONS = {"within": 1.5, "weak_confidence": float(np.median(SURE[0])), "strong_confidence": float(np.median(SURE[1]))}


@functools.cache
def crld():
    method = methods.create({"crld": {"temperature": 3.0, **OPTIONS}})

    def terms(students, teachers):
        views = [context(s, outputs(t)).views[0] for s, t in zip(students, teachers, strict=True)]
        seen = dataclasses.replace(context(students[0], outputs(teachers[0])), views=tuple(views))
        return method.apply(method.init(jax.random.key(0), seen), seen)[0]

    def total(students, teachers):
        found = terms(students, teachers)
        return sum(found.values()), found

    return method, jax.jit(jax.grad(total, (0, 1), has_aux=True))


def expected_crld(students):
    """By the name of the part."""

    def kd(student, teacher):
        return 9 * kl(softmax(teacher / 3), softmax(student / 3))

    within = across = 0
    for weak, strong, teacher_weak, teacher_strong in zip(*students, *TEACHERS, strict=True):
        if softmax(teacher_weak).max() >= OPTIONS["weak_confidence"]:
            within += 1.5 * (kd(weak, teacher_weak) + kd(strong, teacher_strong)) / 6
        if softmax(teacher_strong).max() >= OPTIONS["strong_confidence"]:
            across += 0.5 * (kd(strong, teacher_weak) + kd(weak, teacher_strong)) / 6
    return {"crld/within": within, "crld/across": across}


@pytest.mark.parametrize("part", ["crld/within", "crld/across"])
def test_crld_compares_the_views_where_the_teacher_is_sure(part):
    found = crld()[1](jnp.float32(STUDENTS), jnp.float32(TEACHERS))[1]
    np.testing.assert_allclose(found[part], expected_crld(STUDENTS)[part], rtol=1e-5)


def test_crlds_gradient_is_that_of_finite_differences():
    gradient = crld()[1](jnp.float32(STUDENTS), jnp.float32(TEACHERS))[0][0]
    assert_gradient(gradient, slope(lambda x: sum(expected_crld(x).values()), STUDENTS))


def test_crld_has_no_gradient_to_the_teacher():
    assert not crld()[1](jnp.float32(STUDENTS), jnp.float32(TEACHERS))[0][1].any()


def test_crld_asks_for_two_views():
    assert crld()[0].views == 2


def test_crld_of_a_teacher_that_is_never_sure_is_zero():
    found = crld()[1](jnp.float32(STUDENTS), jnp.zeros((2, 6, 5)))
    assert not any(found[1].values())
    assert not found[0][0].any()


# With their published options.
PLAIN = {
    "nkd": lambda where: losses.nkd(STUDENT, TEACHER, LABELS, gamma=3.5, temperature=3.0, where=where),
    "wsld": lambda where: losses.wsld(STUDENT, TEACHER, LABELS, temperature=4.0, where=where),
    "rld": lambda where: losses.rld(
        STUDENT, TEACHER, LABELS, alpha=1.0, beta=8.0, temperature=4.0, label_temperature=4.0, where=where
    ),
    "swap": lambda where: losses.swapped_kd(STUDENT, TEACHER, LABELS, temperature=4.0, where=where),
    "teacher_free": lambda where: losses.teacher_free(STUDENT, LABELS, correct=0.99, temperature=20.0, where=where),
}


@pytest.mark.parametrize("name", PLAIN)
def test_a_method_is_the_mean_of_its_loss_over_the_labelled_images(name):
    found = terms(methods.create({name: {}}), STUDENT, TEACHER, LABELS)[name]
    values = np.asarray(jax.jit(PLAIN[name])(jnp.asarray(LABELS >= 0)))
    np.testing.assert_allclose(found, values[LABELS >= 0].mean(), rtol=1e-6)


def test_tf_kd_needs_no_teacher():
    assert not methods.create({"teacher_free": {}}).needs_teacher
