"""Classes of unequal size: what an image of each counts for in a loss, and how often it is seen."""

from collections.abc import Sequence

import numpy as np

from kd_jax import keys
from kd_jax.errors import InputError

SAMPLING = ("shuffle", "balanced")  # how an epoch visits the training images; the second by `order`


def class_weights(
    kind: str | Sequence[float], labels: np.ndarray, num_classes: int, *, beta: float
) -> np.ndarray | None:
    """What an image of each class counts for. The mean over the labeled images is 1, whatever the kind.

    So the mean of a loss over a batch estimates one and the same weighted loss of the data set, however the batch is
    drawn or divided; learning rates and the weights of other terms keep their meaning.

    Args:
      kind: `train.class_weights`: "none"; "balanced": N / (K n_c), by which every class counts equally; "effective": in
        proportion to (1 - beta) / (1 - beta^n_c), the inverse of the effective number of images of Cui et al.,
        "Class-Balanced Loss Based on Effective Number of Samples", CVPR 2019, who scale it to a mean of 1 over the
        classes; or a number in proportion to it for each class.
      labels: [N] of the training images, -1 for none.
      num_classes: K.
      beta: of "effective"; 0 weighs all images equally, towards 1 it becomes "balanced".
    Returns:
      [K] float64; None where all images count alike.
    Raises:
      InputError: for another number of weights, and where none of the images counts.

    >>> class_weights("balanced", np.array([0, 0, 0, 1, -1]), 2, beta=0.0).round(3).tolist()
    [0.667, 2.0]
    """
    kind = keys.class_weights(kind)
    if kind == "none":
        return None
    sizes = np.bincount(labels[labels >= 0], minlength=num_classes)
    if kind == "balanced":
        raw = 1 / np.maximum(sizes, 1)
    elif kind == "effective":
        raw = (1 - beta) / (1 - beta ** np.maximum(sizes, 1))
    else:
        raw = np.asarray(kind, np.float64)
    if len(raw) != num_classes:
        raise InputError(f"train.class_weights has {len(raw)} numbers; expected {num_classes}, one for each class")
    total = (sizes * raw).sum()
    if not total:
        raise InputError("train.class_weights is 0 for every training image; expected one that counts")
    return raw * (sizes.sum() / total)


def order(seed: int, epoch: int, labels: np.ndarray) -> np.ndarray:
    """The order [N] int32 in which an epoch visits N training images such that every class comes equally often.

    The labeled images of an epoch are as many as there are, and each class has the same number of them, one more or
    less. Within a class no image comes again before all have come: of a large class it is a part, another one in every
    epoch. Images without a label come once. A function of the arguments only.

    Args:
      seed: of the run. epoch: from 0. labels: [N], -1 for none.
    """
    rng = np.random.default_rng((seed, epoch))
    by_label = np.split(np.argsort(labels, kind="stable"), np.cumsum(np.bincount(labels + 1))[:-1])
    unlabeled, *classes = by_label[0], *(members for members in by_label[1:] if len(members))
    each, more = divmod(len(labels) - len(unlabeled), max(len(classes), 1))
    drawn = [unlabeled]
    for members, place in zip(classes, rng.permutation(len(classes)), strict=True):
        count = each + (place < more)
        passes = np.tile(members, (-(-count // len(members)), 1))
        drawn.append(rng.permuted(passes, axis=1).ravel()[:count])
    return rng.permutation(np.concatenate(drawn)).astype(np.int32)
