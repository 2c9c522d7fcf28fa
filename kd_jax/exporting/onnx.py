"""ONNX, of any batch. jax2onnx writes it, which needs another Orbax than kd_jax: `launch/onnx.sh` has its place."""

import json
import logging

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
    from jax.extend.core import jaxpr_as_fun

    from kd_jax.exporting.plain import plain

    (batch,) = jax.export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((batch, *program.shape), program.dtype)
    # Traced before jax2onnx puts functions of its own, with other arguments, in the place of Flax's. Its maximum over
    # windows is one over four axes, which no runtime has.
    traced = jax.make_jaxpr(plain(program.apply, pools=False))(images)
    logging.getLogger("onnx_ir").setLevel(logging.ERROR)  # it warns of every shape without a type
    model = jax2onnx.to_onnx(
        lambda x: jaxpr_as_fun(traced)(x)[0], [images], input_names=["images"], output_names=[program.returns]
    )
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
    return lambda images: np.asarray(session.run(None, {"images": images})[0])
