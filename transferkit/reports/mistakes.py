"""What predictions say about classes, pairs of classes and confidence: pure functions of three columns."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BINS = 15
"""Of equal width, as in the expected calibration error of ``metrics.json``."""


@dataclass(frozen=True)
class PredictionTable:
    """Labeled images with the class that a classifier names, N rows.

    Attributes:
        paths: N paths.
        labels: N class names.
        preds: N class names.
        probability: ``(N,)`` float64, of the predicted class.
        calibrated: ``(N,)`` float64, the same calibrated on other images; None if it is not.
    """

    paths: Sequence[str]
    labels: Sequence[str]
    preds: Sequence[str]
    probability: NDArray[np.float64]
    calibrated: NDArray[np.float64] | None = None

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def correct(self) -> NDArray[np.bool_]:
        """``(N,)`` bool."""
        return np.array([label == pred for label, pred in zip(self.labels, self.preds, strict=True)], dtype=bool)

    @property
    def class_names(self) -> list[str]:
        """Every class that is a label or a prediction, sorted."""
        return sorted({*self.labels, *self.preds})


@dataclass(frozen=True)
class ClassScore:
    """How one class does.

    Attributes:
        name: of the class.
        right: images of the class that are predicted as it.
        total: images of the class.
        taken_for: the class that its other images are predicted as most often, and how many of them.
    """

    name: str
    right: int
    total: int
    taken_for: tuple[str, int] | None

    @property
    def accuracy(self) -> float:
        """In [0, 1]."""
        return self.right / self.total


def class_scores(table: PredictionTable) -> list[ClassScore]:
    """Return a score for every class that has images, the lowest accuracy first, then by most images, then by name."""
    cells = confusion(table)
    by_class: dict[str, Counter[str]] = {}
    for (label, pred), rows in cells.items():
        by_class.setdefault(label, Counter())[pred] = len(rows)
    scores = []
    for name, preds in by_class.items():
        others = sorted(((other, n) for other, n in preds.items() if other != name), key=lambda item: (-item[1], item))
        scores.append(ClassScore(name, preds[name], preds.total(), others[0] if others else None))
    return sorted(scores, key=lambda score: (score.accuracy, -score.total, score.name))


def confusion(table: PredictionTable) -> dict[tuple[str, str], list[int]]:
    """Return the rows of each (label, prediction) that occurs, the most confident first."""
    cells: dict[tuple[str, str], list[int]] = {}
    for row in np.argsort(-table.probability, kind="stable").tolist():
        cells.setdefault((table.labels[row], table.preds[row]), []).append(row)
    return cells


def confused_pairs(table: PredictionTable) -> list[tuple[tuple[str, str], list[int]]]:
    """Return (label, prediction) and rows of all mistakes, the most frequent pair first."""
    wrong = ((pair, rows) for pair, rows in confusion(table).items() if pair[0] != pair[1])
    return sorted(wrong, key=lambda item: (-len(item[1]), item[0]))


def confident_mistakes(table: PredictionTable) -> list[int]:
    """Return the rows that are wrong, the most confident first."""
    order = np.argsort(-table.probability, kind="stable")
    correct = table.correct
    return [row for row in order.tolist() if not correct[row]]


@dataclass(frozen=True)
class Bin:
    """Rows whose confidence is in (low, high].

    Attributes:
        low: lower end.
        high: upper end.
        rows: how many.
        confidence: their mean confidence.
        accuracy: share that is right.
    """

    low: float
    high: float
    rows: int
    confidence: float
    accuracy: float


def reliability(confidence: NDArray[np.float64], correct: NDArray[np.bool_], bins: int = BINS) -> list[Bin]:
    """Return the bins of a reliability diagram that have rows (Guo et al. 2017, arXiv:1706.04599).

    Args:
        confidence: ``(N,)`` in [0, 1].
        correct: ``(N,)``.
        bins: of equal width.
    """
    place = np.clip(np.ceil(confidence * bins), 1, bins).astype(int) - 1
    found = []
    for number in np.unique(place).tolist():
        inside = place == number
        shares = float(confidence[inside].mean()), float(correct[inside].mean())
        found.append(Bin(number / bins, (number + 1) / bins, int(inside.sum()), *shares))
    return found


def calibration_error(bins: Sequence[Bin]) -> float:
    """Return the expected calibration error of the bins: the mean gap between accuracy and confidence over rows."""
    total = sum(each.rows for each in bins)
    return sum(each.rows * abs(each.accuracy - each.confidence) for each in bins) / total


def risk_coverage(
    confidence: NDArray[np.float64], correct: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return coverage and risk where only the most confident rows are answered (Geifman and El-Yaniv 2017).

    Rows of equal confidence are answered together.

    Args:
        confidence: ``(N,)``.
        correct: ``(N,)``.

    Returns:
        Share of rows that are answered, ascending to 1, and share of errors among them.
    """
    order = np.argsort(-confidence, kind="stable")
    answered = np.arange(1, len(order) + 1)
    risk = np.cumsum(~correct[order]) / answered
    last = np.append(np.diff(confidence[order]) != 0, True)
    return answered[last] / len(order), risk[last]
