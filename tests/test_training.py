"""The loop: what a run leaves behind, and that a run which was stopped ends as one that was not."""

import contextlib
import json
import re
import shutil
import threading

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

import kd_jax
from kd_jax import augment, evaluation, experiment, export, metrics, runs, steps, training, weights
from kd_jax import data as datasets
from kd_jax.config.checks import plain
from kd_jax.errors import InputError, TrainingError
from kd_jax.experiment import Experiment
from kd_jax.logging import metrics_file
from kd_jax.models import torch_names
from kd_jax.types import RawBatch
from tests import tiny


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    """A distilled run that was never stopped: (folder of runs, state, result)."""
    folder = tmp_path_factory.mktemp("taught")
    return folder, *tiny.train(tiny.taught(), folder)


WITH_TEACHER = [name for name, metric in metrics.METRICS.items() if metric.needs_teacher]


def lines(folder, prefix):
    """The lines of metrics.jsonl that have scalars of this prefix."""
    return [line for line in metrics_file.read(str(folder)) if any(key.startswith(prefix) for key in line)]


def test_the_result_says_what_was_trained_and_how_well(taught):
    _, state, result = taught
    assert result["teacher"]["name"] == "tiny-teacher"
    assert (result["steps"], result["epochs"], result["selected"]) == (12, 3.0, "last")
    assert result["parameters"] == sum(x.size for x in jax.tree.leaves(state.params["student"]))
    assert (result["method_parameters"], result["train_images"]) == (0, 64)
    assert (result["teacher_cache"], result["teacher_ran"]) == ("none", 1)
    assert result["test"].keys() == {*metrics.METRICS, "images"}
    assert (result["test"]["images"], result["validation"]["images"]) == (359, 145)
    assert result["deterministic"] is True
    assert 0 < result["share_in_steps"] <= 1
    assert result["versions"].keys() >= {"python", "jax", "flax", "optax"}


def test_the_details_beside_the_result_add_up_to_it(taught):
    folder, _, result = taught
    details = runs.read_json(str(folder / "run"), "test_details.json")
    confusion = np.array(details["confusion"])
    assert confusion.shape == (10, 10)
    assert (confusion.sum(), sum(details["bin_count"])) == (359, 359)
    assert np.trace(confusion) / 359 == pytest.approx(result["test"]["accuracy"])


def test_the_details_and_an_evaluation_have_the_numbers_of_every_class(taught):
    folder, _, result = taught
    details = runs.read_json(str(folder / "run"), "test_details.json")
    assert list(details["classes"]) == list("0123456789")
    recalls = [own["recall"] for own in details["classes"].values()]
    assert np.mean(recalls) == pytest.approx(result["test"]["balanced_accuracy"])
    measured = evaluation.evaluate_run(folder / "run", runs_folder=folder, per_class=True)
    assert measured == result["test"] | {"classes": details["classes"]}


def test_the_metric_that_a_config_names_rates_checkpoints(tmp_path, monkeypatch):
    lowest = metrics.Metric(None, "", 2, value=lambda confusion, images: -float(np.trace(confusion)) / images)
    monkeypatch.setitem(metrics.METRICS, "macro_f1", lowest)
    _, result = tiny.train(
        tiny.config(**{"evaluate.select": "best-validation", "evaluate.metric": "macro_f1"}), tmp_path
    )
    accuracies = {line["step"]: line["validation/accuracy"] for line in lines(tmp_path / "run", "validation/")}
    assert len(set(accuracies.values())) > 1
    assert result["checkpoint"] == min(accuracies, key=accuracies.get)


