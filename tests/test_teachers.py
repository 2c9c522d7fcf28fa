"""Teachers: functions of (variables, batch, rng, train), whatever their kind."""

import functools
import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from kd_jax import experiment, identity, models, runs, teachers
from kd_jax.data import resident
from kd_jax.errors import InputError
from kd_jax.models import torch_names
from kd_jax.teachers import ensemble
from kd_jax.teachers.network import network_teacher
from kd_jax.types import Outputs, Teacher
from tests import tiny
from tests.methods.numeric import batch


@pytest.fixture(scope="module")
def network():
    """A network with dropout and batch norm, its variables, and a batch of images."""
    network = models.create("resnet8", 5, width=1 / 8, head="mlp")
    images = jnp.asarray(np.random.default_rng(0).normal(size=(4, 8, 8, 3)), jnp.float32)
    return network, jax.jit(network.init)(jax.random.key(0), images), batch([0] * 4)._replace(images=images)


def says(network, variables, images, *, mode, train=True, seed=0):
    teacher = jax.jit(network_teacher(network, mode), static_argnames="train")
    return teacher(variables, images, jax.random.key(seed), train=train)


def test_a_teacher_in_eval_mode_is_in_inference_mode(network):
    first, second = (says(*network, mode="eval", seed=seed).logits for seed in (0, 1))
    np.testing.assert_array_equal(first, second)
    alone = says(*network[:2], network[2]._replace(images=network[2].images[:1]), mode="eval").logits
    np.testing.assert_allclose(alone, first[:1], atol=1e-5)


def test_a_teacher_gets_no_gradient(network):
    _, variables, images = network
    teacher = network_teacher(network[0])
    loss = jax.jit(jax.grad(lambda v: teacher(v, images, jax.random.key(0), train=True).logits.sum()))
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(loss(variables)))


