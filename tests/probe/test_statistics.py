"""Intervals and tests against SciPy and resampling of rows."""

import numpy as np
import pytest
import torch
from scipy.stats import binomtest

from transferkit.similarity.intervals import wilson
from transferkit.similarity.paired import compare_paired, mcnemar


@pytest.mark.parametrize(("right", "total"), [(0, 10), (3, 10), (10, 10), (146, 153), (9_311, 10_000)])
def test_wilson_is_scipys(right: int, total: int) -> None:
    oracle = binomtest(right, total).proportion_ci(method="wilson")
    assert wilson(right, total) == pytest.approx((oracle.low, oracle.high), abs=1e-12)


@pytest.mark.parametrize(("first", "second"), [(0, 0), (1, 0), (7, 2), (30, 30), (400, 460)])
def test_mcnemar_is_scipys_binomial_test(first: int, second: int) -> None:
    oracle = binomtest(first, first + second).pvalue if first + second else 1.0
    assert mcnemar(first, second) == pytest.approx(oracle, rel=1e-9)


def test_paired_bootstrap_is_that_of_rows() -> None:
    generator = torch.Generator().manual_seed(0)
    first = torch.rand(400, generator=generator) < 0.8
    second = first ^ (torch.rand(400, generator=generator) < 0.1)
    result = compare_paired(first, second)
    rows = np.random.default_rng(1).integers(0, 400, (10_000, 400))
    gain = (second.int() - first.int()).numpy()
    expected = np.quantile(gain[rows].mean(1), [0.025, 0.975])
    assert result.difference == pytest.approx(gain.mean())
    np.testing.assert_allclose(result.interval, expected, atol=0.003)
    assert compare_paired(first, second) == result
    assert compare_paired(first, first).interval == (0.0, 0.0)
