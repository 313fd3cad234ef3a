"""The solver against scikit-learn, and the sweep against fits from scratch."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from transferkit.probe.linear import C_GRID, fit_linear, logits_of, sweep
from transferkit.probe.standardize import KINDS, Kind, Standardization
from transferkit.runtime.verbosity import showing_progress


def blobs(rows: int, width: int, classes: int, *, seed: int = 0, offset: float = 0.5) -> tuple[Tensor, Tensor]:
    """Overlapping classes, features of different scale and mean, as pooled activations have."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.arange(rows) % classes
    means = torch.randn(classes, width, generator=generator)
    features = means[target] + 1.5 * torch.randn(rows, width, generator=generator)
    return features * torch.logspace(-1, 0.5, width) + offset, target


def standardised(features: Tensor, kind: Kind) -> np.ndarray:
    """The definition, in NumPy and float64."""
    values: np.ndarray = features.double().numpy()
    if kind == "l2":
        values = values / np.linalg.norm(values, axis=1, keepdims=True)
    elif kind == "zscore":
        values = (values - values.mean(0)) / values.std(0)
    return values


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("c", [1e-3, 1.0])
def test_weights_and_predictions_agree_with_scikit_learn(kind: Kind, c: float) -> None:
    features, target = blobs(1000, 16, 5)
    inputs = standardised(features, kind)
    oracle = LogisticRegression(C=c, tol=1e-9, max_iter=20_000).fit(inputs, target.numpy())
    model = fit_linear(features, target, 5, standardization=kind, c=c, tolerance=2e-7)
    assert model.converged
    weight = model.weight.double().numpy()
    if kind == "zscore":
        weight = weight * features.double().numpy().std(0)
    assert np.linalg.norm(weight - oracle.coef_) <= 1e-3 * np.linalg.norm(oracle.coef_)
    preds = logits_of(features, model.weight, model.bias, kind).argmax(1).numpy()
    assert (preds == oracle.predict(inputs)).mean() >= 0.999


def test_probabilities_agree_with_scikit_learn_in_float64() -> None:
    features, target = blobs(400, 12, 4)
    features = features.double()
    oracle = LogisticRegression(C=1.0, tol=1e-10, max_iter=20_000).fit(features.numpy(), target.numpy())
    model = fit_linear(features, target, 4, standardization="none", c=1.0, tolerance=1e-9)
    ours = logits_of(features, model.weight, model.bias, "none").softmax(1)
    np.testing.assert_allclose(ours.numpy(), oracle.predict_proba(features.numpy()), atol=1e-6)


def test_two_classes_are_scikit_learns_row_with_c_doubled() -> None:
    features, target = blobs(600, 16, 2)
    model = fit_linear(features, target, 2, standardization="none", c=0.5, tolerance=2e-7)
    doubled, same = (
        LogisticRegression(C=c, tol=1e-9, max_iter=20_000).fit(features.numpy(), target.numpy()) for c in (1.0, 0.5)
    )
    difference = (model.weight[1] - model.weight[0]).numpy()
    bound = 1e-3 * np.linalg.norm(doubled.coef_)
    assert np.linalg.norm(difference - doubled.coef_[0]) <= bound < np.linalg.norm(difference - same.coef_[0])
    assert (model.bias[1] - model.bias[0]).item() == pytest.approx(doubled.intercept_[0], abs=1e-3)
    preds = logits_of(features, model.weight, model.bias, "none").argmax(1).numpy()
    assert (preds == doubled.predict(features.numpy())).mean() >= 0.999


def test_fewer_rows_than_features_agree_with_scikit_learn() -> None:
    features, target = blobs(30, 80, 3)
    oracle = LogisticRegression(C=1.0, tol=1e-9, max_iter=20_000).fit(features.numpy(), target.numpy())
    model = fit_linear(features, target, 3, standardization="none", c=1.0, tolerance=2e-7)
    difference = np.linalg.norm(model.weight.numpy() - oracle.coef_)
    assert difference <= 1e-3 * np.linalg.norm(oracle.coef_)


@pytest.mark.parametrize("kind", KINDS)
def test_standardization_is_its_definition(kind: Kind) -> None:
    features, _ = blobs(2500, 7, 3)  # more than a chunk
    fit = Standardization.fit(features, kind)
    ours = torch.cat(list(fit.chunks(features))).double().numpy()
    expected = standardised(features, kind)
    if kind != "zscore":
        expected = expected - expected.mean(0)
    np.testing.assert_allclose(ours, expected, atol=2e-5)


