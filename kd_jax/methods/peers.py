"""Networks that learn from one another: deep mutual learning, and exits of a network that learn from its end."""

from collections.abc import Mapping
from typing import Annotated, Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from kd_jax import losses, models
from kd_jax.errors import InputError, choose
from kd_jax.keys import SECTION, TRACED, NonNegative, Temperature, number, text, whole
from kd_jax.methods.adapters import Regressor
from kd_jax.methods.base import labeled_mean, reported, stage_map
from kd_jax.models.layers import Linear
from kd_jax.types import Array, Context, Method, MethodVariables, Network, Outputs, Terms

SHARE = number(least=0, most=1, expected="a number from 0 to 1")


def mutual(
    name: str,
    *,
    peers: Annotated[int, whole(1, 100)] = 1,
    network: Annotated[str, text()] = "",
    options: Annotated[Mapping[str, Any], SECTION] = {},
    temperature: Temperature = 1.0,
) -> Method:
    """Deep mutual learning: student and peers learn from the labels and from one another, without a teacher.

    Each network lowers its cross entropy and the mean over the others of KL(p_other || p_own). Zhang et al., "Deep
    Mutual Learning", CVPR 2018. There one network moves after another, with the others' new
    predictions; here all move at once. `name` is the student's term, without its cross entropy, which is a term of its
    own; `name/peers` is the sum over the peers of all that they lower. Every evaluation measures the peers too.
    They start from scratch, whatever the student starts from.

    Args:
      name: of the term.
      peers: how many beside the student.
      network, options: of the peers, a key of `models.NETWORKS` and its options; "" for the student's own.
      temperature: T of the divergence, which is times T^2.
    Raises:
      InputError: for an unknown network or option.
    """
    names = [f"peer{i}" for i in range(1, peers + 1)]
    if network:
        choose(f"method.{name}.network", network, models.NETWORKS)
    elif options:
        raise InputError(f"method.{name}.options is {dict(options)}; expected none without method.{name}.network")
    for option in options:
        if option in models.NOT_OPTIONS:
            raise InputError(f"method.{name}.options.{option} is given; expected options of {network}")

    def build(context: Context) -> Network:
        assert context.networks is not None
        if not network:
            return context.networks.student[0]
        dtype = context.batch.images.dtype
        return models.create(network, context.student.logits.shape[-1], dtype=dtype, **options)

    def init(rng: Array, context: Context) -> MethodVariables:
        own = build(context)
        each = {peer: own.init(jax.random.fold_in(rng, i), context.batch.images) for i, peer in enumerate(names)}
        return MethodVariables(
            {peer: variables["params"] for peer, variables in each.items()},
            {peer: variables["batch_stats"] for peer, variables in each.items()},
        )

    def run(variables: MethodVariables, context: Context, **mode: Any) -> tuple[dict[str, Outputs], dict[str, Any]]:
        own, outputs, stats = build(context), {}, {}
        for i, peer in enumerate(names):
            rng = None if context.rng is None else jax.random.fold_in(context.rng, i)
            current = {"params": variables.params[peer], "batch_stats": variables.state[peer]}
            outputs[peer], stats[peer] = own.apply(current, context.batch.images, rng=rng, **mode)
        return outputs, stats

    def apply(variables: MethodVariables, context: Context) -> tuple[Terms, Any]:
        outputs, stats = run(variables, context, train=True)
        logits = {"student": context.student.logits, **{peer: x.logits for peer, x in outputs.items()}}
        labeled, softened = context.batch.labels >= 0, context.options.get("temperature", temperature)

        def from_others(one: str) -> Array:
            each = [
                losses.kd(logits[one], other, temperature=softened).mean()
                for who, other in logits.items()
                if who != one
            ]
            return sum(each[1:], each[0]) / len(each)

        total = jnp.zeros((), context.student.logits.dtype)
        for peer in names:
            label = losses.cross_entropy(logits[peer], context.batch.targets, where=labeled)
            total += labeled_mean(label, context.batch)
            total += from_others(peer)
        return {name: from_others("student"), f"{name}/peers": total}, stats

    def others(variables: MethodVariables, context: Context) -> Mapping[str, Array]:
        outputs, _ = run(variables, context, train=False)
        return {f"{name}/{peer}": x.logits for peer, x in outputs.items()}

    traced = {"temperature": float(temperature)}
    labels = frozenset({name})
    return Method(init, apply, weights={f"{name}/peers": 1.0}, others=others, needs_labels=labels, traced=traced)


class BeYourOwnTeacher(nn.Module):
    """Classifiers behind the earlier stages, which learn from the labels and from the network's own end.

    Zhang et al., "Be Your Own Teacher: Improve the Performance of Convolutional Neural Networks via Self Distillation",
    ICCV 2019: behind every stage but the last, (1 - alpha) cross entropy + alpha T^2 KL to the end's
    logits + feature * the mean squared distance of the exit's pooled features to the end's. What the end reports is
    fixed here, and learns from the labels by a term of its own; the stages before an exit learn from it too. An exit is
    a regressor to the size and width of the last map, a mean and a linear layer; in the paper it is a stack of
    bottlenecks. Every evaluation measures the exits too.

    Fields:
      alpha: share of the end's logits. temperature: T. feature: weight of the distance, a mean over the width.
    """

    alpha: Annotated[float, SHARE, TRACED] = 0.3
    temperature: Temperature = 3.0
    feature: NonNegative = 0.03
    needs_teacher = False
    needs_labels = True

    def __call__(self, context: Context) -> Array:
        end = context.student  # on the teacher's side of each loss, which has no gradient
        labels = context.batch.labels >= 0
        total = jnp.zeros((), context.student.logits.dtype)
        for logits, pooled in self.exits(context.student, train=True):
            label = losses.cross_entropy(logits, context.batch.targets, where=labels)
            total += (1 - self.alpha) * labeled_mean(label, context.batch)
            total += self.alpha * losses.kd(logits, end.logits, temperature=self.temperature).mean()
            total += self.feature * losses.hint(pooled, stage_map(end, -1, "the student").mean((1, 2))).mean()
        return total

    @nn.compact
    def exits(self, outputs: Outputs, *, train: bool) -> list[tuple[Array, Array]]:
        """(logits [B, K], pooled features [B, c]) of each."""
        maps = reported(outputs, "features", "the student")
        if len(maps) < 3:
            raise InputError(f"the student reports {len(maps)} maps; expected the stem's and two stages' or more")
        found = []
        for stage in range(1, len(maps) - 1):
            x = stage_map(outputs, stage, "the student")
            x = Regressor(maps[-1].shape[1:], name=f"adapter{stage}")(x, train=train)
            pooled = x.mean((1, 2))
            found.append((Linear(outputs.logits.shape[-1], name=f"fc{stage}")(pooled), pooled))
        return found

    def others(self, context: Context) -> dict[str, Array]:
        """The logits of each exit."""
        return {f"exit{i}": logits for i, (logits, _) in enumerate(self.exits(context.student, train=False), start=1)}
