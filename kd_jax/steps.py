"""What is compiled to train: initialization, a step, many steps in one call. All pure."""

import dataclasses
import zlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax.traverse_util import empty_node, flatten_dict, unflatten_dict

from kd_jax import optim
from kd_jax.optim import Optimizer, merge
from kd_jax.types import (
    Array,
    Batch,
    Context,
    Hyper,
    Method,
    MethodVariables,
    Missing,
    Network,
    Networks,
    Outputs,
    RawBatch,
    Teacher,
    Terms,
    TrainState,
    Variables,
    View,
)


class Components(NamedTuple):
    """The functions that a step is made of."""

    student: Network
    teacher: Teacher | None
    method: Method
    optimizer: Optimizer
    augment: Callable[[Array, RawBatch], tuple[Batch, ...]]  # one batch of pixels for each view
    prepare: Callable[[Array], Array]  # pixels from 0 to 255 -> what the student reads


class StepOptions(NamedTuple):
    """The constants of a step."""

    num_examples: int  # images of the training set
    steps_per_epoch: int
    ema: float = 0.0  # decay of the student's moving average; 0 for none
    micro_batches: int = 1  # that a batch is computed in, one after another
    unroll: bool = False  # whether they make no loop
    batch_sharding: jax.sharding.Sharding | None = None  # of a batch's first dimension
    image_shape: tuple[int, ...] = ()  # [h, w, C] of the images that lie on the devices, see `gather`


def stream(rng: Array, name: str) -> Array:
    """Derives a named PRNG key."""
    return jax.random.fold_in(rng, zlib.crc32(name.encode()))


def init_state(
    seed: Array,
    teacher_variables: Variables,
    raw: RawBatch,
    train_labels: Array | None = None,
    *,
    components: Components,
    options: StepOptions,
) -> TrainState:
    """The state before the first step, a function of the seed. Jit it: eagerly it takes longer than to train.

    Args:
      seed: [] uint32.
      teacher_variables: of `components.teacher`.
      raw: a first batch, which methods may look at.
      train_labels: [N] of the whole training set, where it lies in memory.
      components, options: what the step is made of.
    """
    rng = jax.random.key(seed)
    images = components.prepare(components.augment(stream(rng, "augment"), raw)[0].images)
    variables = components.student.init(stream(rng, "student"), images)
    if components.teacher and components.teacher.is_average:
        teacher_variables = variables
    context = Context(())
    if components.method.carries:  # two networks less to trace and to compile where nothing reads them
        context, _ = forward(
            variables,
            teacher_variables,
            raw,
            rng=rng,
            step=jnp.int32(0),
            train=False,
            train_labels=train_labels,
            components=components,
            options=options,
        )
    method = components.method.init(stream(rng, "method"), context)
    params = {"student": variables["params"], **method.params}
    return TrainState(
        step=jnp.int32(0),
        params=params,
        stats={"student": variables["batch_stats"], **method.state},
        optimizer_state=components.optimizer.init(params),
        # A copy: the state is donated, and a buffer can be given away only once.
        ema=jax.tree.map(jnp.copy, dict(variables)) if options.ema else None,
        rng=key_of_steps(seed),
    )


def key_of_steps(seed: Array) -> Array:
    """The key that a run folds the number of each step into."""
    return stream(jax.random.key(seed), "steps")


def start_from(state: TrainState, variables: Variables) -> TrainState:
    """The state before the first step with pretrained variables of the student: all of them, or all but the head."""

    def replace(tree: Any, new: Any) -> dict[str, Any]:
        return unflatten_dict({**flatten_dict(tree), **flatten_dict(dict(new))})

    params = {**state.params, "student": replace(state.params["student"], variables["params"])}
    stats = {**state.stats, "student": replace(state.stats["student"], variables["batch_stats"])}
    ema = state.ema and {"params": params["student"], "batch_stats": stats["student"]}
    return state.replace(params=params, stats=stats, ema=jax.tree.map(jnp.copy, ema))


def method_variables(params: Mapping[str, Any], stats: Mapping[str, Any]) -> MethodVariables:
    """What the terms carry, of a state's `params` and `stats`."""
    return MethodVariables(*({group: x for group, x in tree.items() if group != "student"} for tree in (params, stats)))


