"""Checkpoints: what is kept, what comes back, what a broken one says."""

import contextlib
import gc
import json
import os
import shutil
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax import checkpoint
from kd_jax.errors import InputError, TrainingError
from kd_jax.types import TrainState
from tests import tiny


@pytest.fixture(autouse=True)
def collected(monkeypatch):
    """What Orbax leaves of a load that failed warns when it is collected: here unheard, and not in another test."""
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: None)
    yield
    gc.collect()


def state(step, kernel=1.5):
    params = {"student": {"fc": {"kernel": jnp.full((2, 3), kernel * step)}}, "method": {}}
    return TrainState(
        step=jnp.int32(step),
        params=params,
        stats={"student": {"bn1": {"mean": jnp.arange(3.0)}}, "method": {"bank": jnp.zeros((1, 4))}},
        optimizer_state={"student": (jnp.ones(3), ()), "method": ()},
        ema=None,
        rng=jax.random.key(step),
    )


@contextlib.contextmanager
def opened(folder, keep=1):
    with contextlib.closing(checkpoint.Checkpoints(str(folder), keep=keep)) as checkpoints:
        yield checkpoints


@pytest.fixture
def folder(tmp_path):
    """Steps 1 to 4 with validation accuracies 0.2, 0.7, 0.7, 0.5."""
    with opened(tmp_path) as checkpoints:
        for step, accuracy in ACCURACIES.items():
            checkpoints.save(state(step), step, accuracy)
    return tmp_path


ACCURACIES = {1: 0.2, 2: 0.7, 3: 0.7, 4: 0.5}


def as_of_an_older_version(folder):
    """Takes the records of checkpoints away, and leaves the accuracies where they lay then."""
    for step in (int(path.name) for path in folder.iterdir()):
        (folder / str(step) / "checkpoint.json").unlink()
        (folder / str(step) / "metrics").mkdir()
        accuracy = {"accuracy": ACCURACIES[step], "step": step}
        (folder / str(step) / "metrics" / "metrics").write_text(json.dumps(accuracy))


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_the_latest_and_the_earliest_of_the_best_are_kept(tmp_path, keep):
    with opened(tmp_path, keep) as checkpoints:
        for step, accuracy in enumerate((0.2, 0.7, 0.7, 0.5, 0.7), start=1):
            checkpoints.save(state(step), step, accuracy)
        assert checkpoints.best() == 2
    assert {int(entry.name) for entry in tmp_path.iterdir()} == {2, *range(6 - keep, 6)}


@pytest.mark.parametrize("older", [False, True])
def test_latest_and_best_are_told_apart(folder, older):
    if older:
        as_of_an_older_version(folder)
    with opened(folder) as checkpoints:
        assert checkpoints.steps() == [2, 4]
        assert checkpoints.restore(state(0)).step == 4
        assert checkpoints.best() == 2


def test_what_is_saved_later_is_the_best_only_where_it_is_better(folder):
    with opened(folder) as checkpoints:
        checkpoints.restore(state(0))
        checkpoints.save(state(5), 5, 0.7)
        assert checkpoints.best() == 2
        checkpoints.save(state(6), 6, 0.8)
        assert checkpoints.best() == 6


def test_a_state_comes_back_bit_for_bit_with_its_key_and_what_was_said_of_it(tmp_path):
    with opened(tmp_path) as checkpoints:
        checkpoints.save(state(4), 4, extra={"window": {"count": 3}})
    with opened(tmp_path) as checkpoints:
        restored = checkpoints.restore(state(0))
    plain, expected = (s.replace(rng=jax.random.key_data(s.rng)) for s in (restored.state, state(4)))
    assert tiny.identical(plain, expected)
    assert (restored.step, restored.extra) == (4, {"window": {"count": 3}})


def test_a_step_that_is_saved_already_is_left_alone(folder):
    with opened(folder) as checkpoints:
        checkpoints.restore(state(0))
        checkpoints.save(state(9), 4)
        assert checkpoints.load(4, state(0)).step == 4


def test_a_buffer_may_be_given_away_while_it_is_being_saved(tmp_path, monkeypatch):
    given, save = threading.Event(), checkpoint.ocp.save
    monkeypatch.setattr(checkpoint.ocp, "save", lambda *arguments: (given.wait(), save(*arguments)))
    donate = jax.jit(lambda x: jax.tree.map(lambda leaf: leaf * 0, x), donate_argnums=0)
    first = state(1)
    with opened(tmp_path) as checkpoints:
        checkpoints.save(first, 1)
        donate(first.params)
        given.set()
        loaded = checkpoints.load(1, state(0))
    np.testing.assert_array_equal(loaded.params["student"]["fc"]["kernel"], np.full((2, 3), 1.5))


def test_nothing_saved_is_nothing_to_restore_and_no_folder(tmp_path):
    with opened(tmp_path / "checkpoints") as checkpoints:
        assert (checkpoints.steps(), checkpoints.best(), checkpoints.restore(state(0))) == ([], None, None)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("left", ["5.orbax-checkpoint-tmp", ".5.tmp", "5"], ids=["older", "half written", "empty"])
