"""Evaluation as masked sums, which add up over batches and are divided once."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kd_jax.types import Array

BINS = 15  # of the calibration error
ACCURACY = "accuracy"

Sums = dict[str, Array]


class Predictions(NamedTuple):
    """What a batch was predicted to be."""

    logits: Array  # [B, K]
    labels: Array  # [B] int32
    weight: Array  # [B], 1 for an image that counts and 0 for padding
    teacher_logits: Array | None  # [B, K]

    @property
    def correct(self) -> Array:
        return (self.logits.argmax(-1) == self.labels) * self.weight


class Metric(NamedTuple):
    """A number that every evaluation gives. By default the mean over the images of what is summed."""

    sums: Callable[[Predictions], Array] | None  # over the images of a batch; None where `value` is told the confusion
    title: str  # with its unit, for people
    digits: int  # that people see
    factor: float = 1.0  # what people see is so many times the value
    needs_teacher: bool = False
    value: Callable[[np.ndarray, float], float] = lambda total, images: float(total) / images  # (sums, images) ->


def _top5(p: Predictions) -> Array:
    top = jax.lax.top_k(p.logits, min(5, p.logits.shape[-1]))[1]
    return ((top == p.labels[:, None]).any(-1) * p.weight).sum()


def _nll(p: Predictions) -> Array:
    log_p = jax.nn.log_softmax(p.logits)
    return -(jnp.take_along_axis(log_p, p.labels[:, None], -1)[:, 0] * p.weight).sum()


def _calibration(p: Predictions) -> Array:
    """[3, BINS]: sums of confidence, of correct predictions and of images, by confidence."""
    confidence = jnp.exp(jax.nn.log_softmax(p.logits).max(-1))
    inside = jax.nn.one_hot(jnp.minimum(confidence * BINS, BINS - 1).astype(int), BINS, dtype=p.logits.dtype)
    return jnp.stack([inside.T @ (confidence * p.weight), inside.T @ p.correct, inside.T @ p.weight])


def _calibration_error(total: np.ndarray, images: float) -> float:
    return float(np.abs(np.asarray(total[0]) - np.asarray(total[1])).sum()) / images


def _balanced_accuracy(confusion: np.ndarray, images: float) -> float:
    sizes, right = confusion.sum(1), np.diag(confusion)
    return float((right[sizes > 0] / sizes[sizes > 0]).mean())


def _macro_f1(confusion: np.ndarray, images: float) -> float:
    both = confusion.sum(0) + confusion.sum(1)
    return float((2 * np.diag(confusion)[both > 0] / both[both > 0]).mean())


def _agreement(p: Predictions) -> Array:
    assert p.teacher_logits is not None
    return ((p.logits.argmax(-1) == p.teacher_logits.argmax(-1)) * p.weight).sum()


def _agreement_on_errors(p: Predictions) -> Array:
    """[2]: the images that the teacher classifies wrongly and the student alike, and all of the first."""
    assert p.teacher_logits is not None
    said = p.teacher_logits.argmax(-1)
    wrong = (said != p.labels) * p.weight
    return jnp.stack([((p.logits.argmax(-1) == said) * wrong).sum(), wrong.sum()])


def _fidelity_kl(p: Predictions) -> Array:
    assert p.teacher_logits is not None
    log_p, log_q = jax.nn.log_softmax(p.logits), jax.nn.log_softmax(p.teacher_logits)
    return ((jnp.exp(log_q) * (log_q - log_p)).sum(-1) * p.weight).sum()


# accuracy, top5 (of all classes where there are fewer than five), agreement, and agreement_on_errors, the share of the
# teacher's errors that the student makes too, 0 where there are none: fractions. balanced_accuracy, the mean recall of
# classes that have an image, and macro_f1, the mean F1 of those that have one or are predicted: as in scikit-learn,
# fractions. nll and fidelity_kl (KL of the student from its teacher, at temperature 1): nats. ece: expected calibration
# error over 15 equal bins (Guo et al., ICML 2017, equation 3), a fraction.
METRICS: dict[str, Metric] = {
    ACCURACY: Metric(lambda p: p.correct.sum(), "accuracy, %", 2, 100),
    "balanced_accuracy": Metric(None, "balanced, %", 2, 100, value=_balanced_accuracy),
    "macro_f1": Metric(None, "macro F1, %", 2, 100, value=_macro_f1),
    "top5": Metric(_top5, "top-5, %", 2, 100),
    "nll": Metric(_nll, "NLL", 3),
    "ece": Metric(_calibration, "ECE, %", 2, 100, value=_calibration_error),
    "agreement": Metric(_agreement, "agreement, %", 2, 100, needs_teacher=True),
    "agreement_on_errors": Metric(
        _agreement_on_errors,
        "of its errors, %",
        2,
        100,
        needs_teacher=True,
        value=lambda total, images: float(total[0]) / max(float(total[1]), 1.0),
    ),
    "fidelity_kl": Metric(_fidelity_kl, "KL", 3, needs_teacher=True),
}


def sums(
    logits: Array,
    labels: Array,
    mask: Array,
    teacher_logits: Array | None = None,
    others: Mapping[str, Array] | None = None,
) -> Sums:
    """Sums over the images of a batch that `mask` keeps.

    Args:
      logits: [B, K]. labels: [B] int32. mask: [B] bool, False for padding.
      teacher_logits: [B, K], or None where there is no teacher.
      others: {name: [B, K]}, what else predicts, see `Method.others`.
    Returns:
      {"images": [], "confusion": [K, K]}, the sums of each of `METRICS` that can be had, and "NAME/accuracy" of each of
      `others`; `summarize` turns their total into metrics, `details` into what a report draws.
    """
    p = Predictions(logits, labels, mask.astype(logits.dtype), teacher_logits)
    own = {
        name: metric.sums(p)
        for name, metric in METRICS.items()
        if metric.sums and (teacher_logits is not None or not metric.needs_teacher)
    }
    labels_by_class = jax.nn.one_hot(labels, logits.shape[-1]) * p.weight[:, None]
    confusion = labels_by_class.T @ jax.nn.one_hot(logits.argmax(-1), logits.shape[-1])
    beside = {f"{name}/{ACCURACY}": p._replace(logits=x).correct.sum() for name, x in (others or {}).items()}
    return {"images": p.weight.sum(), "confusion": confusion, **own, **beside}


def sums_of(values: Mapping[str, Array], mask: Array) -> Sums:
    """{"images": []}, and the sum over the images that `mask` [B] keeps of each of `values`, {name: [B]}."""
    return {"images": mask.astype(jnp.float32).sum(), **{name: (x * mask).sum() for name, x in values.items()}}


def summarize(total: Mapping[str, np.ndarray]) -> dict[str, float | int | None]:
    """Metrics of summed `sums`: those of `METRICS`, None where it has none of them, the others', and a count."""
    images = float(total["images"])
    of = {name: name if metric.sums else "confusion" for name, metric in METRICS.items()}
    values: dict[str, float | int | None]
    values = {name: METRICS[name].value(total[key], images) if key in total else None for name, key in of.items()}
    values |= {name: float(total[name]) / images for name in total if "/" in name}
    return {**values, "images": round(images)}


