"""Tests for the difference of two accuracies: paired bootstrap, McNemar."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class PairedComparison:
    """Two classifiers on the same rows.

    Attributes:
        difference: accuracy of the second minus that of the first.
        interval: bootstrap interval of the difference.
        only_first: rows that only the first got right.
        only_second: rows that only the second got right.
        mcnemar_p: two-sided exact p-value of the hypothesis that both are equally good.
    """

    difference: float
    interval: tuple[float, float]
    only_first: int
    only_second: int
    mcnemar_p: float


def compare_paired(
    first: Tensor, second: Tensor, *, resamples: int = 10_000, seed: int = 0, level: float = 0.95
) -> PairedComparison:
    """Compare two classifiers on the same rows.

    A resampled row is one of three kinds (only the first right, only the second, neither or both), so the
    paired bootstrap over rows is a multinomial draw of the number of each kind; percentile interval.

    Args:
        first: `(N,)` bool, where the first classifier was right.
        second: `(N,)` bool, the same rows in the same order.
        resamples: number of bootstrap resamples.
        seed: seed of the bootstrap.
        level: confidence level of the interval.
    """
    total = len(first)
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    shares = np.array([only_first, only_second, total - only_first - only_second]) / total
    draws = np.random.default_rng(seed).multinomial(total, shares, size=resamples)
    low, high = np.quantile((draws[:, 1] - draws[:, 0]) / total, [(1 - level) / 2, (1 + level) / 2])
    return PairedComparison(
        difference=(only_second - only_first) / total,
        interval=(float(low), float(high)),
        only_first=only_first,
        only_second=only_second,
        mcnemar_p=mcnemar(only_first, only_second),
    )


def mcnemar(only_first: int, only_second: int) -> float:
    """Return the p-value of the exact two-sided McNemar test: a fair coin for the rows on which two classifiers differ.

    Args:
        only_first: rows that only the first got right.
        only_second: rows that only the second got right.

    Returns:
        p-value in (0, 1].
    """
    total, fewer = only_first + only_second, min(only_first, only_second)
    k = torch.arange(fewer + 1, dtype=torch.float64)
    n = torch.tensor(float(total), dtype=torch.float64)
    log_ways = torch.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1)
    return min(1.0, 2 * float((log_ways - total * math.log(2)).exp().sum()))