def test_accuracy_and_agreement_are_those_of_the_saved_networks(taught):
    folder, _, result = taught
    predicted = []
    data = experiment.create(tiny.taught(), runs_folder=str(folder)).dataset
    images = augment.prepare(data.test.images, size=8, mean=data.mean, std=data.std)
    for run in (folder / "run", next((folder / "teachers").iterdir())):
        finished = kd_jax.load(run)
        assert finished.class_names == tuple("0123456789")
        logits = jax.jit(lambda v, n=finished.network: n.apply(v, images, train=False)[0].logits)(finished.variables)
        predicted.append(np.asarray(logits).argmax(-1))
    assert result["test"]["accuracy"] == pytest.approx((predicted[0] == data.test.labels).mean(), abs=1e-6)
    assert result["test"]["agreement"] == pytest.approx((predicted[0] == predicted[1]).mean(), abs=1e-6)


def test_metrics_hold_a_line_per_log_window_and_per_evaluation(taught):
    folder, _, _ = taught
    assert [line["step"] for line in lines(folder / "run", "train/")] == [2, 4, 6, 8, 10, 12]
    assert [line["step"] for line in lines(folder / "run", "validation/")] == [4, 8, 12]
    last = lines(folder / "run", "train/")[-1]
    assert last["train/loss"] == pytest.approx(last["train/loss/cross_entropy"] + last["train/loss/kd"], rel=1e-5)


def test_the_loss_falls(taught):
    folder, _, _ = taught
    losses = [line["train/loss"] for line in lines(next((folder / "teachers").iterdir()), "train/")]
    assert losses[-1] < losses[0]


def test_config_json_is_enough_to_repeat_the_run(taught):
    folder, _, result = taught
    saved = runs.read_json(str(folder / "run"), "config.json")
    assert saved["config"] == plain(tiny.taught())
    assert experiment.create(saved["config"], runs_folder=str(folder)).digest == result["config_hash"] == saved["hash"]


def test_evaluating_a_finished_run_gives_its_result_again(taught):
    folder, _, result = taught
    assert evaluation.evaluate_run(str(folder / "run"), runs_folder=str(folder)) == result["test"]


@pytest.mark.parametrize("moved", ["the run alone", "both"])
def test_a_run_finds_its_teacher_where_it_lay_and_beside_it(taught, tmp_path, moved):
    folder, _, result = taught
    shutil.copytree(folder / "run", tmp_path / "run")
    if moved == "both":
        shutil.copytree(folder / "teachers", tmp_path / "teachers")
        saved = runs.read_json(str(tmp_path / "run"), "config.json") | {"teacher_source": "/nowhere"}
        runs.write_json(str(tmp_path / "run" / "config.json"), saved)
    assert evaluation.evaluate_run(tmp_path / "run", runs_folder=tmp_path / "other") == result["test"]


def test_a_finished_run_is_not_trained_again(taught, capsys):
    folder, state, _ = taught
    before = (folder / "run" / "metrics.jsonl").read_text()
    again, _ = tiny.train(tiny.taught(), folder)
    assert tiny.identical(again.params, state.params)
    assert (folder / "run" / "metrics.jsonl").read_text() == before
    assert "finished already: test accuracy" in capsys.readouterr().out


def test_of_a_teacher_that_is_trained_first_no_line_stands_twice(tmp_path, capsys):
    whole = tiny.taught(**{"dataset.train_images": 32, "train.epochs": 1})
    whole["teacher"]["config"]["train"]["epochs"] = 1
    tiny.train(whole, tmp_path)
    said = [re.sub(r"\d+\.\d+%|/.*", "", line) for line in capsys.readouterr().out.splitlines()]
    assert said == [
        "training the teacher resnet6 from step 0 to 2: ",
        "the teacher resnet6: test accuracy  of 359 images  ",
        "training resnet6 from step 0 to 2: ",
        "resnet6: test accuracy  of 359 images  ",
    ]


def test_the_teachers_accuracy_is_printed_and_it_is_not_trained_again(taught, capsys):
    folder, _, result = taught
    teacher = next((folder / "teachers").iterdir())
    before = (teacher / "result.json").stat().st_mtime_ns
    tiny.train(tiny.taught(seed=1), folder, "other-seed")
    said = capsys.readouterr().out
    assert f"teacher tiny-teacher: test accuracy {100 * result['teacher']['accuracy']:.2f}% of 359 images" in said
    assert said.index("teacher tiny-teacher") < said.index("training resnet6")
    assert (teacher / "result.json").stat().st_mtime_ns == before


