"""Runs that keep the last, smaller batch of an epoch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax import experiment, planning, training
from kd_jax.errors import InputError, Preempted
from tests import tiny
from tests.data import test_stream

KEEP = {"train.last_batch": "keep", "dataset.train_images": 70}  # four batches of 16, and one of 6
LINEAR = KEEP | {  # which takes no time
    "model.name": "linear",
    "optimizer.schedule": "exponential",
    "evaluate.every_epochs": 9,
    "checkpoint.every_epochs": 9,
}


def same(first, second):
    """Whether two runs, each (state, result), ended alike bit for bit."""
    parts = [(one[0].params, one[0].stats, one[0].optimizer_state) for one in (first, second)]
    return tiny.identical(*parts) and first[1]["test"] == second[1]["test"]


def taught(**overrides):
    """A run of the linear network that one of its kind teaches."""
    whole = tiny.taught(**LINEAR | overrides)
    whole["teacher"]["config"]["model"]["name"] = LINEAR["model.name"]
    return whole


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """(folder of runs, state, result) of a distilled run of three epochs, in calls of three steps."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, *tiny.train(taught(**{"train.steps_per_call": 3}), folder)


@pytest.mark.parametrize(("accumulate", "images"), [(1, 22), (2, 20)])
def test_every_step_is_that_of_the_mean_over_its_own_images(tmp_path, accumulate, images):
    """Two epochs of SGD with momentum in batches of 8, 8 and the rest, again in numpy, in float64."""
    random = np.random.default_rng(0)
    pixels, labels = random.integers(0, 256, (images, 4, 4, 1), np.uint8), np.arange(images) % 3
    changes = {
        "model.name": "linear",
        "train.last_batch": "keep",
        "train.batch_size": 8,
        "train.epochs": 2,
        "train.accumulate": accumulate,
        "dataset.train_images": 0,
        "dataset.holdout": 0.0,
        "dataset.augment": "none",
        "dataset.image_size": 4,
        "optimizer.schedule": "constant",
        "optimizer.warmup_epochs": 0.0,
        "optimizer.weight_decay": 0.0,
    }
    made = training.train(tiny.config(**changes), tmp_path / "run", data=((pixels, labels), (pixels, labels)))
    data = experiment.create(tiny.config(**changes), source=training.memory.source_of(((pixels, labels),) * 2)).dataset
    x = (np.asarray(data.train.images, np.float64) / 255 - data.mean.astype(np.float64)) / data.std.astype(np.float64)
    x, y = np.c_[x.reshape(images, -1), np.ones(images)], np.eye(3)[data.train.labels]
    weights = momentum = np.zeros((17, 3))
    sizes = []
    for epoch in range(2):
        order = np.random.default_rng((0, epoch)).permutation(images)
        for ids in np.split(order, [8, 16]):
            logits = x[ids] @ weights
            probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
            momentum = 0.9 * momentum + x[ids].T @ (probabilities - y[ids]) / len(ids)
            weights = weights - 0.1 * momentum
            sizes.append(len(ids))
    assert sizes == [8, 8, images - 16] * 2
    assert made.result["steps"] == len(sizes)
    linear = made.state.params["student"]["linear"]
    np.testing.assert_allclose(np.r_[linear["kernel"], linear["bias"][None]], weights, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("sampling", ["shuffle", "balanced"])
def test_an_epoch_sees_every_image_once_or_every_class_equally_often(sampling):
    made = experiment.create(tiny.config(**KEEP, **{"train.steps_per_call": 3, "dataset.sampling": sampling}))
    calls = [(np.asarray(ids), end) for ids, end in made.feed().calls(0)]
    assert [end for _, end in calls] == [3, 4, 5, 8, 9, 10, 13, 14, 15]
    assert [ids.shape for ids, _ in calls] == [(3, 16), (1, 16), (1, 6)] * 3
    for epoch in range(3):
        seen = np.concatenate([ids.ravel() for ids, _ in calls[3 * epoch : 3 * epoch + 3]])
        if sampling == "shuffle":
            np.testing.assert_array_equal(np.sort(seen), np.arange(70))
        else:
            np.testing.assert_array_equal(np.bincount(made.dataset.train.labels[seen]), np.full(10, 7))


def test_the_result_counts_the_step_more(whole):
    _, state, result = whole
    assert (int(state.step), result["steps"], result["epochs"], result["train_images"]) == (15, 15, 3.0, 70)


@pytest.mark.parametrize("at", [4, 8])
def test_a_run_that_was_stopped_ends_as_one_that_was_not(whole, tmp_path, monkeypatch, at):
    """Before a smaller batch, and behind one."""
    config = taught(**{"train.steps_per_call": 3})
    config["teacher"] |= {"kind": "run", "path": str(next((whole[0] / "teachers").iterdir()))}
    with monkeypatch.context() as patched:
        tiny.interrupt(patched, at)
        with pytest.raises(Preempted, match=f"stopped at step {at} of 15"):
            tiny.train(config, tmp_path)
    assert same(tiny.train(config, tmp_path), whole[1:])


@pytest.mark.parametrize("cache", ["recording", "views"])
def test_what_a_teacher_says_is_kept_of_the_smaller_batch_too(tmp_path, monkeypatch, cache):
    kept, keep = [], training.teacher_cache.Recording.keep
    monkeypatch.setattr(training.teacher_cache.Recording, "keep", lambda *given: (kept.append(given[2:]), keep(*given)))
    runs = {
        how: tiny.train(taught(**{"teacher.cache": how, "train.steps_per_call": 3, "train.epochs": 2}), tmp_path, how)
        for how in ("none", cache)
    }
    assert tiny.largest_difference(runs["none"][0].params, runs[cache][0].params) < 1e-6
    calls = [(0, 3), (3, 4), (4, 5), (5, 8), (8, 9), (9, 10)]
    assert kept == (calls if cache == "recording" else [])
    more = taught(**{"teacher.cache": cache, "train.steps_per_call": 2, "train.epochs": 2})
    assert tiny.largest_difference(tiny.train(more, tmp_path, "again")[0].params, runs[cache][0].params) < 1e-6
    assert len(kept) == len(calls) * (cache == "recording")


def test_a_recording_is_of_one_kind_of_last_batch_where_they_differ(tmp_path):
    for how in ("drop", "keep"):
        tiny.train(taught(**{"train.steps": 6, "teacher.cache": "recording", "train.last_batch": how}), tmp_path, how)
    assert len(list((tmp_path / "teachers" / "recordings").iterdir())) == 2


def test_where_the_images_divide_both_are_one_run(tmp_path):
    images = LINEAR | {"dataset.train_images": 64}
    runs = [tiny.train(tiny.config(**images | {"train.last_batch": how}), tmp_path, how) for how in ("drop", "keep")]
    assert same(*runs)
    assert runs[0][1]["steps"] == 12


def test_a_run_that_streams_ends_as_one_in_memory(tmp_path):
    folder = test_stream.write(tmp_path / "images", [(8, 8)], each=25)
    changes = LINEAR | {"train.epochs": 2, "train.steps_per_call": 2, "dataset.holdout": 0.0}
    runs = [
        tiny.train(tiny.config(**changes | test_stream.of_folder(folder, how)), tmp_path, how)
        for how in ("never", "always")
    ]
    assert runs[0][1]["train_images"] % 16
    assert same(*runs)


def test_a_bank_of_every_image_is_written_in_an_epoch(tmp_path):
    unseen = {}
    for how in ("drop", "keep"):
        config = taught(**{"train.epochs": 1, "train.last_batch": how})
        config["method"] = {"crd": {"features": 4, "negatives": 8}}
        made = experiment.create(config, runs_folder=str(tmp_path))
        variables, feed = jax.tree.map(lambda x: jnp.zeros(x.shape), made.teacher.shapes), made.feed()
        before = made.init_state(np.uint32(0), variables, feed.example, feed.labels).stats["crd"]
        after = tiny.train(config, tmp_path, how)[0].stats["crd"]
        banks = [(a, b) for a, b in zip(*map(jax.tree.leaves, (before, after)), strict=True) if a.ndim == 2]
        unseen[how] = [int((np.asarray(a) == np.asarray(b)).all(1).sum()) for a, b in banks]
    assert unseen == {"drop": [6, 6], "keep": [0, 0]}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"dataset.train_images": 71},
            r"train.last_batch is 'keep', and an epoch's last batch has 7 of the 71 training images, no multiple of 2"
            r" \(2 devices times train.accumulate 1\); expected 'drop', or 70 training images",
        ),
        ({"train.accumulate": 4}, r"no multiple of 8 .*; expected 'drop', or 64 training images"),
        ({"train.last_batch": "pad"}, "train.last_batch is 'pad'; expected one of: drop, keep"),
    ],
)
def test_what_cannot_be_divided_is_refused(changes, said):
    with pytest.raises(InputError, match=said):
        experiment.create(tiny.config(**KEEP | changes))


