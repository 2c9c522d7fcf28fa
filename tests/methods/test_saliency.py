"""The alignment of Grad-CAM maps, against float64 numpy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax import gradcam, methods, models
from kd_jax.errors import InputError
from kd_jax.methods import saliency
from kd_jax.types import Networks
from tests.methods.numeric import assert_gradient, batch, slope

MAPS, OTHERS = np.random.default_rng(0).exponential(size=(2, 6, 4, 4))
FORMULAS = {
    "cosine": lambda a, b: (a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum()),
    "pearson": lambda a, b: np.corrcoef(a.ravel(), b.ravel())[0, 1],
}
each = pytest.mark.parametrize("similarity", FORMULAS)


def distances(similarity, student, teacher):
    return np.array([1 - FORMULAS[similarity](a, b) for a, b in zip(student, teacher, strict=True)])


@each
def test_the_alignment_is_one_minus_the_similarity_of_the_maps(similarity):
    got = saliency.alignment(jnp.asarray(MAPS), jnp.asarray(OTHERS), similarity=similarity)
    np.testing.assert_allclose(got, distances(similarity, MAPS, OTHERS), rtol=1e-5)


@each
def test_the_gradient_of_the_alignment_is_that_of_finite_differences(similarity):
    def loss(student):
        return saliency.alignment(student, jnp.asarray(OTHERS), similarity=similarity).sum()

    expected = slope(lambda x: distances(similarity, x, OTHERS).sum(), MAPS)
    assert_gradient(jax.grad(loss)(jnp.asarray(MAPS)), expected)


def test_a_smaller_map_is_brought_to_the_size_of_the_larger():
    # Twice as many pixels, linear between the centres: a quarter and three quarters of the neighbours.
    along = np.array([[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]])
    small = MAPS[:, :2, :2]
    enlarged = along @ small @ along.T
    expected = distances("cosine", enlarged, OTHERS)
    np.testing.assert_allclose(saliency.alignment(jnp.asarray(small), jnp.asarray(OTHERS)), expected, rtol=1e-5)
    np.testing.assert_allclose(saliency.alignment(jnp.asarray(OTHERS), jnp.asarray(small)), expected, rtol=1e-5)


def test_a_map_of_zeros_is_at_distance_one():
    np.testing.assert_array_equal(saliency.alignment(jnp.zeros((2, 4, 4)), jnp.asarray(OTHERS[:2])), [1, 1])


def test_maps_of_one_pixel_are_refused():
    with pytest.raises(
        InputError, match="the maps of this stage have one pixel, which locates nothing; expected an earl"
    ):
        saliency.alignment(jnp.ones((2, 1, 1)), jnp.ones((2, 1, 1)))


@functools.cache
def pair():
    """Student and teacher, each (network, variables), and a batch of images without a label."""
    images = jax.random.normal(jax.random.key(1), (6, 8, 8, 1))
    networks = []
    for seed, width in enumerate((1 / 8, 1 / 4)):
        network = models.create("resnet8", 4, width=width)
        networks.append((network, jax.jit(network.init)(jax.random.key(seed), images)))
    return Networks(*networks), batch([-1] * 6, num_classes=4)._replace(images=images)


def outputs(network, variables, images):
    return network.apply(variables, images, train=False)[0]


def term(networks, images, **options):
    """The value of the term `gaze`."""
    method = methods.create({"gaze": {"loss": "gradcam_alignment"} | options})
    student, teacher = (outputs(*one, images.images) for one in networks)
    variables = method.init(jax.random.key(0), student, teacher)
    return method.apply(
        variables, student, teacher, images, step=0, rng=jax.random.key(0), train=True, networks=networks
    )[0]["gaze"]


def class_map(seen, classes):
    """Grad-CAM of the last stage under a linear head: the head's weights of the class, as they multiply the map."""
    kernel, maps = (np.asarray(x, np.float64) for x in (seen.head.kernel, seen.features[-1]))
    return np.maximum(np.einsum("bhwc,cb->bhw", maps, kernel[:, classes]), 0)


@each
def test_the_term_is_the_mean_over_maps_of_the_class_that_the_teacher_predicts(similarity):
    networks, images = pair()
    seen = [outputs(*one, images.images) for one in networks]
    classes = np.asarray(seen[1].logits).argmax(-1)
    assert (classes != np.asarray(seen[0].logits).argmax(-1)).any()
    expected = distances(similarity, *(class_map(one, classes) for one in seen)).mean()
    np.testing.assert_allclose(term(networks, images, similarity=similarity), expected, rtol=1e-5)


def test_stage_and_variant_reach_the_maps():
    networks, images = pair()
    classes = outputs(*networks.teacher, images.images).logits.argmax(-1)
    maps = [gradcam.gradcam(*one, images.images, classes, stage=1, variant="gradcam++") for one in networks]
    expected = distances("cosine", *(np.asarray(x, np.float64) for x in maps)).mean()
    np.testing.assert_allclose(term(networks, images, stage=1, variant="gradcam++"), expected, rtol=1e-5)


@functools.cache
def gradients():
    """By the student's parameters and by the teacher's."""
    networks, images = pair()

    def loss(params, teacher_params):
        student, teacher = (
            (network, {**variables, "params": own})
            for (network, variables), own in zip(networks, (params, teacher_params), strict=True)
        )
        return term(Networks(student, teacher), images, stage=-2)

    return jax.jit(jax.grad(loss, (0, 1)))(networks.student[1]["params"], networks.teacher[1]["params"])


def test_the_students_parameters_get_a_finite_gradient():
    leaves = jax.tree.leaves(gradients()[0])
    assert all(np.isfinite(x).all() for x in leaves)
    assert max(np.abs(x).max() for x in leaves) > 1e-4


def test_the_teachers_parameters_get_none():
    assert not any(np.any(x) for x in jax.tree.leaves(gradients()[1]))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"similarity": "iou"}, "method.gaze.similarity is 'iou'; expected one of: cosine, pearson"),
        ({"variant": "scorecam"}, "method.gaze.variant is 'scorecam'; expected one of: gradcam, gradcam"),
        ({"stage": 7}, "method.gaze: stage is 7; expected 0 .the stem. to 3"),
    ],
)
def test_an_option_that_does_not_exist_is_refused_with_those_that_do(options, said):
    with pytest.raises(InputError, match=said):
        term(*pair(), **options)


def test_a_teacher_that_is_no_network_is_refused():
    networks, images = pair()
    method = methods.create({"gradcam_alignment": {}})
    with pytest.raises(InputError, match="gradcam_alignment runs the teacher itself; expected a teacher that is a"):
        method.apply(
            method.init(jax.random.key(0), None, None),
            None,
            None,
            images,
            step=0,
            rng=jax.random.key(0),
            train=True,
            networks=networks._replace(teacher=None),
        )
