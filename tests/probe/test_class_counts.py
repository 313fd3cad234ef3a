"""Metrics from counts per class equal torchmetrics', and their cost does not grow with the square of the classes."""

import time

import pytest
import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score

from transferkit.probe.class_counts import AccuracyPerClass, MacroF1, TopK

CLASSES = 12
PAIRS: dict[str, tuple[Metric, Metric]] = {
    "top 1": (TopK(), MulticlassAccuracy(CLASSES, average="micro")),
    "top 5": (TopK(5), MulticlassAccuracy(CLASSES, top_k=5, average="micro")),
    "per class": (AccuracyPerClass(CLASSES), MulticlassAccuracy(CLASSES, average="none")),
    "macro F1": (MacroF1(CLASSES), MulticlassF1Score(CLASSES, average="macro")),
}


def rows(present: int) -> tuple[Tensor, Tensor]:
    """97 rows of some of the classes, of which about half are right."""
    generator = torch.Generator().manual_seed(present)
    target = torch.randint(present, (97,), generator=generator)
    logits = torch.randn(97, CLASSES, generator=generator)
    logits[torch.arange(97), target] += 2
    return logits.softmax(1), target


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("present", [1, 7, 12], ids="{} classes occur".format)
@pytest.mark.parametrize("batch", [1, 10, 97])
def test_they_equal_torchmetrics(name: str, present: int, batch: int) -> None:
    ours, theirs = PAIRS[name]
    probability, target = rows(present)
    for metric in (ours, theirs):
        metric.reset()
        for part in torch.arange(97).split(batch):
            metric.update(probability[part], target[part])
    torch.testing.assert_close(ours.compute(), theirs.compute())


@pytest.mark.parametrize("metric", [TopK(), TopK(5), AccuracyPerClass(21_841), MacroF1(21_841)], ids=repr)
def test_many_classes(metric: Metric) -> None:
    """A count of every pair of classes takes seconds, and 3.8 GB, per batch."""
    probability, target = torch.rand(8, 21_841), torch.arange(8)
    metric.update(probability, target)
    start = time.process_time()
    for _ in range(10):
        metric.update(probability, target)
    assert time.process_time() - start < 0.5
    assert metric.compute().numel() in (1, 21_841)
