"""Evaluation: which images count, in which mode both networks are, and what predicts."""

import types

import jax
import numpy as np
import pytest

from kd_jax import evaluation, methods, runs, training
from kd_jax.errors import InputError
from tests import tiny


def measured(terms, split="train", change=lambda variables: variables, **overrides):
    """(the metrics of an untrained student on a split, its variables, the experiment, its teacher's variables)."""
    run = tiny.Run(terms, **overrides)
    made = run.experiment
    variables, method = evaluation.evaluated(run.state)
    variables = change(variables)
    evaluate = evaluation.Evaluator(made, run.teacher)
    return evaluate(variables, method, getattr(made.dataset, split)), variables, made, run.teacher


def logits(network, variables, images):
    return np.asarray(jax.jit(lambda v: network.apply(v, images, train=False)[0].logits)(variables))


def moved(variables):
    """The same network with other running statistics than the first ones."""
    stats = jax.tree.map(lambda x: x + 0.5, variables["batch_stats"])
    return {"params": variables["params"], "batch_stats": stats}


@pytest.mark.parametrize(("size", "devices"), [(500, 1), (20, 2), (7, 2)])
def test_every_image_counts_once_whatever_the_batches(size, devices):
    got, variables, made, _ = measured(
        tiny.METHODS["cross_entropy"], change=moved, devices=devices, **{"evaluate.batch_size": size}
    )
    split = made.dataset.train
    right = logits(made.components.student, variables, made.components.prepare(split.images)).argmax(-1) == split.labels
    assert got["images"] == 48
    assert got["accuracy"] == pytest.approx(right.mean())


@pytest.mark.parametrize(("platform", "shapes"), [("cpu", [(1, 20)] * 3), ("gpu", [(3, 20)])])
def test_all_batches_go_into_one_call_but_on_a_cpu(monkeypatch, platform, shapes):
    made = tiny.create(tiny.METHODS["cross_entropy"], devices=2, **{"evaluate.batch_size": 20})
    monkeypatch.setattr(evaluation.jax, "device_put", lambda arrays, sharding: arrays)
    mesh = types.SimpleNamespace(devices=np.array([types.SimpleNamespace(platform=platform)]), size=2)
    monkeypatch.setattr(evaluation, "NamedSharding", lambda mesh, spec: None)
    calls = evaluation.calls(made._replace(mesh=mesh), 48)
    assert [ids.shape for ids, _ in calls] == shapes
    assert sum(mask.sum() for _, mask in calls) == 48


def test_a_teacher_in_train_mode_is_compared_in_inference_mode():
    got, variables, made, teacher = measured(tiny.METHODS["kd"], change=moved, **{"teacher.mode": "train"})
    images = made.components.prepare(made.dataset.train.images)
    student = logits(made.components.student, variables, images)
    taught = logits(made.teacher.network, teacher, images)
    assert got["agreement"] == pytest.approx((student.argmax(-1) == taught.argmax(-1)).mean())
    p, q = (np.exp(np.float64(x)) / np.exp(np.float64(x)).sum(-1, keepdims=True) for x in (student, taught))
    assert got["fidelity_kl"] == pytest.approx((q * np.log(q / p)).sum(-1).mean(), rel=1e-4)


def test_the_teacher_is_asked_once_for_every_split(monkeypatch):
    run = tiny.Run(tiny.METHODS["kd"])
    evaluate, dataset, asked = evaluation.Evaluator(run.experiment, run.teacher), run.experiment.dataset, []
    teach = evaluate._teach
    monkeypatch.setattr(evaluate, "_teach", lambda *arguments: (asked.append(1), teach(*arguments))[1])
    variables, method = evaluation.evaluated(run.state)
    first, again = (evaluate(variables, method, dataset.train) for _ in range(2))
    other = evaluate(jax.tree.map(lambda x: x * 1.5, variables), method, dataset.train)
    assert asked == [1]
    assert first == again
    assert first["fidelity_kl"] != other["fidelity_kl"]
    evaluate(variables, method, dataset.test)
    assert asked == [1, 1]


def test_what_is_evaluated_is_the_methods_prediction(monkeypatch):
    monkeypatch.setitem(methods.METHODS, "evaluated", methods.from_module(tiny.Always))
    got, _, made, _ = measured({"evaluated": {}}, split="test")
    assert got["accuracy"] == pytest.approx((made.dataset.test.labels == 2).mean())
    assert got["nll"] == pytest.approx(
        9 * (made.dataset.test.labels != 2).mean() + np.log(1 + 3 * np.exp(-9.0)), rel=1e-5
    )


def test_the_average_is_evaluated_where_there_is_one():
    run = tiny.Run(tiny.METHODS["cross_entropy"], **{"train.ema": 0.75})
    state = run.step(2)
    assert tiny.identical(evaluation.evaluated(state)[0], state.ema)
    assert tiny.identical(evaluation.evaluated(state.replace(ema=None))[0], run.student)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run of one step."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    training.train(tiny.config(**{"train.steps": 1}), folder)
    return folder


def test_what_training_started_from_need_not_exist_any_more(folder):
    saved = runs.read_json(str(folder), "config.json")
    saved["config"]["model"]["pretrained"] = "/gone.safetensors"
    runs.write_json(str(folder / "config.json"), saved)
    assert evaluation.evaluate_run(folder) == runs.read_json(str(folder), "result.json")["test"]


def test_the_folders_data_must_be_what_it_was_trained_on(folder, tmp_path):
    saved = runs.read_json(str(folder), "config.json")
    saved["data"]["fingerprint"] = "another"
    for name in ("result.json", "checkpoints"):
        (tmp_path / name).symlink_to(folder / name)
    runs.write_json(str(tmp_path / "config.json"), saved)
    with pytest.raises(InputError, match=r"the data is not what .* was trained on; expected the same images"):
        evaluation.evaluate_run(tmp_path)
