"""What is compiled: initialisation, a training step (or many in one call), an evaluation step. All pure."""

import zlib
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax.traverse_util import flatten_dict, unflatten_dict

from kd_jax import metrics
from kd_jax.optim import Optimizer, merge, when
from kd_jax.types import Batch, Hyper, Method, MethodVariables, Network, Networks, Teacher, TrainState, Variables


class Images(NamedTuple):
    """A whole split on the device."""

    images: jax.Array  # [N, h, w, C] uint8
    labels: jax.Array  # [N] int32, -1 for none


class Parts(NamedTuple):
    """The functions that a step is made of."""

    student: Network
    teacher: Teacher | None
    method: Method
    optimizer: Optimizer
    augment: Callable[..., Batch]  # (rng, images uint8, labels, index) -> Batch
    prepare: Callable[[jax.Array], jax.Array]  # uint8 images -> normalised images, for evaluation
    batch_sharding: jax.sharding.Sharding | None = None  # of a batch's first dimension
    ema: float = 0.0  # decay of the student's moving average; 0 for none
    accumulate: int = 1  # parts that a batch is computed in
    teacher_network: Network | None = None  # what the teacher's variables belong to, where that is one network


def stream(rng: jax.Array, name: str) -> jax.Array:
    """A key of its own for each named use of randomness."""
    return jax.random.fold_in(rng, zlib.crc32(name.encode()))


def init_state(seed: jax.Array, teacher_variables: Variables, data: Images, *, parts: Parts) -> TrainState:
    """The state before the first step, a function of the seed. Jit it: eagerly it takes longer than to train."""
    rng = jax.random.key(seed)
    raw = jax.tree.map(lambda x: x[:2], data)
    batch = parts.augment(rng, raw.images, raw.labels, jnp.zeros(2, jnp.int32))
    variables = parts.student.init(stream(rng, "student"), batch.images)
    outputs = jax.eval_shape(lambda v: parts.student.apply(v, batch.images, train=False)[0], variables)
    taught = None if parts.teacher is None else jax.eval_shape(parts.teacher, teacher_variables, batch, rng)
    method = parts.method.init(stream(rng, "method"), outputs, taught)
    params = {"student": variables["params"], "method": method.params}
    return TrainState(
        step=jnp.int32(0),
        params=params,
        stats={"student": variables["batch_stats"], "method": method.state},
        optimizer_state=parts.optimizer.init(params),
        # A copy: the state is donated, and a buffer can be given away only once.
        ema=jax.tree.map(jnp.copy, dict(variables)) if parts.ema else None,
        rng=stream(rng, "steps"),
    )


def start_from(state: TrainState, variables: Variables) -> TrainState:
    """The state before the first step with pretrained variables of the student: all of them, or all but the head."""

    def replace(tree, new):
        return unflatten_dict({**flatten_dict(tree), **flatten_dict(dict(new))})

    params = {**state.params, "student": replace(state.params["student"], variables["params"])}
    stats = {**state.stats, "student": replace(state.stats["student"], variables["batch_stats"])}
    ema = state.ema and {"params": params["student"], "batch_stats": stats["student"]}
    return state.replace(params=params, stats=stats, ema=jax.tree.map(jnp.copy, ema))  # type: ignore[attr-defined]


