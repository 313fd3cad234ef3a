"""When to answer: a threshold on the confidence above which errors are rare, with a guarantee. Pure functions."""

import math

import torch
from torch import Tensor

STEPS = 16
"""Numbers of answered rows that `answer_threshold` tries."""


def binomial_p_value(errors: int, total: int, risk: float) -> float:
    """Return the probability of at most so many errors among `total` if each row is wrong with probability `risk`.

    The upper end of the one-sided Clopper-Pearson interval at level 1 - p is `risk`, where p is this probability.

    >>> round(binomial_p_value(0, 59, 0.05), 4)
    0.0485

    Args:
        errors: from 0 to `total`.
        total: rows.
        risk: in (0, 1).
    """
    k = torch.arange(errors + 1, dtype=torch.float64)
    n = torch.tensor(float(total), dtype=torch.float64)
    choose = torch.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1)
    return min(1.0, float((choose + k * math.log(risk) + (n - k) * math.log1p(-risk)).logsumexp(0).exp()))


def fewest_rows(risk: float, level: float = 0.95) -> int:
    """Return the number of rows below which `answer_threshold` finds none, even without any error.

    >>> fewest_rows(0.05)
    113
    """
    return math.ceil(math.log((1 - level) / STEPS) / math.log1p(-risk))


def answer_threshold(confidence: Tensor, correct: Tensor, risk: float, *, level: float = 0.95) -> float:
    """Return the lowest confidence above which the probability of an error is at most `risk`.

    Learn then test (Angelopoulos et al. 2021, arXiv:2110.01052): the exact binomial test of "more errors than `risk`
    among rows above the threshold" at 16 numbers of most confident rows, fixed beforehand, each at (1 - `level`) / 16
    (Bonferroni); the threshold is the lowest where it is rejected. The rows above the i-th highest confidence are
    independent draws of such rows, so each test is exact. (Geifman and El-Yaniv 2017, arXiv:1705.08500, choose the
    next number by the outcome of the last test, which that correction does not cover.)

    Args:
        confidence: `(n,)` of rows that the classifier was not fitted on.
        correct: `(n,)` bool.
        risk: in (0, 1).
        level: probability, over draws of these rows, that the guarantee holds.

    Returns:
        Rows of a higher confidence are answered: -inf for all, inf for none.
    """
    rows, least = len(confidence), fewest_rows(risk, level)
    if rows < least:
        return math.inf
    ordered = confidence.double().sort(descending=True).values
    counts = sorted({round(least + step * (rows - least) / (STEPS - 1)) for step in range(STEPS)}, reverse=True)
    for count in counts:
        threshold = float(ordered[count]) if count < rows else -math.inf
        answered = confidence.double() > threshold  # fewer than `count` if some are equal to it
        errors = int((answered & ~correct).sum())
        if binomial_p_value(errors, int(answered.sum()), risk) <= (1 - level) / STEPS:
            return threshold
    return math.inf
