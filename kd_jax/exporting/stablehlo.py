"""What `jax.export` writes: StableHLO for a CPU, CUDA and TPU, of any batch, with the weights; JAX alone runs it."""

import numpy as np

from kd_jax.exporting import Options, Program, Runner

PLATFORMS = ("cpu", "cuda", "tpu")


def write(program: Program, path: str, options: Options) -> None:
    """Writes a file."""
    import jax
    import jax.export

    (batch,) = jax.export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((batch, *program.shape), program.dtype)
    exported = jax.export.export(jax.jit(program.apply), platforms=PLATFORMS)(images)
    with open(path, "xb") as file:
        file.write(exported.serialize(vjp_order=0))


def runner(path: str) -> Runner:
    """Runs it in JAX."""
    import jax
    import jax.export

    with open(path, "rb") as file:
        call = jax.jit(jax.export.deserialize(bytearray(file.read())).call)
    return lambda images: np.asarray(call(images))
