"""Mutual learning and be-your-own-teacher against float64 numpy: values, gradients, what is evaluated."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax import methods
from kd_jax.errors import InputError
from kd_jax.types import MethodVariables, Network, Networks, Outputs
from tests.methods.numeric import batch, batch_norm_relu, context, convolve, doubles, log_softmax, outputs

RNG = np.random.default_rng(2)
STUDENT, IMAGES = RNG.normal(size=(4, 3)), RNG.normal(size=(4, 2, 2, 5))
LABELS = np.array([0, 2, -1, 1])
TARGETS = np.eye(3)[LABELS] * (LABELS >= 0)[:, None]


def init(rng, images):
    return {
        "params": {"kernel": jax.random.normal(rng, (images.shape[-1], 3))},
        "batch_stats": {"mean": jnp.zeros(images.shape[-1])},
    }


def apply(variables, images, *, train, rng=None, perturbations=None):
    """A linear layer on pooled images, in training without their mean over the batch."""
    pooled = images.mean((1, 2))
    mean = pooled.mean(0) if train else variables["batch_stats"]["mean"]
    stats = {"mean": variables["batch_stats"]["mean"] + pooled.mean(0)}
    return Outputs((pooled - mean) @ variables["params"]["kernel"]), stats


def seen(student=STUDENT):
    """What `mutual` sees of a step, without a teacher."""
    given = context(outputs(student), labels=LABELS, networks=Networks((Network(init, apply), {}), None))
    images = batch(LABELS, 3)._replace(images=jnp.asarray(IMAGES, jnp.float32))
    return dataclasses.replace(given, views=(given.views[0]._replace(batch=images),))


@functools.cache
def mutual(**options):
    """(variables, function of (params, student's logits) -> (terms, state), method)."""
    method = methods.create({"mutual": options})
    variables = jax.jit(lambda: method.init(jax.random.key(0), seen()))()

    def terms(params, student):
        return method.apply(MethodVariables(params, variables.state), seen(student))

    return variables, jax.jit(terms), method


def kl(p, q, temperature=1.0):
    p, q = log_softmax(p / temperature), log_softmax(q / temperature)
    return temperature**2 * (np.exp(p) * (p - q)).sum(-1).mean()


def peers_logits(variables):
    pooled = IMAGES.mean((1, 2))
    kernels = doubles(variables.params["mutual"])
    return [(pooled - pooled.mean(0)) @ kernels[name]["kernel"] for name in sorted(kernels)]


def test_the_students_term_is_its_mean_divergence_from_its_peers():
    variables, terms, _ = mutual(peers=2, temperature=2.0)
    got = terms(variables.params, jnp.float32(STUDENT))[0]["mutual"]
    expected = np.mean([kl(peer, STUDENT, 2.0) for peer in peers_logits(variables)])
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_a_peer_lowers_its_cross_entropy_and_its_divergence_from_the_others():
    variables, terms, _ = mutual(peers=2, temperature=2.0)
    got = terms(variables.params, jnp.float32(STUDENT))[0]["mutual/peers"]
    first, second = peers_logits(variables)
    labels = sum(-(TARGETS * log_softmax(x)).sum() / 3 for x in (first, second))
    others = [(kl(STUDENT, own, 2.0) + kl(other, own, 2.0)) / 2 for own, other in ((first, second), (second, first))]
    np.testing.assert_allclose(got, labels + sum(others), rtol=1e-5)


def test_the_label_of_a_peer_counts_for_as_much_as_its_class():
    variables, terms, method = mutual(peers=2, temperature=2.0)
    weights = np.array([2.0, 0.5, 9.0, 1.5])
    view = seen().views[0]
    view = view._replace(batch=view.batch._replace(weights=jnp.asarray(weights, jnp.float32)))
    weighed = dataclasses.replace(seen(), views=(view,))
    got = jax.jit(lambda: method.apply(variables, weighed)[0])()["mutual/peers"]
    plain = terms(variables.params, jnp.float32(STUDENT))[0]["mutual/peers"]
    expected = sum(-((weights - 1)[:, None] * TARGETS * log_softmax(x)).sum() / 3 for x in peers_logits(variables))
    np.testing.assert_allclose(got - plain, expected, rtol=1e-4)


def test_a_temperature_that_a_step_is_told_counts_as_one_that_a_config_has():
    variables, _, method = mutual(peers=2, temperature=2.0)
    assert method.traced == {"mutual": {"temperature": 2.0}}
    told = dataclasses.replace(seen(), options={"mutual": {"temperature": 3.0}})
    got = jax.jit(lambda: method.apply(variables, told)[0])()
    _, terms, _ = mutual(peers=2, temperature=3.0)
    expected = terms(variables.params, jnp.float32(STUDENT))[0]
    np.testing.assert_allclose(got["mutual"], expected["mutual"], rtol=1e-5)
    np.testing.assert_allclose(got["mutual/peers"], expected["mutual/peers"], rtol=1e-5)


def test_a_network_follows_its_own_term_alone():
    variables, terms, _ = mutual(peers=2, temperature=2.0)

    def gradients(name):
        return jax.jit(jax.grad(lambda params, x: terms(params, x)[0][name], (0, 1)))(
            variables.params, jnp.float32(STUDENT)
        )

    of_peers, of_student = gradients("mutual")
    assert not any(np.any(x) for x in jax.tree.leaves(of_peers))
    assert np.any(of_student)
    of_peers, of_student = gradients("mutual/peers")
    assert all(np.any(x) for x in jax.tree.leaves(of_peers))
    assert not np.any(of_student)


def test_every_peer_starts_otherwise():
    variables, _, _ = mutual(peers=2, temperature=2.0)
    first, second = (x["kernel"] for x in variables.params["mutual"].values())
    assert not np.allclose(first, second)


def test_peers_are_evaluated_in_inference_mode():
    variables, _, method = mutual(peers=2, temperature=2.0)
    got = jax.jit(lambda v: method.others(v, seen()))(variables)
    pooled = IMAGES.mean((1, 2))
    for name, own in doubles(variables.params["mutual"]).items():
        np.testing.assert_allclose(got[f"mutual/{name}"], pooled @ own["kernel"], rtol=1e-4, atol=1e-5)


def test_the_statistics_of_every_peer_move():
    variables, terms, _ = mutual(peers=2, temperature=2.0)
    state = terms(variables.params, jnp.float32(STUDENT))[1]
    for own in state["mutual"].values():
        np.testing.assert_allclose(own["mean"], IMAGES.mean((0, 1, 2)), rtol=1e-4, atol=1e-6)


def test_a_peer_may_be_of_another_kind():
    method = methods.create({"mutual": {"network": "resnet8", "options": {"width": 1 / 16}}})
    shapes = jax.eval_shape(lambda: method.init(jax.random.key(0), seen()))
    assert shapes.params["mutual"]["peer1"]["conv1"]["kernel"].shape == (3, 3, 5, 1)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"network": "resnet9"}, "method.mutual.network is 'resnet9'; expected one of"),
        ({"options": {"width": 2.0}}, "method.mutual.options is .*; expected none without method.mutual.network"),
        ({"network": "resnet8", "options": {"name": "x"}}, "method.mutual.options.name is given; expected options of"),
    ],
)
def test_a_peer_that_cannot_be_is_refused(options, said):
    with pytest.raises(InputError, match=said):
        methods.create({"mutual": options})