def per_class(total: Mapping[str, np.ndarray], class_names: Sequence[str]) -> dict[str, dict[str, float | int | None]]:
    """{class: {"images", "predicted", "recall", "precision", "f1"}} of summed `sums`.

    The first two are how many images it has, and of how many it is predicted. Recall is the accuracy among its images.
    What would be divided by none of them is None.
    """
    confusion = np.asarray(total["confusion"], np.float64)
    right, images, predicted = np.diag(confusion), confusion.sum(1), confusion.sum(0)

    def share(part: float, whole: float) -> float | None:
        return float(part / whole) if whole else None

    return {
        name: {
            "images": round(images[i]),
            "predicted": round(predicted[i]),
            "recall": share(right[i], images[i]),
            "precision": share(right[i], predicted[i]),
            "f1": share(2 * right[i], images[i] + predicted[i]),
        }
        for i, name in enumerate(class_names)
    }


def details(total: Mapping[str, np.ndarray], class_names: Sequence[str]) -> dict[str, Any]:
    """What a calibration diagram and a confusion matrix are drawn from, of summed `sums`.

    Returns:
      bin_confidence, bin_correct, bin_count: [BINS], sums over the images whose confidence lies in that equal part of
      [0, 1]; confusion: [K, K], the number of images by label and prediction; classes: see `per_class`.
    """
    confidence, correct, count = total["ece"]
    return {
        "bin_confidence": [float(x) for x in confidence],
        "bin_correct": [round(float(x)) for x in correct],
        "bin_count": [round(float(x)) for x in count],
        "confusion": [[round(float(x)) for x in row] for row in total["confusion"]],
        "classes": per_class(total, class_names),
    }
