"""Imports TensorFlow, for data and event files only: without its log lines, and away from the GPUs."""

import contextlib
import os
from collections.abc import Iterator
from types import ModuleType


def import_tensorflow() -> ModuleType:
    """The module; raises ImportError where it is not installed."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with no_stderr():
        import tensorflow as tf

        with contextlib.suppress(RuntimeError):  # it runs already, and its devices are settled
            tf.config.set_visible_devices([], "GPU")  # their memory is JAX's
    return tf


@contextlib.contextmanager
def no_stderr() -> Iterator[None]:
    """TensorFlow's C++ writes to the descriptor, before its own log level is read and where that is none."""
    saved, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(null)
