"""Configurations: every key with its default, the recipes that experiments share, and the experiments by name."""

import importlib
import importlib.util
from pathlib import Path
from types import ModuleType

from kd_jax.errors import InputError, choose, one_line


def shipped() -> dict[str, str]:
    """The experiments that come with kd_jax, as {name: path}."""
    from kd_jax import configs

    (folder,) = configs.__path__
    return {path.stem: str(path) for path in sorted(Path(folder).glob("*.py")) if path.stem != "__init__"}


def experiment(name: str) -> ModuleType:
    """The module of an experiment that comes with kd_jax, or of a file, FILE.py.

    Raises:
      InputError: there is none of that name, or the file cannot be run.
    """
    if not name.endswith(".py"):
        choose("the experiment", name, shipped())
        return importlib.import_module(f"kd_jax.configs.{name}")
    if not Path(name).is_file():
        raise InputError(f"{name} does not exist; expected a file with get_config")
    spec = importlib.util.spec_from_file_location(f"kd_jax_config_{Path(name).stem}", name)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise InputError(f"{name} cannot be run: {type(error).__name__}: {one_line(error)}") from error
    if not hasattr(module, "get_config"):
        raise InputError(f"{name} has no get_config; expected a config's file")
    return module
