"""Classification metrics under the names that are logged."""

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


def classification_metrics(classes: int, stage: str) -> MetricCollection:
    """torchmetrics over probabilities (B, classes) and targets (B,), named ``<stage>/<metric>``.

    ``acc`` top-1, ``acc_top5`` with more than five classes, ``f1_macro``, ``ece`` (15 bins, L1); and, for
    reports, ``acc_per_class`` (classes,) and ``confusion`` (classes, classes), rows the true class.
    """
    chosen: dict[str, Metric] = {
        "acc": MulticlassAccuracy(classes, average="micro", validate_args=False),
        "f1_macro": MulticlassF1Score(classes, average="macro", validate_args=False),
        "ece": MulticlassCalibrationError(classes, n_bins=ECE_BINS, validate_args=False),
        "acc_per_class": MulticlassAccuracy(classes, average="none", validate_args=False),
        "confusion": MulticlassConfusionMatrix(classes, validate_args=False),
    }
    if classes > 5:
        chosen["acc_top5"] = MulticlassAccuracy(classes, top_k=5, average="micro", validate_args=False)
    return MetricCollection(dict(chosen), prefix=f"{stage}/")


def per_class(values: dict[str, Tensor], names: list[str]) -> dict[str, float]:
    """Accuracy of each class by its name, from the computed metrics of one stage."""
    found = next((value for name, value in values.items() if name.endswith("acc_per_class")), torch.empty(0))
    return dict(zip(names, found.tolist(), strict=False))
