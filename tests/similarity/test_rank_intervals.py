"""Rank intervals against a loop over resamples written out; groups are drawn as a whole."""

import numpy as np
import torch

from transferkit.similarity.rank_intervals import difference_interval, rank_intervals, resampled_accuracies


def test_ranks_are_those_of_resamples_written_out() -> None:
    correct = torch.rand(3, 40, generator=torch.Generator().manual_seed(0)) < torch.tensor([[0.9], [0.8], [0.4]])
    accuracies = resampled_accuracies(correct, resamples=300, seed=5)
    draws, ranks, differences = np.random.default_rng(5), [], []
    for _ in range(300):
        times = draws.multinomial(40, np.full(40, 1 / 40))
        rows = np.repeat(np.arange(40), times)
        scores = correct.numpy()[:, rows].sum(1)
        ranks.append([1 + sum(other > own for other in scores) for own in scores])
        differences.append((scores[0] - scores[1]) / 40)
    found = rank_intervals(accuracies)
    low, high = np.quantile(np.array(ranks), [0.025, 0.975], axis=0)
    assert found.low == tuple(np.floor(low)) and found.high == tuple(np.ceil(high))
    np.testing.assert_allclose(found.first, (np.array(ranks) == 1).mean(0))
    np.testing.assert_allclose(difference_interval(accuracies, 0, 1), np.quantile(differences, [0.025, 0.975]))


def test_equal_classifiers_cannot_be_told_apart_and_a_far_better_one_can() -> None:
    right = torch.arange(200) % 10 < 8
    found = rank_intervals(resampled_accuracies(torch.stack([right, right, ~right])))
    assert (found.low, found.high) == ((1, 1, 3), (1, 1, 3)) and found.first == (1.0, 1.0, 0.0)


def test_rows_of_a_group_are_one_observation() -> None:
    """Forty copies of five images tell as little as five images."""
    five = torch.tensor([[True, True, True, False, True], [True, False, True, False, True]])
    copies, units = five.repeat(1, 40), [str(number) for number in range(5)] * 40
    alone = difference_interval(resampled_accuracies(five, resamples=4000), 0, 1)
    together = difference_interval(resampled_accuracies(copies, units, resamples=4000), 0, 1)
    loose = difference_interval(resampled_accuracies(copies, resamples=4000), 0, 1)
    assert together == alone and loose[0] > 0 >= alone[0]
