"""Distances from the training rows: scikit-learn's neighbors and covariances, SciPy's distance."""

import numpy as np
import pytest
import torch
from scipy.spatial.distance import mahalanobis
from sklearn.covariance import EmpiricalCovariance, LedoitWolf
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from transferkit.similarity.cosine import unit_rows
from transferkit.similarity.out_of_distribution import fit_gaussians, mahalanobis_distance, neighbor_distance


def rows(count: int, width: int = 12, seed: int = 0) -> Tensor:
    """Unit rows whose dimensions differ in spread and depend on each other."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(width, width, generator=torch.Generator().manual_seed(9))
    return unit_rows(torch.randn(count, width, generator=generator) @ mixing)


@pytest.mark.parametrize("k", [1, 5, 300])
def test_neighbor_distance_is_scikit_learns(k: int) -> None:
    reference, query = rows(200), rows(50, seed=1)
    oracle = NearestNeighbors(n_neighbors=min(k, 200)).fit(reference.double()).kneighbors(query.double())[0][:, -1]
    assert neighbor_distance(query, reference, k).numpy() == pytest.approx(oracle, abs=1e-6)


@pytest.mark.parametrize("shrinkage", [0.0, None])
def test_mahalanobis_distance_is_scikit_learns_and_scipys(shrinkage: float | None) -> None:
    train, query = rows(200), rows(50, seed=1)
    target = torch.arange(200) % 3 + 4
    means = np.stack([train[target == k].double().mean(0).numpy() for k in (4, 5, 6)])
    residuals = train.double().numpy() - means[target - 4]
    kind = EmpiricalCovariance if shrinkage == 0 else LedoitWolf
    oracle = kind(assume_centered=True).fit(residuals)
    found = mahalanobis_distance(query, fit_gaussians(train, target, shrinkage)).numpy()
    squared = np.stack([oracle.mahalanobis(query.double().numpy() - mean) for mean in means]).min(0)
    assert found == pytest.approx(np.sqrt(squared), rel=1e-4)
    first = min(mahalanobis(query[0].double().numpy(), mean, oracle.precision_) for mean in means)
    assert found[0] == pytest.approx(first, rel=1e-4)


@pytest.mark.parametrize(("count", "labels"), [(6, [0, 1, 2, 3, 4, 5]), (40, [-1] * 40), (40, [0] * 39 + [-1])])
def test_one_mean_where_classes_are_unknown_or_have_few_rows(count: int, labels: list[int]) -> None:
    gaussians = fit_gaussians(rows(count), torch.tensor(labels))
    assert torch.equal(gaussians.centers, fit_gaussians(rows(count), torch.zeros(count, dtype=torch.long)).centers)
    assert gaussians.centers.shape == (1, 12)


@pytest.mark.parametrize("table", [rows(1), rows(1).repeat(9, 1), torch.zeros(9, 12), rows(9, 300)])
def test_fewer_rows_than_dimensions_give_finite_distances(table: Tensor) -> None:
    gaussians = fit_gaussians(table, torch.zeros(len(table), dtype=torch.long))
    distances = mahalanobis_distance(rows(20, table.shape[1], seed=2), gaussians)
    assert distances.isfinite().all() and (distances > mahalanobis_distance(table, gaussians).max()).all()
