"""A search: it goes on as if it had not been stopped, stops who is behind, and never looks at the test set."""

import json
import math
import re
import shutil
import sys
import threading
import time
from pathlib import Path

import pytest
from absl import flags
from absl.testing import flagsaver

from kd_jax import jobs, tune
from kd_jax.config import shipped
from kd_jax.errors import InputError, TrainingError

pytest.importorskip("optuna", reason="optuna, of the extra `tune`, is not installed")

flags.FLAGS.mark_as_parsed()
RATE = "optimizer.learning_rate=0.001..1.0:log"
EPOCHS = 4


@pytest.fixture
def settings(tmp_path):
    """The flags of a small search in a folder of the test's own."""
    with flagsaver.flagsaver(runs=str(tmp_path), search=[RATE], trials=4):
        flags.FLAGS["config"].parse(f"{shipped()['student']}:smoke")
        yield tmp_path


class Runs:
    """In the place of processes. The best learning rate by the validation split, 0.1, is the worst by the test set."""

    def __init__(self, waits_below=0.0):
        self.ran, self.fails, self.killed, self.now = [], set(), set(), set()
        self.waits_below = waits_below  # an accuracy, below which a run waits to be stopped behind its second epoch
        self.asked = {}
        self.seconds = 0.0  # that each takes

    def run(self, job, runs_folder, cores=(), restarts=0):
        assert job.folder not in self.now
        self.now.add(job.folder)
        self.ran.append(job.row)
        try:
            return self._run(job)
        finally:
            self.now.remove(job.folder)

    def _run(self, job):
        asked = self.asked[job.folder] = threading.Event()
        time.sleep(self.seconds)
        if len(self.ran) in self.killed:
            raise KeyboardInterrupt
        if len(self.ran) in self.fails:
            return jobs.Failure(job.row, job.seed, "it broke")
        accuracy = 1 - abs(math.log10(rate(job.row)) + 1) / 4
        for epoch in range(1, EPOCHS + 1):
            write_curve(job.folder, {epoch: accuracy * epoch / EPOCHS})
            if epoch == 2 and accuracy < self.waits_below:
                assert asked.wait(20)
                return jobs.Failure(job.row, job.seed, "stopped at step 2")
        validation = {"accuracy": accuracy, "macro_f1": accuracy / 2}
        return {"validation": validation, "test": {"accuracy": 1 - accuracy}, "seconds": 1.0}

    def stop(self, job):
        self.asked[job.folder].set()


def rate(row):
    return float(re.search(r"learning_rate=([\d.e-]+)", row)[1])


def write_curve(folder, by_epoch):
    Path(folder).mkdir(parents=True, exist_ok=True)
    with open(f"{folder}/metrics.jsonl", "a") as file:
        for epoch, accuracy in by_epoch.items():
            both = {"validation/accuracy": accuracy, "validation/macro_f1": accuracy / 2}
            print(json.dumps({"epoch": float(epoch), **both}), file=file)


@pytest.fixture
def fake(monkeypatch):
    made = Runs()
    monkeypatch.setattr(jobs, "run", made.run)
    monkeypatch.setattr(jobs, "stop", made.stop)
    return made


def table(folder):
    (path,) = folder.glob("tune-*/table.json")
    return json.loads(path.read_text())


def test_the_best_on_the_validation_split_is_first_and_alone_shows_its_test_accuracy(settings, fake, capsys):
    tune.main(["train.epochs=8"])
    found = table(settings)
    accuracies = [row["validation"] for row in found["trials"]]
    assert accuracies == sorted(accuracies, reverse=True)
    assert [row["epochs"] for row in found["trials"]] == [EPOCHS] * 4
    assert all("test" not in row for row in found["trials"])
    best = found["trials"][0]
    chosen = best["values"]["optimizer.learning_rate"]
    assert found["best"]["trial"] == best["trial"]
    assert found["best"]["test"] is None  # its folder has no result
    assert f"--sweep=optimizer.learning_rate={chosen} --runs={settings} --seeds=3" in found["best"]["command"]
    assert "kd_jax sweep --config=student:smoke --config.train.epochs=8 " in found["best"]["command"]
    assert f"| {best['trial']} | {chosen} | {best['validation']:.2f} | 4 | done |" in capsys.readouterr().out


def test_the_test_accuracy_of_the_best_is_that_of_its_result(settings, fake, monkeypatch):
    monkeypatch.setattr(tune.runs, "has_result", lambda folder: True)
    monkeypatch.setattr(tune.runs, "read_json", lambda folder, name: {"test": {"accuracy": 0.25}})
    tune.main([])
    assert "Its test accuracy is 25.00%" in next(settings.glob("tune-*/table.md")).read_text()


