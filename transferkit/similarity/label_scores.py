"""Several labels per image: average precision and F1 of each, and the thresholds at which F1 is highest."""

from typing import NamedTuple

import torch
from torch import Tensor

NO_POSITIVE = 0.5
"""Threshold of a label that no row has."""


def average_precision(scores: Tensor, target: Tensor) -> Tensor:
    """Return the area under the steps of precision over recall, as scikit-learn's ``average_precision_score``.

    Args:
        scores: (N, K), higher for rows that should have the label.
        target: (N, K), above 0.5 where they have it.

    Returns:
        (K,) float64; NaN for a label that no row has.
    """
    _, precision, recall, last = curves(scores, target)
    before = torch.zeros_like(recall)
    steps = recall.where(last, torch.zeros_like(recall)).cummax(0).values  # recall at the last end of a tie
    before[1:] = steps[:-1]
    area = ((recall - before) * precision).where(last, torch.zeros_like(recall)).sum(0)
    return area.masked_fill(target.double().gt(0.5).sum(0) == 0, torch.nan)


def best_thresholds(scores: Tensor, target: Tensor) -> Tensor:
    """Return the threshold of each label at which F1 is highest; rows with scores from it on are given the label.

    It lies in the middle between two scores. Of thresholds with equal F1 it is the highest.

    Args:
        scores: (N, K) from 0 to 1.
        target: (N, K), above 0.5 where a row has the label.

    Returns:
        (K,) float64; 0.5 for a label that no row has.
    """
    if not len(scores):
        return torch.full(scores.shape[1:], NO_POSITIVE, dtype=torch.float64)
    values, precision, recall, last = curves(scores, target)
    f1 = 2 * precision * recall / (precision + recall).clamp(min=1e-300)
    place = f1.masked_fill(~last | f1.isnan(), -1).argmax(0, keepdim=True)
    chosen = values.gather(0, place)
    lower = values.masked_fill(values >= chosen, -torch.inf).amax(0, keepdim=True)
    middle = torch.where(lower.isinf(), chosen, (chosen + lower) / 2)[0]
    return middle.masked_fill(target.double().gt(0.5).sum(0) == 0, NO_POSITIVE)


def curves(scores: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return scores from high to low, precision and recall of taking all rows so far, and where no equal score follows.

    Args:
        scores: (N, K).
        target: (N, K).

    Returns:
        Four tensors (N, K), three of float64 and one of bool.
    """
    values, order = scores.double().sort(dim=0, descending=True, stable=True)
    hits = target.double().gt(0.5).double().gather(0, order)
    found = hits.cumsum(0)
    taken = torch.arange(1, len(scores) + 1, dtype=torch.float64, device=scores.device)[:, None]
    last = torch.ones_like(values, dtype=torch.bool)
    last[:-1] = values[:-1] != values[1:]
    return values, found / taken, found / hits.sum(0).clamp(min=1), last


def f1_scores(predicted: Tensor, target: Tensor) -> Tensor:
    """Return F1 of each label; 0 where a label is neither predicted nor there, as scikit-learn.

    Args:
        predicted: (N, K) bool.
        target: (N, K), above 0.5 where a row has the label.

    Returns:
        (K,) float64.
    """
    truth = target.double().gt(0.5)
    both = (predicted & truth).sum(0).double()
    return 2 * both / (predicted.sum(0) + truth.sum(0)).clamp(min=1)


def f1_micro(predicted: Tensor, target: Tensor) -> Tensor:
    """Return F1 of all labels together, of (N, K) bool and (N, K): a float64 scalar."""
    return f1_scores(predicted.reshape(-1, 1), target.reshape(-1, 1))[0]


class LabelScores(NamedTuple):
    """What :func:`score_labels` returns; the means are over the labels that a row has.

    Attributes:
        ap: (K,) average precision of each label; NaN where no row has it.
        f1: (K,) F1 of each label.
        map: mean of ``ap``.
        f1_macro: mean of ``f1``.
        f1_micro: F1 of all labels of all rows together.
    """

    ap: Tensor
    f1: Tensor
    map: Tensor
    f1_macro: Tensor
    f1_micro: Tensor


def score_labels(scores: Tensor, predicted: Tensor, target: Tensor) -> LabelScores:
    """Measure predictions of several labels.

    Args:
        scores: (N, K), higher for rows that should have the label.
        predicted: (N, K) bool.
        target: (N, K), above 0.5 where they have it.
    """
    precision, each = average_precision(scores, target), f1_scores(predicted, target)
    there = target.double().gt(0.5).any(0)
    return LabelScores(precision, each, precision.nanmean(), each[there].mean(), f1_micro(predicted, target))
