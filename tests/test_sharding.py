"""Two virtual devices give what one gives, and each does half the work."""

import jax
import pytest

from tests import tiny

TERMS = tiny.METHODS["kinds"]  # every method is in tests/methods/test_training.py
HALF = {"dataset.labeled": 24}


@pytest.fixture(scope="module")
def ten_steps():
    """The states of one device and of two after ten float64 steps, where half of the images have a label."""
    with jax.enable_x64(True):
        runs = [tiny.Run(TERMS, devices=n, precision="float64", **HALF) for n in (1, 2)]
        for run in runs:
            run.step(10)
        return [run.state for run in runs]


@pytest.mark.parametrize("group", ["student", *TERMS])
def test_two_devices_equal_one_over_ten_float64_steps(ten_steps, group):
    one, two = ((state.params[group], state.stats[group]) for state in ten_steps)
    assert tiny.largest_difference(one, two) < 1e-9


def test_two_devices_equal_one_over_one_float32_step():
    one, two = (tiny.Run(tiny.METHODS["kd"], devices=n) for n in (1, 2))
    one.step(), two.step()
    assert tiny.largest_difference((one.state.params, one.state.stats), (two.state.params, two.state.stats)) < 1e-5


def test_each_of_two_devices_does_half_the_flops():
    flops = []
    for devices in (1, 2):
        run = tiny.Run(tiny.METHODS["kd"], devices=devices)
        flops.append(run.lower().compile().cost_analysis()["flops"])
    assert 0.45 < flops[1] / flops[0] < 0.55