def forward(
    variables: Variables,
    teacher_variables: Variables,
    raw: RawBatch,
    *,
    rng: Array,
    step: Array,
    train: bool,
    train_labels: Array | None,
    components: Components,
    options: StepOptions,
) -> tuple[Context, Any]:
    """Runs both networks on every view of a batch: what a method sees, and the student's batch statistics after it."""
    teacher, stats = components.teacher, variables["batch_stats"]
    views = []
    with jax.named_scope("augmentation"):
        batches = components.augment(stream(rng, "augment"), raw)
    for i, pixels in enumerate(batches):
        own = of_view(rng, i)
        taught = raw.taught[i] if raw.taught is not None else None
        if teacher and taught is None:
            taught = ask(components, teacher_variables, pixels, own, train)
        batch = read_by_student(components, pixels)
        current = {"params": variables["params"], "batch_stats": stats}
        with jax.named_scope("student"):
            outputs, stats = components.student.apply(current, batch.images, train=train, rng=stream(own, "student"))
        views.append(View(batch, outputs, taught))
    network: Any = (teacher.network, teacher_variables) if teacher and teacher.network else None
    teacher_images = read_by_teacher(components, batches[0]).images if network else None
    if raw.taught is not None:
        network = Missing("the teacher's network")
    context = Context(
        tuple(views),
        step,
        stream(rng, "method"),
        Networks((components.student, variables), network, teacher_images),
        options.num_examples,
        options.steps_per_epoch,
        train_labels,
    )
    return context, stats


def of_view(rng: Array, view: int) -> Array:
    """The key of a view, of a step's."""
    return rng if view == 0 else jax.random.fold_in(rng, view)


def read_by_student(components: Components, pixels: Batch) -> Batch:
    """The batch as the student reads it."""
    with jax.named_scope("augmentation"):
        return pixels._replace(images=components.prepare(pixels.images))


def read_by_teacher(components: Components, pixels: Batch) -> Batch:
    """The batch as the teacher reads it."""
    assert components.teacher is not None, "somebody teaches"
    with jax.named_scope("augmentation"):
        return pixels._replace(images=(components.teacher.prepare or components.prepare)(pixels.images))


def ask(components: Components, variables: Variables, pixels: Batch, rng: Array, train: bool) -> Outputs:
    """What the teacher says of one view, without gradient; `rng` is the view's key."""
    batch = read_by_teacher(components, pixels)
    assert components.teacher is not None
    with jax.named_scope("teacher"):
        return jax.lax.stop_gradient(components.teacher.apply(variables, batch, stream(rng, "teacher"), train))


def losses(
    variables: MethodVariables, context: Context, hyper: Hyper, method: Method
) -> tuple[Array, tuple[Any, Terms]]:
    """(loss, (the method's next state, scalars)): the weighted sum of the terms, and what of it is logged.

    The scalars are "loss", "loss/TERM" of each weighted term, and, where there are classes, the counts "right" and
    "labeled".
    """
    terms, state = method.apply(variables, dataclasses.replace(context, options=hyper.options))
    weighted = {name: _of_term(hyper.weights, name, 1.0) * term for name, term in terms.items()}
    for name in weighted:
        if factor := _of_term(method.schedules, name, None):
            weighted[name] *= factor(context.step)
    loss = sum(weighted.values(), jnp.zeros((), context.batch.targets.dtype))
    scalars = {f"loss/{name}": term for name, term in weighted.items()} | {"loss": loss}
    if context.student.num_classes:
        right = method.predict(variables, context.student).argmax(-1) == context.batch.labels
        scalars |= {"right": right.sum(), "labeled": (context.batch.labels >= 0).sum()}
    return loss, (state, scalars)


def _of_term(table: Mapping[str, Any], name: str, default: Any) -> Any:
    """The entry of a term; that of TERM for TERM/PART, unless the part has its own."""
    return table.get(name, table.get(name.partition("/")[0], default))


