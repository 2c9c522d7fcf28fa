"""Classes of unequal size: weights and orders by their definitions, and that a config's reach the step and the feed."""

import collections
import functools
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from sklearn.utils.class_weight import compute_class_weight

from kd_jax import balance, experiment, keys, runs, steps, teacher_cache
from kd_jax.batches import Epoch
from kd_jax.config.checks import plain
from kd_jax.data import memory, resident
from kd_jax.errors import InputError
from tests import tiny

SIZES = (40, 12, 3, 1)
LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(4, dtype=np.int32), SIZES))
SOME = np.where(np.arange(56) % 3 == 0, -1, LABELS)  # a third has no label


def weights(kind, labels=LABELS, beta=0.9):
    return balance.class_weights(kind, labels, 4, beta=beta)


def test_balanced_weights_are_those_of_scikit_learn():
    expected = compute_class_weight("balanced", classes=np.arange(4), y=LABELS)
    np.testing.assert_allclose(weights("balanced"), expected, rtol=1e-12)


@pytest.mark.parametrize("beta", [0.5, 0.9, 0.999])
def test_effective_weights_are_those_of_the_paper_to_a_factor(beta):
    effective_number = [sum(beta**i for i in range(n)) for n in SIZES]  # (1 - beta^n) / (1 - beta)
    expected = 1 / np.array(effective_number)
    np.testing.assert_allclose(weights("effective", beta=beta) / weights("effective", beta=beta)[3], expected)


def test_effective_weights_lie_between_none_and_balanced():
    np.testing.assert_allclose(weights("effective", beta=0.0), np.ones(4))
    np.testing.assert_allclose(weights("effective", beta=1 - 1e-9), weights("balanced"), rtol=1e-6)


@pytest.mark.parametrize("kind", ["balanced", "effective", [3, 0, 1, 2.5]])
@pytest.mark.parametrize("labels", [LABELS, SOME], ids=["all labeled", "some"])
def test_the_mean_over_the_labeled_images_is_one(kind, labels):
    assert weights(kind, labels)[labels[labels >= 0]].mean() == pytest.approx(1)


@pytest.mark.parametrize(
    ("kind", "said"), [([1, 2, 3], "has 3 numbers; expected 4, one for"), ([0] * 4, "is 0 for every training image")]
)
def test_weights_that_cannot_be_are_refused(kind, said):
    with pytest.raises(InputError, match=f"train.class_weights {said}"):
        weights(kind)


@pytest.mark.parametrize("value", ["1, 2.5,4", "[1, 2.5, 4]", [1, 2.5, 4], (1, 2.5, 4)])
def test_weights_may_be_written_as_text(value):
    assert list(keys.class_weights(value)) == [1, 2.5, 4]


@pytest.mark.parametrize("value", ["balancd", "", "1,-2", [], [1, -2], None, 3, True, "1,nan", {"cat": 1}])
def test_what_is_no_weighing_is_refused(value):
    with pytest.raises(InputError, match=r"expected one of none, balanced, effective, or a number of at least 0"):
        keys.KEYS["train.class_weights"].kind.check("train.class_weights", value)


@pytest.mark.parametrize("labels", [LABELS, SOME], ids=["all labeled", "some"])
@pytest.mark.parametrize("epoch", [0, 7])
def test_an_epoch_has_every_class_equally_often(labels, epoch):
    order = balance.order(3, epoch, labels)
    assert (len(order), order.dtype) == (56, np.int32)
    labeled = order[labels[order] >= 0]
    assert len(labeled) == (labels >= 0).sum()
    counts = np.bincount(labels[labeled])
    assert counts.max() - counts.min() <= 1
    np.testing.assert_array_equal(np.sort(order[labels[order] < 0]), np.flatnonzero(labels < 0))


def test_within_a_class_all_images_come_before_one_comes_again():
    times = collections.Counter(balance.order(3, 0, LABELS).tolist())
    for label in range(4):
        of_class = [times[i] for i in np.flatnonzero(label == LABELS)]
        assert max(of_class) - min(of_class) <= 1


def test_classes_of_equal_size_are_shuffled():
    order = balance.order(3, 0, np.arange(40) % 4)
    np.testing.assert_array_equal(np.sort(order), np.arange(40))
    assert len(set((order[:12] % 4).tolist())) == 4
    assert (np.diff(order) != 1).sum() > 30


def test_the_order_is_another_in_each_epoch_and_for_each_seed():
    first = balance.order(1, 2, LABELS)
    np.testing.assert_array_equal(first, balance.order(1, 2, LABELS))
    large = np.flatnonzero(LABELS == 0)
    for other in (balance.order(1, 3, LABELS), balance.order(2, 2, LABELS)):
        assert set(first) & set(large) != set(other) & set(large)


def test_one_class_and_none_are_visited_once():
    for label in (0, -1):
        order = balance.order(0, 0, np.full(9, label, np.int32))
        np.testing.assert_array_equal(np.sort(order), np.arange(9))


def unbalanced():
    """48 random images of four classes, of which one is a half and one has two."""
    rng = np.random.default_rng(0)
    images, labels = (
        rng.integers(0, 256, (56, 8, 8, 1), np.uint8),
        np.repeat([0, 1, 2, 3, *range(4)], [24, 14, 8, 2, *[2] * 4]),
    )
    return memory.from_arrays((images[:48], labels[:48]), (images[48:], labels[48:]))


def create(devices=1, **overrides):
    changes = {"dataset.augment": "none", "teacher.kind": "none", **overrides}
    whole = tiny.config(**tiny.SMALL | changes) | {"method": {"cross_entropy": {}}}
    return experiment.create(whole, source=unbalanced(), devices=jax.devices()[:devices], traced=False)


