"""Metrics from counts per class. torchmetrics counts every pair of classes per batch: gigabytes at 21,841 classes."""

import torch
from torch import Tensor
from torchmetrics import Metric


class TopK(Metric):
    """Share of rows whose class is among the ``k`` most probable.

    Args:
        k: number of classes.
    """

    def __init__(self, k: int = 1) -> None:
        super().__init__()
        self.k = k
        self.hits: Tensor
        self.rows: Tensor
        for name in ("hits", "rows"):
            self.add_state(name, torch.tensor(0), dist_reduce_fx="sum")

    def update(self, probability: Tensor, target: Tensor) -> None:
        """Add a batch: probabilities (B, C), int64 targets (B,)."""
        first = probability.argmax(1, keepdim=True) if self.k == 1 else probability.topk(self.k).indices
        self.hits += (first == target[:, None]).sum()
        self.rows += len(target)

    def compute(self) -> Tensor:
        """Return the share, float32 in [0, 1]."""
        return self.hits / self.rows


class ClassCounts(Metric):
    """Base of metrics that need three counts per class.

    Args:
        classes: number of classes C.
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes
        self.hits: Tensor  # (C,) rows of a class that are predicted to be of it
        self.predicted: Tensor  # (C,) rows that are predicted to be of a class
        self.present: Tensor  # (C,) rows of a class
        for name in ("hits", "predicted", "present"):
            self.add_state(name, torch.zeros(classes, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, probability: Tensor, target: Tensor) -> None:
        """Add a batch: probabilities (B, C), int64 targets (B,)."""
        first = probability.argmax(1)
        self.predicted += self.count(first)
        self.present += self.count(target)
        self.hits += self.count(target[first == target])

    def count(self, rows: Tensor) -> Tensor:
        """Return (C,): how often each class is among the rows."""
        return torch.bincount(rows, minlength=self.classes)


class AccuracyPerClass(ClassCounts):
    """Share of the rows of each class that are right, (C,); 0 for a class without rows."""

    def compute(self) -> Tensor:
        """Return float32 (C,) in [0, 1]."""
        return self.hits / self.present.clamp(min=1)


class MacroF1(ClassCounts):
    """Mean over the classes of F1 = 2 hits / (predicted + present); classes that do not occur at all are left out."""

    def compute(self) -> Tensor:
        """Return float32 in [0, 1]."""
        both = self.predicted + self.present
        return (2 * self.hits / both.clamp(min=1)).sum() / (both > 0).sum().clamp(min=1)
