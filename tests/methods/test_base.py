"""What losses read, and how losses, modules and methods become one method."""

import dataclasses
import re
import runpy
from typing import Annotated

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax import losses, methods
from kd_jax.errors import InputError
from kd_jax.keys import ABOVE_0, TRACED, Factor, listing
from kd_jax.methods import base, contrastive
from kd_jax.types import Method, MethodVariables, Outputs, View
from tests.methods.examples import EXAMPLES
from tests.methods.numeric import STUDENT, TEACHER, batch, context, grad, log_softmax, outputs, standardized, terms

Powers = Annotated[tuple[float, ...], listing(ABOVE_0), TRACED]


def apply(method, student=STUDENT, teacher=TEACHER, labels=(0, 1, 2, 3, 4, 0)):
    return terms(method, student, teacher, list(labels))


@pytest.mark.parametrize(
    ("on", "expected"),
    [
        ("logits", STUDENT),
        ("probabilities", np.exp(log_softmax(STUDENT))),
        ("log_probabilities", log_softmax(STUDENT)),
        ("embedding", TEACHER),
        ("feature:0", TEACHER[:, None, None, :] * (1 + np.arange(16.0)).reshape(4, 4, 1)),
        ("feature:-1", TEACHER[:, None, None, :] * (1 + np.arange(4.0)).reshape(2, 2, 1)),
    ],
)
def test_a_loss_reads_what_it_names(on, expected):
    np.testing.assert_allclose(base.tap(outputs(STUDENT, TEACHER), on), expected, rtol=1e-5)


def staged(*maps, before=None):
    """Outputs with these maps, and before their ReLU others."""
    maps = tuple(jnp.asarray(x, jnp.float32) for x in maps)
    return outputs(STUDENT)._replace(
        features=maps, preactivations=tuple(map(jnp.asarray, maps if before is None else before))
    )


MAPS = np.random.default_rng(1).normal(size=(8, 6, 2, 2, 3))


def test_a_map_before_its_relu_has_a_name_of_its_own():
    np.testing.assert_allclose(base.tap(staged(*MAPS[:3], before=MAPS[3:6]), "preactivation:1"), MAPS[4], rtol=1e-6)


def test_a_map_of_half_precision_is_read_in_float32():
    seen = staged(*MAPS[:2])
    half = seen._replace(features=tuple(x.astype(jnp.bfloat16) for x in seen.features))
    assert base.tap(half, "feature:1").dtype == jnp.float32


def squared(student, teacher):
    return jnp.square(student - teacher).mean((1, 2, 3))


def test_a_term_at_all_stages_is_the_sum_over_every_map_but_the_stems():
    method = methods.from_loss(squared, on="stages")("term")
    got = terms(method, staged(*MAPS[:3]), staged(*MAPS[3:6]))
    expected = sum(np.square(a - b).mean() for a, b in zip(MAPS[1:3], MAPS[4:6], strict=True))
    np.testing.assert_allclose(got["term"], expected, rtol=1e-5)


def test_a_term_between_named_stages_of_both_networks_is_the_sum_over_the_pairs():
    method = methods.from_loss(squared)("term", on=["feature:0", "feature:2"], teacher_on=["feature:3", "feature:1"])
    got = terms(method, staged(*MAPS[:3]), staged(*MAPS[3:7]))
    expected = np.square(MAPS[0] - MAPS[6]).mean() + np.square(MAPS[2] - MAPS[4]).mean()
    np.testing.assert_allclose(got["term"], expected, rtol=1e-5)


def test_networks_of_different_numbers_of_stages_are_refused():
    method = methods.from_loss(squared, on="stages")("term")
    with pytest.raises(InputError, match=r"has 2 maps or vectors at stages, the teacher 3 at stages; expected as many"):
        terms(method, staged(*MAPS[:3]), staged(*MAPS[3:7]))


