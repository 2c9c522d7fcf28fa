"""Configurations: every key with its default, the recipes that experiments share, and the experiments by name."""

import importlib
from pathlib import Path
from types import ModuleType

from kd_jax.errors import choose


def shipped() -> dict[str, str]:
    """The experiments that come with kd_jax, as {name: path}."""
    from kd_jax import configs

    (folder,) = configs.__path__
    return {path.stem: str(path) for path in sorted(Path(folder).glob("*.py")) if path.stem != "__init__"}


def experiment(name: str) -> ModuleType:
    """The module of an experiment that comes with kd_jax; raises InputError for an unknown name."""
    choose("the experiment", name, shipped())
    return importlib.import_module(f"kd_jax.configs.{name}")
