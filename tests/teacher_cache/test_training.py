"""Runs whose teacher's words are kept: they end as they would without, and ask it for what is missing only."""

import errno
import os
import shutil
import signal

import flax.linen as nn
import jax
import pytest

from kd_jax import evaluation, experiment, methods, runs, teacher_cache, training
from kd_jax.errors import Preempted
from kd_jax.reporting import finished
from kd_jax.teacher_cache.recording import Recording
from kd_jax.teacher_cache.store import Store
from tests import tiny

MANY = {
    "cross_entropy": {},
    "kd": {},
    "standardized": {"method": "kd", "standardize": True},
    **{name: {} for name in ("dkd", "dist", "nkd", "ttm", "ctkd", "srd", "pkt", "rkd_distance", "rkd_angle", "crld")},
    "crd": {"features": 4, "negatives": 8},
}
FEW = {name: MANY[name] for name in ("cross_entropy", "kd", "rkd_distance", "crd", "crld")}
KD = tiny.METHODS["kd"]


def config(method=KD, **overrides):
    """A run of twelve steps, four to an epoch, taught by a network that nobody trained."""
    return tiny.config(**{"teacher.kind": "random", "dataset.holdout": 0.0} | overrides) | {"method": method}


def train(folder, name, method=KD, **overrides):
    return tiny.train(config(method, **overrides), folder, name)[0]


def same(first, second):
    return tiny.identical((first.params, first.stats), (second.params, second.stats))


