"""ONNX, of any batch. jax2onnx writes it, which needs another Orbax than kd_jax: `launch/onnx.sh` has its place."""

import json

import numpy as np

from kd_jax.errors import InputError
from kd_jax.exporting import Options, Program, Runner


def write(program: Program, path: str, options: Options) -> None:
    """Writes a file; raises InputError where jax2onnx is not installed."""
    try:
        import jax2onnx
        import onnx
    except ImportError as error:
        raise InputError(
            "--format is onnx, which needs jax2onnx, and that another Orbax than this environment's; expected an"
            " exported file and: bash launch/onnx.sh model.safetensors model.onnx"
        ) from error
    import jax
    import jax.export

    from kd_jax.exporting.plain import plain

    (batch,) = jax.export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((batch, *program.shape), program.dtype)
    model = jax2onnx.to_onnx(plain(program.logits), [images], input_names=["images"], output_names=["logits"])
    onnx.helper.set_model_props(model, {key: json.dumps(value) for key, value in program.about.items()})
    with open(path, "xb") as file:
        file.write(model.SerializeToString())


def runner(path: str) -> Runner:
    """Runs it in onnxruntime, on the CPU."""
    try:
        import onnxruntime
    except ImportError as error:
        raise InputError("an ONNX program needs onnxruntime, which is not installed; expected that") from error
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: np.asarray(session.run(["logits"], {"images": images})[0])
