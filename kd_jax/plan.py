"""Says what a run would take, without training anything: size, FLOPs, memory, time, and what suits the images.

usage: python -m kd_jax.plan [--config=NAME[:ARGUMENT]] [--config.KEY=VALUE ...] [--json]

A few steps of the student, and of a teacher that would be trained first, are timed on this machine; nothing is written.
What suits so many images is a rule of thumb, printed as flags to add.
"""

import contextlib
import json
import os
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from absl import flags
from ml_collections import config_flags

from kd_jax import cli, config, terminal
from kd_jax.errors import InputError
from kd_jax.main import given, with_config

for flag in ("config", "term", "json", "runs", "import"):
    flags.declare_key_flag(flag)


def main(arguments: list[str]) -> None:
    tree = given(arguments)
    print("plan: nothing is trained or written", file=sys.stderr, flush=True)
    from kd_jax import experiment, planning

    with contextlib.redirect_stdout(sys.stderr):  # what is said of the data is no part of the plan
        made = experiment.create(tree, runs_folder=cli.RUNS.value)
        found = planning.plan(made, say)
    at, advice = advised(found, made.config)
    if cli.JSON.value:
        scale = at and {"config": at[0].removesuffix(":"), "why": at[1]}
        found |= {"scale": scale, "advice": [each._asdict() for each in advice]}
        print(json.dumps(found, indent=1))
    else:
        for line in [*described(found), *in_words(at, advice)]:
            print(terminal.fold(line, sys.stdout))


def say(line: str) -> None:
    print(f"plan: {line} ...", file=sys.stderr, flush=True)


def on_stderr(arguments: list[str]) -> list[str]:
    """See `main.with_config`; what it says is no part of the plan."""
    with contextlib.redirect_stdout(sys.stderr):
        return with_config(arguments)


def advised(found: Mapping[str, Any], tree: Mapping[str, Any]) -> tuple[tuple[str, str] | None, list[Any]]:
    """((the value of --config, why), what of it would better be otherwise), for a plan; None to keep the config."""
    from kd_jax import advice
    from kd_jax.config import recipes

    at, largest = None, found["largest_batch"]
    path, _, argument = config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")
    name = os.path.basename(path).removesuffix(".py")
    scale, why = advice.scale(found["data"], accelerator=found["accelerator"])
    known = argument in recipes.SCALES and config.shipped().get(name) == path
    if known and scale != argument and found["data"]["source"] != "digits":
        with contextlib.suppress(InputError):  # of an experiment that has no scales
            tree, at, largest = config.experiment(name).get_config(scale).to_dict(), (f"{name}:{scale}", why), 0
    return at, advice.advise(tree, found["data"], accelerator=found["accelerator"], largest=largest)


def described(found: Mapping[str, Any]) -> Iterator[str]:
    """The lines of a plan, for people."""
    from kd_jax.teacher_cache import size_of

    data, memory = found["data"], found["memory"]
    pixels = "x".join(map(str, data["shape"]))
    classes = f" of {data['classes']} classes" if data["classes"] else " without labels"
    yield f"{found['name']} on {found['device']}: {data['images']:,} images of {pixels}{classes} to train on"
    yield f"{'':10}{'parameters':>12}{'FLOPs of an image':>20}{'memory':>12}"
    networks = {role: found[role] for role in ("student", "teacher") if found[role]}
    for role, x in networks.items():
        flops = f"{_number(x['flops']):>20}"
        yield f"{role:10}{x['parameters']:>12,}{flops}{size_of(x['bytes']):>12}  {x['name']}"
    for term, x in found["terms"].items():
        yield f"{'method':10}{x['parameters']:>12,}{'':20}{size_of(x['bytes']):>12}  {term}"
    if not found["terms"]:
        yield f"{'method':10}{0:>12}{'':20}{size_of(0):>12}  adds nothing"
    batch, largest = found["batch"], found["largest_batch"]
    yield (
        f"a step of {batch} images: {_number(found['step_flops'])} FLOPs, {size_of(memory['peak'])} on a device:"
        f" arguments {size_of(memory['argument'])}, temporary {size_of(memory['temp'])},"
        f" output {size_of(memory['output'] - memory['alias'])} more"
    )
    fits = "it fits" if found["fits"] else "it does NOT fit"
    most = f"the largest batch that does, by doubling, is {largest}" if largest else "no smaller batch does either"
    yield f"{fits} into the {size_of(memory['room'])} that there are; {most}"
    for i, one in enumerate(found["teachers_to_train"]):
        yield f"{'then' if i else 'first'} the teacher {one['name']} is trained: {_time(one['time'])}  {one['folder']}"
    yield f"then the student: {_time(found['time'])}" if found["teachers_to_train"] else _time(found["time"])
    each = [one["time"] for one in found["teachers_to_train"]] + [found["time"]]
    if len(each) > 1 and all(each):
        yield f"together {_short(sum(x['run'] for x in each))}, without evaluations and checkpoints"
    if cache := found["cache"]:
        if "step" in cache:
            yield (
                f"without the teacher a step takes {_short(cache['step'])}, {cache['saved']:.0%} less, where its"
                f" {cache['kept']} are kept: {size_of(cache['recording'])} for a recording of this run"
            )
            if cache["table"]:
                yield (
                    f"a table of all views takes {size_of(cache['table'])}, and the teacher {cache['passes']} passes"
                    f" over the images to make, about {_short(cache['table_seconds'])}"
                )
        advised = f"--config.teacher.cache={cache['advised']}"
        yield f"advised: {advised if cache['advised'] != 'none' else 'no teacher.cache'}; {cache['why']}"


def in_words(at: tuple[str, str] | None, advice: list[Any]) -> Iterator[str]:
    """What is advised, as flags."""
    if not (at or advice):
        yield "by rule of thumb, the config suits so many images"
        return
    yield "by rule of thumb, for so many images:"
    if at:
        yield f"  --config={at[0].removesuffix(':')}  ({at[1]}; another plan says what it takes)"
    for each in advice:
        value = str(each.value).lower() if isinstance(each.value, bool) else each.value
        yield f"  --config.{each.key}={value}  ({each.why})"


def _time(time: Mapping[str, Any] | None) -> str:
    if time is None:
        return "its time was not measured, as a step does not fit"
    return (
        f"{_short(time['step'])} a step, {_short(time['epoch'])} an epoch, {_short(time['run'])} for"
        f" {time['steps']:,} steps ({time['epochs']:.3g} epochs), of which compiling {_short(time['compiling'])}"
    )


def _short(seconds: float) -> str:
    """Seconds for a person, also few."""
    from kd_jax.logging.progress import duration

    return duration(seconds) if seconds >= 10 else f"{seconds:.2g}s" if seconds >= 1 else f"{1e3 * seconds:.3g}ms"


def _number(value: float | None) -> str:
    if value is None:
        return "?"
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.3g}"


if __name__ == "__main__":
    cli.run(main, __doc__, on_stderr)
