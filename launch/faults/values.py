"""Odd values in a config."""

import contextlib
import io
import random

from launch.faults.bench import Bench, command


def odd_values(bench: Bench, random: random.Random, tries: int) -> list[str]:
    """Every odd value of a config is refused in one line, or works."""
    from kd_jax import experiment
    from kd_jax.errors import InputError
    from tests.odd_values import odd_configs

    lost = []
    cases = list(odd_configs())
    for what, config in cases if tries >= len(cases) else random.sample(cases, tries):
        text = io.StringIO()
        try:
            with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
                experiment.create(config, runs_folder=str(bench.folder / "none"))
        except InputError as error:
            if "\n" in str(error):
                lost.append(f"{what}: more than one line: {error}"[:300])
        except BaseException as error:
            lost.append(f"{what}: {type(error).__name__}: {error}"[:300])
    return lost


def odd_values_of_the_command(bench: Bench, random: random.Random, tries: int) -> list[str]:
    lost = []
    keys = ("train.epochs", "train.batch_size", "model.width", "optimizer.learning_rate", "dataset.image_size", "seed")
    values = ("-1", "0", "1.5", "nan", "inf", "x", "", "None", "1e30", "(1,2)", "true", "1000000000000000000000")
    for _ in range(tries):
        key, value = random.choice(keys), random.choice(values)
        with bench.scratch() as folder:
            flags = (f"--workdir={folder}/run", f"--runs={folder}/runs", "--config.train.steps=1")
            done = command("main", f"--config={bench.folder}/config.py", *flags, f"--config.{key}={value}")
            folder.mkdir(exist_ok=True)
            if done.returncode not in (0, 1, 2) or "Traceback" in done.stderr:
                lost.append(f"{key}={value}: {done.stderr[-300:]}")
    return lost