def test_a_search_that_was_stopped_draws_what_it_would_have_drawn(settings, fake):
    with flagsaver.flagsaver(trials=12):  # more than Optuna draws blindly
        tune.main([])
    whole = list(fake.ran)
    assert len(set(whole)) == 12
    for folder in settings.iterdir():
        shutil.rmtree(folder)
    fake.ran.clear()
    fake.killed.add(11)
    with flagsaver.flagsaver(trials=12):
        with pytest.raises(KeyboardInterrupt):
            tune.main([])
        tune.main([])
    assert fake.ran == [*whole[:11], *whole[10:]]  # what was killed is run again, with its values
    assert [row["state"] for row in table(settings)["trials"]] == ["done"] * 12


def test_more_trials_are_added_to_those_that_there_are(settings, fake, capsys):
    tune.main([])
    with flagsaver.flagsaver(trials=6):
        tune.main([])
    assert len(set(fake.ran)) == 6
    assert "\n4 of 6 trials are in " in capsys.readouterr().out


def test_another_search_is_another_folder(settings, fake):
    tune.main([])
    with flagsaver.flagsaver(search=["optimizer.learning_rate=0.001..0.9:log"], trials=1):
        tune.main([])
    tune.main(["train.epochs=2"])
    assert len(list(settings.glob("tune-student-smoke-*"))) == 3


def test_who_is_below_the_median_is_stopped_and_keeps_its_numbers(settings, fake, capsys):
    fake.waits_below = 0.9
    with flagsaver.flagsaver(trials=5, prune_trials=1, prune_epochs=2):
        tune.main([])
    rows = table(settings)["trials"]
    pruned = [row for row in rows if row["state"] == "pruned"]
    assert len(rows) == 5
    assert rows[-len(pruned) :] == pruned  # behind those that have finished
    for row in pruned:
        expected = 50 * (1 - abs(math.log10(float(row["values"]["optimizer.learning_rate"])) + 1) / 4)
        assert (row["epochs"], row["validation"]) == (2, pytest.approx(expected))
    assert "pruned at epoch 2, where its best was below the median |" in capsys.readouterr().out


def test_nobody_is_stopped_before_a_quarter_of_the_epochs(settings):
    tree = tune.sweep.config({"train.epochs": "100", "train.steps": "0"}, 0)
    assert tune.pruner(tree)._n_warmup_steps == 25
    with flagsaver.flagsaver(prune="none"):
        assert type(tune.pruner(tree)).__name__ == "NopPruner"


def test_what_was_behind_before_is_not_started_again(settings, fake):
    with flagsaver.flagsaver(prune_trials=1, prune_epochs=1):
        with flagsaver.flagsaver(trials=2):
            tune.main([])
        for folder in settings.glob("sweep-*/*"):
            (folder / "metrics.jsonl").write_text("")
            write_curve(folder, {1: 0.9})
        fake.ran.clear()
        job = tune.sweep.job("sweep-student-smoke", {"optimizer.learning_rate": "0.5"}, {}, 0)
        write_curve(job.folder, {1: 0.1})
        with tune.opened(str(next(settings.glob("tune-*"))), tune.pruner({"train": {"steps": 1}})) as study:
            study.enqueue_trial({"optimizer.learning_rate": 0.5})
            tune.search(
                study, tune.searched([RATE]), lambda params: job, str(next(settings.glob("tune-*"))), "accuracy"
            )
            assert study.trials[2].state.name == "PRUNED"
    assert fake.ran == []


def test_a_failure_is_named_and_tried_again_by_the_same_command(settings, fake, capsys):
    fake.fails |= {2}
    with pytest.raises(TrainingError, match="1 of 4 trials failed; the same command tries them again"):
        tune.main([])
    assert len(fake.ran) == 4
    assert "failed: it broke |" in capsys.readouterr().out
    tune.main([])
    assert fake.ran[4:] == [fake.ran[1]]
    assert [row["state"] for row in table(settings)["trials"]] == ["done"] * 4


def test_one_run_is_never_in_two_processes(settings, fake):
    """`Runs.run` asserts it: of two values, three at a time."""
    fake.seconds = 0.3
    with flagsaver.flagsaver(search=["optimizer.learning_rate=0.1,0.2"], trials=3, jobs=3):
        tune.main([])
    assert len(fake.ran) == 3