def test_a_teacher_that_another_process_trains_is_waited_for(taught, tmp_path, monkeypatch):
    folder, _, _ = taught
    made = experiment.create(tiny.taught(seed=2), runs_folder=str(tmp_path))
    held, said, waits = runs.locked(made.teacher.source, wait=False), [], threading.Event()
    held.__enter__()

    def say(line, **options):
        said.append(line)
        if line.startswith("waiting for another process"):
            waits.set()

    def finish():
        waits.wait()
        _copy(folder, made.teacher.source)
        held.__exit__(None, None, None)

    monkeypatch.setattr("builtins.print", say)
    threading.Thread(target=finish, daemon=True).start()
    training.run(made, str(tmp_path / "run"))
    assert waits.is_set()
    assert [line for line in said if line.startswith("training the teacher ") and made.teacher.source in line] == []


def _copy(folder, to):
    """Copies the teacher's run."""
    shutil.copytree(next((folder / "teachers").iterdir()), to, dirs_exist_ok=True)


def test_a_finished_run_can_be_a_teacher_by_its_folder(taught, tmp_path):
    folder, _, result = taught
    teacher = str(next((folder / "teachers").iterdir()))
    config = tiny.config(**{"teacher.kind": "run", "teacher.path": teacher}) | {"method": tiny.METHODS["kd"]}
    _, other = tiny.train(config, tmp_path)
    # The same teacher, found in another way: the same training.
    assert (other["teacher"], other["test"]) == (result["teacher"], result["test"])


def test_a_teacher_of_other_classes_is_refused(taught, tmp_path):
    teacher = tmp_path / "teacher"
    _copy(taught[0], teacher)
    saved = json.loads((teacher / "config.json").read_text())
    saved["data"]["class_names"] = ["cat", "dog"]
    runs.write_json(str(teacher / "config.json"), saved)
    config = tiny.config(**{"teacher.kind": "run", "teacher.path": str(teacher)})
    with pytest.raises(InputError, match=r"knows 2 classes \(cat, dog\); expected the student's 10 classes \(0, 1, "):
        experiment.create(config)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("fingerprint", "0" * 64, "was trained on other data, so it may have seen what the student is measured on"),
        ("image_shape", [8, 8, 3], "reads images of 3 channels; expected the student's 1"),
    ],
)
def test_a_teacher_of_other_data_is_refused(taught, tmp_path, key, value, said):
    teacher = tmp_path / "teacher"
    _copy(taught[0], teacher)
    saved = runs.read_json(str(teacher), "config.json")
    saved["data"][key] = value
    runs.write_json(str(teacher / "config.json"), saved)
    with pytest.raises(InputError, match=said):
        experiment.create(tiny.config(**{"teacher.kind": "run", "teacher.path": str(teacher)}))


def test_a_teacher_of_an_older_version_that_knew_the_data_otherwise_is_accepted(taught, tmp_path, monkeypatch):
    teacher = tmp_path / "teacher"
    _copy(taught[0], teacher)
    saved = runs.read_json(str(teacher), "config.json")
    saved["data"]["fingerprint"] = "former"
    runs.write_json(str(teacher / "config.json"), saved)
    digits = datasets.SOURCES["digits"]._replace(former_fingerprint=lambda section: "former")
    monkeypatch.setitem(datasets.SOURCES, "digits", digits)
    assert experiment.create(tiny.config(**{"teacher.kind": "run", "teacher.path": str(teacher)})).teacher