def test_a_constant_feature_gets_no_weight() -> None:
    features, target = blobs(200, 6, 3)
    features[:, 2] = 0.1
    for kind in ("none", "zscore"):
        model = fit_linear(features, target, 3, standardization=kind, c=1.0)
        assert model.weight.isfinite().all()
        assert model.weight[:, 2].abs().max() < 1e-4


def test_sweep_gives_at_each_c_what_a_fit_from_zero_gives() -> None:
    features, target = blobs(500, 12, 4)
    val, val_target = blobs(2000, 12, 4)
    swept = sweep(features, target, val, val_target, 4, tolerance=1e-6)
    for row, kind in enumerate(KINDS):
        for place in (3, 14, 26, 33):
            alone = fit_linear(features, target, 4, standardization=kind, c=C_GRID[place], tolerance=1e-6)
            logits = logits_of(val, alone.weight, alone.bias, kind)
            accuracy = (logits.argmax(1) == val_target).double().mean().item()
            assert swept.accuracy[row, place].item() == pytest.approx(accuracy, abs=2e-3)


def test_the_best_is_the_highest_accuracy_and_ties_go_to_the_smaller_c() -> None:
    features, target = blobs(300, 8, 3)
    swept = sweep(features, target, features[:12], target[:12], 3)
    highest = swept.accuracy.max()
    smallest = min(swept.c_grid[place] for _, place in (swept.accuracy == highest).nonzero().tolist())
    assert (swept.accuracy == highest).sum() > 1, "no tie, so that nothing is tested"
    assert swept.best.c == smallest
    logits = logits_of(features[:12], swept.best.weight, swept.best.bias, swept.best.standardization)
    assert (logits.argmax(1) == target[:12]).double().mean() == highest


def test_coarse_to_fine_fits_fewer_points_and_the_same_values() -> None:
    features, target = blobs(400, 12, 4)
    val, val_target = blobs(300, 12, 4, seed=0)
    full = sweep(features, target, val, val_target, 4)
    coarse = sweep(features, target, val, val_target, 4, coarse_to_fine=True)
    done = ~coarse.accuracy.isnan()
    assert done.sum() <= 3 * 16
    assert (coarse.accuracy - full.accuracy)[done].abs().max() <= 0.01
    assert coarse.accuracy.nan_to_num(-1).max() >= full.accuracy.max() - 0.01


def test_too_few_iterations_are_reported() -> None:
    features, target = blobs(300, 10, 3)
    model = fit_linear(features, target, 3, standardization="none", c=100.0, max_iterations=2)
    assert not model.converged
    assert model.iterations == 2
    assert model.gradient > 1e-5


def test_a_tolerance_out_of_reach_ends_unconverged() -> None:
    features, target = blobs(300, 10, 3, offset=1000)
    model = fit_linear(features, target, 3, standardization="none", c=1.0, tolerance=1e-14)
    assert not model.converged
    assert model.weight.isfinite().all()


def test_features_that_hardly_vary_end_soon() -> None:
    generator = torch.Generator().manual_seed(0)
    features = 1 + 1.26e-4 * torch.randn(10, 1000, generator=generator)  # rounded by a thousandth of a deviation
    model = fit_linear(features, torch.arange(10) % 2, 2, standardization="zscore", c=1e-2)
    assert not model.converged
    assert model.iterations <= 200, "iterations without progress"
    assert model.weight.isfinite().all()


@pytest.mark.parametrize("coarse", [False, True])
def test_a_sweep_counts_each_fit_once_while_it_works(
    coarse: bool, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seconds in ("FIRST_LINE", "NEXT_LINE"):
        monkeypatch.setattr(f"transferkit.runtime.progress.{seconds}", 0.0)
    features, target = blobs(120, 8, 3)
    halves = features[:80], target[:80], features[80:], target[80:]
    with caplog.at_level("INFO", "transferkit"), showing_progress():
        swept = sweep(*halves, 3, c_grid=C_GRID[8:25], coarse_to_fine=coarse)
    fits = int(swept.accuracy.isfinite().sum())
    said = [line.split(" fits")[0] for line in caplog.messages]
    assert said[0].startswith("linear probe: ")
    if coarse:
        assert said[-1] == f"linear probe: {fits}" and fits < 3 * 17
    else:
        assert all(line.endswith(f" of {fits}") for line in said) and fits == 3 * 17