def train_step(
    state: TrainState,
    teacher_variables: Variables,
    raw: RawBatch,
    hyper: Hyper,
    train_labels: Array | None = None,
    *,
    components: Components,
    options: StepOptions,
) -> tuple[TrainState, dict[str, Array]]:
    """One update.

    Args:
      state: is consumed.
      teacher_variables: of `components.teacher`; never trained.
      raw: the batch.
      hyper: traced scalars.
      train_labels: [N] of the whole training set, where it lies in memory.
      components, options: what the step is made of.
    Returns:
      The next state, and {"loss", "accuracy" (of labeled images, by the student in training mode), "learning_rate",
      "gradient_norm", and "loss/TERM" for each weighted term}.
    """
    rng = jax.random.fold_in(state.rng, state.step)
    trained, frozen = components.optimizer.split(state.params["student"])
    params = {**state.params, "student": trained}
    per_part = components.optimizer.per_part
    if components.teacher and components.teacher.is_average:
        teacher_variables = state.ema or {}

    def loss_of(params: Any, stats: Any, micro_batch: Array | int, raw: RawBatch) -> tuple[Array, tuple[Any, Terms]]:
        variables = {"params": merge(params["student"], frozen), "batch_stats": stats["student"]}
        context, batch_stats = forward(
            variables,
            teacher_variables,
            raw,
            rng=jax.random.fold_in(rng, micro_batch),
            step=state.step,
            train=True,
            train_labels=train_labels,
            components=components,
            options=options,
        )
        with jax.named_scope("method"):
            loss, (method_state, scalars) = losses(method_variables(params, stats), context, hyper, components.method)
        return loss, ({"student": batch_stats, **method_state}, scalars)

    gradient = gradient_of_parts(loss_of, components.method) if per_part else jax.grad(loss_of, has_aux=True)
    gradients, stats, scalars = _accumulate(gradient, params, state.stats, raw, options)
    of_student = optim.total(gradients)["student"] if per_part else gradients["student"]
    if "right" in scalars:
        scalars["accuracy"] = scalars.pop("right") / jnp.maximum(scalars.pop("labeled"), 1)
    scalars["gradient_norm"] = optax.tree.norm(of_student)
    scalars["learning_rate"] = components.optimizer.learning_rate(state.step, hyper)
    with jax.named_scope("optimizer"):
        return update(state, gradients, stats, hyper, components=components, options=options), scalars


def gradient_of_parts(loss_of: Callable[..., tuple[Array, Any]], method: Method) -> Callable[..., tuple[Any, Any]]:
    """Like `jax.grad(loss_of, has_aux=True)`, with a gradient for each of `optim.PARTS`.

    The forward pass is shared, the backward pass is taken once for each part.
    """

    def gradient(params: Any, *arguments: Any) -> tuple[dict[str, Any], Any]:
        def parts_of(params: Any) -> tuple[dict[str, Array], Any]:
            loss, (stats, scalars) = loss_of(params, *arguments)
            parts = dict.fromkeys(optim.PARTS, jnp.zeros_like(loss))
            for name, term in scalars.items():
                kind, _, term_name = name.partition("/")
                if kind == "loss" and term_name:
                    part = optim.PARTS[term_name.partition("/")[0] in method.distills]
                    parts[part] += term
            return parts, (stats, scalars)

        parts, pull_back, aux = jax.vjp(parts_of, params, has_aux=True)
        each = {part: {name: jnp.full_like(x, name == part) for name, x in parts.items()} for part in parts}
        return {part: pull_back(one)[0] for part, one in each.items()}, aux

    return gradient


def update(
    state: TrainState,
    gradients: Mapping[str, Any],
    stats: Mapping[str, Any],
    hyper: Hyper,
    *,
    components: Components,
    options: StepOptions,
) -> TrainState:
    """The next state. A group that waits keeps its parameters, moments and statistics.

    Where the method has phases, a parameter whose gradient is exactly zero does not move, and a batch normalization
    whose parameters do not move keeps its averages.

    Args:
      state: before the step.
      gradients: of every group; of the student's those parameters that train. Where the optimizer takes a gradient per
        part, one such tree for each of `optim.PARTS`.
      stats: of every group, after the forward pass.
      hyper: traced scalars.
      components, options: what the step is made of.
    """
    trains = components.method.trains(state.step)
    trained, frozen = components.optimizer.split(state.params["student"])
    still = None
    if components.method.phases:
        still = optim.still(optim.total(gradients) if components.optimizer.per_part else gradients)
        stats = {group: _kept(new, state.stats[group], still.get(group, {})) for group, new in stats.items()}
    params, optimizer_state = components.optimizer.update(
        gradients,
        state.optimizer_state,
        {**state.params, "student": trained},
        step=state.step,
        hyper=hyper,
        trains=trains,
        still=still,
    )
    params["student"] = merge(params["student"], frozen)
    kept = {
        group: new if trains.get(group, True) is True else optax.tree.where(trains[group], new, state.stats[group])
        for group, new in stats.items()
    }
    ema = state.ema
    if options.ema:
        current = {"params": params["student"], "batch_stats": kept["student"]}
        ema = jax.tree.map(lambda a, b: options.ema * a + (1 - options.ema) * b, ema, current)
    return TrainState(state.step + 1, params, kept, optimizer_state, ema, state.rng)


