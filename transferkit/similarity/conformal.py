"""Split conformal prediction: sets of classes that contain the true one with a chosen probability. Pure functions.

If the images to predict and those to calibrate on are exchangeable, that probability is at least the chosen coverage,
whatever the classifier (Vovk et al. 2005; Angelopoulos and Bates 2023, arXiv:2107.07511, section 1).
"""

import math

import torch
from torch import Tensor


def lac_scores(probability: Tensor) -> Tensor:
    """Return 1 - p, which gives the smallest sets on average (LAC: Sadinle et al. 2019, arXiv:1609.00451).

    >>> lac_scores(torch.tensor([[0.75, 0.25]]))
    tensor([[0.2500, 0.7500]])

    Args:
        probability: `(N, K)`.

    Returns:
        `(N, K)`; low for classes that fit.
    """
    return 1 - probability


def aps_scores(probability: Tensor, uniform: Tensor | None = None) -> Tensor:
    """Return how much probability lies in more probable classes, whose sets adapt to each image.

    (APS: Romano et al. 2020, arXiv:2006.02544, equations 5 to 7.) Of equally probable classes the first is before the
    others.

    >>> aps_scores(torch.tensor([[0.25, 0.5, 0.25]]))
    tensor([[0.5000, 0.0000, 0.7500]])

    Args:
        probability: `(N, K)`.
        uniform: `(N,)` drawn from [0, 1): adds this share of the class's own probability, so that the coverage is not
            above the chosen one. Without it sets are repeatable and never empty.

    Returns:
        `(N, K)`; low for classes that fit.
    """
    scores = torch.empty_like(probability)
    for start in range(0, len(probability), 1024):  # bounds the memory
        rows = slice(start, start + 1024)
        share, order = probability[rows].sort(dim=1, descending=True, stable=True)
        before = share.cumsum(1) - share
        if uniform is not None:
            before = before + uniform[rows, None] * share
        scores[rows] = torch.empty_like(share).scatter_(1, order, before)
    return scores


def conformal_quantile(scores: Tensor, coverage: float) -> float:
    """Return the ceil((n + 1) coverage)-th smallest of n scores: a further one is at most that with this probability.

    >>> conformal_quantile(torch.arange(1.0, 10.0), 0.75)
    8.0

    Args:
        scores: `(n,)`, exchangeable with the further one.
        coverage: in (0, 1).

    Returns:
        The score; infinity if n is below coverage / (1 - coverage), too few for any finite one.
    """
    rank = math.ceil(round((len(scores) + 1) * coverage, 9))
    if rank > len(scores):
        return math.inf
    return float(scores.sort().values[max(rank, 1) - 1])
