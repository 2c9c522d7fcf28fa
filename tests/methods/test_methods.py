"""Methods by name: their weights and schedules, their options, a method of one's own."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax import methods
from kd_jax.errors import InputError
from kd_jax.methods.adversarial import OPTIMIZER
from tests.losses.test_relations import rkd_angle, rkd_distance
from tests.methods.numeric import STUDENT, TEACHER, log_softmax, outputs, standardized, terms, value_and_grad

apply = terms


def cross_entropy(logits, labels):
    """The cross entropy of a method and its gradient to the logits."""
    method = methods.create({"cross_entropy": {}})

    def loss(logits):
        return apply(method, outputs(logits), None, labels)["cross_entropy"]

    return value_and_grad(loss)(jnp.asarray(logits, jnp.float32))


def test_images_without_a_label_do_not_enter_the_mean_of_the_cross_entropy():
    value, _ = cross_entropy(STUDENT, [2, -1, -1, 4, -1, -1])
    np.testing.assert_allclose(value, -log_softmax(STUDENT)[[0, 3], [2, 4]].mean(), rtol=1e-5)


def test_without_any_label_the_cross_entropy_and_its_gradient_are_zero():
    value, gradient = cross_entropy(STUDENT, [-1] * 6)
    assert value == 0
    assert not gradient.any()


def test_a_terms_options_reach_its_loss():
    method = methods.create({"soft": {"method": "kd", "temperature": 2, "on": "embedding"}})
    student, teacher = outputs(TEACHER, STUDENT), outputs(STUDENT, TEACHER)
    terms = apply(method, student, teacher)
    p, q = log_softmax(TEACHER / 2), log_softmax(STUDENT / 2)
    np.testing.assert_allclose(terms["soft"], 4 * (np.exp(p) * (p - q)).sum(-1).mean(), rtol=1e-5)


@pytest.mark.parametrize(
    ("loss", "formula"), [("rkd_distance", rkd_distance), ("rkd_angle", rkd_angle)], ids=["distance", "angle"]
)
def test_maps_of_half_precision_are_compared_in_float32(loss, formula):
    rng = np.random.default_rng(0)
    # Two close clusters, whose inner distances bfloat16's products would lose.
    maps = [np.repeat(rng.normal(size=(2, 2, 2, 3)), 3, 0) + 0.05 * rng.normal(size=(6, 2, 2, 3)) for _ in range(2)]
    half = [jnp.asarray(x, jnp.bfloat16) for x in maps]
    method = methods.create({loss: {"on": "feature:0"}})

    got = apply(method, *(outputs(STUDENT)._replace(features=(x,)) for x in half))[loss]
    np.testing.assert_allclose(got, formula(*(np.asarray(x, np.float64).reshape(6, -1) for x in half)), rtol=1e-4)


def test_a_terms_name_is_its_loss_unless_it_says_otherwise():
    method = methods.create({"soft": {"method": "kd", "weight": 0.9, "temperature": 2.0}, "cross_entropy": {}})
    assert method.weights == {"soft": 0.9, "cross_entropy": 1.0}
    assert method.needs_teacher


def test_labels_need_no_teacher():
    assert not methods.create({"cross_entropy": {}}).needs_teacher


@pytest.mark.parametrize(
    ("terms", "said"),
    [
        ({}, "method has no term; expected at least one of: ab, abkd, adversarial"),
        ({"kdd": {}}, "method.kdd.method is 'kdd'; expected one of: .*; did you mean 'kd'"),
        ({"kd": {"method": "dk"}}, "method.kd.method is 'dk'"),
        ({"kd": {"temprature": 2.0}}, "'temprature'; expected one of: .*; did you mean 'temperature'"),
        ({"kd": {"temperature": "hot"}}, "method.kd.temperature is 'hot'; expected a number"),
        ({"mlkd": {"views": 1}}, "method.mlkd.views is 1; expected a list"),
        ({"fitnet": {"stage": 1.5}}, "method.fitnet.stage is 1.5; expected a whole number"),
        ({"kd": {"standardize": 1}}, "method.kd.standardize is 1; expected true or false"),
        ({"kd": {"on": 3}}, "method.kd.on is 3; expected one or a list of: logits"),
        ({"adversarial": {"hidden": 64}}, "method.adversarial.hidden is 64; expected a list"),
        ({"kd": {"weight": "1"}}, "method.kd.weight is '1'; expected a finite number"),
        ({"kd": {"weight": True}}, "method.kd.weight is True; expected a finite number"),
        ({"kd": {"weight": float("nan")}}, "method.kd.weight is nan; expected a finite number"),
        ("kd", "method is 'kd'; expected its terms, as in"),
        ({"kd": {"method": ["kd"]}}, r"method.kd.method is \['kd'\]; expected a string"),
        ({"kd": None}, r"method.kd is None; expected its options, as in \{'weight': 1.0\}, or \{\}"),
        ({"kd": 1.0}, r"method.kd is 1.0; expected its options"),
        ({"kd": {"optimzer": {}}}, "expected one of: .*; did you mean 'optimizer'"),
    ],
)
def test_a_wrong_term_is_named_with_the_choices(terms, said):
    with pytest.raises(InputError, match=said):
        methods.create(terms)


def test_a_registered_loss_is_a_term_with_its_own_options(monkeypatch):
    monkeypatch.setattr(methods, "METHODS", dict(methods.METHODS))

    def difference(student, teacher, *, scale=1.0):
        return scale * jnp.abs(student - teacher).mean(-1)

    methods.register("difference", methods.from_loss(difference, on="embedding"))
    method = methods.create({"difference": {"scale": 2.0}})
    student, teacher = outputs(TEACHER, STUDENT), outputs(TEACHER, TEACHER)
    terms = apply(method, student, teacher)
    np.testing.assert_allclose(terms["difference"], 2 * np.abs(STUDENT - TEACHER).mean(), rtol=1e-5)


def test_an_option_without_a_default_is_required(monkeypatch):
    monkeypatch.setitem(methods.METHODS, "own", methods.from_loss(lambda student, *, scale: scale * student[:, 0]))
    with pytest.raises(InputError, match=r"method.own.scale is missing; expected a value, as it has no default"):
        methods.create({"own": {}})


@pytest.mark.parametrize(
    ("constructor", "said"),
    [
        (None, "the constructor of method 'own' is of type NoneType; expected a function"),
        (lambda student, teacher: student, r"makes no method of a term's name; expected from_loss\(function\), from_m"),
        (nn.Dense, "makes no method of a term's name"),
        (max, "is <built-in function max>, whose parameters cannot be read; expected a function"),
    ],
)
def test_what_makes_no_method_is_not_registered(constructor, said):
    with pytest.raises(InputError, match=said):
        methods.register("own", constructor)
    assert "own" not in methods.METHODS


def test_a_constructor_may_call_the_terms_name_as_it_likes_and_take_any_option(monkeypatch):
    monkeypatch.setattr(methods, "METHODS", dict(methods.METHODS))
    seen = {}

    def constructor(term, **options):
        seen.update(options)
        return methods.from_loss(lambda student: student[:, 0])(term)

    methods.register("own", constructor)
    assert methods.create({"own": {"scale": 2.0}}).weights == {"own": 1.0}
    assert seen == {"scale": 2.0}


def test_a_constructor_that_returns_something_else_is_refused(monkeypatch):
    monkeypatch.setitem(methods.METHODS, "own", lambda name: "a method")
    with pytest.raises(InputError, match=r"method.own is made of type str; expected a Method"):
        methods.create({"own": {}})


def test_a_registered_losses_unknown_option_is_named_with_the_choices(monkeypatch):
    monkeypatch.setitem(methods.METHODS, "difference", methods.from_loss(lambda student, teacher, *, scale=1.0: scale))
    with pytest.raises(
        InputError, match=r"is 'size'; expected one of: decay_epochs, epochs, method, on, optimizer, scale"
    ):
        methods.create({"difference": {"size": 2.0}})


def test_a_name_that_is_registered_again_is_replaced(monkeypatch):
    monkeypatch.setattr(methods, "METHODS", dict(methods.METHODS))
    for factor in (1.0, 3.0):
        methods.register("mine", methods.from_loss(lambda student, *, scale=factor: scale * student[:, 0]))
    got = apply(methods.create({"mine": {}}), STUDENT)
    np.testing.assert_allclose(got["mine"], 3 * STUDENT[:, 0].mean(), rtol=1e-5)


def factors(steps_per_epoch=3, steps=15, **options):
    """(factor on the weight, whether the term's parameters move) at every step."""
    method = methods.create({"kd": options}, steps_per_epoch=steps_per_epoch)
    at = [jnp.int32(step) for step in range(steps)]
    return [float(method.schedules["kd"](s)) for s in at], [bool(method.trains(s)["kd"]) for s in at]


def test_a_weight_rises_by_equal_parts_in_each_epoch_of_its_warmup():
    rising, moves = factors(warmup_epochs=4)
    np.testing.assert_allclose(rising, np.minimum(np.repeat([1, 2, 3, 4, 5], 3) / 4, 1), rtol=1e-6)
    assert all(moves)


def test_outside_of_its_epochs_a_term_counts_nothing_and_waits():
    weights, moves = factors(epochs=[1, 3])
    np.testing.assert_array_equal(weights, np.repeat([0, 1, 1, 0, 0], 3))
    np.testing.assert_array_equal(moves, np.repeat([False, True, True, False, False], 3))


def test_a_window_may_be_open_to_the_end_and_a_warmup_begins_with_it():
    weights, _ = factors(epochs=[2, None], warmup_epochs=2)
    np.testing.assert_allclose(weights, np.repeat([0, 0, 0.5, 1, 1], 3))


def test_a_term_outside_of_its_epochs_holds_nobody_back():
    options = {"turns": [2, 1], "hidden": [8], "epochs": [0, 1]}
    method = methods.create({"adversarial": options}, steps_per_epoch=3)
    moves = [{group: bool(x) for group, x in method.trains(step).items()} for step in range(6)]
    assert [now["student"] for now in moves] == [False, False, True, True, True, True]
    assert [now["adversarial"] for now in moves] == [True, True, False, False, False, False]


def test_a_warmup_multiplies_the_schedule_that_a_method_has_itself(monkeypatch):
    def halved(name):
        method = methods.from_loss(lambda student: student[:, 0])(name)
        return method._replace(schedules={name: lambda step: 0.5})

    monkeypatch.setitem(methods.METHODS, "halved", halved)
    method = methods.create({"halved": {"warmup_epochs": 4}}, steps_per_epoch=3)
    assert [float(method.schedules["halved"](step)) for step in (0, 3, 30)] == [0.125, 0.25, 0.5]


def test_a_weight_falls_along_half_a_cosine_between_two_epochs():
    weights, moves = factors(decay_epochs=[1, 4])
    passed = np.clip((np.arange(15) - 3) / 9, 0, 1)
    np.testing.assert_allclose(weights, 0.5 * (1 + np.cos(np.pi * passed)), atol=1e-6)
    assert all(moves)


@pytest.mark.parametrize("epochs", [[1], [3, 3], [-1, 2], [0.5, 2], 5, [2, 1]])
def test_a_window_that_is_none_is_refused(epochs):
    with pytest.raises(InputError, match=r"method.kd.epochs is .*; expected \[first, last\) in epochs"):
        methods.create({"kd": {"epochs": epochs}})


@pytest.mark.parametrize("warmup", [-1, "1", float("inf"), True])
def test_a_warmup_that_is_no_number_of_epochs_is_refused(warmup):
    with pytest.raises(InputError, match=r"method.kd.warmup_epochs is .*; expected a number of epochs, or 0"):
        methods.create({"kd": {"warmup_epochs": warmup}})


def test_a_terms_optimizer_is_the_methods_with_the_configs_changes():
    method = methods.create({"adversarial": {"optimizer": {"b1": 0.25}}, "fitnet": {}})
    assert method.optimizers["adversarial"] == OPTIMIZER | {"b1": 0.25}
    assert method.optimizers["fitnet"] == {}


def test_the_students_name_is_refused_for_a_term():
    with pytest.raises(InputError, match=r"method.student is the name of a term; expected another"):
        methods.create({"student": {"method": "kd"}})


def test_the_old_name_of_the_key_is_refused_with_the_new_one():
    with pytest.raises(InputError, match=r"method.soft.loss is now method.soft.method"):
        methods.create({"soft": {"loss": "kd"}})


def members(**logits):
    """An ensemble's outputs, whose own logits are zero."""
    return outputs(0 * TEACHER)._replace(members={name: outputs(x) for name, x in logits.items()})


def test_a_term_reads_the_member_that_it_names():
    method = methods.create({"own": {"method": "kd", "teacher": "b"}, "kd": {}})
    got = terms(method, STUDENT, members(a=TEACHER, b=TEACHER[::-1]))
    expected = terms(methods.create({"own": {"method": "kd"}}), STUDENT, TEACHER[::-1])
    np.testing.assert_allclose(got["own"], expected["own"], rtol=1e-6)
    assert got["own"] != got["kd"]


@pytest.mark.parametrize(
    ("teacher", "said"),
    [
        (TEACHER, "method.kd: its teacher is 'b', and the run has one; expected teacher.kind 'ensemble'"),
        (members(a=TEACHER), "method.kd: the term's teacher is 'b'; expected one of: a"),
    ],
)
def test_a_member_that_is_not_there_is_refused(teacher, said):
    with pytest.raises(InputError, match=said):
        terms(methods.create({"kd": {"teacher": "b"}}), STUDENT, teacher)


@pytest.mark.parametrize("name", ["ctkd", "crld", "wkd_logits"])
def test_logits_are_standardized_for_any_method_of_logits(name):
    always = {"weak_confidence": 0.0, "strong_confidence": 0.0} if name == "crld" else {}

    def value(student, teacher, **options):
        return sum(terms(methods.create({name: options | always}), student, teacher, [0] * 6).values())

    expected = value(standardized(STUDENT), standardized(TEACHER))
    np.testing.assert_allclose(value(STUDENT, TEACHER, standardize=True), expected, rtol=1e-5)
    assert abs(value(STUDENT, TEACHER) - expected) > 1e-3 * abs(expected)


@pytest.mark.parametrize("name", ["kd", "dkd", "mlkd", "rld", "dist", "skd", "ttm", "original_rkd_angle"])
def test_a_loss_of_logits_refuses_maps_in_one_line(name):
    method = methods.create({name: {"on": "feature:-1"}})
    with pytest.raises(InputError, match=rf"method.{name}: the loss compares .*; expected rows \[B, K\]"):
        terms(method, STUDENT, TEACHER, [0, 1, 2, 3, 4, 0])


@pytest.mark.parametrize("term", ["a/b", "", " "])
def test_a_name_of_a_term_that_could_be_a_parts_is_refused(term):
    with pytest.raises(InputError, match=r"the name of a term is .*; expected one without '/'"):
        methods.create({term: {"method": "kd"}})


def test_a_term_without_a_teacher_reads_none_of_several():
    with pytest.raises(InputError, match=r"method.cross_entropy.teacher is 'a'; expected '', as the term reads no"):
        methods.create({"cross_entropy": {"teacher": "a"}})


def test_what_an_ensemble_does_not_report_is_sought_with_its_members():
    seen = members(a=TEACHER)._replace(features=())
    with pytest.raises(InputError, match="is an ensemble and reports no features of its own; expected the term's"):
        terms(methods.create({"at": {}}), STUDENT, seen)


def test_epochs_that_32_bits_do_not_hold_as_steps_can_end_a_decay():
    method = methods.create({"kd": {"decay_epochs": [0, 10**6]}}, steps_per_epoch=3000)
    assert float(method.schedules["kd"](jnp.int32(3000 * 500))) == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize(("epochs", "phases"), [(None, False), ([0, 1], True)])
def test_a_run_has_phases_where_a_term_has_a_window(epochs, phases):
    assert methods.create({"kd": {"epochs": epochs, "warmup_epochs": 2}}).phases == phases
