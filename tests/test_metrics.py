"""Metrics against plain loops in float64 numpy."""

import jax
import numpy as np
import pytest

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
        "top5": np.mean([label in row.argsort()[-5:] for row, label in zip(p, LABELS, strict=True)]),
        "nll": -np.log(p[np.arange(60), LABELS]).mean(),
        "ece": expected_calibration_error(p, LABELS),
        "agreement": (p.argmax(-1) == q.argmax(-1)).mean(),
        "fidelity_kl": (q * np.log(q / p)).sum(-1).mean(),
        "images": 60,
    }[name]


@pytest.mark.parametrize("name", ["accuracy", "top5", "nll", "ece", "agreement", "fidelity_kl", "images"])
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
    return metrics.details(sums(LOGITS[order], LABELS[order], np.arange(80) < 60))


def test_the_confusion_matrix_counts_labels_by_row_and_predictions_by_column(details):
    expected = np.zeros((7, 7), int)
    np.add.at(expected, (LABELS, LOGITS.argmax(-1)), 1)
    assert details["confusion"] == expected.tolist()


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
