"""Every method of the registry trains, in the step that runs use."""

import functools

import jax
import numpy as np
import pytest

from kd_jax import methods
from tests import tiny
from tests.methods import side_by_side
from tests.methods.examples import ALL, EQUAL_WIDTHS, EXAMPLES, TEN_CLASSES, VARIANTS
from tests.methods.side_by_side import of_method, own_term

GROUP = 8  # methods in a program


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in VARIANTS]


@pytest.fixture(scope="module", params=[*EXAMPLES, *SLOW])
def name(request):
    """A method. The tests of one run after one another, and those of its group in the same process."""
    return request.param


def needs(name, methods):
    return ALL[name]["method"] in methods


def group(name):
    """(the methods that share a program with this one, and their student's widths)."""
    equal = needs(name, EQUAL_WIDTHS)
    alike = [other for other in ALL if needs(other, EQUAL_WIDTHS) == equal]
    first = alike.index(name) // GROUP * GROUP
    return tuple(alike[first : first + GROUP]), side_by_side.WIDTHS["teacher" if equal else "student"]


@functools.cache
def ran(function, names, widths):
    """What the function returns for these methods, or raises."""
    try:
        return function({name: ALL[name] for name in names}, widths)
    except Exception as error:
        return error


def result(function, name):
    of_group = ran(function, *group(name))
    error = of_group if isinstance(of_group, Exception) else of_group.failures.get(name)
    if error is not None:
        raise error
    return of_group


@pytest.fixture(scope="module")
def trained(name):
    return result(side_by_side.ten_steps, name)


@pytest.fixture(scope="module")
def scanned(name):
    return result(side_by_side.scan, name)


def test_ten_steps_lower_the_term(name, trained):
    assert own_term(trained.scalars[-1], name) < own_term(trained.scalars[0], name)


def test_two_devices_equal_one_over_ten_float64_steps(name, trained):
    one, two = (of_method(trained, state, name) for state in (trained.one, trained.two))
    assert tiny.largest_difference(one, two) < 1e-9


def test_a_state_that_was_saved_goes_on_bit_for_bit(name, trained):
    resumed, two = (of_method(trained, state, name) for state in (trained.resumed, trained.two))
    assert tiny.identical(resumed, two)


def test_bfloat16_steps_in_one_call_are_finite(name, scanned):
    leaves = jax.tree.leaves((own_term(scanned.scalars, name), of_method(scanned, scanned.after, name)))
    assert all(np.isfinite(leaf).all() for leaf in leaves)


def test_bfloat16_steps_in_one_call_move_what_trains(name, scanned):
    before, after = (of_method(scanned, state, name) for state in (scanned.before, scanned.after))
    assert not tiny.identical(before, after)


def test_which_negative_number_stands_for_no_label_changes_nothing(name, scanned):
    after, relabeled = (of_method(scanned, state, name) for state in (scanned.after, scanned.relabeled))
    assert tiny.identical(after, relabeled)


@functools.cache
def views(name):
    return {"dataset.extra_views": ["crop_flip"] * (methods.create({"term": ALL[name]}).views - 1)}


@pytest.fixture
def programs():
    """Those of a test are dropped after it."""
    yield
    tiny.forget()


def alone(name, **options):
    """A run of ResNets with the method as its only term."""
    width = {"model.width": 1 / 4} if needs(name, EQUAL_WIDTHS) else {}
    return tiny.Run({"term": ALL[name]}, **options, **width, **views(name))


on_resnets = pytest.mark.parametrize("method", [name for name in EXAMPLES if not needs(name, TEN_CLASSES)])
parts = pytest.mark.parametrize(("accumulate", "labeled"), [(1, 0), (2, 24)])  # 0: all images have a label


@pytest.mark.slow
@pytest.mark.usefixtures("programs")
@on_resnets
@parts
def test_on_resnets_two_devices_equal_one_over_float64_steps(method, accumulate, labeled):
    options = {"precision": "float64", "train.accumulate": accumulate, "dataset.labeled": labeled}
    with jax.enable_x64(True):
        one, two = (alone(method, devices=n, **options).step(4) for n in (1, 2))
    assert tiny.largest_difference((one.params, one.stats), (two.params, two.stats)) < 1e-9


@pytest.mark.slow
@pytest.mark.usefixtures("programs")
@on_resnets
@parts
def test_on_resnets_bfloat16_steps_in_one_call_are_finite(method, accumulate, labeled):
    run = alone(method, precision="bfloat16", **{"train.accumulate": accumulate, "dataset.labeled": labeled})
    state = run.call(run.rows(0, 2))
    leaves = jax.tree.leaves((run.scalars, state.params, state.stats))
    assert all(np.isfinite(np.asarray(leaf, np.float32)).all() for leaf in leaves)