@pytest.mark.parametrize(("holdout", "seen"), [(0.05, True), (0.5, False)])
def test_a_teacher_that_held_out_less_is_refused(taught, tmp_path, holdout, seen):
    teacher = tmp_path / "teacher"
    _copy(taught[0], teacher)
    saved = runs.read_json(str(teacher), "config.json")
    saved["config"]["dataset"]["holdout"] = holdout
    runs.write_json(str(teacher / "config.json"), saved)
    config = tiny.config(**{"teacher.kind": "run", "teacher.path": str(teacher)})
    said = r"was trained with dataset.holdout 0\.05, so it has seen validation images of the student"
    with pytest.raises(InputError, match=said) if seen else contextlib.nullcontext():
        experiment.create(config)


def test_calls_do_not_depend_on_where_a_run_restarted():
    made = experiment.create(tiny.config(**{"train.steps_per_call": 3, "train.steps": 10}))
    ends, whole = [3, 4, 7, 8, 10], np.concatenate([np.asarray(ids) for ids, _ in made.feed().calls(0)])
    for restart in range(10):  # in the middle of a call too: it may have been another machine's
        calls = [(np.asarray(ids), end) for ids, end in made.feed().calls(restart)]
        assert [end for _, end in calls] == [end for end in ends if end > restart]
        np.testing.assert_array_equal(np.concatenate([ids for ids, _ in calls]), whole[restart:])


@pytest.mark.parametrize("seed", [0, 5])
def test_the_order_of_the_images_is_that_of_the_seed_and_the_epoch(seed):
    calls = list(experiment.create(tiny.config(seed=seed)).feed().calls(0))
    assert len(calls) == 12
    for epoch in range(3):
        visited = np.concatenate([np.asarray(ids).ravel() for ids, _ in calls[4 * epoch : 4 * epoch + 4]])
        np.testing.assert_array_equal(visited, np.random.default_rng((seed, epoch)).permutation(64))


def test_an_epoch_visits_every_image_once():
    made = experiment.create(tiny.config())
    for epoch in range(3):
        visited = np.concatenate(
            [np.asarray(index).ravel() for index, end in made.feed().calls(4 * epoch) if end <= 4 * epoch + 4]
        )
        np.testing.assert_array_equal(np.sort(visited), np.arange(64))


@pytest.fixture(scope="module")
def separable(tmp_path_factory):
    """A run on two classes that are easily learned, and whose names are swapped in the test: {step: its metrics}."""
    folder = tmp_path_factory.mktemp("separable")
    labels = np.arange(80) % 2
    pixels = np.random.default_rng(0).integers(0, 100, (80, 8, 8, 1)) + 150 * labels[:, None, None, None]
    images = pixels.astype(np.uint8)
    options = {"evaluate.select": "best-validation", "dataset.train_images": 0, "dataset.holdout": 0.2}
    config = tiny.config(**options, **{"train.epochs": 5})
    result = training.train(config, folder, data=((images, labels), (images, 1 - labels))).result
    return {line["step"]: line for line in lines(folder, "validation/")}, result


def test_the_best_checkpoint_is_chosen_by_the_validation_images_and_not_by_the_test(separable):
    measured, result = separable
    assert result["selected"] == "best-validation"
    assert {line["validation/images"] for line in measured.values()} == {16}
    assert measured[result["checkpoint"]]["validation/accuracy"] == result["validation"]["accuracy"] == 1
    assert (result["test"]["accuracy"], result["test"]["images"]) == (0, 80)


def test_of_equally_good_checkpoints_the_earliest_is_chosen(separable):
    measured, result = separable
    best = [step for step, line in measured.items() if line["validation/accuracy"] == 1]
    assert len(best) > 1
    assert result["checkpoint"] == min(best)


@pytest.fixture(scope="module")
def rare(tmp_path_factory):
    """The folder of a run of five epochs that is evaluated every second, saved every third, in calls of three steps."""
    folder = tmp_path_factory.mktemp("rare")
    rare = {"evaluate.every_epochs": 2, "checkpoint.every_epochs": 3, "checkpoint.keep": 9}
    tiny.train(tiny.config(**rare, **{"train.epochs": 5, "train.steps_per_call": 3}), folder)
    return folder / "run"


