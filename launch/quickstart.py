"""The quickstart's table: a teacher on handwritten digits, the same student alone and distilled, over some seeds.

usage: python -m launch.quickstart [--seeds=1] [--rows=alone,rkd_same,rkd] [--runs=runs]

The rows are those of configs/quickstart.py. Runs that have finished are picked up.
"""

import os

from absl import flags

from configs import quickstart
from kd_jax import cli, runs
from kd_jax.errors import InputError, choose
from launch import compare

SEEDS = flags.DEFINE_integer("seeds", 1, "Seeds 0, 1, ... of every student; the teacher's is 0.", lower_bound=1)
ROWS = flags.DEFINE_list("rows", ["alone", "rkd_same", "rkd"], "Rows of the table; `alone` is always among them.")
flags.declare_key_flag("runs")

LABELS = {
    "alone": "student alone, 200 labelled images",
    "kd_same": "distilled by KD on the same 200 images",
    "kd": "distilled by KD, the other training images beside them without labels",
    "rkd_same": "distilled by RKD on the same 200 images",
    "rkd": "distilled by RKD, the other training images beside them without labels",
}


def main(arguments: list[str]) -> None:
    if arguments:
        raise InputError(f"the argument {arguments[0]!r} is not known; expected flags only, see --help")
    from kd_jax import experiment, training

    rows = ["alone", *(choose("--rows", row, quickstart.ROWS) for row in ROWS.value if row != "alone")]
    results: dict[str, dict[int, dict]] = {row: {} for row in rows}
    teacher = None
    for seed in range(SEEDS.value):
        for row in rows:
            config = quickstart.get_config(row)
            config.seed = seed
            made = experiment.create(config, runs_folder=cli.RUNS.value)
            folder = training.default_folder(made, cli.RUNS.value)
            training.run(made, folder)
            results[row][seed] = runs.read_json(folder, "result.json")
            teacher = made.teacher or teacher
    print()
    if teacher:
        result = runs.read_json(teacher.folder, "result.json")
        print(
            f"teacher: test accuracy {100 * result['test']['accuracy']:.2f}%, {result['parameters']:,} parameters,"
            f" {result['seconds']:.0f} s. It saw every label of the training set."
        )
    student = results["alone"][0]
    print(f"student: {student['parameters']:,} parameters, labels of 200 images. {student['device']}.\n")
    print(compare.table(results, "alone", LABELS))
    if SEEDS.value == 1:
        print("\nOne seed says little. --seeds=10 --rows=alone,kd_same,kd,rkd_same,rkd compares ten.")
    print(f"\nThe runs lie in {os.path.abspath(cli.RUNS.value)}, the teacher in its folder `teachers`.")


if __name__ == "__main__":
    cli.run(main, __doc__)