@pytest.fixture
def asked(monkeypatch):
    """The steps at which the teacher is asked in training."""
    steps, create = [], teacher_cache.create

    def created(*arguments):
        if cache := create(*arguments):
            teach = cache._teach

            def counted(seed, first, variables, constants, rows):
                steps.extend(range(first, first + len(rows)))
                return teach(seed, first, variables, constants, rows)

            cache._teach = counted
        return cache

    monkeypatch.setattr(teacher_cache, "create", created)
    return steps


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A folder with a run, its state, and what it recorded."""
    folder = tmp_path_factory.mktemp("recorded")
    return folder, train(folder, "first", **{"teacher.cache": "recording"})


@pytest.fixture
def folder(recorded, tmp_path):
    """A copy of that."""
    shutil.copytree(recorded[0], tmp_path, dirs_exist_ok=True)
    return tmp_path


def files(folder):
    return sorted((folder / "teachers" / "recordings").glob("*/*.npy"))


@pytest.mark.parametrize("terms", [FEW, pytest.param(MANY, marks=pytest.mark.slow)], ids=["few", "many"])
def test_methods_on_two_devices_end_as_without(tmp_path, asked, terms):
    assert len(jax.local_devices()) == 2
    changes = {"dataset.extra_views": ["crop"], "optimizer.learning_rate": 0.01}
    live = train(tmp_path, "live", terms, **changes)
    first = train(tmp_path, "first", terms, **changes, **{"teacher.cache": "recording"})
    assert asked == list(range(12))
    again = train(tmp_path, "again", terms, **changes, **{"teacher.cache": "recording"})
    assert asked == list(range(12))
    assert same(first, again)
    views = train(tmp_path, "views", terms, **changes, **{"teacher.cache": "views"})
    for state in (again, views):
        assert tiny.largest_difference(state.params, live.params) < 1e-5
        assert tiny.largest_difference(state.stats, live.stats) < 1e-5
    ran = {name: runs.read_json(str(tmp_path / name), "result.json") for name in ("live", "first", "again", "views")}
    assert {name: (result["teacher_cache"], result["teacher_ran"]) for name, result in ran.items()} == {
        "live": ("none", 1),
        "first": ("recording", 1),
        "again": ("recording", 0),
        "views": ("views", 0),
    }


@pytest.mark.parametrize("precision", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_whatever_the_views_and_the_teachers_mode_a_recording_ends_as_without(tmp_path, asked, precision):
    changes = {
        "train.mixup": 0.5,
        "dataset.augment": "randaugment",
        "teacher.mode": "train",
        "train.accumulate": 2,
        "train.steps_per_call": 2,
        "train.steps": 6,
        "precision": precision,
    }
    live = train(tmp_path, "live", **changes)
    first = train(tmp_path, "first", **changes, **{"teacher.cache": "recording"})
    assert asked == list(range(6))
    again = train(tmp_path, "again", **changes, **{"teacher.cache": "recording"})
    assert asked == list(range(6))
    assert same(first, again)
    assert tiny.largest_difference(again.params, live.params) < {"float32": 1e-5, "bfloat16": 3e-3}[precision]


def test_a_recording_serves_other_methods_lengths_and_numbers_of_devices(folder, asked, capsys):
    train(folder, "other", {"dkd": {}}, **{"teacher.cache": "recording", "optimizer.learning_rate": 0.1})
    train(folder, "shorter", **{"teacher.cache": "recording", "train.steps": 6, "train.steps_per_call": 4})
    assert asked == []
    assert "logits at 12 of 12 steps are recorded for this seed, data, augmentation and batch size, and none is" in (
        capsys.readouterr().out
    )
    one = experiment.create(
        config(**{"teacher.cache": "recording"}), runs_folder=str(folder), devices=jax.devices()[:1]
    )
    training.run(one, str(folder / "one"))
    assert asked == []
    train(folder, "longer", **{"teacher.cache": "recording", "train.steps": 14})
    assert asked == [12, 13]
    assert runs.read_json(str(folder / "longer"), "result.json")["teacher_ran"] == 2 / 14


def test_what_a_method_reads_more_is_added(folder, recorded, asked):
    more = KD | {"pkt": {}}
    first = train(folder, "more", more, **{"teacher.cache": "recording"})
    assert asked == list(range(12))
    assert same(train(folder, "again", more, **{"teacher.cache": "recording"}), first)
    assert same(train(folder, "less", **{"teacher.cache": "recording"}), recorded[1])
    assert asked == list(range(12))


def test_another_seed_is_recorded_beside_it(folder, asked):
    train(folder, "seed", **{"teacher.cache": "recording", "seed": 1})
    assert asked == list(range(12))


def test_a_longer_run_records_what_a_shorter_one_did_not_see(tmp_path, asked, recorded):
    train(tmp_path, "short", **{"teacher.cache": "recording", "train.steps": 6})
    train(tmp_path, "long", **{"teacher.cache": "recording"})
    assert asked == list(range(12))
    assert same(train(tmp_path, "again", **{"teacher.cache": "recording"}), recorded[1])
    train(tmp_path, "short again", **{"teacher.cache": "recording", "train.steps": 6})
    assert asked == list(range(12))


def test_a_stopped_run_records_what_it_saw_and_goes_on(tmp_path, asked, recorded, monkeypatch):
    with monkeypatch.context() as patch:
        tiny.interrupt(patch, 6)
        with pytest.raises(Preempted, match="stopped at step 6"):
            train(tmp_path, "first", **{"teacher.cache": "recording"})
    assert same(train(tmp_path, "first", **{"teacher.cache": "recording"}), recorded[1])
    assert asked == list(range(12))
    assert same(train(tmp_path, "again", **{"teacher.cache": "recording"}), recorded[1])
    assert len(asked) == 12


def test_a_damaged_file_is_made_again_and_a_line_says_so(folder, asked, recorded, capsys):
    damaged = files(folder)[1]
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 1
    damaged.write_bytes(content)
    assert same(train(folder, "again", **{"teacher.cache": "recording"}), recorded[1])
    assert f"{damaged} is damaged and is made again" in capsys.readouterr().out
    assert asked == [4, 5, 6, 7]
    train(folder, "last", **{"teacher.cache": "recording"})
    assert len(asked) == 4


def test_a_full_disk_ends_the_recording_and_not_the_run(tmp_path, recorded, monkeypatch, capsys):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Store, "write", full)
    assert same(train(tmp_path, "run", **{"teacher.cache": "recording"}), recorded[1])
    said = capsys.readouterr().out
    assert said.count("what the teacher says is not recorded any more: No space left on device") == 1


def test_a_signal_while_the_recording_is_written_does_not_end_a_run_that_is_done(tmp_path, recorded, monkeypatch):
    close = Recording.close

    def closes(self):
        os.kill(os.getpid(), signal.SIGTERM)
        close(self)

    monkeypatch.setattr(Recording, "close", closes)
    assert same(train(tmp_path, "run", **{"teacher.cache": "recording"}), recorded[1])


class LastMap(nn.Module):
    """Reads a map of the teacher."""

    def __call__(self, context):
        return context.teacher.features[-1].mean() * context.student.logits.mean()


class EveryMap(nn.Module):
    """Reads all maps that there are."""

    def __call__(self, context):
        pairs = zip(context.student.features, context.teacher.features, strict=False)
        return sum((a.mean() - b.mean()) ** 2 for a, b in pairs)


class Runs(nn.Module):
    """Runs the teacher where there is one."""

    def __call__(self, context):
        return context.student.logits.mean() * (2 if context.networks.teacher else 1)


@pytest.fixture
def own(monkeypatch):
    for name, module in (("last_map", LastMap), ("every_map", EveryMap), ("runs", Runs)):
        monkeypatch.setitem(methods.METHODS, name, methods.from_module(module))


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize("term", ["at", "fitnet", "simkd", "gradcam_alignment", "last_map", "every_map", "runs"])
def test_what_reads_more_asks_the_teacher_in_every_step_and_says_why(tmp_path, term, capsys):
    made = experiment.create(config({term: {}}, **{"teacher.cache": "auto"}), runs_folder=str(tmp_path), traced=False)
    assert teacher_cache.create(made, made.feed(), {}) is None
    said = capsys.readouterr().out
    assert "teacher.cache is 'auto', but the teacher runs in every step: only its logits and embedding are kept" in said
    assert f"kept, and method.{term}: it reads the teacher's" in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("own")
def test_a_run_that_cannot_be_recorded_ends_as_without(tmp_path):
    terms = {"last_map": {}, "kd": {}}
    live = train(tmp_path, "live", terms)
    assert same(train(tmp_path, "recording", terms, **{"teacher.cache": "recording"}), live)
    assert not (tmp_path / "teachers" / "recordings").exists()


@pytest.mark.parametrize("cache", ["recording", pytest.param("views", marks=pytest.mark.slow)])
def test_a_run_is_evaluated_without_its_teacher(tmp_path, cache):
    whole = tiny.taught(**{"train.epochs": 1, "dataset.augment": "none"})
    whole["teacher"] |= {"cache": cache, "top_k": 2}
    _, result = tiny.train(whole, tmp_path)
    (teacher,) = (path for path in (tmp_path / "teachers").iterdir() if (path / "result.json").exists())
    found, left_out = finished.read([str(tmp_path)])
    assert {run.folder for run in found} == {str(tmp_path / "run"), str(teacher)}
    assert left_out == []
    assert evaluation.evaluate_run(tmp_path / "run", runs_folder=tmp_path) == result["test"]
    shutil.rmtree(teacher)
    assert evaluation.evaluate_run(tmp_path / "run", runs_folder=tmp_path)["accuracy"] == result["test"]["accuracy"]
    assert runs.has_result(str(tmp_path / "run"))