@pytest.mark.parametrize("on", ["logit", "feature", "feature:last"])
def test_an_unknown_name_is_refused_with_the_choices(on):
    for read in (base.check_tap, lambda on: base.tap(outputs(STUDENT), on)):
        with pytest.raises(InputError, match=r"expected one of: embedding, feature:N, log_probabilities, logits, pool"):
            read(on)


def test_a_loss_per_image_is_averaged_over_the_batch():
    method = base.from_loss(lambda student, teacher: (student - teacher).sum(-1))("term")
    np.testing.assert_allclose(apply(method)["term"], (STUDENT - TEACHER).sum(-1).mean(), rtol=1e-4)


def test_a_loss_of_the_batch_is_taken_as_it_is():
    method = base.from_loss(lambda student, teacher: (student * teacher).sum())("term")
    np.testing.assert_allclose(apply(method)["term"], (STUDENT * TEACHER).sum(), rtol=1e-4)


def test_a_loss_of_labels_counts_only_images_that_have_one():
    method = base.from_loss(lambda student, labels: student[:, 0] + labels)("term")
    expected = (STUDENT[[0, 3], 0] + [2, 4]).mean()
    np.testing.assert_allclose(apply(method, labels=(2, -1, -1, 4, -1, -1))["term"], expected, rtol=1e-5)


WEIGHTS = np.array([2.0, 0.5, 99.0, 1.0, 0.0, 3.0])
READS_LABELS = {
    "sdd": {"inner": "dkd"},
    **{name: EXAMPLES[name] for name in sorted(EXAMPLES) if methods.create({name: EXAMPLES[name]}).needs_labels},
}
PEERS = {"mutual"}  # see test_peers


def test_the_terms_that_read_labels_are_known():
    assert READS_LABELS.keys() >= {"cross_entropy", "dkd", "nkd", "wkd_logits", "nd", "sdd", "byot", "mutual"}
    assert not READS_LABELS.keys() & {"kd", "crd", "deit", "at", "crld"}


@pytest.mark.parametrize("name", sorted(READS_LABELS.keys() - PEERS))
def test_a_term_that_reads_labels_weighs_its_images(name):
    """It is linear in their weights, what has no label does not count, and it is divided by the count."""
    method = methods.create({name: READS_LABELS[name]})
    given = context(STUDENT, TEACHER, [0, 1, -1, 3, 4, 0], views=method.views)
    variables = method.init(jax.random.key(0), given)

    @jax.jit
    def term(weights):
        views = tuple(view._replace(batch=view.batch._replace(weights=weights)) for view in given.views)
        (loss,) = method.apply(variables, dataclasses.replace(given, views=views))[0].values()
        return loss

    rest, *each = (np.float64(term(jnp.asarray(x, jnp.float32))) for x in (np.zeros(6), *np.eye(6)))  # without labels
    np.testing.assert_allclose(term(None), term(jnp.ones(6)), rtol=1e-5)
    np.testing.assert_allclose(term(jnp.asarray(WEIGHTS)), rest + WEIGHTS @ (np.array(each) - rest), rtol=1e-4)
    assert each[2] == rest
    assert abs(term(jnp.asarray(WEIGHTS)) - term(None)) > 1e-3 * abs(term(None))


def test_the_weighted_mean_is_that_of_micro_batches_and_no_quotient_of_weights():
    loss, weights = STUDENT[:, 0], np.arange(6.0)
    each = batch((0, 1, 2, 3, 4, 0))._replace(weights=jnp.asarray(weights))
    whole = base.labeled_mean(jnp.asarray(loss), each)
    np.testing.assert_allclose(whole, (weights * loss).sum() / 6, rtol=1e-5)
    halves = [
        base.labeled_mean(jnp.asarray(loss[i]), jax.tree.map(lambda x, i=i: x[i], each))
        for i in np.split(np.arange(6), 2)
    ]
    np.testing.assert_allclose(np.mean(halves), whole, rtol=1e-5)


