"""Optimizers and schedules against recursions written out in float64 numpy."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kd_jax import optim
from kd_jax.config import base
from kd_jax.errors import InputError
from kd_jax.types import Hyper

OPTIONS = base.get_config().optimizer.to_dict() | {"learning_rate": 0.05, "warmup_epochs": 0.0}


def hyper(learning_rate, weight_decay):
    return Hyper({"student": jnp.float32(learning_rate)}, {"student": jnp.float32(weight_decay)}, {})


def trajectory(options, gradients, *, weight_decay=0.1, rate=0.1, name=("fc", "kernel"), clip=0.0):
    """The parameter after each update of a scalar that starts at 1."""
    optimizer = optim.create(OPTIONS | {"schedule": "constant"} | options, steps=10, steps_per_epoch=5, clip=clip)
    params = {"student": {name: jnp.ones(1)}}
    state = optimizer.init({"student": {name[0]: {name[1]: jnp.ones(1)}}})
    values = []
    for step, gradient in enumerate(gradients):
        params, state = optimizer.update(
            {"student": {name: jnp.full(1, gradient)}},
            state,
            params,
            step=jnp.int32(step),
            hyper=hyper(rate, weight_decay),
            trains={},
        )
        values.append(float(params["student"][name][0]))
    return values


GRADIENTS = [0.5, -1.0, 0.25, 2.0]


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_follows_pytorchs_recursion(nesterov):
    p, buffer, expected = 1.0, 0.0, []
    for g in GRADIENTS:
        d = g + 0.1 * p
        buffer = 0.9 * buffer + d
        p -= 0.1 * (d + 0.9 * buffer if nesterov else buffer)
        expected.append(p)
    options = {"name": "sgd", "momentum": 0.9, "nesterov": nesterov}
    np.testing.assert_allclose(trajectory(options, GRADIENTS), expected, rtol=1e-5)


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_adam_adds_decay_to_the_gradient_and_adamw_to_the_step(name):
    p, m, v, expected = 1.0, 0.0, 0.0, []
    for t, g in enumerate(GRADIENTS, start=1):
        d = g + (0.1 * p if name == "adam" else 0.0)
        m, v = 0.9 * m + 0.1 * d, 0.999 * v + 0.001 * d * d
        step = (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        p -= 0.1 * (step + (0.1 * p if name == "adamw" else 0.0))
        expected.append(p)
    np.testing.assert_allclose(trajectory({"name": name}, GRADIENTS), expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "decays"),
    [
        (("fc", "kernel"), True),
        (("fc", "bias"), False),
        (("norm", "scale"), False),
        (("block", "gamma"), False),
        (("body", "cls_token"), False),
        (("body", "dist_token"), False),
        (("body", "pos_embed"), False),
    ],
)
def test_biases_factors_and_tokens_are_left_out_of_weight_decay_on_request(name, decays):
    options = {"name": "sgd", "momentum": 0.0, "decay_norms_and_biases": False}
    expected = 1 - 0.1 * 0.1 if decays else 1.0
    np.testing.assert_allclose(trajectory(options, [0.0], name=name), [expected], rtol=1e-6)


def test_clipping_bounds_the_gradients_norm_before_decay():
    options = {"name": "sgd", "momentum": 0.0}
    np.testing.assert_allclose(trajectory(options, [20.0], clip=2.0), [1 - 0.1 * (2.0 + 0.1)], rtol=1e-6)


def test_an_optimizer_is_one_entry(monkeypatch):
    monkeypatch.setitem(optim.OPTIMIZERS, "sign", lambda options, decay: optax.chain(decay, optax.scale_by_sign()))
    np.testing.assert_allclose(trajectory({"name": "sign"}, [3.0, -0.1], weight_decay=0.0), [0.9, 1.0], rtol=1e-6)


LION = {"name": "lion", "options": {"b1": 0.5, "b2": 0.8}}
SIGNED = [3.0, -0.4, 0.5]


def lion(gradients, *, decay, rate=0.1, b1=0.5, b2=0.8):
    """Chen et al., "Symbolic Discovery of Optimization Algorithms", 2023, algorithm 2: of a scalar that starts at 1."""
    value, momentum, values = 1.0, 0.0, []
    for gradient in gradients:
        value -= rate * (np.sign(b1 * momentum + (1 - b1) * gradient) + decay * value)
        momentum = b2 * momentum + (1 - b2) * gradient
        values.append(value)
    return values


def test_an_optimizer_of_optax_has_its_options_and_the_configs_rate_and_decay():
    np.testing.assert_allclose(trajectory(LION, SIGNED), lion(SIGNED, decay=0.1), rtol=1e-6)


def test_an_optimizer_of_optax_spares_biases_where_the_config_says_so():
    options = LION | {"decay_norms_and_biases": False}
    np.testing.assert_allclose(trajectory(options, SIGNED, name=("fc", "bias")), lion(SIGNED, decay=0), rtol=1e-6)
    np.testing.assert_allclose(trajectory(options, SIGNED), lion(SIGNED, decay=0.1), rtol=1e-6)


def test_an_optimizer_of_optax_without_decay_has_it_added_to_the_gradient():
    value, square, expected = 1.0, 0.0, []
    for gradient in SIGNED:  # RMSprop with decay 0.5 and eps 0
        decayed = gradient + 0.1 * value
        square = 0.5 * square + 0.5 * decayed**2
        value -= 0.1 * decayed / math.sqrt(square)
        expected.append(value)
    options = {"name": "rmsprop", "options": {"decay": 0.5, "eps": 0.0}}
    np.testing.assert_allclose(trajectory(options, SIGNED), expected, rtol=1e-5)


def test_an_optimizer_of_optax_starts_from_the_configs_rate():
    # Rprop's state holds its step, which is the learning rate; without a gradient before, nothing moves.
    options = {"name": "rprop", "learning_rate": 0.05}
    np.testing.assert_allclose(trajectory(options, [3.0, 3.0], weight_decay=0.0), [1, 1 - 0.05], rtol=1e-6)


def test_options_do_not_pass_to_a_term_with_another_optimizer():
    terms = {"crd": {"name": "adam"}, "at": {"name": "lion"}, "sp": {"name": "lion", "options": {"b1": 0.9}}}
    of_term = optim.create(OPTIONS | LION, terms, steps=10, steps_per_epoch=5)  # Adam takes no options: it would refuse
    assert of_term.learning_rates.keys() == {"student", *terms}


@pytest.mark.parametrize(
    ("options", "others", "said"),
    [
        ({"schedule": "cosin"}, {}, "did you mean 'cosine'"),
        ({"name": "lio"}, {}, "adam, adamax, adamaxw, adamw, .* did you mean 'lion'"),
        ({"name": "lion", "options": {"b3": 0.9}}, {}, "an option of lion is 'b3'; expected one of: b1, b2, mu_dtype"),
        ({"name": "lion", "options": {"b1": "x"}}, {}, "optimizer.options.b1 is 'x'; expected a number that is finite"),
        ({"name": "lion", "options": {"b1": True}}, {}, "optimizer.options.b1 is True; expected a number"),
        ({"name": "lion", "options": {"weight_decay": 0.1}}, {}, "has 'weight_decay'; expected optimizer.weight_decay"),
        ({"name": "adam", "options": {"b1": 0.8}}, {}, "those of 'adam' are keys of optimizer themselves"),
        ({"name": "lbfgs"}, {}, "'lbfgs', which cannot train here: .* 'value'"),
        ({"name": "schedule_free_sgd"}, {}, "optimizer.name is 'schedule_free_sgd'; expected one of"),
        ({"name": "novograd", "decay_norms_and_biases": False}, {}, "novograd decays all; expected True"),
        ({"learning_rate": 0.0}, {}, "above 0"),
        ({"learning_rate": "fast"}, {}, "optimizer.learning_rate is 'fast'; expected a number above 0"),
        ({}, {"freeze": "all"}, "backbone, backbone_and_norms, none"),
        ({}, {"freeze": "backbone"}, "the network does not say what its head is"),
        ({}, {"terms": {"crd": {"momentun": 0.5}}}, "a key of method.crd.optimizer is 'momentun'; .* 'momentum'"),
        ({}, {"terms": {"crd": {"name": "lio"}}}, "method.crd.optimizer.name is 'lio'"),
        ({}, {"terms": {"crd": {"weight_decay": -1}}}, "method.crd.optimizer.weight_decay is -1; expected a number of"),
    ],
)
def test_unknown_names_are_named_with_the_choices(options, others, said):
    with pytest.raises(InputError, match=said):
        optim.create(OPTIONS | options, steps=10, steps_per_epoch=5, **others)


def parted(options, gradients, *, decay=0.1, clip=0.0):
    """The parameter after each update of a scalar that starts at 1, from pairs (of the task, of distillation)."""
    optimizer = optim.create(OPTIONS | {"schedule": "constant"} | options, steps=10, steps_per_epoch=5, clip=clip)
    assert optimizer.per_part
    path = ("fc", "kernel")
    params = {"student": {path: jnp.ones(1)}}
    state, values = optimizer.init({"student": {"fc": {"kernel": jnp.ones(1)}}}), []
    for step, pair in enumerate(gradients):
        parts = {part: {"student": {path: jnp.full(1, g)}} for part, g in zip(optim.PARTS, pair, strict=True)}
        params, state = optimizer.update(parts, state, params, step=jnp.int32(step), hyper=hyper(0.1, decay), trains={})
        values.append(float(params["student"][path][0]))
    return values


def test_dot_has_a_lower_momentum_for_the_task_and_a_higher_one_for_distillation():
    pairs, p, task, taught, expected = [(0.5, 1.0), (-1.0, 0.3), (0.25, -2.0)], 1.0, 0.0, 0.0, []
    for g, h in pairs:
        task = (0.9 - 0.05) * task + g + 0.1 * p  # the decay is the task's
        taught = (0.9 + 0.05) * taught + h
        p -= 0.1 * (task + taught)
        expected.append(p)
    np.testing.assert_allclose(parted({"name": "dot", "momentum": 0.9, "delta": 0.05}, pairs), expected, rtol=1e-5)


def test_clipping_bounds_the_sum_of_both_parts():
    options = {"name": "dot", "momentum": 0.9, "delta": 0.05}
    np.testing.assert_allclose(parted(options, [(3.0, 3.0)], clip=2.0), [1 - 0.1 * (2.0 + 0.1)], rtol=1e-6)
    np.testing.assert_allclose(parted(options, [(0.5, 1.0)], clip=2.0), [1 - 0.1 * (1.5 + 0.1)], rtol=1e-6)


def test_what_a_term_trains_has_one_momentum_under_dot():
    options = OPTIONS | {"schedule": "constant", "name": "dot", "momentum": 0.9, "delta": 0.05}
    optimizer = optim.create(options, {"term": {}}, steps=10, steps_per_epoch=5)
    params = {"student": {}, "term": {"kernel": jnp.ones(1)}}
    state, p, buffer = optimizer.init(params), 1.0, 0.0
    rates = {group: jnp.float32(0.1) for group in params}
    for step in range(3):
        gradients = zip(optim.PARTS, (0.0, 2.0), strict=True)
        parts = {part: {"student": {}, "term": {"kernel": jnp.full(1, g)}} for part, g in gradients}
        params, state = optimizer.update(
            parts, state, params, step=jnp.int32(step), hyper=Hyper(rates, rates, {}), trains={}
        )
        buffer = 0.9 * buffer + 2.0 + 0.1 * p
        p -= 0.1 * buffer
    np.testing.assert_allclose(params["term"]["kernel"], [p], rtol=1e-5)


@pytest.mark.parametrize(("momentum", "delta"), [(0.9, 0.1), (0.05, 0.1)])
def test_momenta_of_dot_that_cannot_be_are_refused(momentum, delta):
    options = {"name": "dot", "momentum": momentum, "delta": delta}
    with pytest.raises(InputError, match=r"expected both momenta, .*, to be at least 0 and below 1"):
        parted(options, [(1.0, 1.0)])


def test_a_gradient_that_opposes_the_tasks_loses_its_share_along_that():
    task = {"a": jnp.array([3.0, 0.0]), "b": jnp.array([4.0])}
    taught = {"a": jnp.array([-1.0, 2.0]), "b": jnp.array([-1.0])}
    got = optim.project({"task": task, "distillation": taught})
    share = (-3.0 - 4.0) / 25  # over all parameters together
    np.testing.assert_allclose(got["a"], [3 - 1 - 3 * share, 2.0], rtol=1e-6)
    np.testing.assert_allclose(got["b"], [4 - 1 - 4 * share], rtol=1e-6)


@pytest.mark.parametrize("task", [[3.0, 1.0], [0.0, 0.0]])
def test_a_gradient_that_does_not_oppose_the_tasks_is_added(task):
    parts = {"task": {"a": jnp.array(task)}, "distillation": {"a": jnp.array([1.0, 2.0])}}
    np.testing.assert_allclose(optim.project(parts)["a"], [task[0] + 1, task[1] + 2], rtol=1e-6)


def test_projection_comes_before_momentum():
    pairs = [(0.5, -1.0), (-1.0, 0.3)]  # in one dimension nothing is left of what opposes
    options = {"name": "sgd", "momentum": 0.9, "gradients": "project"}
    np.testing.assert_allclose(parted(options, pairs), trajectory({"name": "sgd", "momentum": 0.9}, [0.5, -1.0]))


def test_a_still_parameter_neither_moves_nor_decays():
    optimizer = optim.create(OPTIONS | {"schedule": "constant"}, steps=10, steps_per_epoch=5)
    paths = [("fc", "kernel"), ("fc", "bias")]
    params = {"student": {path: jnp.ones(1) for path in paths}}
    state = optimizer.init({"student": {"fc": {"kernel": jnp.ones(1), "bias": jnp.ones(1)}}})
    for step in range(3):
        gradients = {"student": {paths[0]: jnp.zeros(1), paths[1]: jnp.ones(1)}}
        params, state = optimizer.update(
            gradients,
            state,
            params,
            step=jnp.int32(step),
            hyper=hyper(0.1, 0.1),
            trains={},
            still=optim.still(gradients),
        )
    assert float(params["student"][paths[0]][0]) == 1
    assert float(params["student"][paths[1]][0]) < 1
    # Nor has its momentum gathered decay for the day when it moves again.
    assert sorted(float(x[0]) == 0 for x in jax.tree.leaves(state["student"])) == [False, True]


def test_a_parameter_that_becomes_still_stops_at_once_for_all_its_momentum():
    optimizer = optim.create(OPTIONS | {"schedule": "constant", "momentum": 0.9}, steps=10, steps_per_epoch=5)
    path = ("fc", "kernel")
    params, state = {"student": {path: jnp.ones(1)}}, optimizer.init({"student": {"fc": {"kernel": jnp.ones(1)}}})
    values = []
    for step, gradient in enumerate((1.0, 0.0, 0.0)):
        gradients = {"student": {path: jnp.full(1, gradient)}}
        options = {"step": jnp.int32(step), "hyper": hyper(0.1, 0.1), "trains": {}, "still": optim.still(gradients)}
        params, state = optimizer.update(gradients, state, params, **options)
        values.append(float(params["student"][path][0]))
    assert values[0] < 1
    assert values[0] == values[1] == values[2]
