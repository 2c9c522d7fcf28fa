"""Many methods in one training step, each with a student of its own, on networks of a few operations.

Compiling takes nearly all the time of a step this small. One program of many methods takes less than a program each,
and as no loss depends on the student of another, every method trains as if it were alone.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import serialization

from kd_jax import components, methods, optim, sharding, steps
from kd_jax.config import base
from kd_jax.models.taps import Taps
from kd_jax.types import (
    Batch,
    Head,
    Method,
    MethodVariables,
    Network,
    Norm,
    RawBatch,
    Teacher,
    at_least_float32,
    student_logits,
)

CLASSES, IMAGES, BATCH = 10, 24, 16
STEPS, EPOCH = 10, 4
OPTIMIZER = {"learning_rate": 0.03, "momentum": 0.5, "schedule": "constant", "warmup_epochs": 0.0, "weight_decay": 0.0}
WIDTHS = {"teacher": (8, 8, 12), "student": (6, 6, 8)}  # of the three maps
EVERY_FOURTH = np.arange(IMAGES) % 4 == 3


def network(widths) -> Network:
    """Linear layers on maps of 4x4, 4x4 and 2x2 pixels, and a linear head; it reports all there is to report."""

    def init(rng, images):
        dtype, inputs, params = jnp.promote_types(images.dtype, jnp.float32), 4 * images.shape[-1], {}
        for i, (name, width) in enumerate(zip(("stage0", "stage1", "stage2", "head"), (*widths, CLASSES), strict=True)):
            kernel = jax.random.normal(jax.random.fold_in(rng, i), (inputs, width), dtype)
            params[name] = {"kernel": kernel * (2 / inputs) ** 0.5}
            inputs = width
        params["head"]["bias"] = jnp.zeros(CLASSES, dtype)
        return {"params": params, "batch_stats": {}}

    def apply(variables, images, *, train, rng=None, perturbations=None):
        params, taps = variables["params"], Taps(perturbations)
        head = Head(**params["head"])
        channels = images.shape[-1]
        x = images.reshape(-1, 4, 2, 4, 2, channels).swapaxes(2, 3).reshape(-1, 4, 4, 4 * channels)
        for stage, width in enumerate(widths):
            if stage == 2:
                x = x.reshape(-1, 2, 2, 2, 2, x.shape[-1]).mean((2, 4))
            x = x @ params[f"stage{stage}"]["kernel"].astype(x.dtype)
            norm = Norm(jnp.ones(width, head.bias.dtype), jnp.zeros(width, head.bias.dtype))
            x = taps(jax.nn.relu(x), preactivation=x, norm=norm)
        pooled = at_least_float32(x).mean((1, 2))
        logits = pooled @ head.kernel + head.bias
        return taps.outputs(logits, pooled=pooled, embedding=pooled, head=head, last=x), variables["batch_stats"]

    return Network(init, apply, head=("head",))


TEACHER = network(WIDTHS["teacher"])


def copies(network, count) -> Network:
    """`count` copies as one network, whose variables and outputs have one more axis, the first."""

    def init(rng, images):
        return jax.tree.map(lambda x: jnp.stack([x] * count), network.init(rng, images))

    def apply(variables, images, *, train, rng=None):
        return jax.vmap(lambda own: network.apply(own, images, train=train, rng=rng))(variables)

    return Network(init, apply, network.head)


def of_copy(method, place, student, failed) -> Method:
    """The method for the student at one of the copies' places. What it raises goes to `failed`, so the others go on.

    A copy does not wait for turns, and a prediction of the method's own is not used.
    """

    def own(context):
        if context.networks is None:  # of an initialization that looks at nothing
            return context
        take = functools.partial(jax.tree.map, lambda x: x[place])
        views = tuple(view._replace(student=take(view.student)) for view in context.views[: method.views])
        networks = context.networks._replace(student=(student, take(context.networks.student[1])))
        return dataclasses.replace(context, views=views, networks=networks)

    def init(rng, context):
        try:
            return method.init(rng, own(context))
        except Exception as error:
            failed(error)
            return MethodVariables({}, {})

    def apply(variables, context):
        try:
            terms, state = method.apply(variables, own(context))
            before, after = (jax.tree.map(jax.typeof, tree) for tree in (variables.state, state))
            assert before == after, "a method's state changes in shape or type"
            return terms, state
        except Exception as error:
            failed(error)
            return {}, variables.state

    def trains(step):
        return {group: moves for group, moves in method.trains(step).items() if group != "student"}

    return method._replace(init=init, apply=apply, needs_teacher=True, trains=trains, predict=student_logits)


def by_direction(optimizer) -> optim.Optimizer:
    """The optimizer of gradients of norm 1, each copy's and each term's, so that one rate is right for every loss.

    Adam would do, but that it makes a step of what is zero but for rounding.
    """

    def unit(gradients, axes):
        squares = sum(jnp.square(x).sum(axes(x)) for x in jax.tree.leaves(gradients))
        factor = jax.lax.rsqrt(squares + 1e-20)
        return jax.tree.map(lambda x: x * factor.reshape(factor.shape + (1,) * (x.ndim - factor.ndim)), gradients)

    def update(gradients, *state_and_params, **options):
        units = {
            group: unit(own, lambda x: tuple(range(int(group == "student"), x.ndim))) if jax.tree.leaves(own) else own
            for group, own in gradients.items()
        }
        return optimizer.update(units, *state_and_params, **options)

    return optimizer._replace(update=update)


def data(missing=-1):
    """(a batch, the labels of the training set). Every fourth image has no label; others differ in many directions."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 200, (IMAGES, 2, 2, 3)).repeat(4, 1).repeat(4, 2)
    images = (images + rng.integers(0, 56, (IMAGES, 8, 8, 3))).astype(np.uint8)
    labels = np.where(EVERY_FOURTH, missing, np.arange(IMAGES) % CLASSES).astype(np.int32)
    return RawBatch(images[:BATCH], labels[:BATCH], np.arange(BATCH, dtype=np.int32)), labels


