"""Calibration: is a prediction with confidence 0.8 right eight times in ten? Pure functions on logits."""

import torch
from torch import Tensor

TEMPERATURES = (0.01, 100.0)
"""Range of `fit_temperature`; an end of it means that the rows do not determine a temperature."""


def expected_calibration_error(logits: Tensor, target: Tensor, *, bins: int = 15) -> float:
    """Return the expected calibration error: top label, bins of equal width (Guo et al. 2017, arXiv:1706.04599, eq. 3).

    Not torchmetrics' `MulticlassCalibrationError`, which training logs: its bins are [low, high), so a confidence of
    exactly 1, to which float32 rounds a certain prediction, has a bin of its own, where eq. 2 has (low, high].

    Args:
        logits: `(N, K)`.
        target: `(N,)` int64; a number from K up counts as wrong.
        bins: number of bins over the confidence, each (low, high].

    Returns:
        Mean over rows of |accuracy - confidence| of the row's bin, in [0, 1].
    """
    confidence, preds = logits.double().softmax(1).max(1)
    bin_of = (confidence * bins).ceil().long().clamp(1, bins) - 1
    excess = torch.zeros(bins, dtype=torch.float64).index_add_(0, bin_of, (preds == target).double() - confidence)
    return float(excess.abs().sum() / len(target))


def fit_temperature(logits: Tensor, target: Tensor) -> float:
    """Return the T that minimizes the cross-entropy of `logits / T` (Guo et al. 2017, section 4.2).

    The cross-entropy is convex in 1/T, so bisecting its slope finds the minimum.

    Args:
        logits: `(N, K)` of rows that the classifier was not fitted on.
        target: `(N,)` int64 class numbers below K.

    Returns:
        T, within `TEMPERATURES`; an end of that range if the rows do not determine it (all are right, or all wrong).
    """
    values = logits.double()
    truth = values.gather(1, target[:, None]).squeeze(1)
    # In log10 of 1/T.
    low, high = (-torch.tensor(TEMPERATURES[::-1], dtype=torch.float64).log10()).tolist()
    for _ in range(50):
        middle = (low + high) / 2
        p = (values * 10**middle).softmax(1)
        slope = ((p * values).sum(1) - truth).mean()
        low, high = (low, middle) if slope > 0 else (middle, high)
    return float(10 ** -((low + high) / 2))
