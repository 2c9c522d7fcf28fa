"""How an epoch is divided into batches, and a run into calls."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kd_jax.batches import Epoch, of_images

laws = settings(derandomize=True, deadline=None, max_examples=100, database=None)
epochs = st.builds(Epoch, st.just(8), st.integers(1, 9), st.integers(0, 7))


@pytest.mark.parametrize(
    ("last_batch", "images", "expected"),
    [
        ("drop", 50_000, (781, 49_984, (64,))),
        ("keep", 50_000, (782, 50_000, (64, 16))),  # 781.25 batches
        ("drop", 640, (10, 640, (64,))),
        ("keep", 640, (10, 640, (64,))),
        (None, 100, (1, 64, (64,))),  # of a run of an older version
    ],
)
def test_an_epoch_has_the_steps_and_images_of_its_batches(last_batch, images, expected):
    train = {"batch_size": 64} | ({"last_batch": last_batch} if last_batch else {})
    epoch = of_images(train, images)
    assert (epoch.steps, epoch.images, epoch.sizes) == expected


@laws
@given(epochs, st.integers(1, 12), st.integers(1, 40), st.data())
def test_calls_hold_batches_of_one_size_and_end_alike_wherever_a_run_goes_on(epoch, per_call, total, data):
    sizes = ([8] * epoch.whole + [epoch.rest] * (epoch.rest > 0)) * total

    def ends(step):
        while step < total:
            end = epoch.end_of_call(step, per_call, total)
            assert 0 < end - step <= per_call
            assert len(set(sizes[step:end])) == 1
            assert step // epoch.steps == (end - 1) // epoch.steps
            yield end
            step = end

    whole, first = list(ends(0)), data.draw(st.integers(0, total - 1))
    assert whole[-1] == total
    assert list(ends(first)) == [end for end in whole if end > first]


@laws
@given(epochs, st.integers(0, 60))
def test_the_images_before_a_step_are_those_of_the_batches_before_it(epoch, step):
    sizes = [8] * epoch.whole + [epoch.rest] * (epoch.rest > 0)
    assert epoch.images_before(step) == np.resize(sizes, step).sum()
