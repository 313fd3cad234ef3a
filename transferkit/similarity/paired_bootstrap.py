"""Whether two predictions of several labels, or of a number, differ by more than chance: paired bootstrap."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

RESAMPLES = 1000
LEVEL = 0.95
MOST_STEPS = 2 * 10**8
"""Rows times numbers per row times draws: of more, fewer are drawn."""
FEWEST = 200
"""Draws at least."""
AT_ONCE = 2**22
"""Numbers of a block of draws, 32 MiB."""

Weighted = Callable[[Tensor], Tensor]
"""From how often each row was drawn, float64 (B, N), to a measure of each draw (B,)."""


class Difference(NamedTuple):
    """A measure of two predictions of the same rows.

    Attributes:
        first: of the first.
        second: of the second.
        interval: 95 % interval of second minus first.
    """

    first: float
    second: float
    interval: tuple[float, float]

    @property
    def difference(self) -> float:
        """Second minus first."""
        return self.second - self.first

    @property
    def by_chance(self) -> bool:
        """Whether the interval has 0 in it, or is not known."""
        low, high = self.interval
        return not (low > 0 or high < 0)


def compare_measures(
    measures: Mapping[str, tuple[Weighted, Weighted]], rows: int, width: int = 1, seed: int = 0
) -> dict[str, Difference]:
    """Return each measure of both predictions, with the paired percentile bootstrap of the difference.

    Args:
        measures: name -> the measure of the first and of the second prediction.
        rows: number of rows.
        width: numbers per row that a measure looks at.
        seed: of the draws.
    """
    drawn: dict[str, list[Tensor]] = {name: [] for name in measures}
    noise = torch.Generator().manual_seed(seed)
    resamples = draws(rows, width)
    block = max(1, min(resamples, AT_ONCE // max(1, rows)))
    for start in range(0, resamples, block):
        count = min(block, resamples - start)
        picked = torch.randint(rows, (count, rows), generator=noise)
        times = torch.zeros(count, rows, dtype=torch.float64)
        times.scatter_add_(1, picked, torch.ones_like(times))
        for name, (first, second) in measures.items():
            drawn[name].append(second(times) - first(times))
    once = torch.ones(1, rows, dtype=torch.float64)
    ends = torch.tensor([(1 - LEVEL) / 2, (1 + LEVEL) / 2], dtype=torch.float64)
    found = {}
    for name, (first, second) in measures.items():
        low, high = torch.nanquantile(torch.cat(drawn[name]), ends).tolist()
        found[name] = Difference(float(first(once)), float(second(once)), (low, high))
    return found


def draws(rows: int, width: int = 1) -> int:
    """Return how many times rows are drawn."""
    return max(FEWEST, min(RESAMPLES, MOST_STEPS // max(1, rows * width)))


def weighted_map(scores: Tensor, target: Tensor) -> Weighted:
    """Return mean average precision as a function of how often rows are drawn, see `average_precision`.

    Args:
        scores: (N, K).
        target: (N, K) bool.
    """
    values, order = scores.double().sort(dim=0, descending=True, stable=True)
    hits = target.gather(0, order)
    last = torch.ones_like(hits)
    last[:-1] = values[:-1] != values[1:]

    def measure(times: Tensor) -> Tensor:
        every = []
        for name in range(scores.shape[1]):
            drawn = times[:, order[:, name]]
            found = (drawn * hits[:, name]).cumsum(1)
            ends = last[:, name]
            at, taken = found[:, ends], drawn.cumsum(1)[:, ends]
            steps = at.diff(dim=1, prepend=torch.zeros(len(times), 1, dtype=at.dtype))
            every.append((steps * at / taken.clamp(min=1)).sum(1) / at[:, -1])  # NaN without a row that has it
        return torch.stack(every, 1).nanmean(1)

    return measure


def weighted_f1(predicted: Tensor, target: Tensor) -> dict[str, Weighted]:
    """Return ``f1_macro`` and ``f1_micro`` as functions of how often rows are drawn, see `score_labels`.

    Args:
        predicted: (N, K) bool.
        target: (N, K) bool.
    """
    both, sizes = (predicted & target).double(), predicted.double() + target.double()
    there = target.double()

    def macro(times: Tensor) -> Tensor:
        each = 2 * (times @ both) / (times @ sizes).clamp(min=1)
        known = (times @ there) > 0
        return (each * known).sum(1) / known.sum(1)

    def micro(times: Tensor) -> Tensor:
        return 2 * (times @ both.sum(1)) / (times @ sizes.sum(1)).clamp(min=1)

    return {"f1_macro": macro, "f1_micro": micro}


def weighted_errors(prediction: Tensor, target: Tensor) -> dict[str, Weighted]:
    """Return ``mae`` and ``r2`` as functions of how often rows are drawn, see `mean_absolute_error` and `r2`.

    Args:
        prediction: (N,).
        target: (N,).
    """
    truth = target.double() - target.double().mean()
    error = prediction.double() - target.double()

    def mae(times: Tensor) -> Tensor:
        return times @ error.abs() / times.sum(1)

    def r2(times: Tensor) -> Tensor:
        spread = times @ truth.square() - (times @ truth).square() / times.sum(1)
        return 1 - (times @ error.square()) / spread.where(spread > 0, torch.nan)

    return {"mae": mae, "r2": r2}
