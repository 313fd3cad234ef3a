"""Classes, pairs and calibration of predictions, against scikit-learn, torchmetrics and their definitions."""

import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix
from torchmetrics.functional.classification import multiclass_calibration_error

from transferkit.reports import mistakes
from transferkit.reports.mistakes import PredictionTable


@pytest.fixture
def table() -> PredictionTable:
    rng = np.random.default_rng(0)
    names = np.array(["a", "b", "c", "d"])
    labels, preds = names[rng.integers(0, 4, 200)], names[rng.integers(0, 3, 200)]
    return PredictionTable([f"{n}.jpg" for n in range(200)], labels.tolist(), preds.tolist(), rng.random(200))


def test_confusion_is_scikit_learns(table: PredictionTable) -> None:
    names = table.class_names
    oracle = confusion_matrix(table.labels, table.preds, labels=names)
    cells = mistakes.confusion(table)
    assert [[len(cells.get((a, b), ())) for b in names] for a in names] == oracle.tolist()
    for rows in cells.values():
        assert np.all(np.diff(table.probability[rows]) <= 0)


def test_scores_are_the_diagonal_by_the_rows(table: PredictionTable) -> None:
    names = table.class_names
    oracle = confusion_matrix(table.labels, table.preds, labels=names)
    scores = {score.name: score for score in mistakes.class_scores(table)}
    for number, name in enumerate(names):
        right, total = oracle[number, number], oracle[number].sum()
        assert (scores[name].right, scores[name].total) == (right, total)
        others = {other: n for other, n in zip(names, oracle[number], strict=True) if other != name}
        assert scores[name].taken_for is not None and scores[name].taken_for[1] == max(others.values())
    accuracies = [score.accuracy for score in mistakes.class_scores(table)]
    assert accuracies == sorted(accuracies)


def test_mistakes_are_the_wrong_rows_by_confidence(table: PredictionTable) -> None:
    rows = mistakes.confident_mistakes(table)
    assert sorted(rows) == [r for r in range(200) if table.labels[r] != table.preds[r]]
    assert np.all(np.diff(table.probability[rows]) <= 0)
    assert sum(len(rows) for _, rows in mistakes.confused_pairs(table)) == len(rows)


def test_calibration_error_is_torchmetrics(table: PredictionTable) -> None:
    logits = torch.randn(500, 5, generator=torch.Generator().manual_seed(0)) * 2
    target = torch.randint(0, 5, (500,), generator=torch.Generator().manual_seed(1))
    confidence, preds = logits.softmax(1).max(1)
    bins = mistakes.reliability(confidence.double().numpy(), (preds == target).numpy())
    oracle = float(multiclass_calibration_error(logits.softmax(1), target, 5, n_bins=mistakes.BINS))
    assert mistakes.calibration_error(bins) == pytest.approx(oracle, abs=1e-6)
    assert sum(each.rows for each in bins) == 500


def test_risk_is_the_share_of_errors_among_the_surest() -> None:
    rng = np.random.default_rng(0)
    confidence, correct = rng.integers(0, 20, 300) / 20, rng.random(300) < 0.7  # with ties
    coverage, risk = mistakes.risk_coverage(confidence, correct)
    assert coverage[-1] == 1 and risk[-1] == pytest.approx(1 - correct.mean())
    for threshold in np.unique(confidence):
        answered = confidence >= threshold
        at = coverage.tolist().index(answered.mean())
        assert risk[at] == pytest.approx((~correct[answered]).mean())
