"""Several teachers as one: they predict together, and each can be asked for itself."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from kd_jax.types import NO_LOGITS, Array, Batch, Outputs, Teacher, Variables


def of(members: Mapping[str, Teacher], prepare: Callable[[Array], Array]) -> Teacher:
    """The teacher whose probabilities are the mean of its members'.

    Its logits are the logarithms of that mean, where all have some, its embedding is theirs side by side, where all
    report one. What each member reports is in `Outputs.members`, where a term's option `teacher` finds it. `prepare`
    makes of pixels what the student reads.
    """

    def read_by(member: Teacher, pixels: Batch) -> Batch:
        return pixels._replace(images=(member.prepare or prepare)(pixels.images))

    def apply(variables: Variables, batch: Batch, rng: Array, train: bool) -> Outputs:
        each = {
            name: member.apply(variables[name], read_by(member, batch), jax.random.fold_in(rng, i), train)
            for i, (name, member) in enumerate(sorted(members.items()))  # the order of a config is no part of it
        }
        logits = NO_LOGITS
        if all(outputs.num_classes for outputs in each.values()):
            log_p = jnp.stack([jax.nn.log_softmax(outputs.logits) for outputs in each.values()])
            logits = jax.nn.logsumexp(log_p, 0) - jnp.log(jnp.asarray(len(each), log_p.dtype))
        embeddings = [outputs.embedding for outputs in each.values() if outputs.embedding is not None]
        return Outputs(
            logits,
            embedding=jnp.concatenate(embeddings, -1) if len(embeddings) == len(each) else None,
            members=each,
        )

    return Teacher(
        apply=apply,
        load=lambda: ({name: member.load()[0] for name, member in members.items()}, None),
        shapes={name: member.shapes for name, member in members.items()},
        name=" and ".join(members),
        source="",
        members=dict(members),
        prepare=lambda pixels: pixels,
    )
