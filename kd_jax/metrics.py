"""Evaluation as masked sums, which add up over batches and are divided once."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

BINS = 15  # of the calibration error

Sums = dict[str, jax.Array]


def sums(logits: jax.Array, labels: jax.Array, mask: jax.Array, teacher_logits: jax.Array | None = None) -> Sums:
    """Sums over the images of a batch that `mask` keeps.

    Args:
      logits: [B, K]. labels: [B] int32. mask: [B] bool, False for padding.
      teacher_logits: [B, K], or None where there is no teacher.
    Returns:
      {name: [], [BINS] or [K, K]}; `summarize` turns their total into metrics, `details` into what a report draws.
    """
    weight = mask.astype(logits.dtype)
    log_p = jax.nn.log_softmax(logits)
    best = logits.argmax(-1)
    top = jax.lax.top_k(logits, min(5, logits.shape[-1]))[1]
    confidence = jnp.exp(log_p.max(-1))
    correct = (best == labels) * weight
    inside = jax.nn.one_hot(jnp.minimum(confidence * BINS, BINS - 1).astype(int), BINS, dtype=logits.dtype)
    result = {
        "images": weight.sum(),
        "correct": correct.sum(),
        "correct5": ((top == labels[:, None]).any(-1) * weight).sum(),
        "nll": -(jnp.take_along_axis(log_p, labels[:, None], -1)[:, 0] * weight).sum(),
        "bin_confidence": inside.T @ (confidence * weight),
        "bin_correct": inside.T @ correct,
        "bin_count": inside.T @ weight,
        "confusion": (jax.nn.one_hot(labels, logits.shape[-1]) * weight[:, None]).T
        @ jax.nn.one_hot(best, logits.shape[-1]),
    }
    if teacher_logits is not None:
        log_q = jax.nn.log_softmax(teacher_logits)
        result["agree"] = ((best == teacher_logits.argmax(-1)) * weight).sum()
        result["kl"] = ((jnp.exp(log_q) * (log_q - log_p)).sum(-1) * weight).sum()
    return result


def summarize(total: Mapping[str, np.ndarray]) -> dict[str, float | int | None]:
    """Metrics of summed `sums`.

    Returns:
      accuracy, top5 (of all classes where there are fewer than five), agreement: fractions; nll and fidelity_kl
      (KL of the student from its teacher, at temperature 1): nats; ece: expected calibration error over 15 equal bins
      (Guo et al., ICML 2017, equation 3), a fraction; images: their number. The two that compare with a teacher are
      None without one.
    """
    images = float(total["images"])
    gaps = np.abs(np.asarray(total["bin_confidence"]) - np.asarray(total["bin_correct"]))
    has_teacher = "agree" in total
    return {
        "accuracy": float(total["correct"]) / images,
        "top5": float(total["correct5"]) / images,
        "nll": float(total["nll"]) / images,
        "ece": float(gaps.sum()) / images,
        "agreement": float(total["agree"]) / images if has_teacher else None,
        "fidelity_kl": float(total["kl"]) / images if has_teacher else None,
        "images": round(images),
    }


def details(total: Mapping[str, np.ndarray]) -> dict[str, list]:
    """What a calibration diagram and a confusion matrix are drawn from, of summed `sums`.

    Returns:
      bin_confidence, bin_correct, bin_count: [BINS], sums over the images whose confidence lies in that equal part of
      [0, 1]; confusion: [K, K], the number of images by label and prediction.
    """
    return {
        "bin_confidence": [float(x) for x in total["bin_confidence"]],
        "bin_correct": [round(float(x)) for x in total["bin_correct"]],
        "bin_count": [round(float(x)) for x in total["bin_count"]],
        "confusion": [[round(float(x)) for x in row] for row in total["confusion"]],
    }
