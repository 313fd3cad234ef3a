"""Scores of a classifier on test rows: accuracies, their interval, calibration."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from transferkit.similarity.intervals import wilson
from transferkit.similarity.temperature import expected_calibration_error


def top1(preds: Tensor, target: Tensor) -> dict[str, Any]:
    """Return the accuracy and its 95 % Wilson interval.

    Args:
        preds: `(N,)` int64.
        target: `(N,)` int64.

    Returns:
        `top1` in [0, 1], `top1_interval`, `correct`, `rows`.
    """
    correct = int((preds == target).sum())
    interval = list(wilson(correct, len(target)))
    return {"top1": correct / len(target), "top1_interval": interval, "correct": correct, "rows": len(target)}


def scores(logits: Tensor, target: Tensor, names: Sequence[str], temperature: float) -> dict[str, Any]:
    """Return all scores of a linear classifier.

    Args:
        logits: `(N, K)`.
        target: `(N,)` int64; numbers from K up are classes unknown to the classifier, always wrong.
        names: class names, first the K known ones.
        temperature: divisor of the logits for `ece_calibrated`.

    Returns:
        `top1` with interval and counts; `top5` (None for fewer than 6 classes); `per_class`,
        the accuracy of each class with test rows; `mean_per_class`, the mean of those; `ece` before and
        `ece_calibrated` after temperature scaling.
    """
    right = logits.argmax(1) == target
    in_top5 = (logits.topk(min(5, logits.shape[1])).indices == target[:, None]).any(1)
    rows = target.bincount(minlength=len(names))
    hits = target[right].bincount(minlength=len(names))
    present = rows.nonzero().flatten().tolist()
    per_class = {names[number]: hits[number].item() / rows[number].item() for number in present}
    return {
        **top1(logits.argmax(1), target),
        "top5": in_top5.double().mean().item() if logits.shape[1] > 5 else None,
        "mean_per_class": sum(per_class.values()) / len(per_class),
        "per_class": per_class,
        "ece": expected_calibration_error(logits, target),
        "ece_calibrated": expected_calibration_error(logits / torch.tensor(temperature), target),
    }