class Step(NamedTuple):
    """The step of some methods, and what it takes beside a state and a batch."""

    components: steps.Components
    options: steps.StepOptions
    failures: dict[str, Exception]  # of each term that cannot be traced
    teacher: Any
    hyper: Any

    def function(self, function, **options):
        return functools.partial(function, components=self.components, options=self.options, **options)


def create(terms: Mapping[str, Mapping[str, Any]], widths, dtype, *, accumulate=1) -> Step:
    """The step of {term: options} in a precision."""
    student, failures = network(widths), {}
    method = methods.combine(
        {
            name: of_copy(
                methods.create({name: options}, steps_per_epoch=EPOCH),
                place,
                student,
                functools.partial(failures.setdefault, name),
            )
            for place, (name, options) in enumerate(terms.items())
        }
    )

    def prepare(images):
        return (images.astype(jnp.promote_types(dtype, jnp.float32)) / 64 - 2).astype(dtype)

    def augment(rng, raw):
        targets = jax.nn.one_hot(raw.labels, CLASSES, dtype=jnp.promote_types(dtype, jnp.float32))
        views = (raw.images, raw.images[:, :, ::-1])[: method.views]
        return tuple(Batch(view, raw.labels, targets, raw.ids, jnp.zeros_like(raw.ids)) for view in views)

    def teach(variables, batch, rng, train):
        return TEACHER.apply(variables, batch.images, train=False)[0]

    optimizer = optim.create(
        base.get_config().optimizer.to_dict() | OPTIMIZER,
        {name: method.optimizers.get(name, {}) for name in terms},
        steps=STEPS,
        steps_per_epoch=EPOCH,
    )
    teacher = Teacher(teach, load=None, shapes=None, name="larger", source="nowhere", network=TEACHER)
    made = steps.Components(copies(student, len(terms)), teacher, method, by_direction(optimizer), augment, prepare)
    hyper = jax.tree.map(np.asarray, components.create_hyper(made))
    variables = jax.jit(TEACHER.init)(jax.random.key(0), jnp.zeros((1, 8, 8, 3), dtype))
    return Step(made, steps.StepOptions(IMAGES, EPOCH, micro_batches=accumulate), failures, variables, hyper)


