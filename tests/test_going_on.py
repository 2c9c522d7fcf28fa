"""Runs that were stopped, killed or damaged: the same command ends as the run that was never touched."""

import json
import os
import shutil
import signal

import pytest

from kd_jax import evaluation, runs, stopping, training
from kd_jax.errors import InputError, Preempted, TrainingError
from kd_jax.logging import metrics_file
from tests import tiny

BEST = {"evaluate.select": "best-validation", "optimizer.learning_rate": 0.4}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder of runs with a finished, distilled one whose best checkpoint is not its last."""
    folder = tmp_path_factory.mktemp("whole")
    state, result = tiny.train(tiny.taught(**BEST), folder)
    assert result["checkpoint"] < 12
    return folder, state, result


@pytest.fixture
def copy(whole, tmp_path):
    """A copy of these runs."""
    shutil.copytree(whole[0], tmp_path, dirs_exist_ok=True)
    return tmp_path


def same(first, second):
    keys = ("test", "validation", "checkpoint", "teacher", "config_hash")
    return tiny.identical(first[0].params, second[0].params) and all(first[1][k] == second[1][k] for k in keys)


def of_training(folder):
    """The lines of metrics.jsonl but for the time."""
    return [{k: v for k, v in line.items() if k != "seconds"} for line in metrics_file.read(str(folder / "run"))]


def test_a_run_killed_before_its_result_is_finished_by_the_same_command(whole, copy):
    (copy / "run" / "result.json").unlink()
    assert same(tiny.train(tiny.taught(**BEST), copy), whole[1:])


def test_a_damaged_latest_checkpoint_costs_its_steps_and_no_result(whole, copy, capsys):
    (copy / "run" / "result.json").unlink()
    os.truncate(copy / "run" / "checkpoints" / "12" / "state" / "manifest.ocdbt", 5)
    assert same(tiny.train(tiny.taught(**BEST), copy), whole[1:])
    assert f"{12 - whole[2]['checkpoint']} steps have to be trained again" in capsys.readouterr().out
    assert of_training(copy) == of_training(whole[0])


def test_a_run_that_lost_its_metrics_says_so_and_has_the_same_result(whole, copy, capsys):
    path = copy / "run" / "metrics.jsonl"
    lines = len(path.read_text().splitlines())
    (copy / "run" / "result.json").unlink()
    path.unlink()
    assert same(tiny.train(tiny.taught(**BEST), copy), whole[1:])
    assert f"{path} holds 0 of the {lines} lines that were written\n" in capsys.readouterr().err


@pytest.mark.parametrize("gone", [False, True])
def test_a_run_that_lost_its_best_checkpoint_does_not_choose_another(whole, copy, gone):
    (copy / "run" / "result.json").unlink()
    best = copy / "run" / "checkpoints" / str(whole[2]["checkpoint"])
    shutil.rmtree(best) if gone else os.truncate(best / "state" / "manifest.ocdbt", 5)
    with pytest.raises(InputError, match=r"it is the best so far, .* to train from the start, remove"):
        tiny.train(tiny.taught(**BEST), copy)
    shutil.rmtree(copy / "run" / "checkpoints")
    assert same(tiny.train(tiny.taught(**BEST), copy), whole[1:])


def test_a_finished_run_whose_checkpoint_is_damaged_is_refused(copy, whole):
    os.truncate(copy / "run" / "checkpoints" / str(whole[2]["checkpoint"]) / "state" / "manifest.ocdbt", 5)
    for use in (lambda: tiny.train(tiny.taught(**BEST), copy), lambda: evaluation.evaluate_run(copy / "run")):
        with pytest.raises(InputError, match="cannot be read; expected a whole checkpoint"):
            use()


@pytest.mark.parametrize(
    ("at", "number", "kind"),
    [(5, signal.SIGTERM, Preempted), (6, signal.SIGTERM, Preempted), (8, signal.SIGINT, KeyboardInterrupt)],
    ids=["in a window of the log", "at the end of one", "at the end of an epoch"],
)
def test_a_stopped_run_ends_and_logs_as_one_that_was_not(whole, copy, monkeypatch, capsys, at, number, kind):
    shutil.rmtree(copy / "run")
    tiny.interrupt(monkeypatch, at, number)
    with pytest.raises(kind, match=f"stopped at step {at} of 12; the same command goes on from there"):
        tiny.train(tiny.taught(**BEST), copy)
    monkeypatch.undo()
    capsys.readouterr()
    assert same(tiny.train(tiny.taught(**BEST), copy), whole[1:])
    assert of_training(copy) == of_training(whole[0])
    assert "lines that were written" not in capsys.readouterr().err


def test_a_request_in_a_teachers_last_evaluation_stops_after_it(whole, tmp_path, monkeypatch):
    total = evaluation.Evaluator.total

    def requested(self, variables, method, split):
        if split is self._experiment.dataset.test:
            os.kill(os.getpid(), signal.SIGTERM)
        return total(self, variables, method, split)

    monkeypatch.setattr(evaluation.Evaluator, "total", requested)
    with pytest.raises(Preempted, match="stopped; the same command starts again"):
        tiny.train(tiny.taught(**BEST), tmp_path)
    monkeypatch.undo()
    (teacher,) = (tmp_path / "teachers").iterdir()
    assert runs.has_result(str(teacher))
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
    assert same(tiny.train(tiny.taught(**BEST), tmp_path), whole[1:])


def test_a_request_before_the_loop_ends_with_a_line(tmp_path, monkeypatch):
    start = training._start

    def requested(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        return start(*arguments)

    monkeypatch.setattr(training, "_start", requested)
    with pytest.raises(Preempted, match="stopped; the same command starts again"):
        tiny.train(tiny.config(), tmp_path)


def test_a_finished_run_and_its_teacher_are_used_without_a_write_or_lock(whole, copy, monkeypatch):
    def unused(*_, **__):
        raise AssertionError("is locked or written")

    monkeypatch.setattr(runs, "locked", unused)
    monkeypatch.setattr(runs, "check_writable", unused)
    before = sorted((path, path.stat().st_mtime_ns) for path in copy.rglob("*"))
    assert same(tiny.train(tiny.taught(**BEST), copy), whole[1:])
    assert sorted((path, path.stat().st_mtime_ns) for path in copy.rglob("*")) == before


@pytest.mark.parametrize("kind", ["config", "run"])
def test_a_finished_teacher_need_not_be_writable(whole, copy, monkeypatch, kind):
    (teacher,) = (copy / "teachers").iterdir()
    check = runs.check_writable
    monkeypatch.setattr(runs, "check_writable", lambda folder, *a, **k: "teachers" in folder or check(folder, *a, **k))
    monkeypatch.setattr(os, "access", lambda path, *_: str(teacher) not in str(path))
    config = tiny.taught(**BEST)
    if kind == "run":
        config["teacher"] |= {"kind": "run", "path": str(teacher)}
    _, result = tiny.train(config, copy, "again")
    assert result["test"] == whole[2]["test"]


@pytest.mark.parametrize("steps", [2, 40])
def test_parameters_that_overflow_are_neither_saved_nor_a_result(tmp_path, steps):
    overflow = {"optimizer.learning_rate": 1e6, "optimizer.momentum": 0.0, "train.steps": steps, "train.clip": 0.0}
    with pytest.raises(TrainingError, match="not finite"):
        tiny.train(tiny.config(**overflow, **{"optimizer.warmup_epochs": 0.0, "log.every_steps": 1000}), tmp_path)
    assert not runs.has_result(str(tmp_path / "run"))


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_metric_that_is_not_finite_is_no_result(tmp_path, monkeypatch, number):
    summarize = training.metrics.summarize
    monkeypatch.setattr(training.metrics, "summarize", lambda total: summarize(total) | {"nll": number})
    with pytest.raises(TrainingError, match="not finite for the checkpoint of step 12: nll"):
        tiny.train(tiny.config(**{"dataset.holdout": 0.0}), tmp_path)
    assert not runs.has_result(str(tmp_path / "run"))


@pytest.mark.parametrize(("decay", "said"), [(0.999, True), (0.5, False)])
def test_an_average_that_is_mostly_initialization_is_said(decay, said):
    warnings = list(training._warnings(tiny.config(**{"train.ema": decay}), 40, 4))
    assert [("96% of the average is still what the run starts from" in line) for line in warnings] == [True] * said


def test_a_run_goes_on_though_its_metrics_are_damaged(whole, copy, capsys):
    path = copy / "run" / "metrics.jsonl"
    (copy / "run" / "result.json").unlink()
    text = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*text[:3], text[3][:-9] + "\n", *text[4:]]))
    assert same(tiny.train(tiny.taught(**BEST), copy), whole[1:])
    assert "metrics.jsonl: line 4 is damaged and is left out" in capsys.readouterr().err
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()][-1] == 12


def test_training_gives_the_signals_back(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    tiny.train(tiny.config(**{"train.steps": 1}), tmp_path)
    assert signal.getsignal(signal.SIGTERM) == before
    assert stopping._request is None
