"""LogME against a direct computation of the evidence, the shrunk H-score against NumPy and scikit-learn."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from sklearn.covariance import ledoit_wolf

from transferkit.similarity.transferability import log_me, shrunk_h_score


def data(rows: int, width: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    target = torch.arange(rows) % 3
    return torch.randn(rows, width, generator=generator) + 0.8 * torch.eye(3, width)[target], target


@pytest.mark.parametrize(("rows", "width"), [(40, 6), (20, 35), (18, 18)])
def test_log_me_is_the_evidence_at_its_maximum(rows: int, width: int) -> None:
    """The density of y under N(0, I / b + F Fᵀ / a), written out and maximized by Nelder and Mead."""
    features, target = data(rows, width)
    f = features.double().numpy()
    total = 0.0
    for number in range(3):
        y = (target == number).double().numpy()

        def negative(logs: np.ndarray, y: np.ndarray = y) -> float:
            a, b = np.exp(np.clip(logs, -30, 30))
            covariance = np.eye(rows) / b + f @ f.T / a
            quadratic = y @ np.linalg.solve(covariance, y)
            return float(0.5 * (rows * np.log(2 * np.pi) + np.linalg.slogdet(covariance)[1] + quadratic))

        tries = [minimize(negative, [a, 2.0], method="Nelder-Mead", options={"maxiter": 2000}) for a in (0.0, 5.0)]
        total -= min(found.fun for found in tries) / rows
    assert abs(log_me(features, target) - total / 3) < 1e-4


def test_log_me_depends_on_directions_and_not_on_the_scale() -> None:
    features, target = data(60, 8)
    assert log_me(features * 1000, target) == pytest.approx(log_me(features, target), abs=1e-6)
    rotation = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(1)))[0]
    assert log_me(features @ rotation, target) == pytest.approx(log_me(features, target), abs=1e-5)
    assert log_me(features, target) > log_me(features, target[torch.randperm(60)])
    assert np.isfinite(log_me(torch.zeros(6, 2), torch.arange(6) % 2))


@pytest.mark.parametrize(("rows", "width"), [(60, 5), (30, 50)])
def test_the_h_score_is_that_of_its_definition(rows: int, width: int) -> None:
    features, target = data(rows, width)
    f = features.double().numpy() - features.double().numpy().mean(0)
    covariance, shrinkage = ledoit_wolf(f, assume_centered=True)
    means = np.stack([f[target.numpy() == number].mean(0) for number in range(3)])[target.numpy()]  # (N, D)
    between = means.T @ means / rows
    expected = np.trace(np.linalg.pinv(covariance) @ ((1 - shrinkage) * between))
    assert shrunk_h_score(features, target) == pytest.approx(expected, rel=1e-6)
    assert shrunk_h_score(torch.ones(4, 3), torch.arange(4) % 2) == 0
