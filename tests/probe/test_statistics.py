"""Intervals, tests and calibration against SciPy, torchmetrics and resampling of rows."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from scipy.stats import binomtest
from torchmetrics.functional.classification import multiclass_calibration_error

from transferkit.probe.calibration import TEMPERATURES, expected_calibration_error, fit_temperature
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


def test_calibration_error_is_torchmetrics() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(3000, 7, generator=generator)
    target = torch.randint(7, (3000,), generator=generator)
    oracle = multiclass_calibration_error(logits.softmax(1), target, 7, n_bins=15, norm="l1").item()
    assert expected_calibration_error(logits, target) == pytest.approx(oracle, abs=1e-4)


def test_temperature_is_the_minimum_and_mends_overconfidence() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4000, 5, generator=generator)
    target = torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]  # calibrated by construction
    temperature = fit_temperature(4 * logits, target)
    oracle = minimize_scalar(
        lambda t: torch.nn.functional.cross_entropy(4 * logits.double() / t, target).item(),
        bounds=(0.1, 50),
        method="bounded",
        options={"xatol": 1e-8},
    )
    assert temperature == pytest.approx(oracle.x, rel=1e-4)
    assert expected_calibration_error(4 * logits / temperature, target) < 0.03
    assert expected_calibration_error(4 * logits, target) > 0.2


def test_temperature_stops_where_all_rows_are_right() -> None:
    logits = torch.eye(3).repeat(4, 1)
    assert fit_temperature(logits, logits.argmax(1)) == pytest.approx(TEMPERATURES[0], rel=1e-6)
    assert fit_temperature(logits, logits.argmin(1)) == pytest.approx(TEMPERATURES[1], rel=1e-6)