def test_what_a_killed_process_left_is_no_checkpoint_and_is_cleared(folder, left):
    shutil.copytree(folder / "4", folder / left) if left != "5" else (folder / left).mkdir()
    with opened(folder) as checkpoints:
        assert checkpoints.steps() == [2, 4]
        checkpoints.restore(state(0))
        checkpoints.save(state(6), 6)
    assert sorted(entry.name for entry in folder.iterdir()) == ["2", "6"]


def test_a_tree_loads_without_knowing_its_structure(folder):
    tree = checkpoint.load_tree(str(folder), 4)
    np.testing.assert_array_equal(tree["params"]["student"]["fc"]["kernel"], np.full((2, 3), 6.0))


def load(folder, whole):
    with opened(folder) as checkpoints:
        return checkpoints.load(4, state(0)) if whole else checkpoint.load_tree(str(folder), 4)


@pytest.mark.parametrize("cut", [lambda size: 0, lambda size: size // 2, lambda size: size - 1], ids=["0", "half", "1"])
@pytest.mark.parametrize("whole", [True, False], ids=["with its structure", "without"])
@pytest.mark.parametrize("older", [False, True], ids=["", "older"])
def test_a_checkpoint_cut_short_is_named(folder, whole, cut, older):
    if older:
        as_of_an_older_version(folder)
    for file in (folder / "4").rglob("*"):
        if file.is_file() and file.stat().st_size:
            os.truncate(file, cut(file.stat().st_size))
    with pytest.raises(InputError, match="4 cannot be read; expected a whole checkpoint, or none"):
        load(folder, whole)


def files(folder):
    return sorted(file.relative_to(folder) for file in folder.rglob("*") if file.is_file() and file.stat().st_size)


@pytest.mark.parametrize("whole", [True, False], ids=["with its structure", "without"])
def test_a_flipped_bit_in_any_file_of_a_checkpoint_is_named(folder, whole):
    for name in files(folder / "4"):
        path = folder / "4" / name
        content = path.read_bytes()
        middle = len(content) // 2
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 4]) + content[middle + 1 :])
        with pytest.raises(InputError, match="4 cannot be read; expected a whole checkpoint, or none"):
            load(folder, whole)
        path.write_bytes(content)
    load(folder, whole)


def test_a_missing_file_of_a_checkpoint_is_named(folder):
    (folder / "4" / "state" / "manifest.ocdbt").unlink()
    with pytest.raises(InputError, match="4 cannot be read; expected a whole checkpoint, or none: No such file"):
        load(folder, True)


def test_a_checkpoint_of_an_older_version_is_read_and_a_line_says_so(folder, capsys):
    as_of_an_older_version(folder)
    assert load(folder, True).step == 4
    said = capsys.readouterr().err
    assert said == f"{folder / '4'} was written without checksums, by an older version; it is read unchecked\n"


def test_a_whole_checkpoint_of_another_network_is_not_called_damaged(folder):
    other = state(0)
    other = other.replace(params={"student": {"fc": {"kernel": jnp.zeros((5, 5))}}, "method": {}})
    with opened(folder) as checkpoints, pytest.raises(ValueError, match="shape") as error:
        checkpoints.load(4, other)
    assert not isinstance(error.value, InputError)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: os.truncate(path / "state" / "manifest.ocdbt", 3),
        lambda path: (path / "checkpoint.json").write_text("{}"),
        lambda path: (path / "checkpoint.json").unlink(),
        lambda path: path.rename(path.with_name("9")),
    ],
    ids=["cut", "another record", "no record", "renamed"],
)
def test_the_newest_whole_checkpoint_is_used_and_the_cost_said(folder, damage, capsys):
    damage(folder / "4")
    with opened(folder) as checkpoints:
        newest = max(checkpoints.steps())
        restored = checkpoints.restore(state(0))
        assert (restored.step, int(restored.state.step), checkpoints.steps()) == (2, 2, [2])
        checkpoints.save(state(4), 4, 0.5)
    said = capsys.readouterr().out
    assert f"{folder / str(newest)} cannot be read; expected a whole checkpoint, or none" in said
    assert f"step 2 is used instead\n{newest - 2} steps have to be trained again\n" in said
    assert sorted(entry.name for entry in folder.iterdir()) == ["2", "4", f"{newest}.damaged"]


def test_the_best_of_an_older_version_is_the_earliest_of_equals(tmp_path):
    with opened(tmp_path, keep=4) as checkpoints:
        for step, accuracy in ACCURACIES.items():
            checkpoints.save(state(step), step, accuracy)
    as_of_an_older_version(tmp_path)
    with opened(tmp_path, keep=4) as checkpoints:
        checkpoints.restore(state(0))
        assert (checkpoints.steps(), checkpoints.best()) == ([1, 2, 3, 4], 2)


