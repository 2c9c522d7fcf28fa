"""Two virtual devices give what one gives, and each does half the work."""

import jax
import jax.numpy as jnp
import pytest

from tests import tiny


def runs(terms, dtype):
    return [tiny.Run(tiny.parts(terms, devices=n, dtype=dtype), dtype=dtype) for n in (1, 2)]


@pytest.mark.parametrize("name", tiny.METHODS)
def test_two_devices_equal_one_over_ten_float64_steps(name):
    with jax.enable_x64(True):
        one, two = runs(tiny.METHODS[name], jnp.float64)
        one.step(10), two.step(10)
        assert tiny.largest_difference((one.state.params, one.state.stats), (two.state.params, two.state.stats)) < 1e-9


@pytest.mark.parametrize("name", tiny.METHODS)
def test_two_devices_equal_one_over_one_float32_step(name):
    one, two = runs(tiny.METHODS[name], jnp.float32)
    one.step(), two.step()
    assert tiny.largest_difference((one.state.params, one.state.stats), (two.state.params, two.state.stats)) < 1e-5


def test_each_of_two_devices_does_half_the_flops():
    flops = []
    for run in runs(tiny.METHODS["kd"], jnp.float32):
        lowered = run.compiled.lower(run.state, run.teacher, run.data, run.order(0), run.hyper)
        flops.append(lowered.compile().cost_analysis()["flops"])
    assert 0.45 < flops[1] / flops[0] < 0.55
