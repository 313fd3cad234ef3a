"""How close predicted numbers are to the true ones, with bootstrap intervals."""

import torch
from torch import Tensor

RESAMPLES = 1000
"""Draws of a bootstrap."""
LEVEL = 0.95


def mean_absolute_error(prediction: Tensor, target: Tensor) -> Tensor:
    """Return the mean of |prediction - target| over the last dimension, float64."""
    return (prediction.double() - target.double()).abs().mean(-1)


def r2(prediction: Tensor, target: Tensor) -> Tensor:
    """Return 1 - (squared error) / (variance of the target) over the last dimension, float64; NaN for equal ones."""
    target = target.double()
    spread = (target - target.mean(-1, keepdim=True)).square().sum(-1)
    share = (prediction.double() - target).square().sum(-1) / spread
    return (1 - share).masked_fill(spread == 0, torch.nan)


def spearman(prediction: Tensor, target: Tensor) -> Tensor:
    """Return the correlation of the ranks over the last dimension, float64; NaN where all are equal."""
    first, second = ranks(prediction), ranks(target)
    first, second = (part - part.mean(-1, keepdim=True) for part in (first, second))
    spread = (first.square().sum(-1) * second.square().sum(-1)).sqrt()
    return ((first * second).sum(-1) / spread).masked_fill(spread == 0, torch.nan)


def ranks(values: Tensor) -> Tensor:
    """Return the rank of each number in the last dimension, from 0; equal ones share their mean rank. Float64."""
    values = values.double().contiguous()
    ordered = values.sort(-1).values
    low, high = (torch.searchsorted(ordered, values, right=right).double() for right in (False, True))
    return (low + high - 1) / 2


MEASURES = {"mae": mean_absolute_error, "r2": r2, "spearman": spearman}


def measures(prediction: Tensor, target: Tensor) -> dict[str, float]:
    """Return ``mae``, ``r2`` and ``spearman`` of predictions (N,) of numbers (N,)."""
    return {name: float(measure(prediction, target)) for name, measure in MEASURES.items()}


def intervals(
    prediction: Tensor, target: Tensor, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """Return the 95 % interval of each measure: percentiles over images drawn with replacement.

    Args:
        prediction: (N,).
        target: (N,); the result does not depend on the order of the rows.
        resamples: number of draws.
        seed: of the draws.
    """
    order = torch.argsort(prediction.double(), stable=True)
    order = order[torch.argsort(target.double()[order], stable=True)]
    prediction, target = prediction.double()[order].cpu(), target.double()[order].cpu()
    noise = torch.Generator().manual_seed(seed)
    drawn: dict[str, list[Tensor]] = {name: [] for name in MEASURES}
    for start in range(0, resamples, 100):  # bounds the memory
        count = min(100, resamples - start)
        rows = torch.randint(len(target), (count, len(target)), generator=noise)
        for name, measure in MEASURES.items():
            drawn[name].append(measure(prediction[rows], target[rows]))
    ends = torch.tensor([(1 - LEVEL) / 2, (1 + LEVEL) / 2], dtype=torch.float64)
    found = {}
    for name, parts in drawn.items():
        low, high = torch.nanquantile(torch.cat(parts), ends).tolist()
        found[name] = (low, high)
    return found
