"""Schedules against formulas written out in float64 numpy."""

import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax import schedules
from kd_jax.errors import InputError


def create(name, *, steps, steps_per_epoch, **options):
    section = {"schedule": name, "schedule_options": {}, "warmup_epochs": 0.0, "milestones": [], "gamma": 0.1}
    return schedules.create(section | options, steps=steps, steps_per_epoch=steps_per_epoch)


def factors(name, steps=20, **options):
    schedule = create(name, steps=steps, steps_per_epoch=5, **options)
    return np.array([float(schedule(jnp.int32(s))) for s in range(steps)])


def test_cosine_falls_from_one_to_zero_after_a_linear_warmup():
    after = np.arange(15) / 15
    expected = np.concatenate([np.arange(1, 6) / 6, 0.5 * (1 + np.cos(np.pi * after))])
    np.testing.assert_allclose(factors("cosine", warmup_epochs=1), expected, atol=1e-6)


def test_step_schedule_falls_at_its_milestones():
    expected = np.repeat([1, 0.1, 0.1, 0.01], 5)
    np.testing.assert_allclose(factors("step", milestones=(1, 3), gamma=0.1), expected, rtol=1e-5)


def test_exponential_schedule_falls_once_per_epoch():
    np.testing.assert_allclose(factors("exponential", gamma=0.7), np.repeat(0.7 ** np.arange(4.0), 5), rtol=1e-5)


def test_constant_schedule_stays_at_one():
    assert (factors("constant") == 1).all()


def test_no_milestone_and_no_epoch_comes_a_step_late():
    # A quotient in float32 does so for 135 of the first thousand lengths of an epoch.
    for length in range(1, 1000, 7):
        at = jnp.array([length * m - 1 for m in (1, 2)] + [length * m for m in (1, 2)])
        step = create("step", steps=10**6, steps_per_epoch=length, milestones=(1, 2))(at)
        falling = create("exponential", steps=10**6, steps_per_epoch=length, gamma=0.1)(at)
        for got in (step, falling):
            np.testing.assert_allclose(got, [1, 0.1, 0.1, 0.01], rtol=1e-5, err_msg=str(length))


def test_a_milestone_may_be_a_fraction_of_an_epoch():
    np.testing.assert_allclose(factors("step", milestones=(0.5,), steps=5), [1, 1, 1, 0.1, 0.1], rtol=1e-5)


@pytest.mark.parametrize("milestone", ["1.1", "2.3", "0.07"])
def test_a_fractional_milestone_falls_at_its_very_step(milestone):
    # Of 1.1 epochs of 50 steps the product of floats is more than 55.
    for length in range(1, 1001, 3):
        first = math.ceil(Fraction(milestone) * length)
        factor = create("step", steps=10**6, steps_per_epoch=length, milestones=(float(milestone),), gamma=0.5)
        assert factor(np.array([first - 1, first])).tolist() == [1.0, 0.5], length


@pytest.mark.parametrize("compiled", [False, True])
def test_the_first_step_after_a_milestone_has_gamma_to_the_last_bit(compiled):
    factor = create("step", steps=410, steps_per_epoch=41, milestones=(1,), gamma=0.1)
    assert (jax.jit(factor) if compiled else factor)(41) == np.float32(0.1)


def test_a_warmup_of_a_fraction_of_an_epoch_ends_at_its_very_step():
    # 0.29 epochs of 50 steps are 14.5, which is rounded to the even 14.
    factor = create("constant", steps=1000, steps_per_epoch=50, warmup_epochs=0.29)
    np.testing.assert_allclose(factor(np.array([13, 14])), [14 / 15, 1], rtol=1e-6)


def test_a_schedule_of_optax_takes_the_rest_of_the_run_after_the_warmup():
    got = factors("linear_schedule", warmup_epochs=1, schedule_options={"end_value": 0.4})
    expected = np.concatenate([np.arange(1, 6) / 6, 1 - 0.6 * np.arange(15) / 15])
    np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_options_say_how_long_a_schedule_of_optax_is():
    got = factors("linear_schedule", schedule_options={"end_value": 0.5, "transition_steps": 4, "init_value": 0.9})
    np.testing.assert_allclose(got[:6], [0.9, 0.8, 0.7, 0.6, 0.5, 0.5], rtol=1e-6)


def test_boundaries_are_steps_as_flags_and_json_give_them():
    options = {"init_value": 1.0, "boundaries_and_scales": {"2": 0.5, "3": 0.1}}
    got = factors("piecewise_constant_schedule", schedule_options=options)
    np.testing.assert_allclose(got[:5], [1, 1, 0.5, 0.05, 0.05], rtol=1e-6)


def test_exponential_decay_is_a_schedule_of_optax_though_its_name_does_not_say_so():
    got = factors("exponential_decay", schedule_options={"decay_rate": 0.5, "transition_steps": 10})
    np.testing.assert_allclose(got, 0.5 ** (np.arange(20) / 10), rtol=1e-6)


def test_a_schedule_of_more_than_a_number_is_refused(monkeypatch):
    monkeypatch.setitem(schedules.SCHEDULES, "two", lambda span: lambda step: jnp.ones(2))
    with pytest.raises(InputError, match=r"optimizer.schedule is 'two', whose factor is \[2\]; expected one number"):
        factors("two")


def test_a_schedule_of_ones_own_has_its_options(monkeypatch):
    def halved(span, milestones, every):
        assert milestones == (2, 3)
        assert span == (20, 5, 5)
        return lambda step: 0.5 ** (step // every)

    monkeypatch.setattr(schedules, "SCHEDULES", dict(schedules.SCHEDULES))
    schedules.register("halved", halved)
    got = factors("halved", schedule_options={"every": 10}, milestones=(2, 3), warmup_epochs=1)
    np.testing.assert_allclose(got, [*np.arange(1, 6) / 6, *[1] * 5, *[0.5] * 10], rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"name": "linear"}, "optimizer.schedule is 'linear'; expected one of: constant, constant_schedule, cosine,"),
        ({"name": "linear_schedule"}, "optimizer.schedule_options.end_value is missing"),
        (
            {"name": "linear_schedule", "schedule_options": {"end_value": 0, "transition_begin": "x"}},
            "expected a whole",
        ),
        ({"name": "cosine", "schedule_options": {"alpha": 0.1}}, "an option of cosine is 'alpha'"),
        (
            {"name": "piecewise_constant_schedule", "schedule_options": {"boundaries_and_scales": {"a": 0.1}}},
            "optimizer.schedule is 'piecewise_constant_schedule', which fails",
        ),
    ],
)
def test_what_a_schedule_does_not_take_is_named(options, said):
    with pytest.raises(InputError, match=said):
        factors(**options)
