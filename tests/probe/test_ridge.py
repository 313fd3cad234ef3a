"""Ridge regression whose strength is chosen by leaving out each row, against scikit-learn's RidgeCV."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge, RidgeCV
from sklearn.preprocessing import StandardScaler, normalize

from transferkit.probe.ridge import ALPHAS, fit_ridge
from transferkit.probe.standardize import Kind


@pytest.mark.parametrize("rows", [40, 200])  # fewer and more than features
@pytest.mark.parametrize("kind", ["zscore", "l2"])
def test_it_is_ridge_cv(rows: int, kind: Kind) -> None:
    noise = torch.Generator().manual_seed(rows)
    features = torch.randn(rows, 64, generator=noise).double() * torch.linspace(0.1, 5, 64) + 2
    target = features @ torch.randn(64, generator=noise).double() + 20 * torch.randn(rows, generator=noise) + 1000
    ours = fit_ridge(features, target, kinds=[kind])
    inputs = StandardScaler().fit_transform(features.numpy()) if kind == "zscore" else normalize(features.numpy())
    theirs = RidgeCV(alphas=ALPHAS, store_cv_results=True).fit(inputs, target.numpy())
    assert ours.alpha == pytest.approx(theirs.alpha_) and ours.standardization == kind
    raw = features if kind == "zscore" else features / features.norm(dim=1, keepdim=True)
    np.testing.assert_allclose((raw @ ours.weight.T + ours.bias)[:, 0], theirs.predict(inputs), rtol=1e-6)
    np.testing.assert_allclose(ours.errors, theirs.cv_results_.mean(0), rtol=1e-6)


@pytest.mark.parametrize("rows", [40, 200])
@pytest.mark.parametrize("kind", ["zscore", "l2"])
def test_weighted_rows_are_those_of_ridge(rows: int, kind: Kind) -> None:
    noise = torch.Generator().manual_seed(rows)
    features = torch.randn(rows, 64, generator=noise).double() + 2
    target = features @ torch.randn(64, generator=noise).double() + 20 * torch.randn(rows, generator=noise) + 1000
    weights = torch.rand(rows, generator=noise).double() * (torch.arange(rows) % 5 > 0)  # a fifth counts nothing
    ours = fit_ridge(features, target, kinds=[kind], row_weights=weights)
    inputs = StandardScaler().fit_transform(features.numpy()) if kind == "zscore" else normalize(features.numpy())

    def theirs(kept: slice | list[int], alpha: float) -> np.ndarray:
        model = Ridge(alpha=alpha).fit(inputs[kept], target.numpy()[kept], weights.numpy()[kept])
        return np.asarray(model.predict(inputs))

    raw = features if kind == "zscore" else features / features.norm(dim=1, keepdim=True)
    found = (raw @ ours.weight.T + ours.bias)[:, 0]
    np.testing.assert_allclose(found, theirs(slice(None), ours.alpha), rtol=1e-6)
    left_out = [theirs([row for row in range(rows) if row != one], ours.alpha)[one] for one in range(rows)]
    error = float((weights * (target - torch.tensor(left_out)).square()).mean())
    assert float(ours.errors.min()) == pytest.approx(error, rel=1e-6)


def test_an_error_is_that_of_a_fit_without_the_row() -> None:
    noise = torch.Generator().manual_seed(5)
    features, target = torch.randn(12, 3, generator=noise).double(), torch.randn(12, generator=noise).double()
    centered = features - features.mean(0)  # l2 and zscore are fitted on all rows; plain rows need no standardization
    scaled = centered / centered.std(0, correction=0)
    errors = []
    for row in range(12):
        kept = torch.arange(12) != row
        inputs, mean = scaled[kept] - scaled[kept].mean(0), target[kept].mean()
        weight = torch.linalg.solve(inputs.T @ inputs + 2.0 * torch.eye(3), inputs.T @ (target[kept] - mean))
        errors.append(float(target[row] - mean - (scaled[row] - scaled[kept].mean(0)) @ weight) ** 2)
    found = fit_ridge(features, target, alphas=[2.0], kinds=["zscore"])
    assert float(found.errors[0]) == pytest.approx(np.mean(errors))


def test_the_better_standardization_is_taken() -> None:
    noise = torch.Generator().manual_seed(0)
    direction = torch.nn.functional.normalize(torch.randn(100, 8, generator=noise))
    features = direction * torch.rand(100, 1, generator=noise) * 50  # only the direction says something
    found = fit_ridge(features, 10 * direction[:, 0])
    assert found.standardization == "l2" and float(found.errors.min()) < 1e-3
