"""How good a classifier is: every number of the evaluation, from log-probabilities and labels."""

from math import sqrt
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Labels = npt.NDArray[np.unsignedinteger[Any]]

DECIMALS = 6
Z = 1.96  # standard deviations on either side that hold 95 % of a normal distribution


def scores(log_probabilities: Floats, labels: Labels, *, calibration_bins: int) -> dict[str, Any]:
    """Accuracy, errors, loss, calibration error and macro means over the classes.

    Args:
        log_probabilities: `[N, classes]`, natural logarithm.
        labels: `[N]`.
        calibration_bins: how many of equal width the calibration error uses. These keywords are
            the parameters in section `evaluate` that `test_params` in pyproject.toml names.

    Returns:
        `accuracy` 0..1; `errors`, a count; `loss` in nats; `calibration_error` 0..1;
        `precision`, `recall` and `f1` as plain means over the classes; rounded, so that the last
        bits of the arithmetic don't show.
    """
    predicted = log_probabilities.argmax(1)
    by_class = class_scores(confusion(labels, predicted, log_probabilities.shape[1]))
    values = {
        "accuracy": float((predicted == labels).mean()),
        "errors": int((predicted != labels).sum()),
        "loss": float(-log_probabilities[np.arange(len(labels)), labels].mean()),
        "calibration_error": calibration_error(log_probabilities, labels, calibration_bins),
    }
    values |= {name: float(column.mean()) for name, column in by_class.items()}
    return {name: round(value, DECIMALS) for name, value in values.items()}


def confusion(labels: Labels, predicted: npt.NDArray[Any], classes: int) -> npt.NDArray[np.int64]:
    """Counts `[classes, classes]`: row is the true class, column the predicted one."""
    cells = labels.astype(np.int64) * classes + predicted
    return np.bincount(cells, minlength=classes**2).reshape(classes, classes)


def class_scores(matrix: npt.NDArray[np.int64]) -> dict[str, Floats]:
    """Precision, recall and F1 of each class, `[classes]`; 0 where a class never occurs."""
    hits = np.diag(matrix).astype(float)
    precision = hits / np.maximum(matrix.sum(0), 1)
    recall = hits / np.maximum(matrix.sum(1), 1)
    f1 = 2 * hits / np.maximum(matrix.sum(0) + matrix.sum(1), 1)
    return {"precision": precision, "recall": recall, "f1": f1}


def calibration_error(log_probabilities: Floats, labels: Labels, bins: int) -> float:
    """Expected calibration error, 0..1 (C. Guo et al., "On Calibration", 2017, equation 3).

    The mean distance between confidence and accuracy, over bins of confidence.
    """
    found = confidence_bins(log_probabilities, labels, bins)
    gaps = np.abs(found.accuracy - found.confidence) * found.counts
    return float(gaps.sum() / len(labels))


def accuracy_interval(accuracy: float, images: int) -> tuple[float, float]:
    """The 95 % interval of an accuracy, 0..1, measured on so many images (E. Wilson, 1927)."""
    spread = Z * sqrt(accuracy * (1 - accuracy) / images + (Z / images / 2) ** 2)
    middle, scale = accuracy + Z**2 / images / 2, 1 + Z**2 / images
    return (middle - spread) / scale, (middle + spread) / scale


class Bins(NamedTuple):
    """Answers by confidence, in bins of equal width from 0 to 1: `[bins]` each.

    Attributes:
        counts: of answers.
        confidence: its mean, 0..1; 0 in an empty bin.
        accuracy: of these answers, 0..1; 0 in an empty bin.
    """

    counts: npt.NDArray[np.int64]
    confidence: Floats
    accuracy: Floats


def confidence_bins(log_probabilities: Floats, labels: Labels, bins: int) -> Bins:
    """How sure the answers are, and how often right, by how sure."""
    confidence = np.exp(log_probabilities.max(1))
    right = log_probabilities.argmax(1) == labels
    bin_of = np.minimum((confidence * bins).astype(int), bins - 1)
    counts = np.bincount(bin_of, minlength=bins)
    sums = (np.bincount(bin_of, weights=column, minlength=bins) for column in (confidence, right))
    return Bins(counts, *(column / np.maximum(counts, 1) for column in sums))


def worst_mistakes(log_probabilities: Floats, labels: Labels, most: int) -> npt.NDArray[np.int64]:
    """Indices of the wrong answers whose true class seemed least likely, worst first."""
    wrong = np.flatnonzero(log_probabilities.argmax(1) != labels)
    loss = -log_probabilities[wrong, labels[wrong]]
    return wrong[np.argsort(-loss, kind="stable")][:most]
