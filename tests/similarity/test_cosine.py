"""Unit rows, cosine and class numbers against scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn.metrics.pairwise import cosine_similarity

from transferkit.errors import UserError
from transferkit.similarity import class_codes, cosine_matrix, unit_rows, zero_rows


def test_cosine_matrix_is_scikit_learns() -> None:
    first, second = torch.randn(7, 33), torch.randn(5, 33)
    first[2] = 0
    expected = cosine_similarity(first.double().numpy(), second.double().numpy())
    np.testing.assert_allclose(cosine_matrix(first, second).numpy(), expected, atol=1e-7)
    own = cosine_matrix(first)
    assert own.diagonal().tolist() == [1, 1, 0, 1, 1, 1, 1]
    assert torch.equal(own, own.T)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_unit_rows_of_any_size_and_dtype(scale: float, dtype: torch.dtype) -> None:
    rows = (torch.randn(4, 100) * scale).to(dtype)
    before = rows.clone()
    unit = unit_rows(rows)
    assert unit.dtype == torch.float32
    torch.testing.assert_close(unit.norm(dim=1), torch.ones(4))
    torch.testing.assert_close(unit, torch.nn.functional.normalize(rows.double(), dim=1, eps=0).float())
    assert torch.equal(rows, before)
    if dtype == torch.float32:
        assert torch.equal(unit_rows(before, in_place=True), unit) and torch.equal(before, unit)


def test_zero_rows_stay_zero_and_are_named() -> None:
    rows = torch.randn(5, 3)
    rows[[1, 4]] = 0
    rows[2] = 1e-40  # a subnormal number is a direction
    assert zero_rows(rows).tolist() == [1, 4]
    assert unit_rows(rows).norm(dim=1).round().tolist() == [1, 0, 1, 1, 0]


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_rows_that_are_not_finite_are_refused_by_number(value: float) -> None:
    rows = torch.randn(9, 4)
    rows[[3, 7], 1] = value
    with pytest.raises(UserError, match=r"photos: row 3 holds NaN or infinity \(and 1 more\)"):
        unit_rows(rows, "photos")


@pytest.mark.parametrize("shape", [(5,), (0, 4), (4, 0), (2, 3, 4)])
def test_what_is_no_table_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match="shape"):
        unit_rows(torch.zeros(shape))


def test_widths_must_agree() -> None:
    with pytest.raises(UserError, match="3 numbers per row against 4"):
        cosine_matrix(torch.ones(2, 3), torch.ones(2, 4))


def test_class_codes_share_one_order() -> None:
    names, (first, second) = class_codes(["b", None, "a"], ["c", "b"])
    assert (names, first.tolist(), second.tolist()) == (["a", "b", "c"], [1, -1, 0], [2, 1])
    names, (codes,) = class_codes(torch.tensor([10, 9, 10]))
    assert (names, codes.tolist()) == ([9, 10], [1, 0, 1])
    with pytest.raises(UserError, match="mixed"):
        class_codes(["a", 1])
