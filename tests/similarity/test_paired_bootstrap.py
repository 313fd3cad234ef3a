"""The paired bootstrap of mAP, F1, mean absolute error and R², with scikit-learn and plain loops as oracles."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, f1_score, mean_absolute_error, r2_score

from transferkit.similarity.paired_bootstrap import (
    Difference,
    compare_measures,
    draws,
    weighted_errors,
    weighted_f1,
    weighted_map,
)

ROWS, NAMES = 60, 3


@pytest.fixture
def drawn() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """How often each row is drawn (4, N), true labels (N, K), and scores (N, K) with ties."""
    noise = torch.Generator().manual_seed(0)
    times = torch.stack(
        [torch.bincount(torch.randint(ROWS, (ROWS,), generator=noise), minlength=ROWS) for _ in range(4)]
    )
    target = torch.rand(ROWS, NAMES, generator=noise) < 0.3
    scores = ((torch.rand(ROWS, NAMES, generator=noise) + 0.4 * target) * 10).round() / 14
    return times.double(), target, scores


def repeated(times: torch.Tensor) -> list[np.ndarray]:
    """The rows of each draw."""
    return [np.repeat(np.arange(ROWS), row.long().numpy()) for row in times]


def test_measures_of_drawn_labels_equal_scikit_learns(drawn: tuple[torch.Tensor, ...]) -> None:
    times, target, scores = drawn
    found = scores > 0.5
    f1 = weighted_f1(found, target)
    for number, rows in enumerate(repeated(times)):
        t, s, p = (part.numpy()[rows] for part in (target, scores, found))
        assert float(weighted_map(scores, target)(times)[number]) == pytest.approx(average_precision_score(t, s))
        assert float(f1["f1_macro"](times)[number]) == pytest.approx(f1_score(t, p, average="macro"))
        assert float(f1["f1_micro"](times)[number]) == pytest.approx(f1_score(t, p, average="micro"))


def test_a_label_without_rows_in_a_draw_is_left_out() -> None:
    target = torch.tensor([[True, False], [False, True]])
    scores = torch.tensor([[0.9, 0.2], [0.1, 0.8]])
    times = torch.tensor([[2.0, 0.0]], dtype=torch.float64)
    assert weighted_map(scores, target)(times).tolist() == [1]
    assert weighted_f1(target, target)["f1_macro"](times).tolist() == [1]


def test_errors_of_drawn_numbers_equal_scikit_learns(drawn: tuple[torch.Tensor, ...]) -> None:
    times, _, scores = drawn
    truth, prediction = 1000 + scores[:, 0], 1000 + scores[:, 1]
    found = weighted_errors(prediction, truth)
    for number, rows in enumerate(repeated(times)):
        t, p = truth.double().numpy()[rows], prediction.double().numpy()[rows]
        assert float(found["mae"](times)[number]) == pytest.approx(mean_absolute_error(t, p))
        assert float(found["r2"](times)[number]) == pytest.approx(r2_score(t, p), rel=1e-6)
    assert math.isnan(float(weighted_errors(prediction, torch.ones(ROWS))["r2"](times)[0]))


def test_the_interval_is_that_of_a_mean_of_differences() -> None:
    """Of the mean absolute error it is known: normal, with the standard error of the mean."""
    noise = torch.Generator().manual_seed(1)
    truth = torch.zeros(400)
    first, second = (torch.randn(400, generator=noise) * scale for scale in (1.0, 0.5))
    pair = weighted_errors(first, truth)["mae"], weighted_errors(second, truth)["mae"]
    found = compare_measures({"mae": pair}, 400)["mae"]
    gaps = (second.abs() - first.abs()).double()
    half = 1.96 * float(gaps.std()) / 20
    assert found.difference == pytest.approx(float(gaps.mean()))
    assert found.interval == pytest.approx((found.difference - half, found.difference + half), abs=0.15 * half)
    assert not found.by_chance and not Difference(1, 0, (-2, -0.5)).by_chance
    assert Difference(0, 0, (0, 0)).by_chance and Difference(0, 0, (math.nan, math.nan)).by_chance


def test_a_difference_by_chance_is_found_in_one_of_twenty_draws() -> None:
    """Two equally good predictions: the interval leaves 0 out in about 5% of data sets."""
    noise = torch.Generator().manual_seed(2)
    wrong = 0
    for _ in range(100):
        errors = torch.randn(2, 100, generator=noise)
        pair = [weighted_errors(each, torch.zeros(100))["mae"] for each in errors]
        wrong += not compare_measures({"mae": (pair[0], pair[1])}, 100)["mae"].by_chance
    assert 1 <= wrong <= 12  # binomial: outside in less than 1% of seeds


def test_many_rows_and_labels_are_drawn_less_often() -> None:
    assert [draws(100), draws(2000, 80), draws(10_000, 100), draws(100_000, 1000)] == [1000, 1000, 200, 200]
