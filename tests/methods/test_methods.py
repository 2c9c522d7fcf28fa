"""Methods by name: their weights, their options, a loss of one's own."""

import jax.numpy as jnp
import pytest

from kd_jax import methods
from kd_jax.types import InputError


def test_a_terms_name_is_its_loss_unless_it_says_otherwise():
    method = methods.create({"soft": {"loss": "kd", "weight": 0.9, "temperature": 2.0}, "cross_entropy": {}})
    assert method.weights == {"soft": 0.9, "cross_entropy": 1.0}
    assert method.reads == {"logits"}


def test_labels_need_no_teacher():
    assert methods.create({"cross_entropy": {}}).reads == frozenset()


@pytest.mark.parametrize(
    ("terms", "said"),
    [
        ({}, "method has no term; expected at least one of: adversarial, cross_entropy"),
        ({"kdd": {}}, "method.kdd.loss is 'kdd'; expected one of: .*; did you mean 'kd'"),
        ({"kd": {"loss": "dk"}}, "method.kd.loss is 'dk'"),
        ({"kd": {"temprature": 2.0}}, "'temprature'; expected one of: .*; did you mean 'temperature'"),
        ({"kd": {"temperature": "hot"}}, "method.kd.temperature is 'hot'; expected a number"),
        ({"kd": {"standardize": 1}}, "method.kd.standardize is 1; expected true or false"),
        ({"kd": {"on": 3}}, "method.kd.on is 3; expected a text"),
        ({"adversarial": {"hidden": 64}}, "method.adversarial.hidden is 64; expected a list"),
        ({"kd": {"weight": "1"}}, "method.kd.weight is '1'; expected a finite number"),
        ({"kd": {"weight": float("nan")}}, "method.kd.weight is nan; expected a finite number"),
    ],
)
def test_a_wrong_term_is_named_with_the_choices(terms, said):
    with pytest.raises(InputError, match=said):
        methods.create(terms)


def test_a_registered_loss_is_a_term_with_its_own_options(monkeypatch):
    monkeypatch.setattr(methods, "LOSSES", dict(methods.LOSSES))

    def difference(student, teacher, *, scale=1.0):
        return scale * jnp.abs(student - teacher).mean(-1)

    methods.register("difference", methods.lift(difference, on="embedding"))
    assert methods.create({"difference": {"scale": 2.0}}).reads == {"embedding"}
    with pytest.raises(InputError, match="is 'size'; expected one of: loss, on, scale"):
        methods.create({"difference": {"size": 2.0}})


def test_a_name_that_is_taken_cannot_be_registered():
    with pytest.raises(InputError, match="the loss 'kd' is registered already"):
        methods.register("kd", methods.LOSSES["kd"])
