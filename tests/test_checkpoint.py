"""Checkpoints: what is kept, what comes back, what a broken one says."""

import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax import checkpoint
from kd_jax.errors import InputError
from kd_jax.types import TrainState
from tests import tiny


def state(step):
    params = {"student": {"fc": {"kernel": jnp.full((2, 3), 1.5 * step)}}, "method": {}}
    return TrainState(
        step=jnp.int32(step),
        params=params,
        stats={"student": {"bn1": {"mean": jnp.arange(3.0)}}, "method": {"bank": jnp.zeros((1, 4))}},
        optimizer_state={"student": (jnp.ones(3), ()), "method": ()},
        ema=None,
        rng=jax.random.key(step),
    )


@pytest.fixture
def saved(tmp_path):
    """Steps 1 to 4 with validation accuracies 0.2, 0.7, 0.7, 0.5, and the folder they lie in."""
    checkpoints = checkpoint.Checkpoints(str(tmp_path))
    for step, accuracy in enumerate((0.2, 0.7, 0.7, 0.5), start=1):
        checkpoints.save(state(step), step, accuracy)
    checkpoints.wait()
    yield checkpoints, tmp_path
    checkpoints.close()


def test_the_latest_and_the_best_are_kept(saved):
    _, folder = saved
    kept = {int(entry.name) for entry in folder.iterdir() if entry.name.isdecimal()}
    assert kept == {2, 4}


def test_latest_and_best_are_told_apart(saved):
    checkpoints, _ = saved
    assert checkpoints.latest() == 4
    assert checkpoints.best() == 2


def test_a_state_comes_back_bit_for_bit_with_its_key(saved):
    checkpoints, _ = saved
    loaded = checkpoints.load(4, state(0))
    plain, expected = (s.replace(rng=jax.random.key_data(s.rng)) for s in (loaded, state(4)))
    assert tiny.identical(plain, expected)


def test_a_step_that_is_saved_already_is_left_alone(saved):
    checkpoints, _ = saved
    checkpoints.save(state(9), 4, None)
    checkpoints.wait()
    assert checkpoints.load(4, state(0)).step == 4


def test_a_buffer_may_be_given_away_while_it_is_being_saved(tmp_path):
    checkpoints = checkpoint.Checkpoints(str(tmp_path))
    donate = jax.jit(lambda x: jax.tree.map(lambda leaf: leaf * 0, x), donate_argnums=0)
    first = state(1)
    checkpoints.save(first, 1, None)
    donate(first.params)
    checkpoints.wait()
    np.testing.assert_array_equal(checkpoints.load(1, state(0)).params["student"]["fc"]["kernel"], np.full((2, 3), 1.5))
    checkpoints.close()


def test_nothing_saved_is_no_latest_and_no_best(tmp_path):
    checkpoints = checkpoint.Checkpoints(str(tmp_path))
    assert (checkpoints.latest(), checkpoints.best()) == (None, None)
    checkpoints.close()


def test_what_a_killed_process_left_half_written_is_not_a_checkpoint(saved):
    checkpoints, folder = saved
    checkpoints.wait()
    shutil.copytree(folder / "4", folder / "5.orbax-checkpoint-tmp")
    again = checkpoint.Checkpoints(str(folder))
    assert again.latest() == 4
    again.close()


def test_a_tree_loads_without_knowing_its_structure(saved):
    _, folder = saved
    tree = checkpoint.load_tree(str(folder), 4)
    np.testing.assert_array_equal(tree["params"]["student"]["fc"]["kernel"], np.full((2, 3), 6.0))


@pytest.mark.parametrize("cut", [lambda size: 0, lambda size: size // 2, lambda size: size - 1], ids=["0", "half", "1"])
@pytest.mark.parametrize("whole", [True, False], ids=["with its structure", "without"])
def test_a_checkpoint_cut_short_is_named(saved, whole, cut):
    checkpoints, folder = saved
    checkpoints.wait()
    for file in (folder / "4").rglob("*"):
        if file.is_file():
            os.truncate(file, cut(file.stat().st_size))
    with pytest.raises(InputError, match="4 cannot be read; expected a whole checkpoint, or none"):
        checkpoints.load(4, state(0)) if whole else checkpoint.load_tree(str(folder), 4)
