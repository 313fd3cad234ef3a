"""Measures of predicted numbers, against scikit-learn and SciPy."""

import numpy as np
import pytest
import torch
from scipy.stats import rankdata, spearmanr
from sklearn.metrics import mean_absolute_error, r2_score
from torch import Tensor

from transferkit.similarity.regression import intervals, measures, ranks


@pytest.fixture(params=[False, True])
def rows(request: pytest.FixtureRequest) -> tuple[Tensor, Tensor]:
    noise = torch.Generator().manual_seed(3)
    target = torch.randn(60, generator=noise) * 20 + 300
    prediction = target + 10 * torch.randn(60, generator=noise)
    return (prediction.div(10).round(), target.div(10).round()) if request.param else (prediction, target)  # ties


def test_measures_are_those_of_other_libraries(rows: tuple[Tensor, Tensor]) -> None:
    prediction, target = (part.double().numpy() for part in rows)
    found = measures(*rows)
    assert found["mae"] == pytest.approx(mean_absolute_error(target, prediction))
    assert found["r2"] == pytest.approx(r2_score(target, prediction))
    assert found["spearman"] == pytest.approx(spearmanr(target, prediction).statistic)
    np.testing.assert_allclose(ranks(rows[0]) + 1, rankdata(prediction))


def test_equal_numbers_have_no_r2() -> None:
    found = measures(torch.rand(4), torch.ones(4))
    assert np.isnan(found["r2"]) and np.isnan(found["spearman"]) and found["mae"] >= 0


def test_intervals_cover_and_do_not_depend_on_the_order(rows: tuple[Tensor, Tensor]) -> None:
    prediction, target = rows
    found, value = intervals(prediction, target), measures(prediction, target)
    for name, (low, high) in found.items():
        assert low < value[name] < high
    order = torch.randperm(60, generator=torch.Generator().manual_seed(1))
    assert intervals(prediction[order], target[order]) == found


def test_the_interval_of_a_mean_is_that_of_theory() -> None:
    errors = torch.randn(400, generator=torch.Generator().manual_seed(0)).abs()
    low, high = intervals(errors, torch.zeros(400), resamples=2000)["mae"]
    expected = 2 * 1.96 * float(errors.std()) / 400**0.5
    assert high - low == pytest.approx(expected, rel=0.1)
