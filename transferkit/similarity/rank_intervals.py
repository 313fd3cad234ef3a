"""Ranks of several classifiers on the same rows, and how far other rows could change them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

AT_ONCE = 2**22
"""Weights of resamples in memory."""
ENDS = (0.025, 0.975)
"""Quantiles of a 95 % interval."""


@dataclass(frozen=True)
class RankIntervals:
    """Ranks over bootstrap resamples; rank 1 has the highest accuracy, equal ones share the better rank.

    Attributes:
        low: 2.5 % quantile of each classifier's rank.
        high: its 97.5 % quantile.
        first: share of the resamples in which each is the best, or one of the best.
    """

    low: tuple[int, ...]
    high: tuple[int, ...]
    first: tuple[float, ...]


def resampled_accuracies(
    correct: Tensor, units: Sequence[str] | None = None, *, resamples: int = 2000, seed: int = 0
) -> Tensor:
    """Return accuracies on rows drawn with replacement, the same rows for all classifiers (Efron 1979).

    Args:
        correct: `(E, T)` bool, where each classifier is right.
        units: `(T,)` name of what is drawn together, such as a row's group (cluster bootstrap); each row by itself
            if None.
        resamples: how many, R.
        seed: of the draws.

    Returns:
        `(R, E)` float64.
    """
    names = range(correct.shape[1]) if units is None else units
    code = torch.from_numpy(np.unique(np.asarray(names), return_inverse=True)[1])
    count = int(code.max()) + 1
    right = torch.zeros(count, len(correct), dtype=torch.float64).index_add_(0, code, correct.double().T)
    size = code.bincount().double()
    draws = np.random.default_rng(seed)
    parts = []
    step = max(1, AT_ONCE // count)
    for start in range(0, resamples, step):
        times = draws.multinomial(count, np.full(count, 1 / count), size=min(step, resamples - start))
        weight = torch.from_numpy(times).double()  # (r, units)
        parts.append((weight @ right) / (weight @ size)[:, None])
    return torch.cat(parts)


def rank_intervals(accuracies: Tensor) -> RankIntervals:
    """Return the interval of each classifier's rank, of :func:`resampled_accuracies` `(R, E)`."""
    ranks = 1 + (accuracies[:, None, :] > accuracies[:, :, None] + 1e-12).sum(2)  # (R, E)
    ends = torch.quantile(ranks.double(), torch.tensor(ENDS, dtype=torch.float64), dim=0)
    return RankIntervals(
        low=tuple(ends[0].floor().int().tolist()),
        high=tuple(ends[1].ceil().int().tolist()),
        first=tuple((ranks == 1).double().mean(0).tolist()),
    )


def difference_interval(accuracies: Tensor, one: int, other: int) -> tuple[float, float]:
    """Return the 95 % interval of the accuracy of one classifier minus that of another, on the same resamples."""
    ends = torch.quantile(accuracies[:, one] - accuracies[:, other], torch.tensor(ENDS, dtype=torch.float64))
    return float(ends[0]), float(ends[1])
