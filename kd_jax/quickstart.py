"""The quickstart's table: a teacher on handwritten digits, the same student alone and distilled, over some seeds.

usage: python -m kd_jax.quickstart [--seeds=1] [--rows=alone,rkd_same,rkd] [--runs=runs]

The rows are those of configs/quickstart.py, and `alone` is always among them; the teacher's seed is 0. Runs that have
finished are picked up.
"""

from typing import Any

from absl import flags

from kd_jax import cli, compare, config, remote, runs
from kd_jax.errors import InputError, choose

for name in ("seeds", "rows", "runs"):
    flags.declare_key_flag(name)

LABELS = {
    "alone": "student alone, 200 labeled images",
    "kd_same": "distilled by KD on the same 200 images",
    "kd": "distilled by KD, the other training images beside them without labels",
    "rkd_same": "distilled by RKD on the same 200 images",
    "rkd": "distilled by RKD, the other training images beside them without labels",
}


def main(arguments: list[str]) -> None:
    if arguments:
        raise InputError(f"the argument {arguments[0]!r} is not known; expected flags only, see --help")
    from kd_jax import experiment, training

    quickstart = config.experiment("quickstart")
    chosen = cli.ROWS.value or ["rkd_same", "rkd"]
    rows = ["alone", *(choose("--rows", row, quickstart.ROWS) for row in chosen if row != "alone")]
    results: dict[str, dict[int, dict[str, Any]]] = {row: {} for row in rows}
    teacher, seeds = None, cli.SEEDS.value or 1
    for seed in range(seeds):
        for row in rows:
            tree = quickstart.get_config(row)
            tree.seed = seed
            run = experiment.create(tree, runs_folder=cli.RUNS.value)
            results[row][seed] = training.run(run, training.default_folder(run, cli.RUNS.value)).result
            teacher = run.teacher or teacher
    print()
    if teacher:
        result = runs.read_json(teacher.source, "result.json")
        print(
            f"teacher: test accuracy {100 * result['test']['accuracy']:.2f}%, {result['parameters']:,} parameters,"
            f" {result['seconds']:.0f} s. It saw every label of the training set."
        )
    student = results["alone"][0]
    print(f"student: {student['parameters']:,} parameters, labels of 200 images. {student['device']}.\n")
    print(compare.table(results, "alone", LABELS))
    if seeds == 1:
        print("\nOne seed says little. --seeds=10 --rows=alone,kd_same,kd,rkd_same,rkd compares ten.")
    print(f"\nThe runs lie in {remote.absolute(cli.RUNS.value)}, the teacher in its folder `teachers`.")


if __name__ == "__main__":
    cli.run(main, __doc__)
