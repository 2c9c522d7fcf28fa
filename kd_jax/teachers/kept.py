"""What is kept of what a teacher says: some of its outputs, whole or, of many classes, the largest logits."""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp

from kd_jax.types import Array, Missing, Outputs


def keep(outputs: Outputs, *, fields: Sequence[str], top_k: int = 0) -> dict[str, Array]:
    """What `restore` makes outputs of.

    Args:
      outputs: of a batch.
      fields: of Outputs, the logits among them.
      top_k: of the logits only so many, the largest; 0 for all.
    Returns:
      {field: [B, ...]}, at least float32; with `top_k` in the place of the logits their "largest" [B, k], the "classes"
      [B, k] of these, and "rest" [B], the mean logit of the others in terms of probability: log(mean(exp(logits))).
    """
    given = {field: getattr(outputs, field) for field in fields}
    kept = jax.tree.map(lambda x: x.astype(jnp.promote_types(x.dtype, jnp.float32)), given)
    if not top_k:
        return kept
    logits = kept.pop("logits")
    largest, classes = jax.lax.top_k(logits, top_k)
    others = jnp.put_along_axis(logits, classes, -jnp.inf, axis=-1, inplace=False)
    rest = jax.nn.logsumexp(others, -1) - jnp.log(jnp.asarray(logits.shape[-1] - top_k, logits.dtype))
    return {"largest": largest, "classes": classes, "rest": rest, **kept}


def restore(kept: Mapping[str, Array], *, num_classes: int) -> Outputs:
    """Outputs of what was kept: logits [B, K], and what else there is. The rest refuses to be read.

    Where only the largest logits were kept, their probabilities are right, and those of the other classes are all the
    same and right in sum.
    """
    fields = dict(kept)
    if "largest" in fields:
        largest, classes, rest = (fields.pop(name) for name in ("largest", "classes", "rest"))
        logits = jnp.broadcast_to(rest[:, None], (len(rest), num_classes))
        fields["logits"] = jnp.put_along_axis(logits, classes, largest, axis=-1, inplace=False)
    missing = {name: Missing(f"the teacher's {name}") for name in Outputs._fields if name not in fields}
    return Outputs(**fields, **missing)  # type: ignore[arg-type]
