"""NMI and k-means against scikit-learn."""

import pytest
import torch
from sklearn.cluster import KMeans
from sklearn.metrics import normalized_mutual_info_score

from transferkit.similarity import k_means, nmi


@pytest.mark.parametrize(("first", "second"), [(5, 5), (1, 4), (1, 1), (40, 3), (200, 200)])
def test_nmi_is_scikit_learns(first: int, second: int) -> None:
    a, b = torch.randint(first, (200,)), torch.randint(second, (200,))
    for left, right in ((a, b), (a, a), (a, (a + b) // 2)):
        assert nmi(left, right) == pytest.approx(normalized_mutual_info_score(left, right), abs=1e-9)


def inertia(rows: torch.Tensor, clusters: torch.Tensor) -> float:
    own = [rows[clusters == c] for c in set(clusters.tolist())]
    return sum(float((members - members.mean(0)).square().sum()) for members in own)


def test_k_means_is_as_good_as_scikit_learns() -> None:
    rows = torch.randn(8, 6)[torch.randint(8, (400,))] * 1.5 + torch.randn(400, 6)
    ours = inertia(rows, k_means(rows, 8))
    theirs = KMeans(8, n_init=3, random_state=0).fit(rows.numpy()).inertia_
    assert ours <= 1.03 * theirs


def test_k_means_finds_far_clusters_and_repeats_itself() -> None:
    labels = torch.randint(12, (300,))
    rows = torch.eye(12)[labels] * 20 + torch.randn(300, 12)
    clusters = k_means(rows, 12, seed=3)
    assert nmi(labels, clusters) == pytest.approx(1)
    torch.rand(10)  # the global generator has no part in it
    assert torch.equal(clusters, k_means(rows, 12, seed=3))


def test_k_means_with_fewer_different_rows_than_clusters() -> None:
    labels = torch.arange(9) % 2
    clusters = k_means(torch.eye(2)[labels], 5)
    assert all(len(set(labels[clusters == c].tolist())) == 1 for c in set(clusters.tolist()))
