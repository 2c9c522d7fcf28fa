"""Metrics against plain loops in float64 numpy."""

import jax
import numpy as np
import pytest
import sklearn.metrics

from kd_jax import metrics
from kd_jax.reporting import tables

RNG = np.random.default_rng(0)
LOGITS, TEACHER = (2 * RNG.normal(size=(2, 60, 7))).astype(np.float32)
LABELS = RNG.integers(0, 7, 60).astype(np.int32)
EVERYTHING = np.ones(60, bool)


def sums(*arguments):
    return jax.device_get(jax.jit(metrics.sums)(*arguments))


def probabilities(logits):
    exponentials = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


def expected_calibration_error(p, labels, bins=15):
    confidence, right = p.max(-1), p.argmax(-1) == labels
    error = 0.0
    for b in range(bins):
        inside = (confidence >= b / bins) & (confidence < (b + 1) / bins)
        if inside.any():
            error += inside.mean() * abs(confidence[inside].mean() - right[inside].mean())
    return error


@pytest.fixture(scope="module")
def summary():
    return metrics.summarize(sums(LOGITS, LABELS, EVERYTHING, TEACHER))


def reference(name):
    p, q = probabilities(LOGITS), probabilities(TEACHER)
    return {
        "accuracy": (p.argmax(-1) == LABELS).mean(),
        "balanced_accuracy": sklearn.metrics.balanced_accuracy_score(LABELS, p.argmax(-1)),
        "macro_f1": sklearn.metrics.f1_score(LABELS, p.argmax(-1), average="macro"),
        "top5": np.mean([label in row.argsort()[-5:] for row, label in zip(p, LABELS, strict=True)]),
        "nll": -np.log(p[np.arange(60), LABELS]).mean(),
        "ece": expected_calibration_error(p, LABELS),
        "agreement": (p.argmax(-1) == q.argmax(-1)).mean(),
        "agreement_on_errors": (p.argmax(-1) == q.argmax(-1))[q.argmax(-1) != LABELS].mean(),
        "fidelity_kl": (q * np.log(q / p)).sum(-1).mean(),
        "images": 60,
    }[name]


@pytest.mark.parametrize("name", [*metrics.METRICS, "images"])
def test_the_metric_is_its_definition(summary, name):
    assert summary[name] == pytest.approx(reference(name), rel=1e-5)


def test_sums_of_two_batches_are_those_of_the_whole(summary):
    parts = [sums(LOGITS[i], LABELS[i], EVERYTHING[i], TEACHER[i]) for i in np.split(np.arange(60), 2)]
    total = jax.tree.map(lambda a, b: np.asarray(a) + np.asarray(b), *parts)
    assert metrics.summarize(total) == pytest.approx(summary, rel=1e-5)


def test_padding_does_not_count(summary):
    order = np.arange(80) % 60
    padded = sums(LOGITS[order], LABELS[order], np.arange(80) < 60, TEACHER[order])
    assert metrics.summarize(padded) == pytest.approx(summary, rel=1e-5)


def test_without_a_teacher_the_comparisons_are_none():
    summary = metrics.summarize(sums(LOGITS, LABELS, EVERYTHING))
    assert (summary["agreement"], summary["fidelity_kl"]) == (None, None)


def test_with_fewer_than_five_classes_every_image_is_among_the_first_five():
    labels = LABELS % 3
    assert metrics.summarize(sums(LOGITS[:, :3], labels, EVERYTHING))["top5"] == 1.0


def test_a_certain_prediction_falls_into_the_last_bin():
    logits = np.array([[100.0, 0.0], [100.0, 0.0]], np.float32)
    summary = metrics.summarize(sums(logits, np.array([0, 1]), np.ones(2, bool)))
    assert summary["ece"] == pytest.approx(0.5)


@pytest.fixture(scope="module")
def details():
    order = np.arange(80) % 60  # twenty of padding
    return metrics.details(sums(LOGITS[order], LABELS[order], np.arange(80) < 60), "abcdefg")


def test_the_confusion_matrix_counts_labels_by_row_and_predictions_by_column(details):
    expected = np.zeros((7, 7), int)
    np.add.at(expected, (LABELS, LOGITS.argmax(-1)), 1)
    assert details["confusion"] == expected.tolist()


def unbalanced():
    """(labels, predictions, their sums): class 3 has no image, 4 is never predicted, 5 neither; 2 is always wrong."""
    labels, predicted = np.repeat([0, 0, 1, 2, 4], [8, 2, 5, 3, 1]), np.repeat([0, 1, 1, 3, 0], [8, 2, 5, 3, 1])
    logits = np.eye(6, dtype=np.float32)[predicted]
    return labels, predicted, sums(logits, labels.astype(np.int32), np.ones(19, bool))


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
def test_classes_without_an_image_count_as_in_scikit_learn():
    labels, predicted, total = unbalanced()
    summary = metrics.summarize(total)
    expected = sklearn.metrics.balanced_accuracy_score(labels, predicted)
    assert summary["balanced_accuracy"] == pytest.approx(expected)
    assert summary["macro_f1"] == pytest.approx(sklearn.metrics.f1_score(labels, predicted, average="macro"))


def test_every_class_has_its_own_numbers_by_name():
    labels, predicted, total = unbalanced()
    found = metrics.per_class(total, [f"class {i}" for i in range(6)])
    assert list(found) == [f"class {i}" for i in range(6)]
    expected = sklearn.metrics.precision_recall_fscore_support(labels, predicted, labels=range(6), zero_division=np.nan)
    for own, precision, recall, f1, images in zip(found.values(), *expected, strict=True):
        assert own["images"] == images
        for name, value in {"precision": precision, "recall": recall, "f1": f1}.items():
            assert own[name] == (None if np.isnan(value) else pytest.approx(value))
    assert [own["predicted"] for own in found.values()] == [9, 7, 0, 3, 0, 0]


def test_the_details_of_a_test_set_have_those_of_every_class(details):
    assert details["classes"] == metrics.per_class({"confusion": np.array(details["confusion"])}, "abcdefg")


@pytest.mark.parametrize("name", ["bin_count", "bin_correct", "bin_confidence"])
def test_a_bin_sums_over_the_images_of_its_confidence(details, name):
    confidence, right = probabilities(LOGITS).max(-1), LOGITS.argmax(-1) == LABELS
    values = {"bin_count": np.ones(60), "bin_correct": right, "bin_confidence": confidence}[name]
    expected = np.bincount((confidence * 15).astype(int), values, minlength=15)
    assert details[name] == pytest.approx(expected.tolist(), rel=1e-5)


def test_a_metric_is_one_entry_and_a_column_of_the_report(monkeypatch):
    confident = metrics.Metric(lambda p: ((jax.nn.softmax(p.logits).max(-1) > 0.5) * p.weight).sum(), "sure, %", 1, 100)
    monkeypatch.setitem(metrics.METRICS, "sure", confident)
    totals = jax.jit(lambda *arrays: metrics.sums(*arrays))(LOGITS, LABELS, EVERYTHING)
    summary = metrics.summarize(jax.device_get(totals))
    assert summary["sure"] == pytest.approx((probabilities(LOGITS).max(-1) > 0.5).mean())
    assert tables.other_metrics()["sure"].title == "sure, %"


def test_what_else_predicts_is_measured_beside_the_student():
    total = sums(LOGITS, LABELS, np.arange(60) < 50, None, {"peers/one": TEACHER})
    right = (TEACHER.argmax(-1) == LABELS)[:50].mean()
    np.testing.assert_allclose(metrics.summarize(total)["peers/one/accuracy"], right, rtol=1e-6)
