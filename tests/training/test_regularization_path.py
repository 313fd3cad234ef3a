"""The head's solution against scikit-learn's, whatever the scale of the features."""

import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from transferkit.errors import UserError
from transferkit.probe.linear import fit_linear
from transferkit.training.regularization_path import TOLERANCE, RegularizationPath, common_scale, strength

CLASSES, WIDTH = 3, 6


def rows(count: int = 90, scales: bool = True) -> tuple[Tensor, Tensor]:
    """Overlapping classes, features of scales from 1e-3 to 1e3 and away from zero."""
    generator = torch.Generator().manual_seed(0)
    target = torch.randint(CLASSES, (count,), generator=generator)
    centers = torch.randn(CLASSES, WIDTH, generator=generator)
    features = centers[target] + torch.randn(count, WIDTH, generator=generator) + 2
    return features * torch.logspace(-3, 3, WIDTH) if scales else features, target


def path(features: Tensor, target: Tensor, steps: int, **options: object) -> tuple[RegularizationPath, nn.Linear]:
    torch.manual_seed(0)
    head = nn.Linear(features.shape[1], CLASSES)
    return RegularizationPath(head, features, target, steps, **options), head  # type: ignore[arg-type]


def oracle(features: Tensor, target: Tensor, c: float, weight: Tensor | None = None, step: int = 0) -> np.ndarray:
    """scikit-learn's class probabilities on features of variance 1 each, or on average."""
    values = features.double().numpy()
    values = values - values.mean(0)
    values = values / (values.var(0).mean() ** 0.5 if step % 2 else values.std(0))
    model = LogisticRegression(C=c, tol=1e-8, max_iter=10_000)
    by_row = None if weight is None else (weight / weight[target].mean())[target].numpy()
    return model.fit(values, target.numpy(), by_row).predict_proba(values)


@pytest.mark.parametrize("weight", [None, torch.tensor([0.2, 1.0, 5.0])])
@pytest.mark.parametrize("scales", [True, False])
def test_every_step_is_the_optimum_at_its_strength(scales: bool, weight: Tensor | None) -> None:
    features, target = rows(scales=scales)
    optimizer, head = path(features, target, 5, class_weights=weight)
    for step in range(5):
        optimizer.step()
        c = optimizer.param_groups[0]["C"]
        assert c == pytest.approx(10 ** (-5 + 9 * (step + 0.5) / 5)) == strength(step, 5)
        with torch.no_grad():
            found = head(features).softmax(1).numpy()
        np.testing.assert_allclose(found, oracle(features, target, c, weight, step), atol=5e-3)
    assert not optimizer.unsolved


def test_smoothing_is_that_of_torch() -> None:
    features, target = rows(scales=False)
    optimizer, head = path(features, target, 1, label_smoothing=0.2)
    optimizer.step()
    scale = features.std(0, correction=0)
    penalty = (head.weight * scale).square().sum() / (2 * optimizer.param_groups[0]["C"] * len(target))
    (nn.functional.cross_entropy(head(features), target, label_smoothing=0.2) + penalty).backward()
    assert head.bias.grad is not None and head.weight.grad is not None
    assert max(head.weight.grad.abs().max(), head.bias.grad.abs().max()) < 1e-3  # of their optimum


def test_unit_embeddings() -> None:
    features, target = rows(scales=False)
    optimizer, head = path(features * 7, target, 2, l2_normalize=True)
    optimizer.step()
    unit = nn.functional.normalize(features)
    with torch.no_grad():
        found = head(unit).softmax(1).numpy()
    np.testing.assert_allclose(found, oracle(unit, target, optimizer.param_groups[0]["C"]), atol=5e-3)


def test_fewer_rows_than_features() -> None:
    features, target = rows(5)
    optimizer, head = path(features, target, 3)
    for _ in range(3):
        optimizer.step()
    assert not optimizer.unsolved and head.weight.isfinite().all()


def test_a_step_does_not_depend_on_those_before_it() -> None:
    """Few rows that can be told apart, at weak regularization: many heads are within the tolerance."""
    generator = torch.Generator().manual_seed(0)
    target = torch.arange(12) % CLASSES
    features = torch.randn(12, 40, generator=generator) + target[:, None]
    optimizer, head = path(features, target, 40)
    for _ in range(39):  # the last of odd number, as a probe's zscore
        optimizer.step()
    c = optimizer.param_groups[0]["C"]
    expected = fit_linear(features, target, CLASSES, standardization="zscore", c=c, tolerance=TOLERANCE)
    torch.testing.assert_close(head.weight.detach(), expected.weight, rtol=1e-4, atol=1e-5)


def test_the_closure_is_called_at_the_solution() -> None:
    features, target = rows()
    optimizer, head = path(features, target, 1)
    seen: list[Tensor] = []

    def closure() -> float:
        loss = nn.functional.cross_entropy(head(features), target)
        loss.backward()
        seen.append(head.weight.detach().clone())
        return loss.item()

    assert optimizer.step(closure) < math.log(CLASSES)
    assert torch.equal(seen[0], head.weight)


def test_a_path_goes_on_from_its_state() -> None:
    features, target = rows()
    whole, expected = path(features, target, 4)
    for _ in range(4):
        whole.step()
    first, head = path(features, target, 4)
    for _ in range(2):
        first.step()
    second = RegularizationPath(head, features, target, 4)
    second.load_state_dict(first.state_dict())
    for _ in range(2):
        second.step()
    assert torch.equal(head.weight, expected.weight) and torch.equal(head.bias, expected.bias)


def test_what_is_not_solved_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    features, target = rows()
    monkeypatch.setattr("transferkit.training.regularization_path.MOST_ITERATIONS", 1)
    optimizer, _ = path(features, target, 2)
    optimizer.step()
    optimizer.step()
    assert optimizer.unsolved == [strength(0, 2), strength(1, 2)]


def test_embeddings_that_are_not_finite() -> None:
    features, target = rows()
    features[3, 1] = torch.nan
    with pytest.raises(UserError, match="hold NaN or infinity"):
        path(features, target, 2)


def test_constant_features_change_nothing_but_the_average() -> None:
    features, _ = rows(scales=False)
    wider = torch.cat([features, torch.full((len(features), WIDTH), 3.0)], 1)
    scales = [common_scale(table).scale.double().square().mean() for table in (features, wider)]
    assert scales[0] == pytest.approx(float(features.var(0, correction=0).mean()))
    assert scales[0] == pytest.approx(2 * float(scales[1]))
    assert (common_scale(torch.ones(4, 2)).scale == 1).all()
