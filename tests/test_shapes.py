"""The shapes that losses and containers declare are those that they have."""

import typing

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from beartype import beartype

from kd_jax import losses, steps, types
from tests import tiny

B, K = 6, 5
RNG = np.random.default_rng(0)


def array(*shape):
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


LABELS = jnp.asarray(np.arange(B) % K, jnp.int32)
# The arguments of each loss.
ARGUMENTS = {
    "ab": (array(B, 2, 2, 3), array(B, 2, 2, 3)),
    "catkd": (array(B, 4, 4, K), array(B, 2, 2, K)),
    "factor_transfer": (array(B, 2, 2, 3), array(B, 2, 2, 3)),
    "ofd": (array(B, 2, 2, 3), array(B, 2, 2, 3), array(3)),
    "ofd_margin": (array(3), array(3)),
    "vid": (array(B, 2, 2, 3), array(B, 2, 2, 3), jnp.abs(array(3))),
    "abkd": (array(B, K), array(B, K)),
    "at": (array(B, 4, 2, 3), array(B, 2, 2, 5)),
    "bce": (array(B, K), array(B, K)),
    "binary_kd": (array(B, K), array(B, K)),
    "cc": (array(B, 3), array(B, 3)),
    "class_cost": (array(3, K),),
    "cosine_distance": (array(B, 3), array(B, 3)),
    "cross_entropy": (array(B, K), jax.nn.one_hot(LABELS, K)),
    "dist": (array(B, K), array(B, K)),
    "dkd": (array(B, K), array(B, K), LABELS),
    "fsp": (array(B, 4, 4, 3), array(B, 2, 2, 5), array(B, 3, 3, 3), array(B, 2, 1, 5)),
    "gradcam_alignment": (jnp.abs(array(B, 4, 4)), jnp.abs(array(B, 2, 2))),
    "hcl": (array(B, 4, 2, 3), array(B, 4, 2, 3)),
    "hint": (array(B, 2, 2, 3), array(B, 2, 2, 3)),
    "ickd": (array(B, 4, 2, 3), array(B, 2, 2, 3)),
    "jensen_shannon": (array(B, K), array(B, K)),
    "kd": (array(B, K), array(B, K)),
    "luminet": (array(B, K), array(B, K)),
    "mlkd": (array(B, K), array(B, K)),
    "nce": (jnp.abs(array(B)), jnp.abs(array(B, 7))),
    "nd": (array(B, 3), array(B, 3), array(B, 3)),
    "nkd": (array(B, K), array(B, K), LABELS),
    "normkd": (array(B, K), array(B, K)),
    "nst": (array(B, 4, 2, 3), array(B, 2, 2, 5)),
    "pkt": (array(B, 3), array(B, 4)),
    "rkd_angle": (array(B, 3), array(B, 4)),
    "rkd_distance": (array(B, 3), array(B, 4)),
    "rld": (array(B, K), array(B, K), LABELS),
    "rrd": (array(B, 3), array(B, 3), array(7, 3)),
    "skd": (array(B, K), array(B, K)),
    "sp": (array(B, 2, 2, 3), array(B, 4, 4, 5)),
    "srd": (array(B, 3), array(B, 3)),
    "standardize": (array(B, K),),
    "swap": (array(B, K), LABELS),
    "swapped_kd": (array(B, K), array(B, K), LABELS),
    "teacher_free": (array(B, K), LABELS),
    "ttm": (array(B, K), array(B, K)),
    "vkd": (array(B, 3), array(B, 3)),
    "wkd_features": (array(B, 4, 2, 3), array(B, 2, 2, 3)),
    "wkd_logits": (array(B, K), array(B, K), LABELS),
    "wsld": (array(B, K), array(B, K), LABELS),
    "wttm": (array(B, K), array(B, K)),
}
OPTIONS = {"nce": {"num_examples": 10}, "wkd_logits": {"cost": jnp.ones((K, K))}}


def checked(name):
    function = jaxtyping.jaxtyped(typechecker=beartype)(getattr(losses, name))
    return lambda *arguments: function(*arguments, **OPTIONS.get(name, {}))


def test_every_loss_is_checked():
    assert ARGUMENTS.keys() == set(losses.__all__)


@pytest.mark.parametrize("name", ARGUMENTS)
def test_a_loss_takes_and_returns_what_it_declares(name):
    jax.eval_shape(checked(name), *ARGUMENTS[name])


@pytest.mark.parametrize("name", ARGUMENTS)
def test_a_loss_declares_what_it_does_not_take(name):
    first, *others = ARGUMENTS[name]
    with pytest.raises(jaxtyping.TypeCheckError):
        checked(name)(first.astype(jnp.int32), *others)


def mismatches(container):
    """The fields of a container, and of those inside it, whose arrays are not as declared."""
    wrong = []
    for name, hint in typing.get_type_hints(type(container)).items():
        value = getattr(container, name)
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            wrong += [f"{name}.{inner}" for inner in mismatches(value)]
        elif value is not None and not isinstance(value, tuple):
            options = [o for o in (typing.get_args(hint) if type(None) in typing.get_args(hint) else (hint,)) if o]
            if not any(isinstance(value, o) for o in options if o is not type(None)):
                wrong.append(name)
    return wrong


@pytest.fixture(scope="module")
def context():
    run = tiny.Run(tiny.METHODS["kd"])
    common = {"components": run.experiment.components, "options": run.experiment.options}
    raw = jax.tree.map(jnp.asarray, run.feed.example)

    @jax.jit
    def views(student, teacher, raw):
        found, _ = steps.forward(
            student, teacher, raw, rng=jax.random.key(0), step=0, train=True, train_labels=None, **common
        )
        return found.views

    return raw, types.Context(views(run.student, run.teacher, raw))


def test_the_containers_of_a_step_hold_what_they_declare(context):
    raw, found = context
    with jaxtyping.jaxtyped("context"):
        assert mismatches(raw) == []
    with jaxtyping.jaxtyped("context"):
        assert mismatches(found.batch) + mismatches(found.student._replace(norms=())) == []


def test_a_container_that_does_not_is_noticed(context):
    _, found = context
    with jaxtyping.jaxtyped("context"):
        assert mismatches(found.batch._replace(labels=found.batch.targets)) == ["labels"]
    with jaxtyping.jaxtyped("context"):
        assert "embedding" in mismatches(found.student._replace(embedding=found.student.embedding[:3]))


def test_without_jaxtyping_the_shapes_are_only_documentation():
    assert types._Unchecked()[jax.Array, "B K"] is jax.Array