def test_a_run_is_evaluated_every_so_many_epochs_and_at_its_end(rare):
    assert [line["step"] for line in lines(rare, "validation/")] == [8, 16, 20]


def test_a_run_is_saved_every_so_many_epochs_and_at_its_end(rare):
    assert sorted(int(entry.name) for entry in (rare / "checkpoints").iterdir() if entry.name.isdecimal()) == [12, 20]


def test_what_is_logged_is_the_mean_over_the_steps_since_the_last_line(rare):
    warmup = 0.1 * np.arange(1, 5) / 5
    falling = 0.1 * 0.5 * (1 + np.cos(np.pi * np.arange(16) / 16))
    rates, begin = np.concatenate([warmup, falling]), 0
    logged = lines(rare, "train/")
    assert [line["step"] for line in logged] == [3, 4, 7, 8, 11, 12, 15, 16, 19, 20]  # calls end there and at epochs
    for line in logged:
        assert line["train/learning_rate"] == pytest.approx(rates[begin : line["step"]].mean(), rel=1e-5)
        assert line["epoch"] == line["step"] / 4
        assert 0 <= line["train/accuracy"] <= 1
        begin = line["step"]


STILL = {"optimizer.learning_rate": 1e-30, "train.steps": 1, "dataset.holdout": 0.0}  # nothing moves but statistics


def test_the_seed_decides_the_initial_network_of_a_run(tmp_path):
    made = experiment.create(tiny.config(**STILL, seed=3))
    feed = made.feed()
    start = made.jit(steps.init_state, fast_compile=True)(np.uint32(3), {}, feed.example, feed.labels)
    state = training.run(made, str(tmp_path / "run")).state
    assert tiny.largest_difference(state.params, start.params) < 1e-30


@pytest.fixture(scope="module")
def started(taught, tmp_path_factory):
    """A run that starts from a finished one, which teaches it as weights alone: (that one's folder, state, result)."""
    source, folder = next((taught[0] / "teachers").iterdir()), tmp_path_factory.mktemp("started")
    network, variables, *_ = kd_jax.load(source)
    save_file(torch_names.to_state_dict(variables, network), folder / "model.safetensors")
    options = {"model.width": 1 / 4, "model.pretrained": str(source), "train.ema": 0.5, "teacher.mode": "train"}
    config = tiny.config(**STILL, **options) | {"method": tiny.METHODS["kd"]}
    config["teacher"] |= {"kind": "weights", "path": str(folder / "model.safetensors")}
    config["teacher"]["config"] = runs.read_json(str(source), "config.json")["config"]
    return source, *tiny.train(config, folder)


def test_a_run_starts_from_the_weights_that_it_is_told(started):
    source, state, _ = started
    expected = weights.read_run(source)[0]
    for params in (state.params["student"], state.ema["params"]):
        assert tiny.identical(params, expected["params"])


def test_the_average_of_a_run_that_starts_from_weights_begins_with_their_statistics(started):
    source, state, _ = started
    before = weights.read_run(source)[0]["batch_stats"]["bn1"]["mean"]
    moved = 0.5 * before + 0.5 * np.asarray(state.stats["student"]["bn1"]["mean"])
    np.testing.assert_allclose(state.ema["batch_stats"]["bn1"]["mean"], moved, rtol=1e-4, atol=1e-6)


def test_weights_without_a_run_are_measured_on_the_test_set_in_inference_mode(started):
    source, _, result = started
    expected = runs.read_json(str(source), "result.json")["test"]["accuracy"]
    assert result["teacher"] == {"name": "model.safetensors", "accuracy": pytest.approx(expected)}


