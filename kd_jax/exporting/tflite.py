"""TensorFlow Lite (LiteRT), of a fixed batch: its runtime plans the memory of every array when it starts.

With `quantize` "int8" weights and activations are 8-bit integers, calibrated on training images; logits are float32.
"""

import warnings

import numpy as np

from kd_jax.errors import InputError, one_line
from kd_jax.exporting import Options, Program, Runner, batches, in_batches
from kd_jax.exporting.savedmodel import tensorflow, tensorflow_function
from kd_jax.quiet_tensorflow import no_stderr


def write(program: Program, path: str, options: Options) -> None:
    """Writes a file; raises InputError for a network that TensorFlow Lite has no operations for."""
    batch = options.batch or 1
    tf, function = tensorflow_function(program, batch)
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function], tf.Module())
    if options.quantize:
        images = options.images
        if images is None:
            raise InputError("--quantize is 'int8', which needs training images; expected the folder of a run")
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = lambda: ([part] for part in batches(images, batch))
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    try:
        with no_stderr():
            converted = converter.convert()
    except Exception as error:  # of the converter's own kinds, with pages of text
        raise InputError(f"TensorFlow Lite cannot hold the network: {one_line(error, 160)}") from error
    with open(path, "xb") as file:
        file.write(converted)


def runner(path: str) -> Runner:
    """Runs it in TensorFlow's own interpreter; without XNNPACK where that lacks an operation, as 8-bit grouped ones."""
    with open(path, "rb") as file:
        content = file.read()
    try:
        return _runner(content, "AUTO")
    except RuntimeError:
        return _runner(content, "BUILTIN_WITHOUT_DEFAULT_DELEGATES")


def _runner(content: bytes, kernels: str) -> Runner:
    lite = tensorflow().lite
    with no_stderr(), warnings.catch_warnings(action="ignore"):  # that it has moved to the package ai-edge-litert
        interpreter = lite.Interpreter(
            model_content=content, experimental_op_resolver_type=lite.experimental.OpResolverType[kernels]
        )
        interpreter.allocate_tensors()
    (given,), (said,) = interpreter.get_input_details(), interpreter.get_output_details()

    def run(images: np.ndarray) -> np.ndarray:
        interpreter.set_tensor(given["index"], images)
        interpreter.invoke()
        return interpreter.get_tensor(said["index"])

    return in_batches(run, given["shape"][0])
