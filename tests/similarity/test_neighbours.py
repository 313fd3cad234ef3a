"""Top-k against a full stable sort, at sizes where groups of columns are and are not left out."""

import pytest
import torch
from torch import Tensor

from transferkit.errors import UserError
from transferkit.similarity import neighbours, top_k


def ranked(query: Tensor, reference: Tensor, k: int, exclude_self: bool = False) -> tuple[Tensor, Tensor]:
    """Every score, sorted stably: equal ones stay in row order."""
    scores = query @ reference.T
    if exclude_self:
        scores.fill_diagonal_(-torch.inf)
    values, columns = scores.sort(dim=1, descending=True, stable=True)
    return values[:, :k], columns[:, :k]


def corners(rows: int, width: int = 16) -> Tensor:
    """Corners of a cube: their products are exact in float32, so that equal scores are equal to the bit."""
    return torch.randint(0, 2, (rows, width)).float() * 2 - 1


@pytest.mark.parametrize("columns", [1, 5, 64, 65, 700, 5003])
@pytest.mark.parametrize("k", [1, 3, 40])
def test_ties_go_to_the_smaller_row(columns: int, k: int) -> None:
    query, reference = corners(37), corners(columns)
    cosine, index = top_k(query, reference, k)
    expected, expected_index = ranked(query, reference, min(k, columns))
    assert torch.equal(index, expected_index)
    torch.testing.assert_close(cosine, expected / 16)


def test_queries_with_nothing_but_ties_among_others() -> None:
    k = 5
    query, reference = corners(30), corners(3001)
    query[::7] = 0  # all its scores are 0
    index = top_k(query, reference, k)[1]
    assert torch.equal(index, ranked(query, reference, k)[1])
    reference[:2990] = reference[0]  # nearly all rows are the same
    assert torch.equal(top_k(query, reference, k)[1], ranked(query, reference, k)[1])


@pytest.mark.parametrize("k", [1, 10, 300, 1500])
def test_random_rows(k: int) -> None:
    rows = torch.nn.functional.normalize(torch.randn(1299, 24), dim=1)
    cosine, index = top_k(rows, rows, k, exclude_self=True)
    expected, expected_index = ranked(rows, rows, min(k, 1298), exclude_self=True)
    torch.testing.assert_close(cosine, expected)
    assert (index == expected_index).float().mean() > 0.999  # neighbours one rounding apart may change places
    assert (index != torch.arange(1299)[:, None]).all()


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    query, reference = corners(101), corners(900)
    whole = top_k(query, reference, 7)
    monkeypatch.setattr(neighbours, "BLOCK", 900 * 8)
    for part, all_at_once in zip(top_k(query, reference, 7), whole, strict=True):
        assert torch.equal(part, all_at_once)


@pytest.mark.parametrize("queries", range(1, 13))
def test_exact_duplicates_tie_whatever_the_number_of_queries(queries: int) -> None:
    source = torch.randint(20, (1003,))
    reference = torch.randn(20, 513)[source]
    cosine, index = top_k(torch.randn(queries, 513), reference, 200)
    same = source[index[:, 1:]] == source[index[:, :-1]]
    assert torch.equal(cosine[:, 1:] == cosine[:, :-1], same)
    assert (index[:, 1:] > index[:, :-1])[same].all()


def test_k_is_clamped_and_zero_rows_score_zero() -> None:
    rows = torch.tensor([[1.0, 0], [0, 0], [-1, 0]])
    cosine, index = top_k(rows, rows, 10)
    assert cosine.tolist() == [[1, 0, -1], [0, 0, 0], [1, 0, -1]]
    assert index.tolist() == [[0, 1, 2], [0, 1, 2], [2, 1, 0]]
    assert top_k(rows, rows, 10, exclude_self=True)[1].tolist() == [[1, 2], [0, 2], [1, 0]]
    assert top_k(rows[:1], rows[:1], 3, exclude_self=True)[0].shape == (1, 0)


def test_bad_input() -> None:
    rows = torch.ones(3, 2)
    with pytest.raises(UserError, match="at least 1"):
        top_k(rows, rows, 0)
    with pytest.raises(UserError, match="exclude_self: 2 queries"):
        top_k(rows[:2], rows, 1, exclude_self=True)
    with pytest.raises(UserError, match="reference: row 1"):
        top_k(rows, torch.tensor([[0.0, 0], [torch.nan, 0]]), 1)
    with pytest.raises(UserError, match="2 numbers per row against 3"):
        top_k(rows, torch.ones(2, 3), 1)
