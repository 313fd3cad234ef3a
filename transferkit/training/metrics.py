"""Classification metrics under their logged names, and what is summed over the batches of an epoch."""

import time
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from lightning.pytorch.strategies import Strategy
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import MulticlassCalibrationError, MulticlassConfusionMatrix
from torchmetrics.utilities import dim_zero_cat

from transferkit.backbones.loading import not_finite
from transferkit.errors import UserError
from transferkit.probe.class_counts import AccuracyPerClass, MacroF1, TopK
from transferkit.training.optimizers import learning_rates

PER_CLASS = ("acc_per_class", "confusion")  # the metrics that are no scalars
# torchmetrics sums the calibration error over batches and processes. A probe has all rows in memory, and targets that
# its classifier does not know: transferkit/similarity/temperature.py explains how its own function differs.
ECE_BINS = 15  # Guo et al. 2017, arXiv:1706.04599
MOST_CONFUSED = 1000  # classes; a larger confusion matrix takes gigabytes and cannot be read


def classification_metrics(classes: int, stage: str) -> MetricCollection:
    """Return metrics over probabilities (B, classes) and targets (B,), named ``<stage>/<metric>``.

    ``acc`` top-1, ``acc_top5`` with more than five classes, ``f1_macro``, ``ece`` (15 bins, L1); and, for
    reports, ``acc_per_class`` (classes,) and, for up to 1,000 classes, ``confusion`` (classes, classes), true class
    by predicted class. Compute groups are off: torchmetrics would join metrics whose state is equal after the first
    batch, such as top-1 and top-5 on a batch of one class that is all correct.
    """
    chosen: dict[str, Metric] = {
        "acc": TopK(),
        "f1_macro": MacroF1(classes),
        "ece": MulticlassCalibrationError(classes, n_bins=ECE_BINS, validate_args=False),
        "acc_per_class": AccuracyPerClass(classes),
    }
    if classes <= MOST_CONFUSED:
        chosen["confusion"] = MulticlassConfusionMatrix(classes, validate_args=False)
    if classes > 5:
        chosen["acc_top5"] = TopK(5)
    return MetricCollection(dict(chosen), prefix=f"{stage}/", compute_groups=False)


class RowMetrics(Metric):
    """Metrics that need all rows of an epoch at once, from all processes.

    Args:
        measure: scores (N, K) and targets (N, K) -> metrics by their logged names.
    """

    def __init__(self, measure: Callable[[Tensor, Tensor], dict[str, Tensor]]) -> None:
        super().__init__()
        self.measure = measure
        self.add_state("scores", [], dist_reduce_fx="cat")
        self.add_state("targets", [], dist_reduce_fx="cat")

    def update(self, scores: Tensor, target: Tensor) -> None:
        """Keep a batch, which may be empty."""
        self.scores.append(scores.detach().float())  # type: ignore[operator, union-attr]
        self.targets.append(target.float())  # type: ignore[operator, union-attr]

    def compute(self) -> dict[str, Tensor]:
        """Return the metrics of all rows."""
        scores, targets = dim_zero_cat(self.scores), dim_zero_cat(self.targets)  # type: ignore[arg-type]
        return self.measure(scores, targets)


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
        """Return the mean over all processes, and reset.

        Args:
            strategy: Lightning's, which reduces over the processes.
        """
        sums: Tensor = strategy.reduce(self.sums, reduce_op="sum")
        self.sums = None
        return sums[0] / sums[1]


class EvaluationMetrics(nn.Module):
    """Loss and metrics of the epochs of one stage.

    Args:
        metrics: of the task, by their logged names.
        stage: prefix of the names, ``val`` or ``test``.
        scalars: names of the metrics that are scalars.
    """

    def __init__(self, metrics: MetricCollection | RowMetrics, stage: str, scalars: Collection[str]) -> None:
        super().__init__()
        self.stage, self.scalars = stage, {f"{stage}/loss", *scalars}
        self.loss = RunningMean()  # self.log would average over processes, which may have unequal numbers of rows
        self.metrics = metrics

    def update(self, probability: Tensor, target: Tensor, losses: Tensor, weight: Tensor) -> None:
        """Add a batch.

        Args:
            probability: (B, outputs), or numbers.
            target: of the batch.
            losses: (B,) loss of each row, already multiplied by its weight.
            weight: (B,) weight of each row in the loss.
        """
        if len(target) or isinstance(self.metrics, RowMetrics):  # torchmetrics' own do not accept an empty batch
            self.metrics.update(probability, target)
        self.loss.update(losses, weight)

    def compute(self, strategy: Any) -> dict[str, Tensor]:
        """Return loss and metrics over all processes, and reset.

        Args:
            strategy: Lightning's, which reduces over the processes.
        """
        values = {f"{self.stage}/loss": self.loss.compute(strategy), **self.metrics.compute()}
        self.metrics.reset()
        return values


class TrainingEpoch:
    """Mean loss, duration and first learning rates of an epoch, also of one that a resumed fit continues.

    Attributes:
        loss: mean over the batches so far; ``self.log`` would take longer than a step on cached embeddings.
        rates: learning rates of the first step.
        start: ``time.perf_counter()`` of the first batch; None between epochs.
    """

    def __init__(self) -> None:
        self.loss = RunningMean()
        self.rates: dict[str, float] = {}
        self.start: float | None = None

    def begin(self, optimizer: Any) -> None:
        """Start the clock and note the learning rates, unless the epoch has begun."""
        if self.start is None:
            self.start, self.rates = time.perf_counter(), learning_rates(optimizer)

    def end(self, strategy: Any) -> dict[str, Any]:
        """Return the values to log, and reset.

        Args:
            strategy: Lightning's, which reduces over the processes.
        """
        seconds = time.perf_counter() - (self.start or 0.0)
        self.start = None
        return {"train/loss": self.loss.compute(strategy), "epoch_time": seconds, **self.rates}

    def state_dict(self) -> dict[str, Any]:
        """Return the values so far in plain types, for a checkpoint; empty before the first batch."""
        if self.loss.sums is None or self.start is None:
            return {}
        return {"loss": self.loss.sums.cpu(), "rates": self.rates, "seconds": time.perf_counter() - self.start}

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Continue an epoch from its values so far; nothing happens without any."""
        if "loss" not in state:
            return
        self.loss.sums = state["loss"].to(device)
        self.rates, self.start = state["rates"], time.perf_counter() - state["seconds"]


def check_finite(loss: Tensor, epoch: int) -> None:
    """Raise if the mean loss of an epoch, counted from 0, is not finite.

    Raises:
        UserError: it is not.
    """
    if not loss.isfinite():
        raise UserError(
            f"the training has diverged: the loss of epoch {epoch + 1} is not finite; "
            "give lower rates: `lr_head`, `lr_backbone`"
        )


def check_weights(state: Mapping[str, Tensor], strategy: Strategy, epoch: int) -> None:
    """Raise if a weight or a buffer is not finite in some process: a checkpoint of it could not be opened.

    Raises:
        UserError: one is not, such as a variance beyond float16.
    """
    name = not_finite(state)
    if strategy.reduce(torch.tensor(float(name is not None), device=strategy.root_device), reduce_op="sum"):
        raise UserError(
            f"the training has diverged: {name or 'a tensor'} is not finite in epoch {epoch + 1}; give lower rates "
            '(`lr_head`, `lr_backbone`), or, where training is in float16, `precision="bf16-mixed"`'
        )
