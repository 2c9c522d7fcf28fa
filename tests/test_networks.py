"""A run whose method predicts in its student's place: wherever its network is used, it predicts as the run does."""

import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kd_jax
from kd_jax import experiment, gradcam, runs, training, weights
from kd_jax.errors import InputError
from kd_jax.explaining import agreement
from tests import tiny
from tests.methods.numeric import batch

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 1), dtype=np.uint8)
LABELS = np.arange(6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """SimKD's run `simkd`, its teacher's in `runs`."""
    folder = tmp_path_factory.mktemp("simkd")
    training.train(simkd(), folder / "simkd", runs_folder=folder / "runs")
    return folder


def simkd() -> dict:
    return tiny.taught(**{"train.steps": 6}) | {"method": {"simkd": {}}}


@functools.cache
def logits_of_the_run(folder):
    """As a training step predicts, from the files of the run."""
    run = experiment.create(simkd(), runs_folder=str(folder / "runs")).components

    @jax.jit
    def logits(variables, method_variables):
        outputs, _ = run.student.apply(variables, run.prepare(IMAGES), train=False)
        return run.method.predict(method_variables, outputs)

    return logits(*weights.read_run(folder / "simkd"))


def test_its_loaded_network_reports_the_runs_logits(folder):
    loaded = kd_jax.load(folder / "simkd")
    network, preprocess = loaded.network, loaded.preprocess
    outputs = jax.jit(lambda v: network.apply(v, preprocess(IMAGES), train=False)[0])(loaded.variables)
    np.testing.assert_allclose(outputs.logits, logits_of_the_run(folder), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(jax.jit(loaded.logits)(IMAGES), logits_of_the_run(folder), rtol=1e-5, atol=1e-6)
    assert outputs.head is None
    assert outputs.embedding is not None
    assert network.name == "resnet6"


def test_its_maps_are_those_of_the_runs_logits(folder):
    network, variables, preprocess, *_ = kd_jax.load(folder / "simkd")
    maps = jax.jit(lambda v: gradcam.gradcam(network, v, preprocess(IMAGES), LABELS, stage=-2))
    own = maps(variables)
    assert own.any()
    (head,) = kd_jax.create_model("resnet8", 10).head
    without = {**variables["params"], head: jax.tree.map(jnp.zeros_like, variables["params"][head])}
    np.testing.assert_array_equal(maps({**variables, "params": without}), own)


def test_such_a_network_is_not_initialized_by_itself(folder):
    with pytest.raises(InputError, match="resnet6 predicts by its method's head; expected the variables of its run"):
        kd_jax.load(folder / "simkd").network.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))


def test_it_is_explained_as_it_predicts(folder, tmp_path):
    run, to = folder / "simkd", tmp_path / "explained"
    summary = agreement.explain_run(run, [run], to=to, runs_folder=folder / "runs", stage=2, num_images=1)
    expected = runs.read_json(str(run), "result.json")["test"]["accuracy"]
    assert [student["accuracy"] for student in summary["students"]] == pytest.approx([expected] * 2)


@pytest.mark.parametrize("kind", ["run", "config"])
def test_it_teaches_as_it_predicts(folder, kind, tmp_path):
    config = tiny.config(method=tiny.METHODS["kd"])
    config["teacher"] |= {"kind": kind, "path": str(folder / "simkd"), "config": simkd()}
    made = experiment.create(config, runs_folder=str(folder / "runs" if kind == "run" else tmp_path))
    teacher, run = made.teacher, kd_jax.load(folder / "simkd")
    shapes = jax.tree.map(lambda x: (x.shape, x.dtype), (teacher.shapes, dict(run.variables)))
    assert shapes[0] == shapes[1]
    if kind == "run":
        assert tiny.identical(teacher.load()[0], dict(run.variables))
    outputs = jax.eval_shape(lambda v: teacher.network.apply(v, run.preprocess(IMAGES), train=False)[0], run.variables)
    assert outputs.head is None
    seen = batch(LABELS, num_classes=10)

    @jax.jit
    def logits(variables):
        images = seen._replace(images=run.preprocess(IMAGES))
        return teacher.apply(variables, images, rng=jax.random.key(0), train=True).logits

    np.testing.assert_allclose(logits(run.variables), logits_of_the_run(folder), rtol=1e-5, atol=1e-6)


def test_a_run_that_starts_from_it_has_a_new_head(folder, capsys):
    made = experiment.create(tiny.config(**{"model.pretrained": str(folder / "simkd")}))
    assert "was not trained, and is reinitialized" in capsys.readouterr().out
    (head,) = made.components.student.head
    assert {"conv1", head} & {*made.pretrained["params"]} == {"conv1"}


def test_a_head_that_another_term_trained_is_kept(folder, tmp_path, capsys):
    run = changed(folder, tmp_path, {"simkd": {}, "cross_entropy": {}})
    experiment.create(tiny.config(**{"model.pretrained": run}))
    assert "its head is included" in capsys.readouterr().out


def test_what_registered_the_parts_of_a_run_is_not_needed_for_its_weights(folder, tmp_path, capsys):
    run = changed(folder, tmp_path, {"simkd": {"method": "of a file that is gone"}})
    experiment.create(tiny.config(**{"model.pretrained": run}))
    assert "its head is included" in capsys.readouterr().out


def changed(folder, tmp_path, terms):
    """A copy of the run whose config has other terms."""
    run = shutil.copytree(folder / "simkd", tmp_path / "copy")
    saved = json.loads((run / "config.json").read_text())
    saved["config"]["method"] = terms
    runs.write_json(str(run / "config.json"), saved)
    return str(run)


def test_its_students_head_is_not_taken_for_a_teachers(folder):
    run, network = str(folder / "simkd"), kd_jax.create_model("resnet8", 10, width=1 / 8)
    with pytest.raises(InputError, match=r"simkd predicts by its method's head; expected .*run"):
        weights.load(run, weights.read_run(run)[0], network, strict=True)
