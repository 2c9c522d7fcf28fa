"""Configurations: every key with its default, the recipes that experiments share, and the shipped experiments."""

import importlib.util
from pathlib import Path
from types import ModuleType

from kd_jax.errors import choose

PACKAGE = Path(__file__).parent.parent


def shipped() -> dict[str, Path]:
    """{name: file} of the experiments that come with the package: beside it in a checkout, inside it when installed."""
    folder = next((f for f in (PACKAGE / "configs", PACKAGE.parent / "configs") if (f / "kd.py").is_file()), None)
    return {path.stem: path for path in sorted(folder.glob("*.py")) if path.stem != "__init__"} if folder else {}


def experiment(name: str) -> ModuleType:
    """The module of a shipped experiment, which has `get_config(arg)`; raises InputError for an unknown name."""
    path = choose("the experiment", name, shipped())
    spec = importlib.util.spec_from_file_location(f"kd_jax.configs.{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