MAPS = [RNG.normal(size=(4, size, size, width)) for size, width in ((4, 2), (4, 3), (2, 4), (2, 5))]


def staged(maps):
    maps = tuple(jnp.asarray(x, jnp.float32) for x in maps)
    return outputs(STUDENT)._replace(features=maps, preactivations=maps)


@functools.cache
def byot():
    method = methods.create({"byot": {}})
    variables = jax.jit(lambda: method.init(jax.random.key(0), context(staged(MAPS), labels=LABELS)))()

    def term(student, maps):
        seen = context(staged(maps)._replace(logits=student), labels=LABELS)
        return method.apply(variables, seen)[0]["byot"]

    return method, variables, jax.jit(jax.value_and_grad(term, (0, 1)))


def test_be_your_own_teacher_is_the_papers_sum_over_the_exits():
    _, variables, term = byot()
    params, total = doubles(variables.params["byot"]), 0.0
    halves = [MAPS[1].reshape(4, 2, 2, 2, 2, 3), MAPS[2]]
    for stage, x in enumerate(halves, start=1):
        own = params[f"adapter{stage}"]
        if stage == 1:  # twice the size: a 3x3 convolution with a stride of two
            x = convolve(MAPS[1], own["conv"]["kernel"], stride=2, padding=1)
        else:
            x = convolve(x, own["conv"]["kernel"])
        pooled = batch_norm_relu(x, own["bn"]).mean((1, 2))
        logits = pooled @ params[f"fc{stage}"]["kernel"] + params[f"fc{stage}"]["bias"]
        total += 0.7 * -(TARGETS * log_softmax(logits)).sum() / 3
        total += 0.3 * kl(STUDENT, logits, 3.0)
        total += 0.03 * np.square(pooled - MAPS[3].mean((1, 2))).mean()
    np.testing.assert_allclose(term(jnp.float32(STUDENT), [jnp.float32(x) for x in MAPS])[0], total, rtol=1e-5)


def test_the_end_gets_no_gradient_from_what_it_teaches():
    _, _, term = byot()
    by_logits, by_maps = term(jnp.float32(STUDENT), [jnp.float32(x) for x in MAPS])[1]
    assert not np.any(by_logits)
    assert not np.any(by_maps[-1])
    assert all(np.any(x) for x in by_maps[1:3])  # the stages before an exit learn


def test_exits_are_evaluated_by_their_running_statistics():
    method, variables, _ = byot()
    logits = jax.jit(lambda v, maps: method.others(v, context(staged(maps))))(variables, MAPS)
    own = doubles(variables.params["byot"])
    x = convolve(MAPS[2], own["adapter2"]["conv"]["kernel"])
    stats = {"mean": np.zeros(5), "var": np.ones(5)}
    pooled = batch_norm_relu(x, own["adapter2"]["bn"], stats).mean((1, 2))
    expected = pooled @ own["fc2"]["kernel"] + own["fc2"]["bias"]
    np.testing.assert_allclose(logits["byot/exit2"], expected, rtol=1e-4, atol=1e-5)


def test_a_network_without_an_earlier_stage_is_refused():
    method = methods.create({"byot": {}})
    with pytest.raises(InputError, match="the student reports 2 maps; expected the stem's and two stages' or more"):
        jax.eval_shape(lambda: method.init(jax.random.key(0), context(staged(MAPS[:2]), labels=LABELS)))