def test_a_teacher_in_train_mode_normalizes_by_the_batch_and_drops_out(network):
    first, again, other = (says(*network, mode="train", seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.logits, again.logits)
    assert not np.allclose(first.logits, other.logits)  # dropout
    np.testing.assert_array_equal(first.pooled, other.pooled)  # before it
    fewer = network[2]._replace(images=network[2].images[:2])
    assert not np.allclose(says(*network[:2], fewer, mode="train").pooled, first.pooled[:2])


def test_in_evaluation_a_teacher_in_train_mode_is_in_inference_mode(network):
    own = says(*network, mode="train", train=False)
    np.testing.assert_array_equal(own.logits, says(*network, mode="eval").logits)


@pytest.fixture(scope="module")
def taught_by(tmp_path_factory):
    """The config of a student of a teacher of each kind: one that is trained, one that has finished, weights."""
    folder = tmp_path_factory.mktemp("teachers")
    own = tiny.config(**{"model.width": 1 / 4})
    made = experiment.create(own)
    runs.write_json(str(folder / "config.json"), identity.config_json(made))
    runs.write_json(str(folder / "result.json"), {"name": "tiny", "test": {}, "checkpoint": 12})
    student = made.components.student
    variables = jax.jit(student.init)(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
    save_file(torch_names.to_state_dict(variables, student), folder / "model.safetensors")
    paths = {"config": "", "run": str(folder), "weights": str(folder / "model.safetensors"), "untrained": ""}

    def config(kind, **overrides):
        whole = tiny.config(**overrides) | {"method": tiny.METHODS["kd"]}
        whole["teacher"] |= {"kind": kind, "path": paths[kind], "config": {} if kind == "run" else own}
        return whole

    return config


kinds = pytest.mark.parametrize("kind", ["config", "run", "weights", "untrained"])


@kinds
def test_a_teacher_computes_in_its_students_precision(taught_by, kind):
    made = experiment.create(taught_by(kind, precision="bfloat16"))
    images = jnp.zeros((4, 8, 8, 1), jnp.bfloat16)
    said = jax.eval_shape(
        functools.partial(made.teacher.apply, train=False),
        made.teacher.shapes,
        batch([0] * 4)._replace(images=images),
        jax.random.key(0),
    )
    assert said.features[-1].dtype == jnp.bfloat16


@kinds
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_a_teacher_of_any_kind_is_in_the_mode_of_the_config(taught_by, kind, mode):
    teacher = experiment.create(taught_by(kind, **{"teacher.mode": mode})).teacher
    images = jnp.asarray(np.random.default_rng(0).normal(2.0, size=(4, 8, 8, 1)), jnp.float32)

    @jax.jit
    def both(variables):
        said = teacher.apply(variables, batch([0] * 4)._replace(images=images), jax.random.key(0), train=True)
        return said.logits, teacher.network.apply(variables, images, train=mode == "train")[0].logits

    said, expected = both(jax.jit(teacher.network.init)(jax.random.key(1), images))
    np.testing.assert_allclose(said, expected, rtol=1e-5, atol=1e-6)


@kinds
def test_a_teacher_has_the_network_of_its_own_config(taught_by, kind):
    shapes = experiment.create(taught_by(kind)).teacher.shapes
    assert shapes["params"]["fc"]["kernel"].shape == (8, 10)


def test_an_untrained_teacher_is_what_training_would_begin_with(taught_by):
    config = taught_by("untrained")
    config["teacher"]["config"] = {**config["teacher"]["config"], "seed": 3}
    alone = experiment.create(config["teacher"]["config"])
    begun = alone.init_state(np.uint32(3), {}, resident.example(alone.dataset.train), None).params["student"]
    loaded, result = experiment.create(config).teacher.load()
    assert result is None
    jax.tree.map(np.testing.assert_array_equal, loaded["params"], begun)


def test_an_untrained_teacher_of_another_seed_is_another_run(taught_by):
    configs = [taught_by("untrained") for _ in range(3)]
    configs[1]["teacher"]["config"] = {**configs[1]["teacher"]["config"], "seed": 3}
    digests = [experiment.create(config).digest for config in configs]
    assert digests[0] == digests[2] != digests[1]


@pytest.mark.parametrize(
    ("key", "change", "said"),
    [
        ("class_names", lambda names: names[::-1], r"knows 10 classes \(9, 8, .*\); expected the student's 10"),
        ("image_shape", lambda shape: [*shape[:2], 3], "reads images of 3 channels; expected the student's 1"),
    ],
)
def test_a_finished_run_of_other_images_is_refused(taught_by, tmp_path, key, change, said):
    config = taught_by("run")
    saved = runs.read_json(config["teacher"]["path"], "config.json")
    saved["data"][key] = change(saved["data"][key])
    runs.write_json(str(tmp_path / "config.json"), saved)
    runs.write_json(str(tmp_path / "result.json"), {"name": "tiny", "test": {}, "checkpoint": 12})
    config["teacher"]["path"] = str(tmp_path)
    with pytest.raises(InputError, match=said):
        experiment.create(config)


def test_a_run_that_has_not_finished_is_refused_as_a_teacher(taught_by, tmp_path):
    config = taught_by("run")
    shutil.copy(os.path.join(config["teacher"]["path"], "config.json"), tmp_path)
    config["teacher"]["path"] = str(tmp_path)
    with pytest.raises(InputError, match=r"a run without result.json; expected a finished run"):
        experiment.create(config)


@pytest.mark.parametrize("key", ["config", "path"])
def test_weights_without_a_path_or_a_config_are_refused(taught_by, key):
    config = taught_by("weights")
    config["teacher"][key] = type(config["teacher"][key])()
    with pytest.raises(InputError, match=rf"teacher.{key} is empty; expected"):
        experiment.create(config)


def test_weights_of_another_width_are_refused(taught_by):
    config = taught_by("weights")
    model = {**config["teacher"]["config"]["model"], "width": 1 / 8}
    config["teacher"]["config"] = {**config["teacher"]["config"], "model": model}
    with pytest.raises(InputError, match="the weights are not those of resnet6"):
        experiment.create(config)


def test_an_unknown_mode_or_kind_is_refused_with_the_choices():
    with pytest.raises(InputError, match=r"teacher.mode is 'eva'; expected one of: eval, train; did you mean 'eval'"):
        tiny.create(tiny.METHODS["kd"], **{"teacher.mode": "eva"})
    with pytest.raises(InputError, match=r"teacher.kind is 'wieghts'; expected one of: .*; did you mean 'weights'"):
        tiny.create(tiny.METHODS["kd"], **{"teacher.kind": "wieghts"})


def _labels_only(setting) -> Teacher:
    """A teacher that is no network and reports logits alone: sure of an image's label."""

    def apply(variables, batch, rng, train):
        return Outputs(variables["scale"] * jax.nn.one_hot(batch.labels, tiny.CLASSES))

    scale = {"scale": jnp.float32(5.0)}
    return Teacher(apply, lambda: (scale, None), scale, "labels", "nowhere")


@pytest.fixture
def registered(monkeypatch):
    """A kind of teacher from outside of the package."""
    monkeypatch.setattr(teachers, "KINDS", dict(teachers.KINDS))
    teachers.register("labels", _labels_only, lambda section: {"labels": 5.0})
    return {"teacher.kind": "labels"}


def test_a_kind_that_cannot_be_built_is_not_registered():
    with pytest.raises(InputError, match="the builder of teacher 'own' is of type NoneType; expected a function"):
        teachers.register("own", None, lambda section: {})
    with pytest.raises(InputError, match="the identity of teacher 'own' is of type dict; expected a function"):
        teachers.register("own", lambda setting: None, {})


def test_a_kind_that_builds_something_else_is_refused(monkeypatch):
    monkeypatch.setattr(teachers, "KINDS", dict(teachers.KINDS))
    teachers.register("own", lambda setting: "a teacher", lambda section: {})
    with pytest.raises(InputError, match=r"teacher.kind 'own' builds a str; expected a Teacher, or None"):
        tiny.create({"kd": {}}, **{"teacher.kind": "own"})


def test_a_teacher_that_reports_logits_alone_teaches_by_them(registered):
    run = tiny.Run({"kd": {}}, **registered, **{"dataset.augment": "none", "model.name": "resnet8"})
    losses = []
    for _ in range(20):
        run.call(run.rows(0))
        losses.append(float(run.scalars["loss"]))
    assert losses[-1] < 0.8 * losses[0]


def test_what_such_a_teacher_lacks_is_named_before_anything_is_trained(registered):
    for method, missing in (("rkd_distance", "embedding"), ("fitnet", "features"), ("simkd", "head")):
        run = tiny.create({method: {}}, **registered)
        with pytest.raises(InputError, match=f"method.{method}: the teacher reports logits and no {missing}"):
            tiny.trace(run)


def test_a_method_that_runs_the_teacher_says_that_it_is_no_network(registered):
    with pytest.raises(InputError, match=r"method.gradcam_alignment: it runs the teacher itself; expected a teacher"):
        tiny.trace(tiny.create({"gradcam_alignment": {}}, **registered))


def _says(logits, width=None):
    """A teacher that says the same of every image."""
    embedding = None if width is None else jnp.full((1, width), logits[0])
    return Teacher(
        lambda variables, batch, rng, train: Outputs(variables * jnp.asarray([logits]), embedding=embedding),
        load=lambda: (jnp.float32(2.0), None),
        shapes=jnp.float32(2.0),
        name="one",
        source="nowhere",
    )


@pytest.fixture(scope="module")
def together():
    """What an ensemble of two reports, with variables that double the logits."""
    teacher = ensemble.of({"a": _says([1.0, 0.0], 2), "b": _says([0.0, 3.0], 3)}, lambda pixels: pixels)
    return teacher.apply(teacher.load()[0], batch([0]), jax.random.key(0), False)


def test_an_ensemble_predicts_the_mean_of_its_members_probabilities(together):
    p = [np.exp(x) / np.exp(x).sum() for x in (np.array([2.0, 0.0]), np.array([0.0, 6.0]))]
    np.testing.assert_allclose(np.exp(together.logits[0]), (p[0] + p[1]) / 2, rtol=1e-5)


def test_an_ensembles_embedding_is_those_of_its_members_side_by_side(together):
    np.testing.assert_array_equal(together.embedding, [[1, 1, 0, 0, 0]])


def test_an_ensemble_keeps_what_each_member_reports(together):
    np.testing.assert_array_equal(together.members["b"].logits, [[0.0, 6.0]])


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ({}, r"teacher.members is empty; expected \{name: a section"),
        ({"a": {"kind": "none"}}, r"teacher.members.a.kind is 'none'; expected a teacher of its own"),
        ({"a": {"knd": "run"}}, r"a key of teacher.members.a is 'knd'; expected one of: .*did you mean 'kind'"),
        ({"a": 3}, r"teacher.members.a is 3; expected a section"),
        ({"a": {"kind": "run"}}, r"teacher.members.a: teacher.path is empty"),
    ],
)
def test_members_that_cannot_be_are_refused(members, said):
    with pytest.raises(InputError, match=said):
        tiny.create(tiny.METHODS["kd"], **{"teacher.kind": "ensemble", "teacher.members": members})


def test_a_mean_teacher_needs_a_moving_average():
    with pytest.raises(InputError, match=r"train.ema is 0 and teacher.kind 'mean'; expected the decay"):
        tiny.create(tiny.METHODS["kd"], **{"teacher.kind": "mean"})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"teacher.epoch": 3}, "teacher.epoch is 3, and teacher.kind 'random'; expected 0, or a run"),
        (
            {"teacher.kind": "untrained"},
            "teacher.config is empty; expected a whole config, of whose model the teacher is",
        ),
        (
            {"teacher.kind": "untrained", "teacher.path": "x"},
            "teacher.path is 'x' and teacher.kind 'untrained'; expected no path",
        ),
        ({"teacher.members": {"a": {}}}, "teacher.members is given, and teacher.kind is 'random'"),
        (
            {"teacher.kind": "ensemble", "teacher.mode": "train", "teacher.members": {"a": {"kind": "random"}}},
            "teacher.mode or teacher.path is given with kind 'ensemble'; expected those of its members",
        ),
    ],
)
def test_what_a_kind_of_teacher_does_not_read_is_refused(changes, said):
    with pytest.raises(InputError, match=said):
        tiny.create(tiny.METHODS["kd"], **changes)
