"""What a run would take, without training it: parameters, FLOPs, memory, time, and what a teacher's cache would save.

Programs are compiled as the run compiles them and a few steps are timed, with random variables in the teacher's place:
it need not be there, and is not trained. Nothing is written. What suits so many images is in `advice`.
"""

import functools
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kd_jax import sharding, steps, teacher_cache
from kd_jax.data import folder, images
from kd_jax.experiment import Experiment
from kd_jax.exporting import measure
from kd_jax.steps import Components, StepOptions
from kd_jax.types import Array, Batch, Feed, Outputs, Variables

CALLS, SECONDS = 10, 4.0  # of a measurement at most
FAST: Any = {"xla_backend_optimization_level": 0}  # of a CPU's compiler: the same memory, in a fraction of the time
WORTH = 0.1  # of a step, which a cache has to save


def plan(made: Experiment, say: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
    """What `kd_jax plan --json` prints: sizes in bytes, times in seconds.

    Args:
      made: what would be run.
      say: is told what takes time, before it does.
    """
    batch = made.config["train"]["batch_size"]
    say("compiling a step")
    begin = time.perf_counter()
    compiled = made.lower(_steps_of_call(made)).compile()
    compiling = time.perf_counter() - begin
    room, peak = device_room(made), peak_of(compiled)
    step, cache = None, None
    if peak <= room:
        say("measuring steps")
        feed, variables = made.feed(), random_variables(made)
        step = seconds_of_step(made, feed, variables, compiled)
        if made.teacher and not made.teacher.is_average and made.components.method.needs_teacher:
            say("measuring steps without the teacher")
            cache = of_cache(made, feed, variables, step)
        del feed, variables
    say("looking for the largest batch")

    @functools.cache
    def peak_at(count: int) -> float:
        return peak if count == batch else compiled_peak(made, count)

    unit, data = made.mesh.size * made.config["train"]["accumulate"], of_data(made)
    largest = largest_batch(peak_at, batch, room, unit=unit, most=data["images"])
    return {
        "name": made.config["name"],
        "device": f"{made.mesh.size} x {made.mesh.devices.flat[0].device_kind}",
        "accelerator": sharding.platform(made.mesh) != "cpu",
        "data": data,
        "student": of_student(made),
        "teacher": made.teacher and of_teacher(made),
        "terms": of_terms(made),
        "batch": batch,
        "step_flops": flops_of_step(made),
        "memory": memory_of(compiled) | {"peak": peak, "room": room},
        "fits": peak <= room,
        "largest_batch": largest,
        "time": step and of_run(made, step, compiling),
        "teachers_to_train": [of_untrained(one, source, say) for source, one in untrained(made).items()],
        "cache": cache,
    }


def of_data(made: Experiment) -> dict[str, Any]:
    """What is trained on, and how large the images are that it was made of."""
    train, section = made.dataset.train, made.config["dataset"]
    *sides, channels = train.images.shape[1:]
    side = min(sides)
    found = [side] if side < section["image_size"] else []  # smaller ones are kept as they are
    if not found and section["source"] == "folder":
        found = folder.shorter_sides(section["path"], label_free=section["label_free"])
    return {
        "name": made.dataset.name,
        "source": section["source"],
        "images": len(train.labels),
        "classes": len(made.dataset.class_names),
        "shape": [*sides, channels],
        "side": side,
        "channels": channels,
        "shorter_side": int(np.median(found)) if found else None,  # the median; None where that is not known
    }


def of_student(made: Experiment) -> dict[str, Any]:
    """Its name, parameters, FLOPs of an image forward, and the bytes of all that is kept of it in training."""
    state = made.state_shapes()
    variables = {"params": state.params["student"], "batch_stats": state.stats["student"]}

    def forward(variables: Variables, pixels: Array, *, components: Components, options: StepOptions) -> Array:
        return _said(components.student.apply(variables, components.prepare(pixels), train=False)[0])

    return {
        "name": made.config["model"]["name"],
        "parameters": count(state.params["student"]),
        "flops": _flops(made, forward, variables),
        "bytes": nbytes((variables, state.optimizer_state["student"], state.ema)),
    }


def of_teacher(made: Experiment) -> dict[str, Any]:
    """The same of the teacher, of which there are the variables alone."""
    assert made.teacher is not None, "somebody teaches"
    average = made.teacher.is_average
    shapes = made.state_shapes().ema if average else made.teacher.shapes
    classes = len(made.dataset.class_names)

    def forward(variables: Variables, pixels: Array, *, components: Components, options: StepOptions) -> Array:
        none = jnp.zeros(1, jnp.int32)
        batch = Batch(pixels, none, jnp.zeros((1, classes)), none, none)
        return _said(steps.ask(components, variables, batch, jax.random.key(0), False))

    leaves = jax.tree_util.tree_leaves_with_path(shapes)
    trained = [x for path, x in leaves if "batch_stats" not in [getattr(key, "key", "") for key in path]]
    return {
        "name": made.teacher.name,
        "parameters": count(trained),
        "flops": _flops(made, forward, shapes),
        "bytes": 0 if average else nbytes(shapes),  # it is counted with the student
    }


def of_terms(made: Experiment) -> dict[str, dict[str, int]]:
    """What the method adds: {term: parameters, and bytes with their moments, memory banks and the like}."""
    state = made.state_shapes()
    trees = (state.params, state.stats, state.optimizer_state)
    terms = {term: [tree.get(term) for tree in trees] for term in made.config["method"]}
    return {term: {"parameters": count(own[0]), "bytes": nbytes(own)} for term, own in terms.items() if nbytes(own[:2])}


def count(tree: Any) -> int:
    """How many numbers a tree of arrays, or of their shapes, has."""
    return sum(math.prod(x.shape) for x in jax.tree.leaves(tree))


def nbytes(tree: Any) -> int:
    """How many bytes."""
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def _said(outputs: Outputs) -> Array:
    if outputs.num_classes:
        return outputs.logits
    assert outputs.embedding is not None, "a network without classes has an embedding"
    return outputs.embedding


def _flops(made: Experiment, forward: Callable[..., Any], variables: Any) -> float | None:
    """Of one image, by XLA's analysis of the program as it is written: a multiplication and an addition are two."""
    function: Any = made.jit(forward)
    pixels = jax.ShapeDtypeStruct((1, *made.dataset.train.images.shape[1:]), jnp.uint8)
    return _analyzed(function.lower(variables, pixels))


def _analyzed(lowered: Any) -> float | None:
    """None where a platform's compiler does not say."""
    return (lowered.cost_analysis() or {}).get("flops")


def flops_of_step(made: Experiment) -> float | None:
    """Of a training step of the whole batch, forward and back, by the same analysis."""
    flops = _analyzed(made.lower())
    rounds = 1 if made.options.unroll else made.options.micro_batches  # of a loop it counts one
    return flops and flops * rounds


def _steps_of_call(made: Experiment) -> int:
    return min(made.steps_per_call, made.steps)


def memory_of(compiled: Any) -> dict[str, int]:
    """Bytes of a compiled program on each device; "alias" of those that are argument and output in one."""
    found = compiled.memory_analysis()
    return {kind: getattr(found, f"{kind}_size_in_bytes") for kind in ("argument", "output", "alias", "temp")}


def peak_of(compiled: Any) -> int:
    """Bytes that a compiled program takes on each device at most."""
    memory = memory_of(compiled)
    return memory["argument"] + memory["output"] - memory["alias"] + memory["temp"]


def compiled_peak(made: Experiment, batch: int) -> float:
    """`peak_of` a call of training steps of so many images."""
    lowered = made.lower(_steps_of_call(made), batch)
    try:
        return peak_of(lowered.compile(FAST if sharding.platform(made.mesh) == "cpu" else None))
    except jax.errors.JaxRuntimeError as error:  # some compilers refuse what cannot fit
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return math.inf


def device_room(made: Experiment) -> int:
    """Bytes that each device has; of a CPU its share of the memory that is available, also in a container."""
    device = made.mesh.devices.flat[0]
    stats = device.memory_stats() if device.platform != "cpu" else None
    return stats["bytes_limit"] if stats else images.available_memory() // made.mesh.size


def largest_batch(peak: Callable[[int], float], batch: int, room: float, *, unit: int, most: int) -> int:
    """The largest batch that fits, of those that doubling or halving makes of one; 0 where none does.

    Args:
      peak: bytes at a batch. It compiles, so the first guess is taken from a line through two points.
      batch: to begin with.
      room: bytes.
      unit: of which a batch is a multiple.
      most: images of a batch.
    """
    other = 2 * batch if 2 * batch <= most else batch // 2
    slope = (peak(other) - peak(batch)) / (other - batch) if other and other % unit == 0 else math.inf
    guess, expected = batch, peak(batch)
    while 2 * guess <= most and expected + slope * guess <= room:
        guess, expected = 2 * guess, expected + slope * guess
    while peak(guess) > room:
        if guess % (2 * unit):
            return 0
        guess //= 2
    return guess


def random_variables(made: Experiment) -> Variables:
    """Variables of the teacher's shapes, as a network's are at first: kernels of its initial size, and ones."""
    if made.teacher is None or made.teacher.is_average:
        return {}
    rng = np.random.default_rng(0)

    def leaf(x: Any) -> np.ndarray:
        if x.ndim < 2 or not jnp.issubdtype(x.dtype, jnp.floating):
            return np.ones(x.shape, x.dtype)
        return (rng.standard_normal(x.shape, np.float32) / math.sqrt(math.prod(x.shape[:-1]))).astype(x.dtype)

    variables: Variables = made.place(jax.tree.map(leaf, made.teacher.shapes))
    return variables


def seconds_of_step(
    made: Experiment,
    feed: Feed,
    variables: Variables,
    train_steps: Callable[..., Any],
    cache: teacher_cache.TeacherCache | None = None,
) -> float:
    """The median seconds of a training step.

    Args:
      made, feed: of the run.
      variables: the teacher's.
      train_steps: compiled.
      cache: what the teacher says comes from there, and `train_steps` is its own.
    """
    length, hyper = _steps_of_call(made), made.place(made.hyper)
    state = made.init_state(np.uint32(made.config["seed"]), variables, feed.example, feed.labels)
    calls = _whole_calls(feed, length)

    def call() -> None:
        nonlocal state
        rows, asked = next(calls), variables
        if cache:
            rows, asked = cache.blank(rows), {}
        state, scalars = train_steps(state, asked, feed.constants, rows, hyper, feed.labels)
        jax.block_until_ready(scalars)

    return measure.latency(call, calls=CALLS, seconds=SECONDS) / 1e3 / length


def _whole_calls(feed: Feed, length: int) -> Iterator[Any]:
    """The rows of calls of so many steps, without end."""
    while True:
        begin = 0
        for rows, end in feed.calls(0):
            if end - begin == length:
                yield rows
            begin = end


def of_run(made: Experiment, step: float, compiling: float) -> dict[str, Any]:
    """What a run takes whose steps take so many seconds; evaluations and checkpoints are not counted.

    A smaller last batch of an epoch counts by its images, and its program as the other.
    """
    epoch = made.epoch
    image, compiling = step / epoch.batch_size, compiling * len(epoch.sizes)
    return {
        "compiling": compiling,
        "step": step,
        "epoch": image * epoch.images,
        "run": image * epoch.images_before(made.steps) + compiling,
        "steps": made.steps,
        "epochs": made.steps / epoch.steps,
    }


def untrained(made: Experiment) -> dict[str, Experiment]:
    """The runs of teachers that would be trained first, by folder, in their order."""
    found: dict[str, Experiment] = {}
    for one, source in made.missing_teachers():
        found |= untrained(one) | {source: one}
    return found


def of_untrained(made: Experiment, source: str, say: Callable[[str], None]) -> dict[str, Any]:
    """A teacher's run, and what it takes; no time where its steps do not fit."""
    say(f"compiling and measuring steps of the teacher {made.config['model']['name']}")
    begin = time.perf_counter()
    compiled = made.lower(_steps_of_call(made)).compile()
    compiling, fits = time.perf_counter() - begin, peak_of(compiled) <= device_room(made)
    step = seconds_of_step(made, made.feed(), random_variables(made), compiled) if fits else None
    found = {"name": made.config["name"], "folder": source, "peak": peak_of(compiled), "fits": fits}
    return {**found, "time": step and of_run(made, step, compiling)}


def of_cache(made: Experiment, feed: Feed, variables: Variables, step: float) -> dict[str, Any]:
    """What `teacher.cache` would save of a step of so many seconds, its bytes, and which one to take."""
    found = teacher_cache.readable(made, feed)
    if isinstance(found, str):
        return {"advised": "none", "why": f"nothing can be kept: {found}"}
    without = seconds_of_step(made, feed, variables, found.train_steps, found)
    need, saved = teacher_cache.needs(made, found.sizes), 1 - without / step
    chosen, free = need.choose(made.steps, feed.steps_per_epoch), teacher_cache.free_disk(made.runs_folder)
    asking = max(0.0, step - without) / made.config["train"]["batch_size"] / made.components.method.views
    why = "the first run's steps take as long, those of later runs with this seed, data and batch size do not"
    if chosen == "views":
        why = "the run has as many epochs as the table takes passes, and later runs of any seed find it"
    if saved < WORTH:
        chosen, why = "none", f"less than {WORTH:.0%} of a step is saved"
    elif chosen == "recording" and need.recording > free:
        chosen, why = "none", "the disk has no room for a recording"
    return {
        "kept": found.what,
        "step": without,
        "saved": saved,
        "recording": need.recording,
        "table": need.table,  # 0 where the views cannot be listed
        "passes": need.views,
        "table_seconds": asking * need.views * made.options.num_examples,
        "free": free,
        "advised": chosen,
        "why": why,
    }