def test_a_loss_of_the_batch_cannot_weigh_its_images():
    method = base.from_loss(lambda student, labels: (student[:, 0] + labels).mean())("term")
    given = context(STUDENT, labels=[0] * 6)
    weighed = given.views[0]._replace(batch=given.batch._replace(weights=jnp.ones(6)))
    with pytest.raises(InputError, match=r"in which no image can be weighed; expected \[B\], or train.class_weights"):
        method.apply(MethodVariables({}, {}), dataclasses.replace(given, views=(weighed,)))


def test_without_any_label_such_a_loss_is_zero():
    method = base.from_loss(lambda student, labels: student[:, 0])("term")
    assert apply(method, labels=[-1] * 6)["term"] == 0


def test_a_lifted_loss_gives_the_teacher_no_gradient():
    method = base.from_loss(lambda student, teacher: (student * teacher).sum(-1), on="embedding")("term")
    gradient = grad(lambda t: apply(method, teacher=t)["term"])(jnp.asarray(TEACHER, jnp.float32))
    assert not gradient.any()


def test_standardize_is_an_option_of_every_lifted_loss():
    method = base.from_loss(lambda student, teacher: (student * teacher).sum(-1))("term", standardize=True)
    expected = (standardized(STUDENT) * standardized(TEACHER)).sum(-1).mean()
    np.testing.assert_allclose(apply(method)["term"], expected, rtol=1e-4)


@pytest.mark.parametrize("on", ["embedding", "pooled", "feature:1"])
def test_what_a_network_does_not_report_is_named(on):
    method = base.from_loss(lambda student, teacher: student - teacher, on=on)("term")
    with pytest.raises(InputError, match=r"the teacher reports logits and no (embedding|pooled|features)"):
        apply(base.combine({"term": method}), teacher=Outputs(jnp.asarray(TEACHER)))


def test_a_network_that_reports_logits_alone_suffices_for_them():
    method = base.from_loss(lambda student, teacher: (student - teacher).sum(-1))("term")
    got = apply(method, Outputs(jnp.asarray(STUDENT)), Outputs(jnp.asarray(TEACHER)))["term"]
    np.testing.assert_allclose(got, (STUDENT - TEACHER).sum(-1).mean(), rtol=1e-4)


def test_a_parameter_of_another_name_is_refused():
    with pytest.raises(InputError, match=r"a loss has the parameter 'logits'; expected one that begins with student"):
        base.from_loss(lambda logits: logits)


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda student: student, r"the loss is float32 \[6, 5\]; expected \[\], or \[6\], one for each image"),
        (lambda student: student[:3, 0], r"the loss is float32 \[3\]; expected"),
        (lambda student: None, r"the loss is of type NoneType; expected"),
        (lambda student: student[:, 0] * 1j, r"the loss is complex64; expected real numbers"),
        (lambda student: 1j, r"the loss is complex; expected real numbers"),
        (lambda student: (student[:, 0], 0.0), r"the loss is of type tuple; expected"),
    ],
)
def test_a_loss_of_another_shape_is_refused(function, said):
    with pytest.raises(InputError, match=f"method.term: {said}"):
        apply(base.combine({"term": base.from_loss(function)("term")}))


