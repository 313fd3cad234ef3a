"""What a network is trained for: a class, several labels, or a number. Chosen once; everything else asks the task.

A task is a loss, metrics, and what the outputs of a head mean.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol

from torch import Tensor, nn

from transferkit.data.batches import Batch
from transferkit.data.targets import Kind
from transferkit.errors import UserError
from transferkit.probe.objective import Objective
from transferkit.reports.predictions import Columns, class_columns, most_probable, prediction_columns
from transferkit.training.label_task import LabelTask
from transferkit.training.mixing import weighted_losses
from transferkit.training.number_task import NumberTask

if TYPE_CHECKING:
    from transferkit.training.metrics import EvaluationMetrics

Loss = Literal["auto", "huber", "asymmetric"]


class Task(Protocol):
    """What is predicted, and how that is learned and measured.

    Attributes:
        kind: of the targets.
        monitor: the metric whose highest value decides on ``best.ckpt``.
        calibrates: whether a test on data with val calibrates probabilities.
    """

    kind: Kind
    monitor: str
    calibrates: bool

    @property
    def objective(self) -> type[Objective] | None:
        """What is solved for on cached embeddings; None if the loss is not convex."""

    def use_loss(self, loss: Loss) -> None:
        """Learn with the loss that the option asks for, whatever the head that a fit starts from was trained with."""

    def learn(self, target: Tensor) -> None:
        """Take over from the training targets what the loss depends on."""

    def standard(self, target: Tensor) -> Tensor:
        """Return targets as the head learns them."""

    def losses(self, logits: Tensor, batch: Batch, weights: Tensor | None, smoothing: float) -> tuple[Tensor, Tensor]:
        """Return the loss of each row times its weight, and the weight: two tensors (B,)."""

    def activate(self, logits: Tensor) -> Tensor:
        """Return probabilities or numbers of the outputs of a head (B, outputs)."""

    def metrics(self, names: Sequence[str], stage: str) -> "EvaluationMetrics":
        """Return the metrics of a stage, ``val`` or ``test``."""

    def describe(self, names: Sequence[str]) -> dict[str, Any]:
        """Return what a checkpoint records, in plain types; nothing for classes."""

    def restore(self, record: Mapping[str, Any]) -> None:
        """Take over what a checkpoint, or the record of an extractor, says: an evaluation has the loss of the fit."""

    def fold(self, head: nn.Linear) -> nn.Linear:
        """Return a head whose outputs are in the unit of the targets."""

    def unfold(self, head: nn.Linear) -> nn.Linear:
        """Invert :meth:`fold`."""

    def columns(
        self, paths: Sequence[str], labels: Sequence[str | None], values: Tensor, names: Sequence[str], top_k: int
    ) -> Columns:
        """Return the first columns of a table of predictions, from what :meth:`activate` returned."""

    def more_columns(self, values: Tensor, names: Sequence[str]) -> Columns:
        """Return further columns, one per class."""


class ClassTask:
    """One class per image: softmax and cross-entropy."""

    kind: Kind = "class"
    monitor = "val/acc"
    objective: type[Objective] | None = Objective
    calibrates = True

    def use_loss(self, loss: Loss) -> None:
        """Do nothing: there is one loss."""

    def learn(self, target: Tensor) -> None:
        """Do nothing."""

    def standard(self, target: Tensor) -> Tensor:
        """Return the class numbers."""
        return target

    def losses(self, logits: Tensor, batch: Batch, weights: Tensor | None, smoothing: float) -> tuple[Tensor, Tensor]:
        """Return the cross-entropy, weighted by class."""
        return weighted_losses(logits, batch, weights, smoothing)

    def activate(self, logits: Tensor) -> Tensor:
        """Return the probabilities of the classes, in float32: bfloat16 has three digits."""
        return logits.float().softmax(1)

    def metrics(self, names: Sequence[str], stage: str) -> "EvaluationMetrics":
        """Return the metrics of :func:`~transferkit.training.metrics.classification_metrics`."""
        from transferkit.training.metrics import PER_CLASS, EvaluationMetrics, classification_metrics

        metrics = classification_metrics(len(names), stage)
        return EvaluationMetrics(metrics, stage, {*map(str, metrics)} - {f"{stage}/{name}" for name in PER_CLASS})

    def describe(self, names: Sequence[str]) -> dict[str, Any]:
        """Return nothing."""
        return {}

    def restore(self, record: Mapping[str, Any]) -> None:
        """Do nothing."""

    def fold(self, head: nn.Linear) -> nn.Linear:
        """Return the head."""
        return head

    unfold = fold

    def columns(
        self, paths: Sequence[str], labels: Sequence[str | None], values: Tensor, names: Sequence[str], top_k: int
    ) -> Columns:
        """Return path, label, and the most probable classes with their probabilities."""
        return prediction_columns(paths, labels, most_probable(values, names, top_k))

    def more_columns(self, values: Tensor, names: Sequence[str]) -> Columns:
        """Return the probability of every class."""
        return class_columns(values, names)


def task_of(kind: Kind, loss: Loss = "auto", record: Mapping[str, Any] | None = None) -> Task:
    """Return the task of a kind of target.

    Args:
        kind: of the targets.
        loss: ``huber`` for numbers, ``asymmetric`` for several labels, ``auto`` for the usual one of each.
        record: of the checkpoint or extractor to start from.

    Raises:
        UserError: the loss is for other targets.
    """
    fitting = {"huber": "number", "asymmetric": "labels"}.get(loss, kind)
    if fitting != kind:
        what = "a number per image (column target)" if loss == "huber" else "several labels per image (multilabel)"
        raise UserError(f'`loss="{loss}"` is for {what}; leave it out')
    tasks: dict[Kind, Callable[[], Task]] = {
        "class": ClassTask,
        "labels": lambda: LabelTask(asymmetric=loss == "asymmetric"),
        "number": lambda: NumberTask(huber=loss == "huber"),
    }
    task = tasks[kind]()
    task.restore(record or {})
    return task


def monitor_of(module: Any) -> str:
    """Return the metric whose highest value decides on ``best.ckpt``; also of a module that is not transferkit's."""
    judge = getattr(module, "task", None) or module
    return str(getattr(judge, "monitor", ClassTask.monitor))
