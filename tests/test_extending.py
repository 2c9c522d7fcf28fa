"""Longer runs of shorter ones: they end as those that were trained from the start, or say why they cannot."""

import shutil

import pytest

from kd_jax import runs, training
from kd_jax.errors import InputError
from tests import tiny

STEADY = {"optimizer.schedule": "exponential", "optimizer.gamma": 0.7, "log.every_steps": 4}
LONGER = STEADY | {"train.epochs": 5}


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    """A finished run of three epochs."""
    folder = tmp_path_factory.mktemp("short")
    tiny.train(tiny.config(**STEADY), folder)
    return folder / "run"


def extended(short, folder, **changes):
    return training.train(tiny.config(**LONGER | changes), folder, extend=short)


def test_a_longer_run_ends_and_logs_as_one_from_the_start(short, tmp_path, capsys):
    got = extended(short, tmp_path / "longer")
    assert "going on with resnet6 from step 12 to 20" in capsys.readouterr().out
    state, result = tiny.train(tiny.config(**LONGER), tmp_path)
    for part in ("params", "stats", "optimizer_state"):
        assert tiny.identical(getattr(got.state, part), getattr(state, part))
    assert [got.result[key] for key in ("test", "validation", "config_hash", "metrics_lines")] == [
        result[key] for key in ("test", "validation", "config_hash", "metrics_lines")
    ]


def test_the_shorter_run_stays(short, tmp_path):
    before = {path: path.read_bytes() for path in short.rglob("*") if path.is_file()}
    extended(short, tmp_path / "longer")
    assert {path: path.read_bytes() for path in short.rglob("*") if path.is_file()} == before


def test_a_longer_run_that_has_begun_does_not_need_the_shorter_one(short, tmp_path, monkeypatch):
    tiny.interrupt(monkeypatch, 2)
    with pytest.raises(BaseException, match="stopped at step 14 of 20"):
        extended(short, tmp_path / "longer")
    monkeypatch.undo()
    assert extended(tmp_path / "gone", tmp_path / "longer").result["steps"] == 20


def test_another_schedule_may_follow_where_it_begins_alike(short, tmp_path):
    # The rate falls by 0.7 at the end of every epoch, also where the schedule says so by milestones.
    changes = {"optimizer.schedule": "step", "optimizer.milestones": [1, 2, 4]}
    assert extended(short, tmp_path / "longer", **changes).result["steps"] == 20


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seed": 1}, r"a run of another config \(seed is 0 there, 1 here\); expected one that differs in its length"),
        ({"train.steps_per_call": 2}, r"a run of another config \(train.steps_per_call is 0 there, 2 here\)"),
        ({"train.epochs": 3}, "a run of 12 steps; expected one of fewer than the 12 of this config"),
        ({"train.steps": 8}, "a run of 12 steps; expected one of fewer than the 8 of this config"),
        (
            {"optimizer.schedule": "cosine"},
            "at step 4 its factor is 0.7 of 12 steps and 1 of 20, by optimizer.schedule 'exponential' there and"
            " 'cosine' here; expected a schedule that does not depend on the length",
        ),
        ({"optimizer.gamma": 0.5}, "at step 4 its factor is 0.7 of 12 steps and 0.5 of 20"),
    ],
)
def test_what_cannot_be_extended_says_why_and_leaves_nothing(short, tmp_path, changes, said):
    with pytest.raises(InputError, match=said):
        extended(short, tmp_path / "longer", **changes)
    assert list(tmp_path.iterdir()) == []


def test_a_best_checkpoint_that_a_longer_run_would_not_have_rated_is_refused(tmp_path):
    rated = {"evaluate.select": "best-validation", "evaluate.every_epochs": 2, "dataset.holdout": 0.25}
    tiny.train(tiny.config(**STEADY | rated | {"train.epochs": 1}), tmp_path)
    with pytest.raises(InputError, match="whose best checkpoint is its last, of step 4; a longer run is rated every 8"):
        extended(tmp_path / "run", tmp_path / "longer", **rated)


def test_a_run_that_has_not_finished_is_refused(short, tmp_path):
    shutil.copytree(short, tmp_path / "stopped")
    (tmp_path / "stopped" / "result.json").unlink()
    with pytest.raises(InputError, match="has not finished"):
        extended(tmp_path / "stopped", tmp_path / "longer")


def test_a_damaged_checkpoint_is_not_copied(short, tmp_path):
    shutil.copytree(short, tmp_path / "damaged")
    file = max((tmp_path / "damaged" / "checkpoints" / "12").rglob("*"), key=lambda path: path.stat().st_size)
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(InputError, match="damaged/checkpoints/12 cannot be read; expected a whole checkpoint"):
        extended(tmp_path / "damaged", tmp_path / "longer")
    assert not (tmp_path / "longer").exists()


@pytest.mark.parametrize(
    ("changes", "named"), [(LONGER, True), (LONGER | {"seed": 1}, False), (STEADY | {"train.epochs": 2}, False)]
)
def test_the_error_of_a_changed_work_directory_names_the_flag_where_it_helps(short, changes, named):
    own = runs.identity(tiny.config(**changes), "a", None)
    saved = runs.read_json(str(short), "config.json")
    own["dataset"] = saved["identity"]["dataset"]
    with pytest.raises(InputError) as raised:
        runs.check(str(short), own)
    assert (f"--extend={short} with another --workdir" in str(raised.value)) == named