def train_step(
    state: TrainState, teacher_variables: Variables, raw: tuple, hyper: Hyper, *, parts: Parts
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One update.

    Args:
      state: is consumed.
      teacher_variables: of `parts.teacher`; never trained.
      raw: (images uint8 [B, h, w, C], labels [B], index [B]).
      hyper: traced scalars.
      parts: what the step is made of.
    Returns:
      The next state, and {"loss", "accuracy" (of labelled images, by the student in training mode), "learning_rate",
      "gradient_norm", and "loss/TERM" for each weighted term}.
    """
    rng = jax.random.fold_in(state.rng, state.step)
    trained, frozen = parts.optimizer.split(state.params["student"])
    turns = parts.method.turns(state.step)

    def loss_of(params, stats, part, raw):
        part_rng = jax.random.fold_in(rng, part)
        batch = parts.augment(stream(part_rng, "augment"), *raw)
        taught = None
        if parts.teacher is not None:
            taught = parts.teacher(teacher_variables, batch, stream(part_rng, "teacher"))
        variables = {"params": merge(params["student"], frozen), "batch_stats": stats["student"]}
        outputs, batch_stats = parts.student.apply(variables, batch.images, train=True, rng=stream(part_rng, "student"))
        method_variables = MethodVariables(params["method"], stats["method"])
        teaching = parts.teacher_network and (parts.teacher_network, teacher_variables)
        terms, method_state = parts.method.apply(
            method_variables,
            outputs,
            taught,
            batch,
            step=state.step,
            rng=stream(part_rng, "method"),
            train=True,
            networks=Networks((parts.student, variables), teaching),
        )
        terms = {name: hyper.weights.get(name, 1.0) * term for name, term in terms.items()}
        loss = sum(terms.values(), jnp.zeros((), outputs.logits.dtype))
        right = parts.method.predict(method_variables, outputs).argmax(-1) == batch.labels
        scalars = {f"loss/{name}": term for name, term in terms.items()} | {
            "loss": loss,
            "right": right.sum(),
            "labelled": (batch.labels >= 0).sum(),
        }
        return loss, ({"student": batch_stats, "method": method_state}, scalars)

    params = {"student": trained, "method": state.params["method"]}
    gradients, stats, scalars = _accumulate(jax.grad(loss_of, has_aux=True), params, state.stats, raw, parts.accumulate)
    scalars["accuracy"] = scalars.pop("right") / jnp.maximum(scalars.pop("labelled"), 1)
    scalars["gradient_norm"] = optax.tree.norm(gradients["student"])
    scalars["learning_rate"] = parts.optimizer.learning_rate(state.step, hyper)

    params, optimizer_state = parts.optimizer.update(
        gradients, state.optimizer_state, params, step=state.step, hyper=hyper, turns=turns
    )
    stats = {group: when(turns[group], stats[group], state.stats[group]) for group in stats}
    params = {"student": merge(params["student"], frozen), "method": params["method"]}
    ema = state.ema
    if parts.ema:
        current = {"params": params["student"], "batch_stats": stats["student"]}
        ema = jax.tree.map(lambda a, b: parts.ema * a + (1 - parts.ema) * b, ema, current)
    return TrainState(state.step + 1, params, stats, optimizer_state, ema, state.rng), scalars


def _accumulate(gradient, params, stats, raw, count: int):
    """Gradients, statistics and scalars of a batch computed in `count` parts, one after another."""
    if count == 1:
        gradients, (stats, scalars) = gradient(params, stats, 0, raw)
        return gradients, stats, scalars

    def one(carry, inputs):
        stats, total = carry
        part, raw_part = inputs
        gradients, (stats, scalars) = gradient(params, stats, part, raw_part)
        return (stats, jax.tree.map(jnp.add, total, gradients)), scalars

    # Every count-th image: each part then stays split over the devices as the batch is.
    pieces = jax.tree.map(lambda x: x.reshape(-1, count, *x.shape[1:]).swapaxes(0, 1), raw)
    zeros = jax.tree.map(jnp.zeros_like, params)
    # Convolutions inside a loop are slow on a CPU, hence the unrolling there.
    (stats, total), scalars = jax.lax.scan(
        one, (stats, zeros), (jnp.arange(count), pieces), unroll=jax.default_backend() == "cpu"
    )
    counted = {"right", "labelled"}
    scalars = {name: x.sum(0) if name in counted else x.mean(0) for name, x in scalars.items()}
    return jax.tree.map(lambda x: x / count, total), stats, scalars


def train_steps(
    state: TrainState, teacher_variables: Variables, data: Images, order: jax.Array, hyper: Hyper, *, parts: Parts
) -> tuple[TrainState, dict[str, jax.Array]]:
    """As many updates as `order` [n, B] has rows: each gathers its images by index. Scalars are sums over the steps."""

    def one(state, index):
        return train_step(state, teacher_variables, gather(data, index, parts.batch_sharding), hyper, parts=parts)

    if len(order) == 1:  # on a CPU, convolutions inside a loop are many times slower
        return one(state, order[0])
    state, scalars = jax.lax.scan(one, state, order)
    return state, jax.tree.map(lambda x: x.sum(0), scalars)


def gather(data: Images, index: jax.Array, batch_sharding=None) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(images [B, h, w, C], labels [B], index [B]), split over the devices.

    Without the constraint every device would compute the whole batch, and no result would show it.
    """
    batch = (data.images[index], data.labels[index], index)
    return batch if batch_sharding is None else jax.lax.with_sharding_constraint(batch, batch_sharding)


def eval_step(
    variables: Variables,
    method_variables: MethodVariables,
    teacher_variables: Variables,
    data: Images,
    index: jax.Array,
    mask: jax.Array,
    *,
    parts: Parts,
) -> metrics.Sums:
    """Metric sums over the images at `index` [B] that `mask` [B] keeps, with the student in inference mode."""
    images, labels, index = gather(data, index, parts.batch_sharding)
    images = parts.prepare(images)
    outputs = parts.student.apply(variables, images, train=False)[0]
    teacher_logits = None
    if parts.teacher is not None:
        batch = Batch(images, labels, jnp.zeros_like(outputs.logits), index, jnp.zeros_like(index))
        teacher_logits = parts.teacher(teacher_variables, batch, None).logits
    return metrics.sums(parts.method.predict(method_variables, outputs), labels, mask, teacher_logits)
