"""Two processes train every method as one process with two devices does."""

import pickle

import pytest

from tests import pair, tiny
from tests.methods import side_by_side
from tests.methods.examples import ALL
from tests.methods.test_training import result

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def of_two(tmp_path_factory):
    """{method: its part of the state that two processes have after ten float64 steps}."""
    file = tmp_path_factory.mktemp("pair") / "states.pickle"
    found = pair.ended(pair.start("tests.methods.pair_of_steps", file, *ALL), seconds=1800)
    assert [status for status, _, _ in found] == [0, 0], found
    return pickle.loads(file.read_bytes())


def test_two_processes_equal_one_with_two_devices_over_ten_float64_steps(of_two):
    differences = {}
    for name, of_method in of_two.items():
        trained = result(side_by_side.ten_steps, name)
        differences[name] = tiny.largest_difference(of_method, side_by_side.of_method(trained, trained.two, name))
    assert {name: x for name, x in differences.items() if x > 1e-9} == {}
