"""kd_jax: knowledge distillation of image classifiers in JAX and Flax, as pure functions.

    kd_jax.losses      plain functions of arrays, one value per image: kd, dkd, rkd_distance, ...
    kd_jax.methods     distillation methods by name; from_loss and from_module make one of your own
    kd_jax.models      networks by name; register adds one of your own
    kd_jax.teachers    teachers by kind
    kd_jax.train       trains as a config says, its teacher first, and returns the result
    kd_jax.load        loads a finished run, to classify images with
    kd_jax.evaluate_run, kd_jax.explain_run
                       measure a finished run, and draw where it looks, as the commands do

Nothing is imported before it is used: `import kd_jax` takes no time, and `kd_jax.losses` no more than JAX.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kd_jax import augment, gradcam, losses, methods, metrics, models, teachers
    from kd_jax.errors import InputError, Preempted, TrainingError
    from kd_jax.evaluation import evaluate_run
    from kd_jax.explaining.agreement import explain_run
    from kd_jax.loaded import LoadedRun, load
    from kd_jax.models import create as create_model
    from kd_jax.training import Result, train
    from kd_jax.types import (
        Batch,
        Context,
        Feed,
        Head,
        Hyper,
        Method,
        MethodVariables,
        Network,
        Networks,
        Norm,
        Outputs,
        RawBatch,
        Split,
        Teacher,
        TrainState,
        View,
    )

_MODULES = ("augment", "gradcam", "losses", "methods", "metrics", "models", "teachers")
_TYPES = (
    "Batch",
    "Context",
    "Feed",
    "Head",
    "Hyper",
    "Method",
    "MethodVariables",
    "Network",
    "Networks",
    "Norm",
    "Outputs",
    "RawBatch",
    "Split",
    "Teacher",
    "TrainState",
    "View",
)
# name -> (module, its name there)
_NAMES = {
    **{name: ("kd_jax.types", name) for name in _TYPES},
    **{name: ("kd_jax.errors", name) for name in ("InputError", "Preempted", "TrainingError")},
    "LoadedRun": ("kd_jax.loaded", "LoadedRun"),
    "Result": ("kd_jax.training", "Result"),
    "create_model": ("kd_jax.models", "create"),
    "evaluate_run": ("kd_jax.evaluation", "evaluate_run"),
    "explain_run": ("kd_jax.explaining.agreement", "explain_run"),
    "load": ("kd_jax.loaded", "load"),
    "train": ("kd_jax.training", "train"),
}

__all__ = [
    "augment",
    "create_model",
    "evaluate_run",
    "explain_run",
    "gradcam",
    "load",
    "losses",
    "methods",
    "metrics",
    "models",
    "teachers",
    "train",
    *sorted({*_NAMES} - {"create_model", "evaluate_run", "explain_run", "load", "train"}),
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"kd_jax.{name}")
    if name in _NAMES:
        module, attribute = _NAMES[name]
        return getattr(importlib.import_module(module), attribute)
    if name == "__version__":
        return _version()
    raise AttributeError(f"module 'kd_jax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*__all__, "__version__", *globals()})


def _version() -> str:
    from importlib import metadata

    try:
        return metadata.version("kd_jax")
    except metadata.PackageNotFoundError:  # a checkout that is not installed
        return "0+unknown"
