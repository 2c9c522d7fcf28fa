"""Compares what a finished run can be exported to: size, accuracy, same predictions, latency on this machine.

usage: python -m kd_jax.benchmark_export --workdir=RUN --to=FOLDER [--path=DATA] [--test_images=1000]

Each format is exported, and run in a process of its own. --to is a new folder for the programs, and for the table as
`export_benchmark.json`. Times are medians of many calls, in milliseconds, from images in memory to logits in memory.
ONNX takes part where jax2onnx is installed, or where `bash launch/onnx.sh` has made its environment.
"""

from absl import flags

from kd_jax import cli
from kd_jax.errors import InputError

TEST_IMAGES = flags.DEFINE_integer("test_images", 1000, "Of the test set, or all.", lower_bound=1)
for name in ("workdir", "to", "path", "import"):
    flags.declare_key_flag(name)


def main(arguments: list[str]) -> None:
    if len(arguments) + bool(cli.WORKDIR.value) != 1 or not cli.TO.value:
        raise InputError("expected --workdir=RUN, the folder of a finished run, and --to=FOLDER, a new one")
    from kd_jax.exporting import benchmark

    rows = benchmark.run(cli.WORKDIR.value or arguments[0], cli.TO.value, cli.PATH.value, TEST_IMAGES.value)
    print(benchmark.table(rows))


if __name__ == "__main__":
    cli.run(main, __doc__)
