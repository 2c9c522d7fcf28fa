"""The faults of launch/mutants/ apply to the package as it is, and name tests that there are."""

import importlib.util
import re
from pathlib import Path

import pytest

FILE = Path(__file__).parent.parent / "launch" / "mutants.py"


@pytest.fixture(scope="module")
def mutants():
    spec = importlib.util.spec_from_file_location("mutants", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_mutant_applies(mutants):
    assert list(mutants.problems(mutants.read())) == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"old": "no such text"}, "its text occurs 0 times in kd_jax/steps.py; expected once"),
        ({"old": "state"}, r"its text occurs \d\d+ times"),
        ({"new": "import zlib"}, "its text is replaced by itself"),
        ({"tests": ()}, "expected either tests or why it is equivalent"),
        ({"tests": ("tests/test_steps.py::test_gone[1]",)}, r"there is no test tests/test_steps.py::test_gone\[1\]"),
        ({"file": "kd_jax/gone.py"}, "its text occurs 0 times in kd_jax/gone.py"),
    ],
)
def test_a_mutant_that_does_not_apply_is_named(mutants, changes, said):
    good = mutants.Mutant("kd_jax/steps.py", "one", "import zlib", "import zlib as z", ("tests/test_steps.py",), "")
    assert list(mutants.problems([good])) == []
    (problem,) = mutants.problems([good._replace(**changes)])
    assert re.match(f"one: .*{said}", problem)


def test_two_mutants_of_one_name_are_named(mutants):
    good = mutants.Mutant("kd_jax/steps.py", "one", "import zlib", "import zlib as z", ("tests/test_steps.py",), "")
    assert list(mutants.problems([good, good])) == ["one: the name of 2 mutants; expected one"]