def test_the_same_run_again_returns_the_state_that_was_tested(tmp_path):
    config = tiny.config(**{"evaluate.select": "best-validation", "optimizer.learning_rate": 3.0, "train.epochs": 4})
    first, result = tiny.train(config, tmp_path)
    again, _ = tiny.train(config, tmp_path)
    assert int(first.step) == int(again.step) == result["checkpoint"]
    assert tiny.identical(first.params, again.params)


def test_the_average_of_the_student_is_what_is_evaluated_and_loaded(tmp_path):
    state, result = tiny.train(tiny.config(**{"train.ema": 0.5}), tmp_path)
    variables = kd_jax.load(tmp_path / "run").variables
    assert tiny.identical(variables, state.ema)
    assert not tiny.identical(variables["params"], state.params["student"])
    assert evaluation.evaluate_run(str(tmp_path / "run"))["nll"] == result["test"]["nll"]


def test_training_ends_at_the_number_of_steps_that_was_asked_for(tmp_path):
    state, result = tiny.train(tiny.config(**{"train.steps": 6, "dataset.holdout": 0.0}), tmp_path)
    assert (int(state.step), result["steps"], result["epochs"], result["validation"]) == (6, 6, 1.5, None)


def test_a_loss_that_is_not_finite_stops_the_run_and_is_never_saved(tmp_path):
    config = tiny.config(**{"optimizer.learning_rate": 1e30, "checkpoint.every_epochs": 1, "log.every_steps": 100})
    with pytest.raises(TrainingError, match="is not finite by step 4; the last checkpoint"):
        tiny.train(config, tmp_path)
    assert not (tmp_path / "run" / "result.json").exists()
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_folder_with_a_run_of_another_config_is_left_as_it_is(taught):
    folder, _, _ = taught
    before = {path: path.stat().st_mtime_ns for path in (folder / "run").rglob("*")}
    with pytest.raises(InputError, match="seed is 0 there, 5 here"):
        tiny.train(tiny.taught(seed=5), folder)
    assert {path: path.stat().st_mtime_ns for path in (folder / "run").rglob("*")} == before


