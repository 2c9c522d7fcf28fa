"""How each network's images are prepared: student and teacher read one view, each in its own way."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from safetensors.numpy import save_file

import kd_jax
from kd_jax import eval_steps, experiment, export, identity, networks, runs, steps, teachers, weights
from kd_jax.errors import InputError
from kd_jax.models import from_linen, torch_names
from kd_jax.teachers import ensemble
from kd_jax.types import Batch, Outputs, Preprocessing, Teacher
from tests import tiny

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (2, 4, 4, 3), dtype=np.uint8)
MEAN, STD = np.array([0.5, 0.4, 0.3], np.float32), np.array([0.2, 0.3, 0.1], np.float32)


class Plain(nn.Module):
    num_classes: int

    @nn.compact
    def __call__(self, images):
        return nn.Dense(self.num_classes, name="fc")(images.mean((1, 2)))


NETWORK = from_linen(Plain(4))
PUBLISHED = from_linen(Plain(4), published=Preprocessing(mean=(0.1, 0.2, 0.3), std=(1.0, 0.5, 0.25)))


def prepared(network=NETWORK, pixels=PIXELS, **overrides):
    config = tiny.config(**{"dataset.image_size": 4} | overrides)
    return jax.jit(networks.preprocessor(config, network, MEAN, STD))(pixels)


@pytest.mark.parametrize(
    ("kind", "mean", "std"),
    [
        ("", MEAN, STD),
        ("imagenet", [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ("half", [0.5] * 3, [0.5] * 3),
        ("published", [0.1, 0.2, 0.3], [1.0, 0.5, 0.25]),
    ],
)
def test_images_are_normalized_as_the_model_says(kind, mean, std):
    got = prepared(PUBLISHED, **{"model.normalize": kind})
    np.testing.assert_allclose(got, (PIXELS / 255.0 - np.array(mean)) / np.array(std), rtol=1e-5, atol=1e-5)


def test_images_are_resized_to_what_the_model_reads():
    constant = np.full((1, 4, 4, 3), 51, np.uint8)
    got = prepared(pixels=constant, **{"model.image_size": 8})
    np.testing.assert_allclose(got, np.broadcast_to((0.2 - MEAN) / STD, (1, 8, 8, 3)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("published", "model.normalize is 'published', and the network has no published weights"),
        ("cifar", "model.normalize is 'cifar'; expected one of: half, imagenet, published"),
    ],
)
def test_an_unknown_normalization_is_refused(kind, said):
    with pytest.raises(InputError, match=said):
        prepared(**{"model.normalize": kind})


def test_a_normalization_of_color_images_is_refused_for_gray_ones():
    with pytest.raises(InputError, match=r"model.normalize is 'imagenet', of color images; expected 'half'"):
        tiny.create(tiny.METHODS["cross_entropy"], **{"model.normalize": "imagenet"})


def test_the_students_model_says_how_the_student_reads():
    made = tiny.create(tiny.METHODS["cross_entropy"], **{"model.normalize": "half", "model.image_size": 16})
    images = np.asarray(made.components.prepare(np.full((1, 8, 8, 1), 255, np.uint8)))
    np.testing.assert_allclose(images, np.ones((1, 16, 16, 1)), rtol=1e-6)


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    """A teacher that reads images otherwise than its student, of each kind; its variables are random."""
    folder = tmp_path_factory.mktemp("teacher")
    own = tiny.config(**{"model.normalize": "half", "model.image_size": 16, "dataset.normalize": "dataset"})
    made = experiment.create(own)
    saved = identity.config_json(made)
    runs.write_json(str(folder / "config.json"), saved)
    runs.write_json(str(folder / "result.json"), {"name": "tiny", "test": {}, "checkpoint": 12})
    config = tiny.config(**{"dataset.augment": "crop_flip"}) | {"method": tiny.METHODS["kd"]}
    kinds = {}
    file = str(folder / "teacher.safetensors")
    variables = jax.jit(made.components.student.init)(jax.random.key(0), jnp.zeros((1, 16, 16, 1)))
    save_file(torch_names.to_state_dict(variables, made.components.student), file)
    for kind, path in (("config", ""), ("run", str(folder)), ("weights", file)):
        section = {**config["teacher"], "kind": kind, "path": path, "config": {} if kind == "run" else own}
        kinds[kind] = experiment.create({**config, "teacher": section})
    return kinds


def random_variables(made):
    shapes = made.teacher.shapes
    leaves, treedef = jax.tree.flatten(shapes)
    return treedef.unflatten(
        [jnp.asarray(np.random.default_rng(i).uniform(0.1, 1, x.shape), x.dtype) for i, x in enumerate(leaves)]
    )


@pytest.mark.parametrize("kind", ["config", "run", "weights"])
def test_a_teacher_reads_the_view_of_its_student_in_its_own_way(taught, kind):
    made, variables = taught[kind], random_variables(taught[kind])
    raw = made.feed().example

    @jax.jit
    def both(variables):
        view = made.components.augment(steps.stream(jax.random.key(0), "augment"), raw)[0]
        student = made.components.student.init(jax.random.key(0), made.components.prepare(view.images))
        context, _ = steps.forward(
            student,
            variables,
            raw,
            rng=jax.random.key(0),
            step=jnp.int32(0),
            train=False,
            train_labels=None,
            components=made.components,
            options=made.options,
        )
        images = jax.image.resize((view.images / 255 - 0.5) / 0.5, (len(view.images), 16, 16, 1), "linear")
        expected = made.teacher.network.apply(variables, images, train=False)[0].logits
        own = context.teacher.logits, context.networks.teacher_images
        return own, (expected, images), context.batch.images

    own, expected, student_images = both(variables)
    for x, y in zip(own, expected, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)
    assert student_images.shape[1:] == (8, 8, 1)


def test_a_teacher_reads_evaluated_images_in_its_own_way(taught):
    made, variables = taught["run"], random_variables(taught["run"])
    feed = made.feed()

    @jax.jit
    def both(variables):
        ids = jnp.arange(4)
        said = eval_steps.teach_evaluation(
            variables, feed.constants, ids[None], num_classes=10, components=made.components, options=made.options
        )
        pixels = made.dataset.train.images[:4]
        images = jax.image.resize((pixels / 255 - 0.5) / 0.5, (4, 16, 16, 1), "linear")
        return said["logits"][0], made.teacher.network.apply(variables, images, train=False)[0].logits

    said, expected = both(variables)
    np.testing.assert_allclose(said, expected, rtol=1e-4, atol=1e-5)


def test_a_run_of_other_data_statistics_reads_by_those_it_was_trained_with(taught, tmp_path):
    saved = runs.read_json(taught["run"].teacher.source, "config.json")
    saved["data"] |= {"mean": [0.25], "std": [0.5]}
    saved["config"]["model"] |= {"normalize": "", "image_size": 0}
    runs.write_json(str(tmp_path / "config.json"), saved)
    runs.write_json(str(tmp_path / "result.json"), {"name": "tiny", "test": {}, "checkpoint": 12})
    config = tiny.config(**{"teacher.kind": "run", "teacher.path": str(tmp_path)}) | {"method": tiny.METHODS["kd"]}
    teacher = experiment.create(config).teacher
    np.testing.assert_allclose(teacher.prepare(np.full((1, 8, 8, 1), 255, np.uint8)), np.full((1, 8, 8, 1), 1.5))


def test_members_of_an_ensemble_read_each_in_its_own_way(taught):
    def member(prepare):
        def say(variables, batch, rng, train):
            return Outputs(batch.images.mean((1, 2)))

        return Teacher(say, lambda: ({}, None), {}, "", "", prepare=prepare)

    members = {"a": member(lambda pixels: pixels + 1.0), "b": member(None)}
    together = ensemble.of(members, lambda pixels: pixels * 2.0)
    pixels = Batch(np.full((1, 2, 2, 3), 5, np.uint8), *[None] * 4)
    images = together.prepare(pixels.images)
    said = together.apply({"a": {}, "b": {}}, pixels._replace(images=images), jax.random.key(0), False)
    assert (float(said.members["a"].logits[0, 0]), float(said.members["b"].logits[0, 0])) == (6.0, 10.0)


def test_how_weights_read_images_is_part_of_what_they_teach(tmp_path):
    (tmp_path / "weights").write_bytes(b"the same")
    own = tiny.config()

    def identified(**changes):
        config = {**own, "model": {**own["model"], **changes}}
        section = {**own["teacher"], "kind": "weights", "path": str(tmp_path / "weights"), "config": config}
        return teachers.identify(section, lambda config: {})

    plain = identified()
    assert plain == identified(image_size=0, normalize="")
    assert plain != identified(normalize="half")
    assert plain != identified(image_size=16)
    assert not {"image_size", "normalize"} & plain["model"].keys()


def test_a_run_is_exported_with_what_its_student_reads(tmp_path):
    own = tiny.config(**{"model.image_size": 16, "train.steps": 2})
    config = tiny.config(**{"model.normalize": "half", "train.steps": 2}) | {"method": tiny.METHODS["kd"]}
    config["teacher"] |= {"kind": "config", "config": own}
    tiny.train(config, tmp_path)
    run, file = tmp_path / "run", tmp_path / "student.safetensors"
    export.export(str(run), str(file))
    pixels = np.random.default_rng(1).integers(0, 256, (2, 8, 8, 1), dtype=np.uint8)
    of_file, of_run = (jax.jit(kd_jax.load(source).logits)(pixels) for source in (file, run))
    np.testing.assert_array_equal(of_file, of_run)
    assert json.loads(weights.read_metadata(str(file))["mean"]) == [0.5]
