"""CKA, RSA and shared neighbours against their N x N definitions, scipy and scikit-learn."""

import math

import pytest
import torch
from scipy.stats import spearmanr
from sklearn.metrics.pairwise import cosine_similarity
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from transferkit.errors import UserError
from transferkit.similarity import compare, knn_overlap, linear_cka, rsa, unit_rows


def pair(rows: int = 60) -> tuple[Tensor, Tensor]:
    first = torch.randn(rows, 12) + 3
    return first, first @ torch.randn(12, 7) + torch.randn(rows, 7)


def hsic(k: Tensor, m: Tensor, unbiased: bool) -> Tensor:
    """Of two N x N kernels: trace form (Gretton 2005), or HSIC_1 word for word (Song et al. 2012, eq. 5)."""
    n = len(k)
    one = torch.ones(n, 1, dtype=k.dtype)
    if not unbiased:
        centre = torch.eye(n, dtype=k.dtype) - one @ one.T / n
        return torch.trace(k @ centre @ m @ centre)
    k, m = k.clone().fill_diagonal_(0), m.clone().fill_diagonal_(0)
    both = (one.T @ k @ one) * (one.T @ m @ one) / ((n - 1) * (n - 2))
    return (torch.trace(k @ m) + both - 2 / (n - 2) * (one.T @ k @ m @ one)).squeeze() / (n * (n - 3))


@pytest.mark.parametrize("unbiased", [False, True])
@pytest.mark.parametrize("rows", [4, 5, 60])
def test_cka_is_that_of_the_kernels(rows: int, unbiased: bool) -> None:
    first, second = pair(rows)
    k, m = (table.double() @ table.double().T for table in (first, second))
    expected = hsic(k, m, unbiased) / (hsic(k, k, unbiased) * hsic(m, m, unbiased)).sqrt()
    assert linear_cka(first, second, unbiased=unbiased) == pytest.approx(float(expected), abs=1e-9)


@pytest.mark.parametrize("unbiased", [False, True])
def test_cka_ignores_rotation_scale_and_shift(unbiased: bool) -> None:
    first, second = pair()
    turned = first @ torch.linalg.qr(torch.randn(12, 12))[0] * 5 - 2
    assert linear_cka(first, turned, unbiased=unbiased) == pytest.approx(1, abs=1e-6)
    assert linear_cka(turned, second, unbiased=unbiased) == pytest.approx(
        linear_cka(first, second, unbiased=unbiased), abs=1e-6
    )


def test_unbiased_cka_of_unrelated_features_is_about_zero() -> None:
    first, second = torch.randn(100, 400), torch.randn(100, 400)
    assert linear_cka(first, second) > 0.7
    assert abs(linear_cka(first, second, unbiased=True)) < 0.05


def test_rsa_is_scipys_spearman() -> None:
    first, second = pair()
    first[1], first[2], second[3] = first[0], 0, 0  # equal values share their rank
    upper = torch.triu_indices(60, 60, 1)
    cosines = [cosine_similarity(x.double()).astype("float32")[upper[0], upper[1]] for x in (first, second)]
    assert rsa(first, second) == pytest.approx(spearmanr(*cosines).statistic, abs=1e-4)
    signs = [torch.randint(0, 2, (40, 4)).float() * 2 - 1 for _ in range(2)]  # a handful of values only
    upper = torch.triu_indices(40, 40, 1)
    cosines = [(x @ x.T)[upper[0], upper[1]].numpy() for x in signs]
    assert rsa(*signs) == pytest.approx(spearmanr(*cosines).statistic, abs=1e-9)


def test_knn_overlap_is_that_of_scikit_learns_neighbours() -> None:
    first, second = pair()
    near = [
        NearestNeighbors(n_neighbors=10, metric="cosine").fit(table.double()).kneighbors(return_distance=False)
        for table in (first, second)
    ]
    expected = sum(len(set(a) & set(b)) for a, b in zip(*near, strict=True)) / 600
    assert knn_overlap(first, second, 10) == pytest.approx(expected)
    assert knn_overlap(first, first * 3, 1000) == 1


def test_compare_scales_rows_and_samples_rsa() -> None:
    first, second = pair(80)
    values = compare(first, second, k=5, rsa_rows=50)
    assert list(values) == ["rows", "cka", "cka_unbiased", "cka_raw", "rsa", "rsa_rows", "knn_overlap@5"]
    assert (values["rows"], values["rsa_rows"]) == (80, 50)
    assert values["cka"] == pytest.approx(linear_cka(unit_rows(first), unit_rows(second)))
    assert values["rsa"] == pytest.approx(rsa(first, second), abs=0.1)
    assert values == compare(first, second, k=5, rsa_rows=50)


def test_what_is_undefined_is_left_out() -> None:
    equal, other = torch.full((6, 3), 0.3), torch.randn(6, 3)
    assert list(compare(equal, other)) == ["rows", "rsa_rows", "knn_overlap@10"]
    assert list(compare(other[:2], other[:2])) == ["rows", "cka", "cka_raw", "rsa_rows", "knn_overlap@10"]
    assert list(compare(other[:1], other[:1])) == ["rows", "rsa_rows"]
    assert math.isnan(linear_cka(other[:3], other[:3], unbiased=True))


def test_bad_input() -> None:
    with pytest.raises(UserError, match="6 rows against 5"):
        compare(torch.ones(6, 2), torch.ones(5, 2))
    with pytest.raises(UserError, match="second: row 2"):
        linear_cka(torch.ones(3, 1), torch.tensor([[1.0], [2], [torch.inf]]))


def test_cka_of_scaled_rows_and_of_features_as_they_are() -> None:
    first, second = pair()
    found = compare(first, second)
    for name, tables in (("cka", (unit_rows(first, "x"), unit_rows(second, "x"))), ("cka_raw", (first, second))):
        k, m = (table.double() @ table.double().T for table in tables)
        expected = hsic(k, m, False) / (hsic(k, k, False) * hsic(m, m, False)).sqrt()
        assert found[name] == pytest.approx(float(expected), abs=1e-6)
    assert abs(found["cka"] - found["cka_raw"]) > 1e-4
