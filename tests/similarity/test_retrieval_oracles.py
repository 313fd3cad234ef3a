"""Retrieval metrics against pytorch-metric-learning and scikit-learn, whole tables at once."""

import numpy as np
import pytest
import torch
from pytorch_metric_learning.distances import CosineSimilarity
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from pytorch_metric_learning.utils.inference import CustomKNN
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor

from transferkit.similarity import evaluate

THEIRS = {
    "precision_at_1": "precision_at_1",
    "r_precision": "r_precision",
    "map_at_r": "mean_average_precision_at_r",
    "mrr": "mean_reciprocal_rank",
}


def table(rows: int, classes: int) -> tuple[Tensor, Tensor]:
    labels = torch.randint(classes, (rows,))
    return torch.randn(classes, 16)[labels] + 1.5 * torch.randn(rows, 16), labels


def pml(query: Tensor, labels: Tensor, reference: Tensor | None, reference_labels: Tensor | None, k: int) -> dict:
    calculator = AccuracyCalculator(tuple(THEIRS.values()), k=k, knn_func=CustomKNN(CosineSimilarity()))
    if reference is None:
        return calculator.get_accuracy(query, labels)
    return calculator.get_accuracy(query, labels, reference, reference_labels)


@pytest.mark.parametrize("classes", [1, 7])
def test_leave_one_out_is_that_of_pytorch_metric_learning(classes: int) -> None:
    rows, labels = table(160, classes)
    rows[40:44] = rows[3]  # duplicates
    labels[40:44] = labels[3]
    ours, theirs = evaluate(rows, labels).overall, pml(rows, labels, None, None, 159)
    for name, other in THEIRS.items():
        assert ours[name] == pytest.approx(theirs[other], abs=1e-6), name


def test_query_against_reference_is_that_of_pytorch_metric_learning() -> None:
    rows, labels = table(200, 9)
    sides = rows[:70], labels[:70], rows[70:], labels[70:]
    ours, theirs = evaluate(*sides).overall, pml(*sides, 130)
    for name, other in THEIRS.items():
        assert ours[name] == pytest.approx(theirs[other], abs=1e-6), name


@pytest.mark.parametrize("k", [1, 10, 500])
def test_knn_accuracy_is_scikit_learns(k: int) -> None:
    rows, labels = table(300, 12)
    classifier = KNeighborsClassifier(
        min(k, 220), metric="cosine", algorithm="brute", weights=lambda distance: np.exp((1 - distance) / 0.07)
    )
    classifier.fit(rows[:220].double().numpy(), labels[:220].numpy())
    expected = classifier.score(rows[220:].double().numpy(), labels[220:].numpy())
    overall = evaluate(rows[220:], labels[220:], rows[:220], labels[:220], ks=(k,)).overall
    assert overall[f"knn_accuracy@{k}"] == pytest.approx(expected)
    assert overall.get("k_clamped") == (220 if k > 220 else None)
