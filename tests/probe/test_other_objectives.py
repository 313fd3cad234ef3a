"""One-vs-rest, squared and Huber's error: values and slopes by automatic differentiation, solutions by scikit-learn."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize as scipy_minimize
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.multiclass import OneVsRestClassifier
from sklearn.preprocessing import StandardScaler
from torch import Tensor
from torch.nn import functional as F

from transferkit.probe.linear import fit_linear
from transferkit.probe.objective import Objective
from transferkit.probe.other_objectives import HuberObjective, NumberObjective, OneVsRestObjective
from transferkit.probe.standardize import Standardization

ROWS, WIDTH, LABELS = 60, 8, 3


@pytest.fixture
def features() -> Tensor:
    return torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(0)).double() * 3 + 1


@pytest.fixture
def labels(features: Tensor) -> Tensor:
    noise = torch.randn(ROWS, LABELS, generator=torch.Generator().manual_seed(1)).double()
    return ((features[:, :LABELS] - 1) / 3 + noise > 0.3).double()


def plain(kind: type[Objective], logits: Tensor, target: Tensor, weights: Tensor | None) -> Tensor:
    """The mean loss as torch has it: summed over the outputs."""
    if kind is OneVsRestObjective:
        return F.binary_cross_entropy_with_logits(logits, target, pos_weight=weights, reduction="sum") / ROWS
    loss = F.huber_loss if kind is HuberObjective else F.mse_loss
    return loss(logits, target, reduction="sum") / ROWS / (1 if kind is HuberObjective else 2)


@pytest.mark.parametrize("kind", [OneVsRestObjective, NumberObjective, HuberObjective])
@pytest.mark.parametrize("weighted", [False, True])
def test_value_and_slope_are_torchs(kind: type[Objective], weighted: bool, features: Tensor, labels: Tensor) -> None:
    weights = torch.tensor([0.5, 2.0, 4.0]).double() if weighted and kind is OneVsRestObjective else None
    target = labels if kind is OneVsRestObjective else 2 * features[:, :LABELS] - 3
    objective = kind(features, target, LABELS, Standardization.fit(features, "zscore"), class_weights=weights)
    parameters = torch.randn(2, WIDTH + 1, LABELS, dtype=torch.float64)  # two classifiers
    penalty = torch.tensor([0.1, 0.7]).double()
    logits = objective.logits(parameters)
    found = objective(parameters, penalty, logits, logits, torch.zeros(2, dtype=torch.float64))
    rows = (features - features.mean(0)) / features.std(0, correction=0)
    for number in range(2):
        leaf = parameters[number].clone().requires_grad_()
        loss = plain(kind, rows @ leaf[:-1] + leaf[-1], target, weights)
        loss = loss + penalty[number] / 2 * leaf[:-1].square().sum()
        (slope,) = torch.autograd.grad(loss, leaf)
        assert float(found.loss[number]) == pytest.approx(loss.item())
        torch.testing.assert_close(found.gradient[number], slope)
    assert (found.curvature > 0).all()


@pytest.mark.parametrize("c", [0.01, 1.0, 100.0])
def test_one_against_the_rest_is_scikit_learns(c: float, features: Tensor, labels: Tensor) -> None:
    model = fit_linear(
        features, labels, LABELS, standardization="zscore", c=c, objective=OneVsRestObjective, tolerance=1e-8
    )
    rows = StandardScaler().fit_transform(features.numpy())
    theirs = OneVsRestClassifier(LogisticRegression(C=c, tol=1e-10, max_iter=10_000)).fit(rows, labels.numpy())
    ours = (features @ model.weight.T + model.bias).sigmoid()
    np.testing.assert_allclose(ours, theirs.predict_proba(rows), atol=1e-3)
    assert model.converged


def test_squared_error_is_ridge_regression(features: Tensor) -> None:
    target = (features @ torch.randn(WIDTH, 2).double()).tanh()
    model = fit_linear(features, target, 2, standardization="zscore", c=0.2, objective=NumberObjective, tolerance=1e-10)
    rows = StandardScaler().fit_transform(features.numpy())
    expected = Ridge(alpha=1 / 0.2).fit(rows, target.numpy()).predict(rows)
    np.testing.assert_allclose(features @ model.weight.T + model.bias, expected, atol=1e-6)


def test_hubers_error_is_minimized(features: Tensor) -> None:
    target = features[:, :1] / 3 + (torch.rand(ROWS, 1) < 0.1) * 20.0
    model = fit_linear(features, target, 1, standardization="none", c=10.0, objective=HuberObjective, tolerance=1e-9)

    def value(parameters: np.ndarray) -> float:
        error = np.abs(features.numpy() @ parameters[:-1] + parameters[-1] - target[:, 0].numpy())
        return float(
            np.where(error < 1, error**2 / 2, error - 0.5).mean() + (parameters[:-1] ** 2).sum() / 2 / 10 / ROWS
        )

    found = np.append(model.weight[0].numpy(), model.bias.numpy())
    best = scipy_minimize(value, found, tol=1e-12).fun
    assert value(found) == pytest.approx(best, rel=1e-6)


def test_label_smoothing_moves_targets_towards_a_half(features: Tensor, labels: Tensor) -> None:
    smooth = labels * 0.8 + 0.1
    options = {"standardization": Standardization.fit(features, "none")}
    first = OneVsRestObjective(features, labels, LABELS, label_smoothing=0.2, **options)
    second = OneVsRestObjective(features, smooth, LABELS, **options)
    start, penalty = torch.randn(1, WIDTH + 1, LABELS, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    values = [each(start, penalty, each.logits(start), each.logits(start), penalty * 0) for each in (first, second)]
    torch.testing.assert_close(values[0].gradient, values[1].gradient)
