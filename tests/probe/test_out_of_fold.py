"""Probabilities out of fold: no row, and no near-duplicate of it, is among those that its probe was fitted on."""

import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import normalize

from transferkit.probe.out_of_fold import assign_folds, out_of_fold


def test_groups_stay_together_and_classes_are_spread() -> None:
    target = torch.arange(120) % 4
    group = torch.arange(120)
    group[[0, 40, 80]] = 0
    fold = assign_folds(target, group, 5)
    assert len(fold[[0, 40, 80]].unique()) == 1 and set(fold.tolist()) == set(range(5))
    for number in range(4):
        counts = fold[target == number].bincount(minlength=5)
        assert counts.max() - counts.min() <= 3  # a group of three is dealt as one
    assert not torch.equal(fold, assign_folds(target, group, 5, seed=1))


def test_probabilities_are_those_of_a_fit_on_the_other_folds() -> None:
    generator = torch.Generator().manual_seed(0)
    target = torch.randint(0, 3, (150,), generator=generator)
    rows = torch.randn(150, 8, generator=generator) + torch.eye(8)[:3][target] * 2
    group = torch.arange(150)
    unit = normalize(rows.numpy())
    found, c = out_of_fold(torch.from_numpy(unit), target, 3, group, c_grid=(1.0,))
    fold = assign_folds(target, group)
    for number in range(5):
        rest = (fold != number).numpy()
        oracle = LogisticRegression(C=c, tol=1e-8, max_iter=10_000).fit(unit[rest], target.numpy()[rest])
        expected = torch.from_numpy(oracle.predict_proba(unit[~rest])).float()
        assert torch.allclose(found[~torch.from_numpy(rest)], expected, atol=2e-3)
