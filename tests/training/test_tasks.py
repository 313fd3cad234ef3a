"""Tasks: losses against torch's, metrics against torchmetrics, scikit-learn and SciPy, and what is recorded."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from sklearn.metrics import f1_score, mean_absolute_error, r2_score
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.functional.classification import multilabel_average_precision

from transferkit.data.targets import Kind
from transferkit.errors import UserError
from transferkit.training.label_task import FOCUS_ABSENT, MARGIN, LabelTask
from transferkit.training.number_task import NumberTask
from transferkit.training.tasks import ClassTask, Task, monitor_of, task_of

ROWS, LABELS = 30, 4
LOGITS = torch.randn(ROWS, LABELS, generator=torch.Generator().manual_seed(0))
TARGET = (torch.rand(ROWS, LABELS, generator=torch.Generator().manual_seed(1)) < 0.4).float()


class OneProcess:
    """Lightning's strategy on one device, as far as metrics need it."""

    @staticmethod
    def reduce(value: Tensor, **_: Any) -> Tensor:
        return value


def measured(task: Task, logits: Tensor, target: Tensor, stage: str) -> dict[str, float]:
    """The scalars of an epoch of three batches, one of them empty."""
    metrics = task.metrics([str(number) for number in range(logits.shape[1])], stage)
    for rows in (slice(0, 10), slice(10, 10), slice(10, None)):
        losses = task.losses(logits[rows], {"target": target[rows]}, None, 0.0)
        metrics.update(task.activate(logits[rows]), target[rows], *losses)
    values = metrics.compute(OneProcess())
    assert {name for name, value in values.items() if not value.ndim} == metrics.scalars
    return {name: float(value) for name, value in values.items() if not value.ndim}


@pytest.mark.parametrize("weights", [None, torch.tensor([1.0, 3.0, 0.5, 2.0])])
def test_the_loss_of_labels_is_torchs(weights: Tensor | None) -> None:
    losses, weight = LabelTask().losses(LOGITS, {"target": TARGET}, weights, 0.0)
    expected = F.binary_cross_entropy_with_logits(LOGITS, TARGET, pos_weight=weights)
    torch.testing.assert_close(losses.sum() / weight.sum(), expected)
    smooth, _ = LabelTask().losses(LOGITS, {"target": TARGET}, weights, 0.2)
    expected = F.binary_cross_entropy_with_logits(LOGITS, TARGET * 0.8 + 0.1, pos_weight=weights)
    torch.testing.assert_close(smooth.mean(), expected)
    mixed, _ = LabelTask().losses(LOGITS, {"target": TARGET, "soft": TARGET / 2}, weights, 0.0)
    torch.testing.assert_close(mixed.mean(), F.binary_cross_entropy_with_logits(LOGITS, TARGET / 2, pos_weight=weights))


def test_the_asymmetric_loss_is_that_of_the_paper() -> None:
    p = LOGITS.sigmoid().double()
    shifted = (p - MARGIN).clamp(min=0)
    present, absent = (1 - p) * p.log(), shifted**FOCUS_ABSENT * (1 - shifted).log()  # equations 4 to 7
    expected = -(TARGET * present + (1 - TARGET) * absent).mean(1)
    losses, _ = LabelTask(asymmetric=True).losses(LOGITS, {"target": TARGET}, None, 0.0)
    torch.testing.assert_close(losses.double(), expected, atol=1e-6, rtol=1e-5)
    assert LabelTask(asymmetric=True).objective is None


def test_metrics_of_labels_are_those_of_other_libraries() -> None:
    task = LabelTask()
    found = measured(task, LOGITS, TARGET, "val")
    probability = LOGITS.sigmoid()
    expected = multilabel_average_precision(probability, TARGET.long(), LABELS, average="macro")
    assert found["val/map"] == pytest.approx(float(expected), abs=1e-6)
    assert task.thresholds is not None
    taken = (probability.numpy() >= np.array(task.thresholds)).astype(int)
    assert found["val/f1_macro"] == pytest.approx(f1_score(TARGET.numpy(), taken, average="macro"))
    assert found["val/f1_micro"] == pytest.approx(f1_score(TARGET.numpy(), taken, average="micro"))


