"""The type checker catches a method, a network or a teacher with a wrong signature."""

from pathlib import Path

import pytest
from mypy import api

ROOT = Path(__file__).parent.parent
HEADER = """
from typing import Any
import jax
from kd_jax import Context, Method, MethodVariables, Network, Outputs

def init(rng: jax.Array, context: Context) -> MethodVariables:
    return MethodVariables({}, {})

def apply(variables: MethodVariables, context: Context) -> tuple[dict[str, jax.Array], Any]:
    return {}, {}

"""
PROGRAMS = {
    "right": ("Method(init, apply)", None),
    "arguments of a method": (
        "def wrong(variables: MethodVariables, student: Outputs, teacher: Outputs) -> Any: ...\nMethod(init, wrong)",
        'Argument 2 to "Method" has incompatible type',
    ),
    "result of a method": (
        "def wrong(variables: MethodVariables, context: Context) -> jax.Array: ...\nMethod(init, wrong)",
        'Argument 2 to "Method" has incompatible type',
    ),
    "a field of the context": (
        "def wrong(context: Context) -> Any:\n    return context.batches",
        '"Context" has no attribute "batches"',
    ),
    "a network without train": (
        "def wrong(variables: Any, images: jax.Array) -> Any: ...\nNetwork(lambda rng, images: {}, wrong)",
        'Argument 2 to "Network" has incompatible type',
    ),
}


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """What mypy says of each program, checked together."""
    folder = tmp_path_factory.mktemp("typing")
    for number, (program, _) in enumerate(PROGRAMS.values()):
        (folder / f"program_{number}.py").write_text(HEADER + program + "\n")
    files = sorted(map(str, folder.glob("*.py")))
    options = ["--config-file", str(ROOT / "pyproject.toml"), "--cache-dir", str(ROOT / ".mypy_cache")]
    out, err, _ = api.run([*options, *files])
    assert not err, err
    return {name: [line for line in out.splitlines() if f"program_{i}.py" in line] for i, name in enumerate(PROGRAMS)}


@pytest.mark.parametrize("name", PROGRAMS)
def test_mypy_accepts_what_is_right_and_names_what_is_not(said, name):
    expected = PROGRAMS[name][1]
    if expected is None:
        assert said[name] == []
    else:
        assert any(expected in line for line in said[name]), said[name]