OWN = """
import flax.linen as nn
import jax.numpy as jnp


def forgets_labels(student, teacher):
    return -student[jnp.arange(6), labels]


def wrong_shapes(student, teacher):
    return (student @ teacher).sum(-1)


def branches(student, teacher):
    return student.sum(-1) if student.sum() > 0 else teacher.sum(-1)


def of_the_librarys(student, teacher):
    return losses.kd(student, teacher[:, :3])


def returns_nothing(student, teacher):
    student.sum()


class Module(nn.Module):
    def __call__(self, context):
        return context.student.logits.summ()


from kd_jax import losses


class PerImage(nn.Module):
    def __call__(self, context):
        return context.student.logits[:, 0]


class Called:
    def __call__(self, student, teacher):
        return student - teacher


import functools

called, of_a_part = Called(), functools.partial(returns_nothing)
"""


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("forgets_labels", "OWN:7: NameError: name 'labels' is not defined"),
        ("wrong_shapes", "OWN:11: TypeError: dot_general requires contracting dimensions"),
        ("branches", "OWN:15: TracerBoolConversionError: .* Under jit no value is known: jnp.where chooses by one"),
        ("of_the_librarys", r"the loss compares \[6, 5\] with \[6, 3\]; expected equal shapes \(OWN:19\)"),
        ("returns_nothing", r"of type NoneType; expected \[\], or \[6\], one for each image \(OWN:22\)"),
        ("Module", "OWN:28: AttributeError: .*summ"),
        ("PerImage", r"the loss is float32 \[6\]; expected \[\] \(OWN:35\)"),
        ("called", r"expected \[\], or \[6\], one for each image \(OWN:40\)"),
        ("of_a_part", r"expected \[\], or \[6\], one for each image \(OWN:22\)"),
    ],
)
def test_a_mistake_in_a_loss_of_ones_own_is_one_line_with_its_place(tmp_path, name, said):
    path = tmp_path / "own.py"
    path.write_text(OWN)
    own = runpy.run_path(str(path))[name]
    method = base.combine({"own": (base.from_module if isinstance(own, type) else base.from_loss)(own)("own")})
    with pytest.raises(InputError) as raised:
        jax.eval_shape(lambda: apply(method))
    assert re.fullmatch(f"method.own: .*{said.replace('OWN', re.escape(str(path)))}.*", str(raised.value))


def test_an_error_that_no_line_of_a_users_has_a_part_in_stays_as_it_is(monkeypatch):
    monkeypatch.setattr(base.masks, "mean", dict(a=1).__getitem__)  # a fault of the library's
    with pytest.raises(TypeError):
        apply(base.combine({"kd": methods.create({"kd": {}})}))


def test_a_modules_loss_is_one_number():
    class PerImage(nn.Module):
        def __call__(self, context):
            return context.student.logits[:, 0]

    with pytest.raises(InputError, match=r"method.term: the loss is float32 \[6\]; expected \[\] \(.*test_base.py:"):
        apply(base.combine({"term": base.from_module(PerImage)("term")}))


@pytest.mark.parametrize("value", [2, 0.5, np.float32(0.5), np.full(6, 0.5)])
def test_a_loss_may_be_a_constant(value):
    assert apply(base.from_loss(lambda student: value)("term"))["term"] == np.mean(value)


def test_a_part_that_is_no_number_is_named():
    class Parts(nn.Module):
        def __call__(self, context):
            return {"good": 0.0, "bad": context.student.logits}

    with pytest.raises(InputError, match=r"method.term: the loss 'bad' is float32 \[6, 5\]; expected \[\]"):
        apply(base.combine({"term": base.from_module(Parts)("term")}))


@pytest.mark.parametrize("module", [Outputs, "Regress", nn.Dense(3)])
def test_what_is_no_class_of_modules_is_refused(module):
    with pytest.raises(InputError, match=r"from_module is given a .*; expected a class of Flax modules"):
        base.from_module(module)


def test_a_prediction_of_another_shape_is_refused():
    class Predicts(nn.Module):
        def __call__(self, context):
            return 0.0

        def predict(self, outputs):
            return outputs.logits[:, 0]

    method = base.combine({"term": base.from_module(Predicts)("term")})
    variables = MethodVariables({"term": {}}, {"term": {}})
    with pytest.raises(InputError, match=r"method.term: it predicts \[6\]; expected \[6, 5\]"):
        method.predict(variables, outputs(STUDENT))


def test_where_without_labels_has_no_meaning():
    with pytest.raises(InputError, match=r"a loss has the parameter 'where' .*; expected targets or labels too"):
        base.from_loss(lambda student, *, where: student[:, 0])


