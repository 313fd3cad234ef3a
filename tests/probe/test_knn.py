"""kNN and nearest class mean against scikit-learn."""

import numpy as np
import torch
from sklearn.neighbors import KNeighborsClassifier, NearestCentroid
from sklearn.preprocessing import normalize

from transferkit.probe.knn import knn_predictions, nearest_class_mean
from transferkit.similarity import unit_rows


def rows(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    target = torch.arange(count) % 4
    means = torch.randn(4, 10, generator=torch.Generator().manual_seed(9))
    return means[target] + 1.2 * torch.randn(count, 10, generator=generator), target


def test_knn_is_scikit_learns_with_weighted_votes() -> None:
    reference, target = rows(300, 0)
    query, _ = rows(120, 1)
    ours = knn_predictions(unit_rows(query), unit_rows(reference), target, 4)
    assert list(ours) == [1, 5, 10, 20, 100, 200]
    for k, preds in ours.items():
        oracle = KNeighborsClassifier(k, metric="cosine", weights=lambda distance: np.exp((1 - distance) / 0.07))
        expected = oracle.fit(reference.double(), target).predict(query.double())
        assert (preds.numpy() == expected).all(), k


def test_k_is_clamped_to_the_references() -> None:
    reference, target = rows(12, 0)
    assert list(knn_predictions(reference, reference, target, 4)) == [1, 5, 10, 12]


def test_nearest_class_mean_is_scikit_learns_on_unit_rows() -> None:
    reference, target = rows(300, 0)
    query, _ = rows(120, 1)
    preds = nearest_class_mean(unit_rows(query), unit_rows(reference), target, 4)
    means = NearestCentroid().fit(normalize(reference), target)
    similarity = normalize(query) @ normalize(means.centroids_).T
    assert (preds.numpy() == similarity.argmax(1)).all()