def _kept(new: Any, old: Any, still: Mapping[Any, Array]) -> Any:
    """The new statistics, but the old ones of every batch normalization whose own parameters are still."""
    if not still:
        return new
    moved, kept = flatten_dict(new, keep_empty_nodes=True), flatten_dict(old, keep_empty_nodes=True)
    for path in moved:
        module = path[1:-1] if path[0] == "batch_stats" else path[:-1]
        own = [waits for other, waits in still.items() if other[:-1] == module]
        if own and moved[path] is not empty_node:
            moved[path] = jnp.where(jnp.all(jnp.array(own)), kept[path], moved[path])
    return unflatten_dict(moved)


def _accumulate(
    gradient: Callable[..., Any], params: Any, stats: Any, raw: RawBatch, options: StepOptions
) -> tuple[Any, Any, dict[str, Array]]:
    """Gradients, statistics and scalars of a batch computed in micro-batches, one after another."""
    count = options.micro_batches
    if count == 1:
        gradients, (stats, scalars) = gradient(params, stats, 0, raw)
        return gradients, stats, scalars

    def one(carry: Any, inputs: Any) -> tuple[Any, Terms]:
        stats, total = carry
        gradients, (stats, scalars) = gradient(params, stats, *inputs)
        return (stats, jax.tree.map(jnp.add, total, gradients)), scalars

    pieces = split_batch(raw, count)
    zeros = jax.eval_shape(gradient, params, stats, 0, jax.tree.map(lambda x: x[0], pieces))[0]
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), zeros)
    (stats, total), scalars = jax.lax.scan(one, (stats, zeros), (jnp.arange(count), pieces), unroll=options.unroll)
    counts = {"right", "labeled"}
    scalars = {name: x.sum(0) if name in counts else x.mean(0) for name, x in scalars.items()}
    return jax.tree.map(lambda x: x / count, total), stats, scalars


def split_batch(batch: Any, count: int) -> Any:
    """[count, B / count, ...] of arrays [B, ...]: every count-th image, so that each micro-batch stays split over the
    devices as the batch is."""
    return jax.tree.map(lambda x: x.reshape(-1, count, *x.shape[1:]).swapaxes(0, 1), batch)


def train_steps(
    state: TrainState,
    teacher_variables: Variables,
    constants: Any,
    rows: Any,
    hyper: Hyper,
    train_labels: Array | None = None,
    *,
    fetch: Callable[[Any, Any], RawBatch],
    components: Components,
    options: StepOptions,
) -> tuple[TrainState, dict[str, Array]]:
    """Runs one update per row. Scalars are sums over the steps.

    Args:
      state: is consumed.
      teacher_variables: of `components.teacher`.
      constants, rows, fetch: of a `Feed`; every array of `rows` is [n, ...].
      hyper: traced scalars.
      train_labels: [N] of the whole training set, where it lies in memory.
      components, options: what the step is made of.
    """

    def one(state: TrainState, row: Any) -> tuple[TrainState, dict[str, Array]]:
        raw = fetch(constants, row)
        return train_step(state, teacher_variables, raw, hyper, train_labels, components=components, options=options)

    if len(jax.tree.leaves(rows)[0]) == 1:  # on a CPU, convolutions inside a loop are many times slower
        return one(state, jax.tree.map(lambda x: x[0], rows))
    state, scalars = jax.lax.scan(one, state, rows)
    return state, jax.tree.map(lambda x: x.sum(0), scalars)