def test_what_another_process_runs_was_not_killed(settings):
    folder, spaces = str(settings / "search"), tune.searched([RATE])
    pruner = tune.pruner({"train": {"steps": 1}})

    def begin(params):
        return jobs.Job("row", 0, "key", (), "")

    with tune.opened(folder, pruner) as study:
        assert tune._ask(study, spaces, begin, folder, "accuracy")
        with tune.opened(folder, pruner) as other:
            assert [trial.state.name for trial in tune.trials(other)] == ["RUNNING"]
    with tune.opened(folder, pruner) as study:
        assert [trial.state.name for trial in tune.trials(study)] == ["WAITING"]


def test_a_line_that_was_cut_off_and_its_lock_cost_nothing_else(settings, fake):
    tune.main([])
    path = next(settings.glob("tune-*/study.jsonl"))
    path.write_text(path.read_text() + '{"op_code":')
    Path(f"{path}.lock").symlink_to(path)
    with flagsaver.flagsaver(trials=5):
        tune.main([])
        tune.main([])
    assert len(fake.ran) == 5


def test_drawn_numbers_are_short_and_within_their_range():
    spaces = tune.searched(["a.x=0.12344..1.0", "a.y=1..8", "a.z=[1,2],[3]"])
    drawn = {"a.x": 0.123456, "a.y": 3, "a.z": "[1,2]"}
    assert tune.values(spaces, drawn) == {"a.x": "0.1235", "a.y": "3", "a.z": "[1,2]"}
    assert tune.values(spaces, {"a.x": 0.12344}) == {"a.x": "0.12344"}  # not 0.1234, which is below
    assert tune.values(tune.searched(["a.x=1e-5..1:log"]), {"a.x": 1e-5}) == {"a.x": "1e-05"}


@pytest.mark.parametrize(
    ("searches", "said"),
    [
        ([], "--search is not given; expected KEY=LOW..HIGH"),
        (["train.epochs"], "--search is 'train.epochs'; expected KEY=VALUE"),
        (["train.epochs=5"], r"--search is 'train.epochs=5'; expected KEY=LOW..HIGH"),
        (["train.epochs=5..5"], "expected LOW below HIGH"),
        (["train.epochs=0..5:log"], "above 0 with :log"),
        (["train.epochs=1..1e999"], "expected LOW below HIGH"),
        (["train.epochs=1,1"], "every value once"),
        (["train.epochs=1..4", "train.epochs=5..9"], "expected every key once"),
        (["seed=1..3"], "expected another key"),
        (["optimizer.rate=1..2"], "optimizer.rate=1 do not fit: .*does not exist"),
        (["optimizer.momentum=0.5..1.5"], "optimizer.momentum is 1.5; expected"),
        (["train.batch_size=0..64"], "train.batch_size is 0; expected a whole number of at least 1"),
        (["optimizer.learning_rate=0.1,x"], "optimizer.learning_rate=x do not fit"),
        (["log.every_steps=1..2"], "--search has log.every_steps, .* makes a difference"),
        (["dataset.holdout=0.0..0.5"], "dataset.holdout is 0, so there is no validation split to choose by"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_before_anything_runs(settings, fake, searches, said):
    with flagsaver.flagsaver(search=searches), pytest.raises(InputError, match=said):
        tune.main([])
    assert fake.ran == []
    assert list(settings.iterdir()) == []


def test_it_is_rated_by_the_metric_of_the_config(settings, fake, capsys):
    tune.main(["evaluate.metric=macro_f1"])
    rows = table(settings)["trials"]
    assert rows[0]["validation"] == pytest.approx(
        50 * (1 - abs(math.log10(float(rows[0]["values"]["optimizer.learning_rate"])) + 1) / 4)
    )
    assert "validation macro f1, % |" in capsys.readouterr().out


def test_without_optuna_a_line_says_what_to_install(settings, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(InputError, match=r'optuna is not installed; expected pip install "kd_jax\[tune\]"'):
        tune.main([])


@pytest.mark.slow
def test_real_runs_are_stopped_where_they_are_behind(settings, monkeypatch, no_tensorflow):
    monkeypatch.setenv("PYTHONPATH", no_tensorflow, prepend=":")
    with flagsaver.flagsaver(search=["optimizer.learning_rate=1e-6..0.5:log"], trials=3, prune_trials=1):
        tune.main(["train.epochs=60", "dataset.image_size=8"])
    found = table(settings)
    assert {row["state"] for row in found["trials"]} == {"done", "pruned"}
    assert found["best"]["test"] > 30
