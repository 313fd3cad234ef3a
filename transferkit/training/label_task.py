"""Several labels per image: a sigmoid per label, binary cross-entropy, mAP, and F1 at thresholds chosen on val."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from transferkit.data.batches import Batch
from transferkit.data.targets import Kind
from transferkit.probe.objective import Objective
from transferkit.probe.other_objectives import OneVsRestObjective
from transferkit.reports.predictions import Columns, class_columns, label_predictions
from transferkit.similarity.label_scores import NO_POSITIVE, best_thresholds, score_labels

if TYPE_CHECKING:
    from transferkit.training.metrics import EvaluationMetrics

# Ridnik et al. 2021, arXiv:2009.14119: easy negatives count less, and those below the margin not at all.
FOCUS_ABSENT, FOCUS_PRESENT, MARGIN = 4, 1, 0.05


class LabelTask:
    """Any number of labels per image.

    Args:
        asymmetric: whether the loss is the asymmetric one.

    Attributes:
        thresholds: probability of each label from which on an image has it; chosen on val, None before.
    """

    kind: Kind = "labels"
    monitor = "val/map"
    calibrates = False

    def __init__(self, asymmetric: bool = False) -> None:
        self.asymmetric = asymmetric
        self.thresholds: list[float] | None = None

    @property
    def objective(self) -> type[Objective] | None:
        """What is solved for on cached embeddings; None, since it is not convex, for the asymmetric loss."""
        return None if self.asymmetric else OneVsRestObjective

    def learn(self, target: Tensor) -> None:
        """Do nothing."""

    def standard(self, target: Tensor) -> Tensor:
        """Return the targets (N, labels)."""
        return target

    def losses(self, logits: Tensor, batch: Batch, weights: Tensor | None, smoothing: float) -> tuple[Tensor, Tensor]:
        """Return the mean over the labels of the binary cross-entropy.

        Args:
            logits: (B, labels).
            batch: with ``target`` or, if it is mixed, ``soft`` (B, labels).
            weights: (labels,) weight of the images that have a label, or None.
            smoothing: moves targets from 0 and 1 towards a half.
        """
        target = batch.get("soft", batch["target"]).to(logits.dtype)
        target = target * (1 - smoothing) + smoothing / 2
        weights = None if weights is None else weights.to(logits)
        if self.asymmetric:
            losses = asymmetric_loss(logits, target, weights)
        else:
            losses = F.binary_cross_entropy_with_logits(logits, target, pos_weight=weights, reduction="none")
        return losses.mean(1), torch.ones(len(logits), device=logits.device)

    def activate(self, logits: Tensor) -> Tensor:
        """Return the probability of each label, in float32."""
        return logits.float().sigmoid()

    def metrics(self, names: Sequence[str], stage: str) -> "EvaluationMetrics":
        """Return ``map`` (mean over the labels that an image has), ``f1_macro`` and ``f1_micro``; by label the same."""
        from transferkit.training.metrics import EvaluationMetrics, RowMetrics  # with Lightning, which takes seconds

        scalars = {f"{stage}/{name}" for name in ("map", "f1_macro", "f1_micro")}
        return EvaluationMetrics(RowMetrics(partial(self.measure, stage=stage)), stage, scalars)

    def measure(self, scores: Tensor, target: Tensor, stage: str) -> dict[str, Tensor]:
        """Measure all rows of a stage; of ``val`` the thresholds are chosen, and kept.

        Args:
            scores: (N, labels), probabilities.
            target: (N, labels).
            stage: ``val`` or ``test``.
        """
        if stage == "val" or self.thresholds is None:
            self.thresholds = best_thresholds(scores, target).tolist() if stage == "val" else None
        found = score_labels(scores, scores >= self.levels(scores), target)
        values = {"map": found.map, "f1_macro": found.f1_macro, "f1_micro": found.f1_micro}
        values |= {"ap_per_class": found.ap, "f1_per_class": found.f1}
        return {f"{stage}/{name}": value.float() for name, value in values.items()}

    def levels(self, scores: Tensor) -> Tensor:
        """Return the thresholds (labels,); a half where none were chosen."""
        known = self.thresholds or [NO_POSITIVE] * scores.shape[1]
        return torch.tensor(known, dtype=torch.float64, device=scores.device)

    def describe(self, names: Sequence[str]) -> dict[str, Any]:
        """Return the kind, the loss, and the threshold of each label."""
        chosen = {} if self.thresholds is None else {"thresholds": dict(zip(names, self.thresholds, strict=True))}
        return {"target": self.kind, **chosen, **({"loss": "asymmetric"} if self.asymmetric else {})}

    def restore(self, record: Mapping[str, Any]) -> None:
        """Take over the thresholds and the loss."""
        if known := record.get("thresholds"):
            self.thresholds = list(known.values())
        self.asymmetric = self.asymmetric or record.get("loss") == "asymmetric"

    def use_loss(self, loss: str) -> None:
        """Use the loss that the option asks for."""
        self.asymmetric = loss == "asymmetric"

    def fold(self, head: nn.Linear) -> nn.Linear:
        """Return the head."""
        return head

    unfold = fold

    def columns(
        self, paths: Sequence[str], labels: Sequence[str | None], values: Tensor, names: Sequence[str], top_k: int
    ) -> Columns:
        """Return path, label, and the labels above their thresholds."""
        return label_predictions(paths, labels, values >= self.levels(values), names)

    def more_columns(self, values: Tensor, names: Sequence[str]) -> Columns:
        """Return the probability of every label."""
        return class_columns(values, names)


def asymmetric_loss(logits: Tensor, target: Tensor, weights: Tensor | None) -> Tensor:
    """Return the asymmetric loss of each row and label, (B, labels)."""
    there = logits.sigmoid()
    absent = (1 - there + MARGIN).clamp(max=1)
    with torch.no_grad():
        focus_there, focus_absent = (1 - there) ** FOCUS_PRESENT, (1 - absent) ** FOCUS_ABSENT
    positive = -target * focus_there * F.logsigmoid(logits) * (1 if weights is None else weights)
    return positive - (1 - target) * focus_absent * absent.clamp(min=1e-8).log()