def test_a_config_chooses_the_order_of_the_feed():
    made = create(**{"dataset.sampling": "balanced"})
    labels = made.dataset.train.labels
    calls = list(made.feed().calls(0))
    for epoch in (0, 1):
        ids = np.concatenate([np.asarray(rows).ravel() for rows, _ in calls[3 * epoch : 3 * epoch + 3]])
        np.testing.assert_array_equal(ids, balance.order(0, epoch, labels))
        np.testing.assert_array_equal(np.bincount(labels[ids]), [12] * 4)


def first_loss(made):
    """The loss of the first step, and (logits, labels) of its batch."""
    feed = made.feed()
    state = made.jit(steps.init_state, fast_compile=True)(np.uint32(0), {}, feed.example, feed.labels)
    rows, _ = next(feed.calls(0))
    raw = feed.fetch(feed.constants, rows[0])
    images = made.components.prepare(raw.images)
    student = {"params": state.params["student"], "batch_stats": state.stats["student"]}
    logits = jax.jit(functools.partial(made.components.student.apply, train=True))(student, images)[0].logits
    logits, labels = np.asarray(logits, np.float64), np.asarray(raw.labels)
    _, scalars = made.train_steps(state, {}, feed.constants, rows, made.place(made.hyper), feed.labels)
    return float(scalars["loss"]), logits, labels


@pytest.mark.parametrize(("kind", "devices"), [("none", 1), ("balanced", 1), ("balanced", 2), ("1,0,3,0.5", 1)])
def test_a_step_weighs_the_images_of_its_whole_batch_by_their_class(kind, devices):
    sizes = np.array([24, 14, 8, 2])
    by_class = {"none": np.ones(4), "balanced": 48 / 4 / sizes, "1,0,3,0.5": np.array([1, 0, 3, 0.5]) * 48 / 49}[kind]
    loss, logits, labels = first_loss(create(devices, **{"train.class_weights": kind}))
    each = np.log(np.exp(logits).sum(-1)) - logits[np.arange(16), labels]
    assert loss == pytest.approx((by_class[labels] * each).sum() / 16, rel=2e-5)


@pytest.mark.parametrize(
    ("changes", "method", "said"),
    [
        (
            {"train.class_weights": "balanced"},
            {"kd": {}},
            "train.class_weights is 'balanced', and no term reads labels",
        ),
        ({"train.class_weights": "1,2"}, {}, "train.class_weights has 2 numbers; expected 10, one for each class"),
        ({"dataset.sampling": "equal"}, {}, "dataset.sampling is 'equal'; expected one of: balanced, shuffle"),
        (
            {"train.class_weights": "effective", "dataset.sampling": "balanced"},
            {},
            "which would make up for small classes twice; expected one of them",
        ),
        ({"evaluate.metric": "nll"}, {}, "evaluate.metric is 'nll'; expected one of: accuracy, balanced_accuracy"),
    ],
)
def test_what_cannot_be_meant_is_refused(changes, method, said):
    with pytest.raises(InputError, match=said):
        experiment.create(tiny.config(**changes) | {"method": method or {"cross_entropy": {}}})


@pytest.mark.parametrize("changes", [{"train.class_weights": "balanced"}, {"dataset.sampling": "balanced"}])
def test_images_without_labels_have_no_classes_to_balance(changes, monkeypatch):
    method = SimpleNamespace(needs_labels=(), predict=experiment.student_logits)
    with pytest.raises(
        InputError, match=f"{next(iter(changes))} is 'balanced', and the images have no labels; expected"
    ):
        experiment._check_label_free(tiny.config(**changes), method)


def test_a_teacher_samples_as_its_own_config_says():
    whole = tiny.taught(**{"dataset.sampling": "balanced"})
    assert whole["teacher"]["config"]["dataset"]["sampling"] == "shuffle"
    made = experiment.create(whole, traced=False)
    assert made.teacher.untrained.identity["dataset"].keys() == made.identity["dataset"].keys() - {"sampling"}


def test_a_recording_is_of_one_sampling_and_a_table_of_any():
    def about(sampling):
        identity = experiment.identify(tiny.config(**{"dataset.sampling": sampling}), fingerprint="a")
        made = SimpleNamespace(config=tiny.config(), identity=identity, epoch=Epoch(16, 4))
        return teacher_cache._of_recording(made), teacher_cache._of_table(made, (1, 2))

    (recording, table), (other_recording, other_table) = about("shuffle"), about("balanced")
    assert recording != other_recording
    assert table == other_table


def test_a_config_of_before_is_what_it_was():
    """The keys are no part of an identity with their defaults, and no image gets a weight."""
    whole = tiny.config()
    for key in ("dataset.sampling", "train.class_weights", "train.class_weights_beta", "evaluate.metric"):
        section, _, own = key.partition(".")
        del whole[section][own]
    made = create()
    now = experiment.identify(plain(tiny.config()), fingerprint="a")
    assert experiment.identify(plain(whole), fingerprint="a") == now
    assert not {"sampling", "class_weights", "metric"} & {key.split(".")[-1] for key in runs.flat(now)}
    raw = resident.example(made.dataset.train)
    assert made.components.augment(jax.random.key(0), raw)[0].weights is None
    shuffled = resident.orders(made.dataset.train.labels, seed=4, sampling="shuffle")(2)
    np.testing.assert_array_equal(shuffled, np.random.default_rng((4, 2)).permutation(48))
