"""The best epoch beside a run's result: on the validation split, and on a test set that training reads."""

import shutil

import pytest

from kd_jax import evaluation, experiment, runs, training
from kd_jax.data import memory
from kd_jax.errors import InputError, Preempted
from kd_jax.logging import metrics_file
from kd_jax.metrics import METRICS
from tests import tiny

# Five epochs of four steps, of which the third is the best on either split.
RUN = {"model.name": "linear", "optimizer.schedule": "constant", "optimizer.learning_rate": 3.0, "train.epochs": 5}
KINDS = {"validation": {"evaluate.select": "both"}, "test": {"evaluate.test_every_epoch": True}}
every_kind = pytest.mark.parametrize("on", KINDS)


def config(on="", **overrides):
    return tiny.config(**RUN | KINDS.get(on, {}) | {"checkpoint.keep": 2} | overrides)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a run of each kind, one that selects the best on the validation split, and one of neither."""
    folder = tmp_path_factory.mktemp("runs")
    tiny.train(config(), folder, "plain")
    tiny.train(config(**{"evaluate.select": "best-validation"}), folder, "selected")
    for on in KINDS:
        tiny.train(config(on), folder, on)
    return folder


def result(folder, name):
    return runs.read_json(str(folder / name), "result.json")


def lines(folder, split):
    """[(step, metrics)] of the lines of a split in metrics.jsonl."""
    found = []
    for line in metrics_file.read(folder):
        if own := {key.removeprefix(split): value for key, value in line.items() if key.startswith(split)}:
            found.append((line["step"], own))
    return found


@every_kind
def test_the_run_is_that_of_one_that_asks_for_nothing(folder, on):
    own, plain = result(folder, on), result(folder, "plain")
    assert [own[key] for key in ("test", "validation", "checkpoint", "steps")] == [
        plain[key] for key in ("test", "validation", "checkpoint", "steps")
    ]
    assert (own["checkpoint"], own["test_every_epoch"], plain["test_every_epoch"]) == (20, on == "test", False)
    assert evaluation.evaluate_run(folder / on) == plain["test"]
    ends = [training.train(config(kind), folder / (kind or "plain")).state for kind in (on, "")]
    assert tiny.identical(*[(state.params, state.stats, state.optimizer_state) for state in ends])


@pytest.mark.parametrize("name", ["plain", "selected"])
def test_a_run_that_does_not_ask_has_no_best_and_reads_the_test_set_once(folder, name):
    assert result(folder, name)["best"] is None
    assert lines(folder / name, "test/") == []


def test_the_best_on_the_validation_split_is_what_would_have_been_selected(folder):
    best, selected = result(folder, "validation")["best"], result(folder, "selected")
    assert (best["on"], best["step"], best["epoch"]) == ("validation", 12, 3.0)
    assert [best[key] for key in ("step", "test", "validation")] == [
        selected[key] for key in ("checkpoint", "test", "validation")
    ]
    assert lines(folder / "validation", "test/") == []


def test_the_best_on_the_test_set_is_that_of_its_lines(folder):
    best, measured = result(folder, "test")["best"], lines(folder / "test", "test/")
    assert [step for step, _ in measured] == [4, 8, 12, 16, 20]
    assert measured[-1][1] == result(folder, "test")["test"]
    assert measured[-1][1].keys() == {*METRICS, "images"}
    step, highest = max(measured, key=lambda one: one[1]["accuracy"])
    assert best == {
        "on": "test",
        "step": step,
        "epoch": step / 4,
        "test": highest,
        "validation": dict(lines(folder / "test", "validation/"))[step],
    }
    assert step == 12


def test_a_run_that_selects_by_validation_does_so_though_the_test_set_is_read(tmp_path, monkeypatch):
    """Accuracies rise on the validation split, and fall on the test set."""
    total = evaluation.Evaluator.total

    def told(self, variables, method, split):
        return total(self, variables, method, split) | {"told": (split is self._experiment.dataset.test, epochs.pop(0))}

    def summarize(sums):
        is_test, epoch = sums.pop("told")
        return measured(sums) | {"accuracy": 1 / epoch if is_test else 1 - 1 / epoch}

    measured, epochs = training.metrics.summarize, [1, 1, 2, 2, 3, 3, 3, 3]
    monkeypatch.setattr(evaluation.Evaluator, "total", told)
    monkeypatch.setattr(training.metrics, "summarize", summarize)
    monkeypatch.setattr(training.metrics, "details", lambda total, names: {})
    whole = config("test", **{"evaluate.select": "best-validation", "train.epochs": 3})
    own = training.train(whole, tmp_path / "run").result
    assert (own["checkpoint"], own["best"]["step"], own["best"]["test"]["accuracy"]) == (12, 4, 1.0)


@pytest.mark.parametrize("gone", ["the last checkpoint", "the lines"])
@every_kind
def test_a_run_that_was_killed_has_the_same_best(folder, tmp_path, on, gone):
    shutil.copytree(folder / on, tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    if gone == "the last checkpoint":
        shutil.rmtree(tmp_path / "run" / "checkpoints" / "20")
    else:
        (tmp_path / "run" / "metrics.jsonl").unlink()
    assert tiny.train(config(on), tmp_path)[1]["best"] == result(folder, on)["best"]


@pytest.mark.parametrize("at", [11, 12, 14])
@every_kind
def test_a_run_that_was_stopped_has_the_same_best(folder, tmp_path, monkeypatch, on, at):
    """Before it, at it, and behind it."""
    with monkeypatch.context() as patched:
        tiny.interrupt(patched, at)
        with pytest.raises(Preempted, match=f"stopped at step {at} of 20"):
            tiny.train(config(on), tmp_path)
    own = tiny.train(config(on), tmp_path)[1]
    assert [own[key] for key in ("best", "test")] == [result(folder, on)[key] for key in ("best", "test")]
    assert lines(tmp_path / "run", "test/") == lines(folder / on, "test/")


def test_of_equals_the_first_is_the_best(tmp_path, monkeypatch):
    summarize = training.metrics.summarize
    monkeypatch.setattr(training.metrics, "summarize", lambda total: summarize(total) | {"accuracy": 0.5})
    found = [tiny.train(config(on, **{"train.epochs": 2}), tmp_path, on)[1] for on in KINDS]
    assert [one["best"]["step"] for one in found] == [4, 4]


def test_the_test_set_is_read_where_nothing_is_held_out_and_as_rarely_as_asked(tmp_path):
    changes = {"dataset.holdout": 0.0, "evaluate.every_epochs": 2}
    own = tiny.train(config("test", **changes), tmp_path)[1]
    assert [step for step, _ in lines(tmp_path / "run", "test/")] == [8, 16, 20]
    assert own["best"]["validation"] is None
    assert own["best"]["step"] in (8, 16, 20)


def test_the_lines_on_the_terminal_say_both_accuracies_and_that_the_test_set_is_read(tmp_path, capsys):
    for on in KINDS:
        made = training.train(config(on), tmp_path / on)
        own = made.result
        said = capsys.readouterr().out
        last, best = (f"{100 * x['test']['accuracy']:.2f}%" for x in (own, own["best"]))
        assert f"linear: test accuracy {last} ({best} at epoch 3, the best on the {on} split) of 359 images" in said
        warned = "evaluate.test_every_epoch: the test set is read in training, and selects nothing\n" in said
        assert warned == (on == "test")
        assert f"<th>the best on the {on} split</th><td>{best} at epoch 3</td>" in made._repr_html_()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"evaluate.select": "both", "evaluate.test_every_epoch": True},
            "evaluate.select is 'both' and evaluate.test_every_epoch true, .*; expected one of them",
        ),
        ({"evaluate.select": "both", "dataset.holdout": 0.0}, "there is no validation split; expected .* 'last'"),
    ],
)
def test_what_cannot_be_is_refused(changes, said):
    with pytest.raises(InputError, match=said):
        experiment.create(config(**changes))


def test_a_test_set_without_labels_cannot_be_read_in_training():
    changes = {"dataset.label_free": True, "teacher.kind": "random", "dataset.train_images": 0}
    whole = config("test", **changes) | {"method": {"embedding": {}}}
    with pytest.raises(InputError, match=r"evaluate.test_every_epoch is true, and without labels there is no accuracy"):
        experiment.create(whole, source=memory.source_of(tiny.source()))


@every_kind
def test_a_best_epoch_that_a_longer_run_would_not_have_measured_is_refused(tmp_path, on):
    rare = config(on, **{"evaluate.every_epochs": 2, "train.epochs": 1})
    tiny.train(rare, tmp_path)
    with pytest.raises(InputError, match="whose best checkpoint is its last, of step 4; a longer run is rated every 8"):
        training.train(rare | {"train": rare["train"] | {"epochs": 3}}, tmp_path / "longer", extend=tmp_path / "run")


@every_kind
def test_a_longer_run_has_the_best_of_one_from_the_start(folder, tmp_path, on):
    steady = {"optimizer.warmup_epochs": 0.5}
    tiny.train(config(on, **steady, **{"train.epochs": 3}), tmp_path)
    longer = config(on, **steady)
    extended = training.train(longer, tmp_path / "longer", extend=tmp_path / "run").result
    assert extended["best"] == tiny.train(longer, tmp_path, "start")[1]["best"]
