"""Every number of the evaluation, against its definition."""

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from digits.evaluation.metrics import (
    calibration_error,
    class_scores,
    confusion,
    scores,
    worst_mistakes,
)

LABELS = np.array([0, 0, 1, 2], np.uint8)
PROBABILITIES = np.array([[0.8, 0.1, 0.1], [0.3, 0.6, 0.1], [0.2, 0.7, 0.1], [0.4, 0.35, 0.25]])


def log_probabilities(seed: int, count: int, classes: int) -> npt.NDArray[np.float64]:
    logits = np.random.default_rng(seed).normal(size=(count, classes)) * 3
    result: npt.NDArray[np.float64] = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    return result


def test_the_scores_of_an_example_are_those_counted_by_hand() -> None:
    found = scores(np.log(PROBABILITIES), LABELS, calibration_bins=10)
    assert found["accuracy"] == 0.5
    assert found["errors"] == 2
    assert found["loss"] == pytest.approx(-np.log([0.8, 0.3, 0.7, 0.25]).mean(), abs=1e-6)
    assert found["precision"] == pytest.approx((1 / 2 + 1 / 2 + 0) / 3, abs=1e-6)
    assert found["recall"] == pytest.approx((1 / 2 + 1 + 0) / 3, abs=1e-6)
    assert found["f1"] == pytest.approx((1 / 2 + 2 / 3 + 0) / 3, abs=1e-6)
    gaps = [abs(1 - 0.8), abs(0 - 0.6), abs(1 - 0.7), abs(0 - 0.4)]
    assert found["calibration_error"] == pytest.approx(sum(gaps) / 4, abs=1e-6)


def test_a_class_that_never_occurs_scores_zero_and_divides_by_nothing() -> None:
    matrix = np.array([[2, 0], [0, 0]])
    with np.errstate(all="raise"):
        found = class_scores(matrix)
    assert found["recall"].tolist() == found["precision"].tolist() == [1, 0]


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 60), st.integers(2, 62), st.integers(1, 20))
def test_scores_lie_where_they_must_and_agree_with_the_confusion(
    seed: int, count: int, classes: int, bins: int
) -> None:
    output = log_probabilities(seed, count, classes)
    labels = np.random.default_rng(seed).integers(0, classes, count).astype(np.uint8)
    found = scores(output, labels, calibration_bins=bins)
    assert all(0 <= value <= 1 for name, value in found.items() if name not in ("loss", "errors"))
    assert found["errors"] == count - round(found["accuracy"] * count)
    matrix = confusion(labels, output.argmax(1), classes)
    assert matrix.shape == (classes, classes)
    assert matrix.sum() == count
    assert found["accuracy"] == pytest.approx(np.trace(matrix) / count, abs=1e-6)
    assert matrix.sum(1).tolist() == np.bincount(labels, minlength=classes).tolist()


def test_the_confidence_of_certainty_falls_into_the_last_bin() -> None:
    certain = np.log(np.array([[1.0, 1e-300]]))
    assert calibration_error(certain, np.array([0], np.uint8), 15) == pytest.approx(0)


def test_the_worst_mistakes_come_first_and_right_answers_never() -> None:
    worst = worst_mistakes(np.log(PROBABILITIES), LABELS, 10)
    assert worst.tolist() == [3, 1]
    assert worst_mistakes(np.log(PROBABILITIES), LABELS, 1).tolist() == [3]
    assert worst_mistakes(np.log(PROBABILITIES[:1]), LABELS[:1], 10).tolist() == []