def test_a_refused_run_leaves_nothing_behind(tmp_path):
    with pytest.raises(InputError):
        tiny.train(tiny.taught(**{"train.batch_size": 1000}), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_teacher_is_refused_before_anything_is_written(taught, tmp_path):
    folder, _, _ = taught
    shutil.copytree(next((folder / "teachers").iterdir()), tmp_path / "teacher")
    shutil.rmtree(tmp_path / "teacher" / "checkpoints" / "12")
    config = tiny.config(**{"teacher.kind": "run", "teacher.path": str(tmp_path / "teacher")})
    with pytest.raises(InputError, match="cannot be read; expected a whole checkpoint"):
        tiny.train(config | {"method": tiny.METHODS["kd"]}, tmp_path)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("kind", ["config", "run"])
def test_a_run_can_be_evaluated_when_its_teacher_is_gone(taught, tmp_path, kind, capsys):
    folder, _, result = taught
    shutil.copytree(folder / "run", tmp_path / "run")
    saved = json.loads((tmp_path / "run" / "config.json").read_text()) | {"teacher_source": str(tmp_path / "moved")}
    saved["config"]["teacher"] |= {"kind": kind, "path": str(tmp_path / "gone")}
    runs.write_json(str(tmp_path / "run" / "config.json"), saved)
    measured = evaluation.evaluate_run(str(tmp_path / "run"), runs_folder=str(tmp_path))
    assert measured == result["test"] | dict.fromkeys(WITH_TEACHER)
    assert f"or {tmp_path / 'moved'} or {tmp_path / 'gone'}: what compares with the" in capsys.readouterr().err


def test_another_run_in_the_teachers_place_is_not_taken_for_it(taught, tmp_path, capsys):
    folder, _, result = taught
    shutil.copytree(folder / "run", tmp_path / "run")
    saved = runs.read_json(str(tmp_path / "run"), "config.json") | {"teacher_source": str(folder / "run")}
    runs.write_json(str(tmp_path / "run" / "config.json"), saved)
    measured = evaluation.evaluate_run(tmp_path / "run", runs_folder=tmp_path)
    assert measured == result["test"] | dict.fromkeys(WITH_TEACHER)


@pytest.mark.parametrize("now", ["gone", "other"])
def test_a_run_can_be_evaluated_when_its_teachers_weights_moved_or_changed(taught, tmp_path, capsys, now):
    folder, _, _ = taught
    teacher, path = next((folder / "teachers").iterdir()), tmp_path / "teacher.safetensors"
    export.export(teacher, path)
    config = tiny.taught() | {"method": tiny.METHODS["kd"]}
    config["teacher"] |= {"kind": "weights", "path": str(path)}
    _, result = tiny.train(config, tmp_path)
    assert evaluation.evaluate_run(tmp_path / "run") == result["test"]
    path.unlink()
    if now == "other":
        path.write_bytes(b"something else")
    measured = evaluation.evaluate_run(tmp_path / "run")
    assert measured == result["test"] | dict.fromkeys(WITH_TEACHER)
    said = {"gone": "the teacher's weights are gone (no weights found", "other": "are not those that taught the run"}
    assert said[now] in capsys.readouterr().err


def test_a_feed_that_streams_trains_as_one_whose_images_lie_on_the_device(tmp_path, monkeypatch):
    _, config = tiny.train(tiny.config(), tmp_path, "resident"), tiny.config()
    resident = Experiment.feed

    def streaming(experiment):
        """Batches that come from the host, one call's worth at a time."""
        feed, split = resident(experiment), experiment.dataset.train

        def calls(step):
            for ids, end in feed.calls(step):
                ids = np.asarray(ids)
                yield RawBatch(split.images[ids], split.labels[ids], ids), end

        return feed._replace(constants=(), calls=calls, fetch=lambda constants, row: row, labels=None)

    monkeypatch.setattr(Experiment, "feed", streaming)
    tiny.train(config, tmp_path, "streamed")
    first, second = (weights.read_run(tmp_path / name) for name in ("resident", "streamed"))
    assert tiny.largest_difference(first, second) < 1e-3  # another program, so another rounding


def watch(monkeypatch, through):
    """Makes the loop take its calls through a generator."""
    resident = Experiment.feed

    def feed(experiment):
        own = resident(experiment)
        return own._replace(calls=lambda step: through(own.calls(step)))

    monkeypatch.setattr(Experiment, "feed", feed)


def test_nothing_is_sent_to_the_devices_unasked_between_the_first_step_and_the_last(taught, tmp_path, monkeypatch):
    def guarded(calls):
        with jax.transfer_guard("disallow"):
            yield from calls

    shutil.copytree(taught[0] / "teachers", tmp_path / "teachers")
    watch(monkeypatch, guarded)
    _, result = tiny.train(tiny.taught(), tmp_path)
    assert result["test"] == taught[2]["test"]


def test_a_line_is_written_while_the_steps_after_it_run(tmp_path, monkeypatch):
    def noted(calls):
        for call in calls:
            events.append("call")
            yield call

    events, write = [], metrics_file.Writer.write
    monkeypatch.setattr(metrics_file.Writer, "write", lambda self, step, _: (events.append(step), write(self, step, _)))
    watch(monkeypatch, noted)
    tiny.train(tiny.config(**{"train.epochs": 2}), tmp_path)
    # A line every two steps. That at an epoch's end, after four, comes before its evaluation and so before more steps.
    assert events == ["call", "call", "call", 2, "call", 4, 4, "call", "call", "call", 6, "call", 8, 8]


def test_a_term_that_never_counts_is_said_and_does_not_stop_the_run(tmp_path, capsys):
    late = {"method": "cross_entropy", "epochs": [3, None]}
    training.train(tiny.config() | {"method": {"cross_entropy": {}, "late": late}}, tmp_path / "run")
    assert "method.late.epochs begin after the run's 3: the term counts nothing in it" in capsys.readouterr().out
