"""The alignment of Grad-CAM maps as a method, against float64 numpy."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from kd_jax import gradcam, methods, models
from kd_jax.errors import InputError
from kd_jax.types import Networks
from tests.losses.test_saliency import distances, each
from tests.methods.numeric import batch, context


@functools.cache
def pair():
    """Student and teacher, each (network, variables), and a batch of images without a label."""
    images = jax.random.normal(jax.random.key(1), (6, 8, 8, 1))
    networks = []
    for seed, width in enumerate((1 / 8, 1 / 4)):
        network = models.create("resnet8", 4, width=width)
        networks.append((network, jax.jit(network.init)(jax.random.key(seed), images)))
    return networks, batch([-1] * 6, num_classes=4)._replace(images=images)


@functools.partial(jax.jit, static_argnums=0)
def outputs(network, variables, images):
    return network.apply(variables, images, train=False)[0]


def term(networks, images, teacher_images=None, **options):
    """The value of a term `alignment`; the teacher reads the student's images where it has none of its own."""
    theirs = images.images if teacher_images is None else teacher_images
    method = methods.create({"alignment": {"method": "gradcam_alignment"} | options})

    @jax.jit
    def value(variables):
        student, teacher = ((network, own) for (network, _), own in zip(networks, variables, strict=True))
        said = outputs(*student, images.images), outputs(*teacher, theirs)
        seen = context(*said, [-1] * 6, networks=Networks(student, teacher, theirs))
        seen = dataclasses.replace(seen, views=(seen.views[0]._replace(batch=images),))
        return method.apply(method.init(jax.random.key(0), seen), seen)[0]["alignment"]

    return value([variables for _, variables in networks])


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
    classes = outputs(*networks[1], images.images).logits.argmax(-1)
    call = jax.jit(gradcam.gradcam, static_argnums=0, static_argnames=("stage", "variant"))
    maps = [call(*one, images.images, classes, stage=1, variant="gradcam++") for one in networks]
    expected = distances("cosine", *(np.asarray(x, np.float64) for x in maps)).mean()
    np.testing.assert_allclose(term(networks, images, stage=1, variant="gradcam++"), expected, rtol=1e-5)


def test_each_network_reads_its_own_images():
    networks, images = pair()
    theirs = 2 * images.images - 1
    seen = outputs(*networks[0], images.images), outputs(*networks[1], theirs)
    classes = np.asarray(seen[1].logits).argmax(-1)
    expected = distances("cosine", *(class_map(one, classes) for one in seen)).mean()
    np.testing.assert_allclose(term(networks, images, theirs), expected, rtol=1e-5)


@functools.cache
def gradients():
    """By the student's parameters and by the teacher's."""
    networks, images = pair()

    def loss(params, teacher_params):
        student, teacher = (
            (network, {**variables, "params": own})
            for (network, variables), own in zip(networks, (params, teacher_params), strict=True)
        )
        return term((student, teacher), images, stage=-2)

    return jax.jit(jax.grad(loss, (0, 1)))(*(variables["params"] for _, variables in networks))


def test_the_students_parameters_get_a_finite_gradient():
    leaves = jax.tree.leaves(gradients()[0])
    assert all(np.isfinite(x).all() for x in leaves)
    assert max(np.abs(x).max() for x in leaves) > 1e-4


def test_the_teachers_parameters_get_none():
    assert not any(np.any(x) for x in jax.tree.leaves(gradients()[1]))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"similarity": "iou"}, "method.alignment.similarity is 'iou'; expected one of: cosine, pearson"),
        ({"variant": "scorecam"}, "method.alignment.variant is 'scorecam'; expected one of: gradcam, gradcam"),
        ({"stage": 7}, "method.alignment: stage is 7; expected 0 .the stem. to 3"),
    ],
)
def test_an_option_that_does_not_exist_is_refused_with_those_that_do(options, said):
    with pytest.raises(InputError, match=said):
        term(*pair(), **options)