def test_a_half_deleted_checkpoint_of_an_older_version_is_cleared(folder):
    as_of_an_older_version(folder)
    (folder / "4" / "_CHECKPOINT_METADATA").unlink()
    with opened(folder) as checkpoints:
        assert checkpoints.restore(state(0)).step == 2
        checkpoints.save(state(3), 3, 0.9)
    assert sorted(entry.name for entry in folder.iterdir()) == ["3"]


def test_a_damaged_checkpoint_of_an_older_version_is_kept_under_another_name(folder):
    as_of_an_older_version(folder)
    os.truncate(folder / "4" / "state" / "manifest.ocdbt", 3)
    with opened(folder) as checkpoints:
        assert checkpoints.restore(state(0)).step == 2
    assert sorted(entry.name for entry in folder.iterdir()) == ["2", "4.damaged"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda best: os.truncate(best / "checkpoint.json", 30),
        lambda best: os.truncate(best / "state" / "manifest.ocdbt", 3),
        shutil.rmtree,
    ],
    ids=["its record", "its data", "gone"],
)
def test_without_the_best_checkpoint_a_later_one_is_not_gone_on_with(folder, damage):
    damage(folder / "2")
    said = f"2 cannot be read; .*; it is the best so far, without which step 4 is of no use: .* remove {folder}"
    with opened(folder) as checkpoints, pytest.raises(InputError, match=said):
        checkpoints.restore(state(0))
    assert (folder / "4").exists()


def test_where_none_is_whole_the_newest_is_named_and_all_are_kept(folder):
    for step in ("2", "4"):
        os.truncate(folder / step / "state" / "manifest.ocdbt", 3)
    with opened(folder) as checkpoints, pytest.raises(InputError, match="4 cannot be read; expected a whole"):
        checkpoints.restore(state(0))
    assert sorted(entry.name for entry in folder.iterdir()) == ["2", "4"]


@pytest.mark.parametrize(
    ("part", "said"),
    [
        (lambda s, bad: s.replace(params={**s.params, "method": {"x": bad}}), "the parameters of method"),
        (lambda s, bad: s.replace(stats={**s.stats, "student": {"x": bad}}), "the statistics of student"),
        (lambda s, bad: s.replace(ema={"params": bad}), "the moving average"),
        (lambda s, bad: s.replace(optimizer_state={"student": bad}), "the optimizer's state"),
    ],
)
@pytest.mark.parametrize("number", [np.inf, np.nan])
def test_what_is_not_finite_is_never_saved(tmp_path, part, said, number):
    with opened(tmp_path) as checkpoints:
        checkpoints.save(part(state(3), jnp.array([1.0, number])), 3)
        with pytest.raises(TrainingError, match=f"{said} is not finite at step 3"):
            checkpoints.wait()
        assert checkpoints.steps() == []
    assert list(tmp_path.iterdir()) == []


def test_a_state_that_is_not_finite_takes_the_place_of_no_checkpoint(tmp_path):
    with opened(tmp_path) as checkpoints:
        checkpoints.save(state(1), 1, 0.2)
        checkpoints.save(state(2, kernel=np.inf), 2, 0.9)
        with pytest.raises(TrainingError, match="the parameters of student is not finite at step 2"):
            checkpoints.save(state(3), 3, 0.1)
        assert (checkpoints.steps(), checkpoints.best()) == ([1], 1)
        checkpoints.save(state(4), 4, 0.1)
        assert (checkpoints.steps(), checkpoints.best()) == ([1, 4], 1)
    assert {int(entry.name) for entry in tmp_path.iterdir()} == {1, 4}


def test_a_state_is_checked_in_the_background(tmp_path, monkeypatch):
    threads = []
    monkeypatch.setattr(checkpoint, "_check_finite", lambda *_: threads.append(threading.current_thread()))
    with opened(tmp_path) as checkpoints:
        checkpoints.save(state(1), 1)
    assert len(threads) == 1
    assert threads[0] is not threading.main_thread()


def test_many_saves_leave_no_thread_and_no_open_file(tmp_path):
    def used():
        return threading.active_count(), len(os.listdir("/proc/self/fd"))

    saved = state(1)
    with opened(tmp_path) as checkpoints:
        for step in range(1, 25):
            checkpoints.save(saved, step)
            checkpoints.wait()
            if step == 5:
                before = used()
        assert used() == before
    assert threading.active_count() == before[0] - 1


def test_what_goes_wrong_in_the_background_is_raised_and_leaves_no_part(folder, monkeypatch):
    def full(path, _):
        path.mkdir()
        raise OSError(28, os.strerror(28))

    with opened(folder) as checkpoints:
        checkpoints.restore(state(0))
        monkeypatch.setattr(checkpoint, "_save", full)
        checkpoints.save(state(5), 5)
        with pytest.raises(OSError, match="No space left"):
            checkpoints.wait()
    assert sorted(entry.name for entry in folder.iterdir()) == ["2", "4"]