def test_a_test_uses_the_thresholds_of_val() -> None:
    task = LabelTask()
    measured(task, LOGITS, TARGET, "val")
    known = task.describe(["0", "1", "2", "3"])
    other = task_of("labels", record=known)
    found = measured(other, LOGITS.flip(0), TARGET, "test")
    taken = (LOGITS.flip(0).sigmoid().numpy() >= np.array(list(known["thresholds"].values()))).astype(int)
    assert found["test/f1_micro"] == pytest.approx(f1_score(TARGET.numpy(), taken, average="micro"))
    assert other.describe(["0", "1", "2", "3"]) == known  # a test changes no threshold


@pytest.mark.parametrize("huber", [False, True])
def test_the_loss_of_a_number_is_torchs_on_a_standardized_target(huber: bool) -> None:
    target, logits = 40 + 12 * torch.randn(ROWS, 1), torch.randn(ROWS, 1) * 2
    task = NumberTask(huber)
    task.learn(target)
    standard = (target - target.mean()) / target.std(correction=0)
    losses, _ = task.losses(logits, {"target": target}, None, 0.0)
    expected = F.huber_loss(logits, standard) if huber else F.mse_loss(logits, standard)
    torch.testing.assert_close(losses.mean(), expected)
    torch.testing.assert_close(task.standard(target), standard)
    torch.testing.assert_close(task.activate(task.standard(target)), target)


def test_metrics_of_a_number_are_those_of_other_libraries() -> None:
    target, logits = 40 + 12 * torch.randn(ROWS, 1), torch.randn(ROWS, 1)
    task = NumberTask()
    task.learn(target)
    found, values = measured(task, logits, target, "test"), task.activate(logits)[:, 0].numpy()
    assert found["test/mae"] == pytest.approx(mean_absolute_error(target[:, 0], values), rel=1e-6)
    assert found["test/r2"] == pytest.approx(r2_score(target[:, 0], values), rel=1e-5)
    assert found["test/spearman"] == pytest.approx(spearmanr(target[:, 0], values).statistic, rel=1e-5)
    assert found["test/mae_low"] < found["test/mae"] < found["test/mae_high"]
    assert measured(task, logits, target, "val").keys() == {"val/loss", "val/mae", "val/r2", "val/spearman"}


def test_a_folded_head_gives_numbers_in_their_unit() -> None:
    task, head, rows = NumberTask(), nn.Linear(5, 1), torch.randn(7, 5)
    task.learn(torch.tensor([[100.0], [300.0]]))
    torch.testing.assert_close(task.fold(head)(rows), task.activate(head(rows)))
    torch.testing.assert_close(task.unfold(task.fold(head)).weight, head.weight)
    assert (task.mean, task.deviation) == (200.0, 100.0)
    again = task_of("number", record=task.describe(["target"]))
    assert isinstance(again, NumberTask) and (again.mean, again.deviation) == (200.0, 100.0)


def test_a_task_is_chosen_once() -> None:
    assert [type(task_of(kind)) for kind in ("class", "labels", "number")] == [ClassTask, LabelTask, NumberTask]  # type: ignore[arg-type]
    assert monitor_of(object()) == "val/acc"
    with pytest.raises(UserError, match='`loss="huber"` is for a number per image'):
        task_of("class", "huber")
    with pytest.raises(UserError, match='`loss="asymmetric"` is for several labels per image'):
        task_of("number", "asymmetric")


@pytest.mark.parametrize("kind", ["class", "labels", "number"])
def test_outputs_in_lower_precision_are_activated_in_float32(kind: Kind) -> None:
    logits = torch.randn(50, 1 if kind == "number" else 5, generator=torch.Generator().manual_seed(0)) * 4
    low = logits.bfloat16()
    activate: dict[Kind, Any] = {"class": lambda x: x.softmax(1), "labels": torch.sigmoid, "number": lambda x: x}
    found = task_of(kind).activate(low)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, activate[kind](low.double()).float())
