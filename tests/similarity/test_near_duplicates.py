"""Near-duplicates against all pairs and scipy's connected components."""

import pytest
import torch
from scipy.sparse.csgraph import connected_components
from sklearn.metrics.pairwise import cosine_similarity

from transferkit.errors import UserError
from transferkit.similarity import near_duplicates, similar_pairs


def test_pairs_and_groups() -> None:
    rows = torch.randn(300, 12)[torch.randint(300, (1500,))] + 0.2 * torch.randn(1500, 12)  # two blocks high
    rows[[5, 900]] = 0
    cosine = torch.tensor(cosine_similarity(rows.double().numpy())).triu(1)
    first, second = (cosine >= 0.97).nonzero(as_tuple=True)
    found = {
        (i, j): c
        for a, b, score in similar_pairs(rows, 0.97)
        for i, j, c in zip(a.tolist(), b.tolist(), score.tolist(), strict=True)
    }
    assert set(found) == set(zip(first.tolist(), second.tolist(), strict=True))
    assert all(score == pytest.approx(float(cosine[pair]), abs=1e-6) for pair, score in found.items())

    component = torch.tensor(connected_components((cosine >= 0.97).numpy(), directed=False)[1])
    expected = [torch.where(component == c)[0].tolist() for c in sorted(set(component.tolist()))]
    assert near_duplicates(rows, 0.97) == sorted(group for group in expected if len(group) > 1)
    assert max(map(len, expected)) > 3  # chains were there to be joined


def test_a_long_chain_is_one_group() -> None:
    """Each row like the next only, in shuffled order: the hardest case for joining pairs all at once."""
    angle = torch.randperm(2000) * 0.002
    rows = torch.stack([angle.cos(), angle.sin()], 1)
    assert near_duplicates(rows, float(torch.tensor(0.0025).cos())) == [list(range(2000))]


def test_threshold_of_one_finds_equal_directions() -> None:
    rows = torch.randn(6, 500)
    rows[4], rows[5] = rows[1] * 7, 0
    assert near_duplicates(rows, 1) == [[1, 4]]
    assert near_duplicates(torch.zeros(3, 2), 0.5) == []


def test_bad_input() -> None:
    for threshold in (0, -0.5, 1.01, float("nan")):
        with pytest.raises(UserError, match="threshold"):
            near_duplicates(torch.ones(2, 2), threshold)
    with pytest.raises(UserError, match="row 1"):
        near_duplicates(torch.tensor([[1.0], [torch.nan]]))
