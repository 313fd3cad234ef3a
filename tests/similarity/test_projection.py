"""What pictures show, against a loop over pairs and scikit-learn's PCA and t-SNE's measure of trust."""

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.manifold import trustworthiness
from torch import Tensor

from transferkit.similarity import class_means, cosine_counts, drawn_rows, neighbour_map, principal_axes, unit_rows


def by_pairs(query: Tensor, a: Tensor, reference: Tensor, b: Tensor, same: bool) -> tuple[list[int], list[int]]:
    """Cosines of the same class and of different ones, each counted by numpy."""
    intra, inter = [], []
    for i in range(len(query)):
        for j in range(i + 1 if same else 0, len(reference)):
            (intra if a[i] == b[j] else inter).append(float(query[i] @ reference[j]))
    return tuple(np.histogram(np.clip(x, -1, 1), bins=20, range=(-1, 1))[0].tolist() for x in (intra, inter))


@pytest.mark.parametrize("same", [True, False])
def test_cosines_are_counted_once_a_pair(same: bool) -> None:
    rows, classes = unit_rows(torch.randn(70, 3)), torch.randint(3, (70,))
    rows[4] = 0
    other, other_classes = (rows, classes) if same else (unit_rows(torch.randn(30, 3)), torch.randint(3, (30,)))
    counts = cosine_counts(rows, classes, other, other_classes, bins=20)
    assert (counts.intra.tolist(), counts.inter.tolist()) == by_pairs(rows, classes, other, other_classes, same)


def test_blocks_count_as_one() -> None:
    rows, classes = unit_rows(torch.randn(2300, 4)), torch.randint(3, (2300,))
    counts = cosine_counts(rows, classes, rows, classes)
    assert int(counts.intra.sum() + counts.inter.sum()) == 2300 * 2299 // 2
    members = classes.bincount()
    assert int(counts.intra.sum()) == int((members * (members - 1) // 2).sum())


def test_class_means() -> None:
    rows, classes = torch.randn(50, 4), torch.randint(3, (50,)) * 2  # class 1 and 3 have no rows
    means = class_means(rows, classes, 5)
    for number in (0, 2, 4):
        torch.testing.assert_close(means[number], rows[classes == number].mean(0))
    assert means[[1, 3]].abs().sum() == 0


def test_principal_axes_are_scikit_learns() -> None:
    rows = torch.randn(80, 9) * torch.arange(1, 10)
    points, share = principal_axes(rows)
    pca = PCA(2).fit(unit_rows(rows).double().numpy())
    expected = pca.transform(unit_rows(rows).double().numpy())
    np.testing.assert_allclose(np.abs(points.numpy()), np.abs(expected), atol=1e-5)
    np.testing.assert_allclose(share.numpy(), pca.explained_variance_ratio_, atol=1e-5)
    assert (points.max(0).values >= -points.min(0).values).all()  # the sign does not depend on the solver


@pytest.mark.parametrize("rows", [torch.ones(5, 3), torch.ones(1, 3), torch.ones(4, 1), torch.zeros(3, 2)])
def test_axes_that_data_do_not_have_are_zero(rows: Tensor) -> None:
    points, share = principal_axes(rows)
    assert points.shape == (len(rows), 2) and share.tolist() == [0, 0]
    assert points.abs().max() < 1e-6


def test_two_rows_have_one_axis() -> None:
    points, share = principal_axes(torch.eye(2))
    assert share.tolist() == pytest.approx([1, 0])
    assert points[:, 0].sort().values.tolist() == pytest.approx([-(0.5**0.5), 0.5**0.5])
    assert points[:, 1].abs().max() < 1e-6


def test_neighbour_map_keeps_neighbours_and_repeats_itself() -> None:
    rows = torch.randn(4, 16)[torch.arange(120) % 4] * 3 + torch.randn(120, 16)
    points = neighbour_map(rows)
    assert trustworthiness(unit_rows(rows).numpy(), points.numpy(), n_neighbors=5) > 0.85
    assert torch.equal(points, neighbour_map(rows))


@pytest.mark.parametrize("rows", [torch.randn(4, 2), torch.ones(6, 3), torch.zeros(5, 2)])
def test_neighbour_map_of_degenerate_rows_is_finite(rows: Tensor) -> None:
    assert neighbour_map(rows).isfinite().all()


def test_drawn_rows() -> None:
    assert drawn_rows(5, 9, 0).tolist() == [0, 1, 2, 3, 4]
    drawn = drawn_rows(1000, 20, 3)
    assert len(set(drawn.tolist())) == 20 and torch.equal(drawn, drawn.sort().values)
    assert torch.equal(drawn, drawn_rows(1000, 20, 3)) and not torch.equal(drawn, drawn_rows(1000, 20, 4))
