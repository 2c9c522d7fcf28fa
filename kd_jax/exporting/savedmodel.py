"""A SavedModel of TensorFlow, of any batch, which TensorFlow alone runs: its signature `serving_default`."""

from typing import Any

import numpy as np

from kd_jax.errors import InputError
from kd_jax.exporting import Options, Program, Runner
from kd_jax.quiet_tensorflow import import_tensorflow

INPUT = "images"
PLATFORMS = ("cpu", "cuda", "tpu")


def write(program: Program, path: str, options: Options) -> None:
    """Writes a folder."""
    tf, function = tensorflow_function(program, None)
    tf.saved_model.save(tf.Module(), path, signatures=function)


def runner(path: str) -> Runner:
    """Runs it in TensorFlow."""
    tf = tensorflow()
    call = tf.saved_model.load(path).signatures["serving_default"]

    def run(images: np.ndarray) -> np.ndarray:
        (said,) = call(**{INPUT: tf.constant(images)}).values()
        return said.numpy()

    return run


def tensorflow() -> Any:
    """TensorFlow; raises InputError where it is not installed."""
    try:
        return import_tensorflow()
    except ImportError as error:
        raise InputError("this format needs TensorFlow, which is not installed; expected that") from error


def tensorflow_function(program: Program, batch: int | None) -> tuple[Any, Any]:
    """TensorFlow, and its concrete function of images [batch, h, w, C]; None stands for a batch of any size."""
    tf = tensorflow()
    from jax.experimental import jax2tf  # which imports TensorFlow

    from kd_jax.exporting.plain import plain

    converted = jax2tf.convert(
        plain(program.apply),
        polymorphic_shapes=[None if batch else "(batch, ...)"],
        native_serialization_platforms=PLATFORMS,
        with_gradient=False,
    )
    images = tf.TensorSpec((batch, *program.shape), program.dtype, name=INPUT)
    function = tf.function(
        lambda images: {program.returns: converted(images)}, autograph=False, input_signature=[images]
    )
    return tf, function.get_concrete_function()
