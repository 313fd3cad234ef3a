"""Calibration against torchmetrics and SciPy."""

import pytest
import torch
from scipy.optimize import minimize_scalar
from torchmetrics.functional.classification import multiclass_calibration_error

from transferkit.similarity.temperature import TEMPERATURES, expected_calibration_error, fit_temperature


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


def test_a_class_that_the_classifier_does_not_know_counts_as_wrong() -> None:
    logits = torch.eye(2)
    confidence = logits.softmax(1).max().item()
    assert expected_calibration_error(logits, torch.tensor([0, 5])) == pytest.approx(abs(0.5 - confidence))


def test_a_certain_prediction_is_in_the_last_bin() -> None:
    """torchmetrics gives it a bin of its own."""
    logits, target = torch.tensor([[100.0, 0.0], [4.0, 0.0]]), torch.tensor([1, 0])
    one, other = logits.softmax(1).amax(1).tolist()
    assert one == 1 and 0.98 < other < 0.99
    assert expected_calibration_error(logits, target, bins=2) == pytest.approx((one + other) / 2 - 0.5)
    theirs = multiclass_calibration_error(logits.softmax(1), target, 2, n_bins=2).item()
    assert theirs == pytest.approx((1 + (1 - other)) / 2, abs=1e-6)