def test_a_loss_that_takes_where_is_told_who_has_a_label():
    told = []
    method = base.from_loss(lambda student, labels, *, where=None: told.append(where) or student[:, 0])("term")
    seen = context(STUDENT, labels=(0, -1, 1, 2, -1, 3))
    method.apply(method.init(None, seen), seen)
    np.testing.assert_array_equal(told[0], [True, False, True, True, False, True])


def test_a_loss_at_two_views_is_their_sum():
    method = base.from_loss(lambda student, teacher: (student - teacher).sum(-1))("term", views=[0, 1])
    other = View(batch([0] * 6), outputs(2 * STUDENT), outputs(TEACHER))
    seen = context(STUDENT, TEACHER)
    seen = dataclasses.replace(seen, views=(*seen.views, other))
    got = method.apply(method.init(None, seen), seen)[0]["term"]
    np.testing.assert_allclose(got, (3 * STUDENT - 2 * TEACHER).sum(-1).mean(), rtol=1e-4)
    assert method.views == 2


@pytest.mark.parametrize("views", [[], [-1], [0.5]])
def test_views_that_are_not_numbers_are_refused(views):
    with pytest.raises(
        InputError, match=r"method.term.views is .*; expected a list: numbers of views, the first being 0"
    ):
        base.from_loss(lambda student: student)("term", views=views)


class Scaled(nn.Module):
    """A trained factor, a counter of calls, and noise."""

    factor: float = 2.0

    @nn.compact
    def __call__(self, context):
        scale = self.param("scale", nn.initializers.ones, ())
        calls = self.variable("memory", "calls", lambda: jnp.int32(0))
        calls.value += 1
        value = self.factor * scale * context.student.logits.sum()
        return {"sum": value, "noise": jax.random.normal(self.make_rng("method"))}


def test_a_modules_parameters_train_and_its_other_collections_are_state():
    method = base.from_module(Scaled)("term")
    variables = method.init(jax.random.key(0), context(STUDENT))
    assert (list(variables.params), list(variables.state)) == (["scale"], ["memory"])
    _, state = method.apply(variables, context(STUDENT))
    assert state["memory"]["calls"] == variables.state["memory"]["calls"] + 1


def test_a_modules_losses_are_parts_of_its_term():
    got = terms(base.from_module(Scaled)("term", factor=3.0), STUDENT)
    assert got.keys() == {"term/sum", "term/noise"}
    np.testing.assert_allclose(got["term/sum"], 3 * STUDENT.sum(), rtol=1e-4)


def test_a_module_draws_anew_at_every_step():
    method = base.from_module(Scaled)("term")
    variables = method.init(jax.random.key(0), context(STUDENT))
    noise = {float(method.apply(variables, context(STUDENT, rng=jax.random.key(i)))[0]["term/noise"]) for i in (1, 2)}
    assert len(noise) == 2


def test_a_modules_fields_are_its_options(monkeypatch):
    monkeypatch.setitem(methods.METHODS, "scaled", base.from_module(Scaled))
    with pytest.raises(InputError, match=r"is 'facto'; expected one of: .*; did you mean 'factor'"):
        methods.create({"scaled": {"facto": 1.0}})


def counter(name, start=0.0, trains=None, **fields):
    """A method whose parameter is its term and whose state counts its calls, both from `start`."""

    def init(rng, context):
        return MethodVariables(jnp.float32(start), jnp.int32(start))

    def run(variables, context):
        return {name: variables.params}, variables.state + 1

    return Method(init, run, trains=lambda step: trains or {}, **fields)


def test_combined_methods_keep_their_own_variables():
    combined = base.combine({"a": counter("a", 1.0), "b": counter("b", 2.0)})
    seen = context(STUDENT)
    got, state = combined.apply(combined.init(jax.random.key(0), seen), seen)
    assert (got, state) == ({"a": 1.0, "b": 2.0}, {"a": 2, "b": 3})


