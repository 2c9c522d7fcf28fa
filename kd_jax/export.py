"""Writes the student of a finished run for other programs.

usage: python -m kd_jax.export --workdir=RUN --to=model.safetensors
       python -m kd_jax.export --workdir=RUN --to=model.stablehlo|model.tflite|model.onnx [FLAGS]
       python -m kd_jax.export --workdir=RUN --to=FOLDER --format=savedmodel [FLAGS]

A .safetensors file holds the weights, under PyTorch's key names. The other formats are programs: images in, logits out;
of a run without labels the embedding. They are made of a run's folder or of a .safetensors file of this command, and
each is run by its own runtime and compared with the network before the file appears. PATH.json beside it says what is
known of it. An existing file is never replaced.
"""

import os

from absl import flags

from kd_jax import cli
from kd_jax.errors import InputError, choose

FORMAT = flags.DEFINE_string("format", None, "safetensors, stablehlo, savedmodel, tflite or onnx; by default by --to.")
PREPROCESS = flags.DEFINE_enum(
    "preprocess",
    "inside",
    ["inside", "beside"],
    "inside: the program reads pixels, uint8; beside: normalized images, by the numbers in PATH.json.",
)
BATCH = flags.DEFINE_integer("batch", None, "tflite: images of a call, by default 1.", lower_bound=1)
QUANTIZE = flags.DEFINE_enum("quantize", None, ["int8"], "tflite: weights and activations as 8-bit integers.")
for name in ("workdir", "to", "path", "import"):
    flags.declare_key_flag(name)


def main(arguments: list[str]) -> None:
    if arguments or not cli.WORKDIR.value or not cli.TO.value:
        raise InputError("expected --workdir=FOLDER, the folder of a finished run, and --to=FILE")
    said = export(
        cli.WORKDIR.value,
        cli.TO.value,
        FORMAT.value,
        preprocess=PREPROCESS.value,
        batch=BATCH.value,
        quantize=QUANTIZE.value or "",
        data=cli.PATH.value,
    )
    print(said)


def export(
    run: str | os.PathLike[str],
    path: str | os.PathLike[str],
    format: str | None = None,
    *,
    preprocess: str = "inside",
    batch: int | None = None,
    quantize: str = "",
    data: str | None = None,
) -> str:
    """Writes the student's weights, with all that `kd_jax.load` needs to build the network again; or a program.

    Args:
      run: the folder of a finished run; for a program also a .safetensors file that this function wrote.
      path: of a new file; for a SavedModel of a new folder.
      format: "safetensors", or one of `exporting.FORMATS`; by default what the ending of `path` says.
      preprocess: "inside": a program reads uint8 images [B, h, w, C], as the run's data has them. "beside": float32
        ones [B, size, size, C], resized and normalized by the numbers in `path`.json.
      batch: of a TensorFlow Lite program, by default 1.
      quantize: "int8" for a TensorFlow Lite program of 8-bit integers, calibrated on training images.
      data: the data's path, if it has moved.
    Returns:
      What was written, in one line.
    Raises:
      InputError: when there is no such run, or the file already exists or cannot be written, or the format's library
        is not installed or cannot hold the network. TrainingError: when the program differs from the network.
    """
    from kd_jax import exporting

    run, path = os.path.expanduser(run), os.path.normpath(os.path.expanduser(path))
    format = format or exporting.by_path(path)
    options = exporting.Options(batch, quantize)
    if choose("--format", format, {*exporting.FORMATS, "safetensors"}) == "safetensors":
        from kd_jax.exporting import safetensors

        if options != exporting.Options() or preprocess != "inside":
            raise InputError("--format is safetensors, of weights; expected no --preprocess, --batch, --quantize")
        if os.path.isfile(run):
            raise InputError(
                f"--workdir is {run!r}, a file; expected the folder of a finished run, or another --format"
            )
        named = safetensors.write(run, path)
        return f"wrote {path}" + ("" if named else ", under Flax's key names: the network has no PyTorch names")

    exporting.check(format, path, options)
    from kd_jax.exporting import program

    source = program.read(run, preprocess, data)
    options = options._replace(images=source.training)
    found = exporting.export(format, source.program, path, options, source.test)
    if source.program.rounded and not quantize:
        print(
            "the run was trained with 8 bits, which the program does without; --format=tflite --quantize=int8 has them"
        )
    return (
        f"wrote {path} and {path}{exporting.SIDECAR}, {exporting.megabytes(path):.2f} MB; on {source.images} it differs"
        f" from the network by at most {found['error']:.1e} of the largest"
        + (f", and {found['same']:.1%} of the classes are the same" if source.program.returns == "logits" else "")
    )


if __name__ == "__main__":
    cli.run(main, __doc__)