def test_a_mistake_in_a_smaller_batch_shows_before_training(monkeypatch):
    traced = []
    trace = experiment.tracing.trace
    monkeypatch.setattr(experiment.tracing, "trace", lambda *given: (traced.append(given[4]), trace(*given)))
    for steps in (0, 4):  # of the second run no smaller batch is taken
        experiment.create(tiny.config(**KEEP, **{"train.steps": steps, "train.steps_per_call": 3}))
    assert traced == [(3, 16), (1, 6), (3, 16)]


def test_a_longer_run_ends_as_one_from_the_start(tmp_path):
    short = tmp_path / "run"
    tiny.train(tiny.config(**LINEAR, **{"train.epochs": 2}), tmp_path)
    longer = tiny.config(**LINEAR, **{"train.epochs": 3})
    got = training.train(longer, tmp_path / "longer", extend=short)
    assert same((got.state, got.result), tiny.train(longer, tmp_path, "start"))


def test_a_plan_counts_the_step_more_and_its_images():
    made = experiment.create(tiny.config(**KEEP), traced=False)
    time = planning.of_run(made, 0.16, 1.0)
    assert (time["steps"], time["epochs"]) == (15, 3.0)
    assert (time["epoch"], time["run"]) == pytest.approx((0.70, 3 * 0.70 + 2.0))
