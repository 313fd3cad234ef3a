"""A number per image: squared or Huber's error of a standardized target; MAE, R² and Spearman's correlation."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from transferkit.data.batches import Batch
from transferkit.data.targets import Kind
from transferkit.probe.objective import Objective
from transferkit.probe.other_objectives import HuberObjective, NumberObjective
from transferkit.reports.predictions import Columns, number_predictions
from transferkit.similarity import regression

if TYPE_CHECKING:
    from transferkit.training.metrics import EvaluationMetrics


class NumberTask:
    """A number per image.

    The head learns the target with mean 0 and deviation 1 over the training images. What leaves the training, such as
    an export, has a head whose output is in the target's own unit.

    Args:
        huber: whether errors of more than a standard deviation count linearly.

    Attributes:
        mean: of the training targets.
        deviation: of the training targets.
    """

    kind: Kind = "number"
    monitor = "val/r2"
    calibrates = False

    def __init__(self, huber: bool = False) -> None:
        self.huber = huber
        self.mean, self.deviation = 0.0, 1.0

    @property
    def objective(self) -> type[Objective] | None:
        """What is solved for on cached embeddings."""
        return HuberObjective if self.huber else NumberObjective

    def learn(self, target: Tensor) -> None:
        """Take over mean and deviation of the training targets (N, 1)."""
        values = target.double()
        self.mean, self.deviation = float(values.mean()), float(values.std(correction=0))

    def standard(self, target: Tensor) -> Tensor:
        """Return targets of mean 0 and deviation 1."""
        return (target - self.mean) / self.deviation

    def losses(self, logits: Tensor, batch: Batch, weights: Tensor | None, smoothing: float) -> tuple[Tensor, Tensor]:
        """Return the squared error, or Huber's, of the standardized target (B, 1); a mixed one is ``soft``."""
        target = self.standard(batch.get("soft", batch["target"])).to(logits.dtype)
        loss = F.huber_loss if self.huber else F.mse_loss
        return loss(logits, target, reduction="none")[:, 0], torch.ones(len(logits), device=logits.device)

    def activate(self, logits: Tensor) -> Tensor:
        """Return numbers in the target's unit."""
        return logits.float() * self.deviation + self.mean

    def metrics(self, names: Sequence[str], stage: str) -> "EvaluationMetrics":
        """Return ``mae``, ``r2`` and ``spearman``; of a test also the ends of their 95 % intervals."""
        from transferkit.training.metrics import EvaluationMetrics, RowMetrics  # with Lightning, which takes seconds

        ends = ("", "_low", "_high") if stage == "test" else ("",)
        scalars = {f"{stage}/{name}{end}" for name in regression.MEASURES for end in ends}
        return EvaluationMetrics(RowMetrics(partial(self.measure, stage=stage)), stage, scalars)

    def measure(self, values: Tensor, target: Tensor, stage: str) -> dict[str, Tensor]:
        """Measure all rows of a stage.

        Args:
            values: (N, 1), predicted.
            target: (N, 1).
            stage: ``val`` or ``test``.
        """
        found = regression.measures(values[:, 0], target[:, 0])
        if stage == "test":
            for name, (low, high) in regression.intervals(values[:, 0], target[:, 0]).items():
                found |= {f"{name}_low": low, f"{name}_high": high}
        return {f"{stage}/{name}": torch.tensor(value, device=values.device) for name, value in found.items()}

    def describe(self, names: Sequence[str]) -> dict[str, Any]:
        """Return the kind, the loss, and the mean and deviation that the outputs of the head are relative to."""
        loss = {"loss": "huber"} if self.huber else {}
        return {"target": self.kind, "scale": {"mean": self.mean, "deviation": self.deviation}, **loss}

    def restore(self, record: Mapping[str, Any]) -> None:
        """Take over the loss, mean and deviation; without any, the outputs of the head are in the target's unit."""
        scale = record.get("scale") or {"mean": 0.0, "deviation": 1.0}
        self.mean, self.deviation = float(scale["mean"]), float(scale["deviation"])
        self.huber = self.huber or record.get("loss") == "huber"

    def use_loss(self, loss: str) -> None:
        """Use the loss that the option asks for."""
        self.huber = loss == "huber"

    def fold(self, head: nn.Linear) -> nn.Linear:
        """Return a head whose output is in the target's unit."""
        return scaled_head(head, self.deviation, self.mean)

    def unfold(self, head: nn.Linear) -> nn.Linear:
        """Return a head whose output has mean 0 and deviation 1 over the training images."""
        return scaled_head(head, 1 / self.deviation, -self.mean / self.deviation)

    def columns(
        self, paths: Sequence[str], labels: Sequence[str | None], values: Tensor, names: Sequence[str], top_k: int
    ) -> Columns:
        """Return path, target and prediction."""
        return number_predictions(paths, labels, values[:, 0])

    def more_columns(self, values: Tensor, names: Sequence[str]) -> Columns:
        """Return nothing."""
        return {}


def scaled_head(head: nn.Linear, factor: float, offset: float) -> nn.Linear:
    """Return a head with the output ``factor * output + offset``, computed in float64."""
    scaled = nn.Linear(head.in_features, head.out_features, device=head.weight.device, dtype=head.weight.dtype)
    weight, bias = head.weight.detach().double() * factor, head.bias.detach().double() * factor + offset
    scaled.load_state_dict({"weight": weight, "bias": bias})
    return scaled
