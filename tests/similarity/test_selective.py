"""Abstaining: the exact binomial test by SciPy, and the promised share of errors over repeated draws."""

import math

import pytest
import torch
from scipy.stats import binom, binomtest
from torch import Tensor

from transferkit.similarity.selective import answer_threshold, binomial_p_value, fewest_rows


@pytest.mark.parametrize(("errors", "total"), [(0, 1), (0, 59), (3, 100), (40, 1000), (7, 7), (2000, 50_000)])
@pytest.mark.parametrize("risk", [0.01, 0.05, 0.3])
def test_p_value_is_scipys(errors: int, total: int, risk: float) -> None:
    oracle = binom.cdf(errors, total, risk)
    assert binomial_p_value(errors, total, risk) == pytest.approx(oracle, rel=1e-6, abs=1e-12)
    assert binomtest(errors, total, risk, alternative="less").pvalue == pytest.approx(oracle)


def drawn(generator: torch.Generator, rows: int) -> tuple[Tensor, Tensor]:
    """Confidence, and whether the class is right, which is as likely as its square says."""
    confidence = torch.rand(rows, generator=generator, dtype=torch.float64) ** 0.3
    return confidence, torch.rand(rows, generator=generator, dtype=torch.float64) < confidence**2


@pytest.mark.parametrize(("rows", "risk"), [(400, 0.2), (1000, 0.15)])
def test_realized_error_is_below_the_bound_in_95_of_100_draws(rows: int, risk: float) -> None:
    generator = torch.Generator().manual_seed(0)
    confidence, correct = drawn(generator, 200_000)
    held, answered = 0, []
    for _ in range(100):
        threshold = answer_threshold(*drawn(generator, rows), risk)
        kept = confidence > threshold
        answered.append(float(kept.double().mean()))
        held += not kept.any() or bool((~correct[kept]).double().mean() <= risk)
    assert held >= 95 and sum(answered) / 100 > 0.1, "the bound is kept, and not by answering nothing"


def test_the_bound_is_kept_where_confidence_says_nothing() -> None:
    """Every threshold has the error that is just forbidden: each answer is a broken promise."""
    generator = torch.Generator().manual_seed(0)
    broken = 0
    for _ in range(400):
        correct = torch.rand(500, generator=generator) > 0.0501
        broken += answer_threshold(torch.rand(500, generator=generator), correct, 0.05) < math.inf
    assert broken <= 20


def test_ends() -> None:
    confidence = torch.linspace(0.5, 1, 200)
    right = torch.ones(200, dtype=torch.bool)
    assert answer_threshold(confidence, right, 0.05) == -math.inf
    assert answer_threshold(confidence, ~right, 0.05) == math.inf
    least = fewest_rows(0.05)
    assert answer_threshold(confidence[:least], right[:least], 0.05) == -math.inf
    assert answer_threshold(confidence[: least - 1], right[: least - 1], 0.05) == math.inf
    assert answer_threshold(torch.ones(200), confidence > 0.6, 0.05) == math.inf, "equal ones are answered together"
    assert 0.6 < answer_threshold(confidence, confidence > 0.6, 0.05) < 0.64
