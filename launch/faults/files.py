"""The files of a run: damaged, and written many times."""

import contextlib
import io
import json
import os
import random
import re
import threading
from pathlib import Path
from typing import Any

from launch.faults.bench import Bench, command

# How damage is named. The report of a whole run says "left out" too.
NAMED = re.compile(r"damaged|without checksums|left out|cannot be|Without a|holds \d+ of")


def damage(random: random.Random, path: Path) -> str:
    """Flips a bit of a file, cuts it, or removes it."""
    content = path.read_bytes()
    kind = random.choice(["flip", "flip", "flip", "cut", "remove"]) if content else "remove"
    at = random.randrange(len(content)) if content else 0
    if kind == "flip":
        path.write_bytes(content[:at] + bytes([content[at] ^ 1 << random.randrange(8)]) + content[at + 1 :])
    elif kind == "cut":
        path.write_bytes(content[:at])
    else:
        path.unlink()
    return f"{kind} of {path.name} at {at} of {len(content)}"


def numbers(folder: Path) -> dict[str, Any]:
    """What every command that reads a run makes of it."""
    from kd_jax import evaluation, report

    run, to = str(folder / "run"), folder / "report"
    report.report([run], str(to))
    return {
        "evaluate": evaluation.evaluate_run(run, runs_folder=str(folder / "runs")),
        "report": re.sub("try-[0-9-]+|whole", "", (to / "report.md").read_text()),
    }


def flips(bench: Bench, random: random.Random, tries: int) -> list[str]:
    """Damage to any file of a run is named, or changes no number."""
    from kd_jax import checksums
    from kd_jax.errors import InputError

    lost = []
    with bench.scratch(bench.whole) as folder, contextlib.redirect_stdout(io.StringIO()) as text:
        whole = numbers(folder)
    quiet = len(NAMED.findall(text.getvalue() + whole["report"]))
    files = sorted(path for path in bench.whole.rglob("*") if path.is_file())
    files = [path for path in files if path.name not in ("out", ".lock") and "tfevents" not in path.name]
    for _ in range(tries):
        checksums._said.clear()
        text = io.StringIO()
        with bench.scratch(bench.whole) as folder:
            what = damage(random, folder / random.choice(files).relative_to(bench.whole))
            with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
                try:
                    found = numbers(folder)
                except InputError:
                    continue
                except Exception as error:
                    lost.append(f"{what}: {type(error).__name__}: {error}")
                    continue
        if found != whole and len(NAMED.findall(text.getvalue() + found["report"])) == quiet:
            lost.append(f"{what}: other numbers, and not a word")
    return lost


def flips_before_the_end(bench: Bench, random: random.Random, tries: int) -> list[str]:
    """Damage to a run that was killed before its result is named, or it ends as the one that nothing happened to."""
    from kd_jax import checksums, training
    from kd_jax.errors import InputError

    lost = []
    config = json.loads((bench.whole / "run" / "config.json").read_text())["config"]
    files = sorted(path for path in (bench.whole / "run").rglob("*") if path.is_file())
    files = [path for path in files if path.name not in (".lock", "result.json") and "tfevents" not in path.name]
    for _ in range(tries):
        checksums._said.clear()
        text = io.StringIO()
        with bench.scratch(bench.whole) as folder:
            (folder / "run" / "result.json").unlink()
            what = damage(random, folder / random.choice(files).relative_to(bench.whole))
            with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
                try:
                    training.train(config, folder / "run", runs_folder=folder / "runs")
                    differences = bench.differences(folder)
                except InputError:
                    continue
                except Exception as error:
                    lost.append(f"{what}: {type(error).__name__}: {error}")
                    continue
        if differences and not NAMED.search(text.getvalue()):
            lost.append(f"{what}: {', '.join(differences)}, and not a word")
        if "student's result differs" in differences:
            lost.append(f"{what}: another result")
    return lost


def flips_of_the_command(bench: Bench, random: random.Random, tries: int) -> list[str]:
    """The same through `python -m kd_jax.evaluate`."""
    lost = []
    checkpoint = json.loads((bench.whole / "run" / "result.json").read_text())["checkpoint"]
    files = [path for path in (bench.whole / "run" / "checkpoints" / str(checkpoint)).rglob("*") if path.is_file()]
    files += [bench.whole / "run" / name for name in ("config.json", "result.json")]
    for _ in range(tries):
        with bench.scratch(bench.whole) as folder:
            what = damage(random, folder / random.choice(sorted(files)).relative_to(bench.whole))
            done = command("evaluate", f"--workdir={folder}/run", f"--runs={folder}/runs")
            if done.returncode == 0 and "without checksums" not in done.stderr:
                test = {k: v for k, v in json.loads(done.stdout).items() if k != "workdir"}
                if test != bench.expected["student's result"]["test"]:
                    lost.append(f"{what}: other numbers, and not a word")
            elif done.returncode not in (0, 2) or "Traceback" in done.stderr:
                lost.append(f"{what}: {done.stderr[-300:]}")
    return lost


def many_saves(bench: Bench, random: random.Random, tries: int) -> list[str]:
    """Saving leaves no thread and no file open."""
    import jax

    from kd_jax import experiment, steps
    from kd_jax.checkpoint import Checkpoints

    config = json.loads((bench.whole / "run" / "config.json").read_text())["config"]
    made = experiment.create(config, runs_folder=str(bench.whole / "runs"))
    feed = made.feed()
    state = made.jit(steps.init_state)(0, made.place(made.teacher.load()[0]), feed.example, feed.labels)
    jax.block_until_ready(state)

    def used() -> tuple[int, int]:
        return threading.active_count(), len(os.listdir("/proc/self/fd"))

    with bench.scratch() as folder, contextlib.closing(Checkpoints(str(folder))) as checkpoints:
        checkpoints.save(state, 1)
        checkpoints.wait()
        before = used()
        for step in range(2, tries + 2):
            checkpoints.save(state, step)
        checkpoints.wait()
        after = used()
    return [] if after == before else [f"(threads, open files) were {before} and are {after}"]
