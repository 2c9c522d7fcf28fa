"""The original project's losses, with their mistakes, against float64 numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax import losses, methods
from kd_jax.methods import original
from tests.methods.numeric import STUDENT, TEACHER, assert_gradient, context, grad, huber, log_softmax, outputs, slope

T = 1.5
TEN = np.random.default_rng(5).normal(scale=2.0, size=(2, 6, 10))  # the discriminator needs ten classes


def soft(x):
    return np.exp(log_softmax(x / T))


def kd(student, teacher):
    p = soft(teacher)
    return T**2 * (p * (np.log(p) - log_softmax(student / T))).mean(-1)  # over the classes


def rkd_distance(student, teacher):
    def relative(x):
        d = np.sqrt(np.square(x[:, None] - x[None]).sum(-1))
        return d / d[d > 0].mean()

    return huber(relative(log_softmax(student / T)) - relative(soft(teacher))).mean()


def rkd_angle(student, teacher):
    def cosines(d):
        n = d / np.maximum(np.linalg.norm(d, axis=-1, keepdims=True), 1e-12)
        return np.einsum("ijc,ikc->ijk", n, n)

    mixed = log_softmax(student / T)[None, :] - student[:, None]
    p = soft(teacher)
    return huber(cosines(mixed) - cosines(p[None, :] - p[:, None])).mean()


LOSSES = [(original.kd, kd), (original.rkd_distance, rkd_distance), (original.rkd_angle, rkd_angle)]
each = pytest.mark.parametrize(("loss", "formula"), LOSSES, ids=["kd", "distance", "angle"])


@each
def test_the_value_is_the_originals(loss, formula):
    np.testing.assert_allclose(jax.jit(loss)(STUDENT, TEACHER), formula(STUDENT, TEACHER), rtol=1e-5)


@each
def test_the_gradient_is_that_of_finite_differences(loss, formula):
    gradient = jax.jit(jax.grad(lambda x: loss(x, TEACHER).sum()))(jnp.asarray(STUDENT, jnp.float32))
    assert_gradient(gradient, slope(lambda x: formula(x, TEACHER).sum(), STUDENT))


@each
def test_the_teacher_gets_no_gradient(loss, formula):
    gradient = jax.jit(jax.grad(lambda x: loss(STUDENT, x).sum()))(jnp.asarray(TEACHER, jnp.float32))
    assert not np.any(gradient)


@pytest.mark.parametrize("loss", [original.rkd_distance, original.rkd_angle])
def test_the_relational_losses_are_positive_at_the_teachers_own_logits(loss):
    assert jax.jit(loss)(TEACHER, TEACHER) > 0.01


def test_the_divergence_is_as_many_times_too_weak_as_there_are_classes():
    ratio = jax.jit(lambda s, t: original.kd(s, t) / losses.kd(s, t, temperature=T))(*TEN)
    np.testing.assert_allclose(ratio, 0.1, rtol=1e-5)


def test_the_cross_entropy_is_of_softened_logits():
    targets = np.eye(5)[[0, 1, 2, 3, 4, 0]]
    expected = -(targets * log_softmax(STUDENT / T)).sum(-1)
    np.testing.assert_allclose(jax.jit(original.cross_entropy)(STUDENT, targets), expected, rtol=1e-5)


class Numpy:
    """The discriminator layer by layer, in training mode (by the batch's statistics) or not."""

    def __init__(self, variables):
        params, self.stats = (jax.tree.map(lambda x: np.asarray(x, np.float64), v) for v in variables)
        self.params, self.stats = params["adversarial"], self.stats["adversarial"]

    def __call__(self, x, train):
        x = x[..., None]
        for i in range(2):
            kernel = self.params[f"Conv_{i}"]["kernel"]
            size = len(kernel)
            x = sum(x[:, k : x.shape[1] - size + 1 + k] @ kernel[k] for k in range(size))
            name = f"BatchNorm_{i}"
            mean, variance = self.stats[name]["mean"], self.stats[name]["var"]
            if train:
                mean, variance = x.mean((0, 1)), x.var((0, 1))
            x = (x - mean) / np.sqrt(variance + 1e-5) * self.params[name]["scale"] + self.params[name]["bias"]
            x = np.maximum(x, 0)
            x = sum(x[:, k : x.shape[1] - 2 + k] for k in range(3)) / 3
        linear = self.params["Linear_0"]
        return 1 / (1 + np.exp(-(x.mean(1) @ linear["kernel"] + linear["bias"])[:, 0]))


@pytest.fixture(scope="module")
def game():
    """(variables, apply(variables, student's logits, step)) of the original's discriminator."""
    method = methods.create({"adversarial": {"method": "original_adversarial"}})
    variables = jax.jit(lambda: method.init(jax.random.key(0), context(outputs(TEN[0]), outputs(TEN[1]))))()

    @jax.jit
    def apply(variables, student, step):
        seen = context(outputs(student), outputs(TEN[1]), step=step, steps_per_epoch=250)
        found, state = method.apply(variables, seen)
        return found["adversarial"], state

    return variables, apply


@pytest.mark.parametrize(("step", "students"), [(0, False), (20, False), (21, True), (199, True), (200, False)])
def test_21_of_200_steps_have_the_discriminators_loss(game, step, students):
    variables, apply = game
    score, fake = Numpy(variables), log_softmax(TEN[0] / T)
    expected = -score(fake, False).mean() if students else (score(fake, True) - score(soft(TEN[1]), True)).mean()
    np.testing.assert_allclose(apply(variables, TEN[0], step)[0], T**2 * expected, rtol=1e-5, atol=2e-6)


def test_the_steps_are_counted_anew_in_every_epoch(game):
    variables, apply = game
    assert apply(variables, TEN[0], 250 + 20)[0] == apply(variables, TEN[0], 20)[0]
    assert apply(variables, TEN[0], 250 + 21)[0] == apply(variables, TEN[0], 21)[0]


def test_the_running_averages_move_only_with_the_discriminators_loss(game):
    variables, apply = game
    for step, moves in ((0, True), (21, False)):
        state = apply(variables, TEN[0], step)[1]
        mean = (tree["adversarial"]["BatchNorm_0"]["mean"] for tree in (variables.state, state))
        assert (not np.array_equal(*mean)) == moves


@pytest.mark.parametrize("step", [0, 21])
def test_student_and_discriminator_both_follow_every_loss(game, step):
    variables, apply = game
    student, own = grad(
        lambda logits, params: apply(variables._replace(params=params), logits, step)[0], argnums=(0, 1)
    )(jnp.asarray(TEN[0], jnp.float32), variables.params)
    assert np.any(student)
    assert np.any(own["adversarial"]["Linear_0"]["kernel"])
