"""Average precision, F1 and thresholds of several labels, against scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, f1_score, precision_recall_curve
from torch import Tensor

from transferkit.similarity.label_scores import average_precision, best_thresholds, f1_micro, f1_scores


@pytest.fixture(params=[0, 1, 2])
def rows(request: pytest.FixtureRequest) -> tuple[Tensor, Tensor]:
    noise = np.random.default_rng(request.param)
    scores = noise.random((40, 5))
    if request.param:  # many equal scores
        scores = np.round(scores, request.param - 1)
    return torch.from_numpy(scores), torch.from_numpy((noise.random((40, 5)) < 0.3).astype(np.float32))


def test_average_precision_is_scikit_learns(rows: tuple[Tensor, Tensor]) -> None:
    expected = average_precision_score(rows[1].numpy(), rows[0].numpy(), average=None)
    np.testing.assert_allclose(average_precision(*rows), expected, atol=1e-12)


def test_a_label_that_no_row_has_has_no_precision() -> None:
    target = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    found = average_precision(torch.rand(2, 2), target)
    assert not found[0].isnan() and found[1].isnan()
    assert best_thresholds(torch.rand(2, 2), target)[1] == 0.5
    assert best_thresholds(torch.empty(0, 2), torch.empty(0, 2)).tolist() == [0.5, 0.5]


def test_thresholds_reach_the_highest_f1_of_scikit_learns_curve(rows: tuple[Tensor, Tensor]) -> None:
    scores, target = rows
    reached = f1_scores(scores >= best_thresholds(scores, target), target)
    for label in range(5):
        precision, recall, _ = precision_recall_curve(target[:, label], scores[:, label])
        highest = np.nanmax(2 * precision * recall / np.maximum(precision + recall, 1e-300))
        assert float(reached[label]) == pytest.approx(highest)


def test_f1_is_scikit_learns(rows: tuple[Tensor, Tensor]) -> None:
    scores, target = rows
    predicted = scores >= 0.6
    predicted[:, 0] = False
    expected = f1_score(target.numpy(), predicted.numpy(), average=None, zero_division=0)
    np.testing.assert_allclose(f1_scores(predicted, target), expected)
    assert float(f1_micro(predicted, target)) == pytest.approx(
        f1_score(target.numpy(), predicted.numpy(), average="micro")
    )