def test_combined_methods_have_randomness_of_their_own():
    def noise(name):
        def init(rng, context):
            return MethodVariables(jax.random.normal(rng), {})

        def run(variables, context):
            return {f"{name}/init": variables.params, f"{name}/apply": jax.random.normal(context.rng)}, {}

        return Method(init, run)

    got = terms(base.combine({"a": noise("a"), "b": noise("b")}), STUDENT)
    assert len({float(value) for value in got.values()}) == 4


def test_combined_methods_keep_their_weights():
    combined = base.combine({name: counter(name, weights={name: weight}) for name, weight in [("a", 0.5), ("b", 2.0)]})
    assert combined.weights == {"a": 0.5, "b": 2.0}


def test_combined_methods_are_each_told_their_own_options():
    combined = methods.create({"a": {"method": "kd"}, "b": {"method": "kd", "temperature": 3}, "c": {"method": "at"}})
    assert combined.traced == {"a": {"temperature": 4.0}, "b": {"temperature": 3.0}}
    told = {"a": {"temperature": 2.0}, "b": {"temperature": 1.0}}
    got = terms(methods.create({"a": {"method": "kd"}, "b": {"method": "kd"}}), STUDENT, TEACHER, options=told)
    expected = {name: terms(methods.create({"kd": own}), STUDENT, TEACHER)["kd"] for name, own in told.items()}
    np.testing.assert_allclose(got["a"], expected["a"], rtol=1e-6)
    np.testing.assert_allclose(got["b"], expected["b"], rtol=1e-6)


def scaled(
    student, teacher, *, factor: Factor = 2, shift: Factor | None = None, powers: Powers = (1, 2), bins: int = 3
):
    total = factor * sum(jnp.square(student - teacher).mean(-1) ** power for power in powers)
    return total if shift is None else total + shift


def test_what_is_traced_of_a_loss_are_the_numbers_that_its_annotations_mark():
    construct = methods.from_loss(scaled)
    assert construct("term").traced == {"factor": 2.0, "powers": (1.0, 2.0)}
    given = construct("term", shift=1, powers=[3, 0.5], bins=4).traced
    assert given == {"factor": 2.0, "shift": 1.0, "powers": (3.0, 0.5)}


def test_combined_methods_need_a_teacher_where_one_of_them_does():
    needing, other = counter("a", needs_teacher=True), counter("b")
    assert base.combine({"a": needing, "b": other}).needs_teacher
    assert not base.combine({"b": other}).needs_teacher


@pytest.mark.parametrize(("first", "second", "both"), [(True, True, True), (True, False, False), (False, False, False)])
def test_the_student_moves_when_all_methods_let_it(first, second, both):
    combined = base.combine({name: counter(name, trains={"student": m}) for name, m in [("a", first), ("b", second)]})
    assert bool(combined.trains(0)["student"]) is both


def test_a_waiting_term_lets_another_move():
    waiting = counter("a", trains={"a": False})
    assert base.combine({"a": waiting, "b": counter("b")}).trains(0) == {"a": False}


def test_a_method_that_replaces_the_prediction_predicts_for_the_sum():
    own = counter("b", 3.0, predict=lambda variables, out: variables.params * out.logits)
    combined = base.combine({"a": counter("a"), "b": own})
    predicted = combined.predict(combined.init(jax.random.key(0), context(STUDENT)), outputs(STUDENT))
    np.testing.assert_allclose(predicted, 3 * STUDENT, rtol=1e-6)


def test_two_methods_that_replace_the_prediction_are_refused():
    replacing = {name: counter(name, predict=lambda variables, out: out.logits) for name in "ab"}
    with pytest.raises(InputError, match=r"the terms a, b each replace the student's prediction"):
        base.combine(replacing)


def test_a_constructor_has_the_words_of_what_it_is_made_of():
    assert methods.METHODS["kd"].__doc__ == losses.kd.__doc__
    assert methods.METHODS["crd"].__doc__ == contrastive.CRD.__doc__
