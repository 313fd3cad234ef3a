"""Classification metrics under the names that are logged, and the mean loss of an epoch."""

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassCalibrationError,
    MulticlassConfusionMatrix,
    MulticlassF1Score,
)

ECE_BINS = 15  # Guo et al. 2017, arXiv:1706.04599
MOST_CONFUSED = 1000  # classes; a matrix of more has gigabytes, and nobody can read it


class RunningMean:
    """Weighted mean of a loss over the batches of an epoch, in all processes."""

    def __init__(self) -> None:
        self.sums: Tensor | None = None  # (2,): sum of the weighted losses, sum of the weights

    def update(self, losses: Tensor, weight: Tensor) -> None:
        """Add a batch.

        Args:
            losses: (B,) loss of each row, already multiplied by its weight.
            weight: (B,) weight of each row.
        """
        batch = torch.stack([losses.detach().float().sum(), weight.float().sum()])
        self.sums = batch if self.sums is None else self.sums + batch

    def compute(self, strategy: Any) -> Tensor:
        """The mean over all processes, and start anew.

        Args:
            strategy: Lightning's, which joins the processes.
        """
        sums: Tensor = strategy.reduce(self.sums, reduce_op="sum")
        self.sums = None
        return sums[0] / sums[1]


def classification_metrics(classes: int, stage: str) -> MetricCollection:
    """torchmetrics over probabilities (B, classes) and targets (B,), named ``<stage>/<metric>``.

    ``acc`` top-1, ``acc_top5`` with more than five classes, ``f1_macro``, ``ece`` (15 bins, L1); and, for
    reports, ``acc_per_class`` (classes,) and, of up to 1,000 classes, ``confusion`` (classes, classes), rows the
    true class. Each metric counts for itself: torchmetrics' compute groups would join those that agree on the first
    batch, as top-1 and top-5 do on a batch of one class that is all right.
    """
    chosen: dict[str, Metric] = {
        "acc": MulticlassAccuracy(classes, average="micro", validate_args=False),
        "f1_macro": MulticlassF1Score(classes, average="macro", validate_args=False),
        "ece": MulticlassCalibrationError(classes, n_bins=ECE_BINS, validate_args=False),
        "acc_per_class": MulticlassAccuracy(classes, average="none", validate_args=False),
    }
    if classes <= MOST_CONFUSED:
        chosen["confusion"] = MulticlassConfusionMatrix(classes, validate_args=False)
    if classes > 5:
        chosen["acc_top5"] = MulticlassAccuracy(classes, top_k=5, average="micro", validate_args=False)
    return MetricCollection(dict(chosen), prefix=f"{stage}/", compute_groups=False)