class Trained(NamedTuple):
    """Ten float64 steps in two micro-batches."""

    names: list[str]
    failures: dict[str, Exception]
    scalars: list[dict[str, Any]]  # of each step on two devices
    one: Any  # the states at the end: of one device,
    two: Any  # of two devices,
    resumed: Any  # and of two, in bytes after five steps, and on from these


def ten_steps(terms, widths) -> Trained:
    with jax.enable_x64(True):
        step = create(terms, widths, jnp.float64, accumulate=2)
        ended, scalars = {}, {}
        for devices in (1, 2):
            mesh = sharding.mesh(jax.devices()[:devices])
            run, state = compiled(step, mesh)
            half, first = run(state, STEPS // 2)
            ended[devices], second = run(half, STEPS - STEPS // 2)
            scalars[devices] = first + second
        resumed, _ = run(jax.device_put(restored(half), sharding.replicated(mesh)), STEPS - STEPS // 2)
    return Trained(list(terms), step.failures, scalars[2], ended[1], ended[2], resumed)


def compiled(step, mesh):
    """(what takes a number of steps on some devices, the state before the first)."""
    raw, labels = data()
    whole = sharding.replicated(mesh)
    teacher, hyper, on_all = sharding.put((step.teacher, step.hyper, labels), whole)
    batch = sharding.put(raw, sharding.split(mesh))
    start = jax.jit(step.function(steps.init_state), out_shardings=whole)(np.uint32(0), teacher, raw, labels)
    update = jax.jit(step.function(steps.train_step), out_shardings=whole)
    update = update.lower(start, teacher, batch, hyper, on_all).compile()

    def run(state, count):
        each = []
        for _ in range(count):
            state, scalars = update(state, teacher, batch, hyper, on_all)
            each.append(jax.device_get(scalars))
        return state, each

    return run, start


def restored(state):
    """The state from its bytes."""
    plain = state.replace(rng=jax.random.key_data(state.rng))
    plain = serialization.from_bytes(jax.tree.map(np.zeros_like, plain), serialization.to_bytes(plain))
    return plain.replace(rng=jax.random.wrap_key_data(plain.rng))


class Scanned(NamedTuple):
    """Two bfloat16 steps in one call."""

    names: list[str]
    failures: dict[str, Exception]
    before: Any
    after: Any
    scalars: dict[str, Any]
    relabeled: Any  # the state after the same steps with another negative number in the place of missing labels


def scan(terms, widths) -> Scanned:
    step = create(terms, widths, jnp.bfloat16)
    raw, labels = data()
    before = jax.jit(step.function(steps.init_state))(np.uint32(0), step.teacher, raw, labels)
    call = jax.jit(step.function(steps.train_steps, fetch=lambda constants, row: row))

    def run(raw, labels):
        rows = jax.tree.map(lambda x: np.stack([x, x]), raw)
        return call(before, step.teacher, None, rows, step.hyper, labels)

    after, scalars = run(raw, labels)
    return Scanned(list(terms), step.failures, before, after, jax.device_get(scalars), run(*data(missing=-2))[0])


def of_method(result, state, name):
    """What a state holds of one method: its student, and the variables and moments of both."""
    place = result.names.index(name)

    def take(tree):
        return jax.tree.map(lambda x: np.asarray(x[place] if x.ndim else x), tree)

    student = [take(tree["student"]) for tree in (state.params, state.optimizer_state)]
    return student, [tree[name] for tree in (state.params, state.stats, state.optimizer_state)]


def own_term(scalars, name):
    """The value of a method's term, or the sum of its parts."""
    parts = sum(x for key, x in scalars.items() if key.startswith(f"loss/{name}/"))
    return float(scalars.get(f"loss/{name}", parts))
