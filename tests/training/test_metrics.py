"""Every logged metric against its definition, however the rows fall into batches."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from lightning.pytorch.strategies import SingleDeviceStrategy
from sklearn.metrics import confusion_matrix, f1_score, recall_score, top_k_accuracy_score
from torch import Tensor
from torchvision import models

from transferkit.errors import UserError
from transferkit.training.metrics import MOST_CONFUSED, RunningMean, check_weights, classification_metrics

CLASSES, ROWS = 7, 210
ORDERS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "by chance": lambda probability, target: torch.arange(ROWS),
    "one class after another": lambda probability, target: target.argsort(stable=True),
    "the right ones first": lambda probability, target: (probability.argmax(1) != target).long().argsort(stable=True),
    "the wrong ones first": lambda probability, target: (probability.argmax(1) == target).long().argsort(stable=True),
    "the surest first": lambda probability, target: probability.amax(1).argsort(descending=True),
}


def rows(skill: float, missing: int = 0) -> tuple[Tensor, Tensor]:
    """Probabilities (ROWS, CLASSES) that are right more often the higher the skill, and targets (ROWS,)."""
    generator = torch.Generator().manual_seed(0)
    target = torch.randint(CLASSES - missing, (ROWS,), generator=generator)
    logits = torch.randn(ROWS, CLASSES, generator=generator)
    logits[torch.arange(ROWS), target] += skill
    return logits.softmax(1), target


def definitions(probability: Tensor, target: Tensor) -> dict[str, float | np.ndarray]:
    """The logged metrics by scikit-learn, the calibration error by its formula (Guo et al. 2017, eq. 3)."""
    labels, preds, truth = range(CLASSES), probability.argmax(1).numpy(), target.numpy()
    confidence = probability.double().amax(1).numpy()
    error = 0.0
    for low in np.arange(15) / 15:
        inside = (confidence > low) & (confidence <= low + 1 / 15)
        if inside.any():
            error += inside.mean() * abs((preds == truth)[inside].mean() - confidence[inside].mean())
    present = sorted(set(preds) | set(truth))  # a class that is neither there nor predicted has no F1
    return {
        "acc": float((preds == truth).mean()),
        "acc_top5": float(top_k_accuracy_score(truth, probability.numpy(), k=5, labels=list(labels))),
        "f1_macro": float(f1_score(truth, preds, labels=present, average="macro", zero_division=0)),
        "ece": error,
        "acc_per_class": recall_score(truth, preds, labels=list(labels), average=None, zero_division=0),
        "confusion": confusion_matrix(truth, preds, labels=list(labels)),
    }


@pytest.mark.parametrize("batch", [1, 30, ROWS])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("skill", "missing"), [(1.0, 0), (1.0, 3), (50.0, 0), (-50.0, 0)])
def test_metrics_do_not_depend_on_batches(skill: float, missing: int, order: str, batch: int) -> None:
    probability, target = rows(skill, missing)
    metrics = classification_metrics(CLASSES, "val")
    for part in ORDERS[order](probability, target).split(batch):
        metrics.update(probability[part], target[part])
    found = metrics.compute()
    wanted = definitions(probability, target)
    assert {name.removeprefix("val/") for name in found} == wanted.keys()
    for name, value in wanted.items():
        np.testing.assert_allclose(found[f"val/{name}"].numpy(), value, atol=1e-5, err_msg=name)


def test_a_second_epoch_starts_anew() -> None:
    probability, target = rows(1.0)
    metrics = classification_metrics(CLASSES, "test")
    for _ in range(2):
        metrics.reset()
        metrics.update(probability, target)
    assert metrics.compute()["test/confusion"].sum() == ROWS


def test_many_classes_have_no_matrix() -> None:
    metrics = classification_metrics(21_841, "val")
    metrics.update(torch.rand(4, 21_841).softmax(1), torch.arange(4))
    assert "val/confusion" not in metrics.compute()
    states = [getattr(metric, name) for metric in metrics.values() for name in metric._defaults]
    assert sum(state.nbytes for state in states if isinstance(state, Tensor)) < 2**22
    limit = classification_metrics(MOST_CONFUSED, "val")
    limit.update(torch.rand(4, MOST_CONFUSED).softmax(1), torch.arange(4))
    assert limit.compute()["val/confusion"].shape == (MOST_CONFUSED, MOST_CONFUSED)


class Alone:
    """A strategy of one process."""

    def reduce(self, tensor: Tensor, reduce_op: str) -> Tensor:
        assert reduce_op == "sum"
        return tensor


@pytest.mark.parametrize("batch", [1, 7, 64])
def test_the_mean_loss_is_that_of_all_rows(batch: int) -> None:
    generator = torch.Generator().manual_seed(1)
    losses, weight = torch.rand(64, generator=generator), torch.rand(64, generator=generator)
    mean = RunningMean()
    for _ in range(2):  # the second epoch starts anew
        for part in torch.arange(64).split(batch):
            mean.update(losses[part] * weight[part], weight[part])
        expected = float((losses.double() * weight.double()).sum() / weight.double().sum())
        assert mean.compute(Alone()).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("value", [torch.inf, torch.nan])
def test_a_statistic_that_is_not_finite_ends_the_training(value: float) -> None:
    strategy, state = SingleDeviceStrategy(device="cpu"), models.resnet18().state_dict()
    check_weights(state, strategy, 0)
    state["layer3.1.bn1.running_var"][7] = value
    with pytest.raises(UserError, match=r"diverged: layer3.1.bn1.running_var is not finite in epoch 3; give lower"):
        check_weights(state, strategy, 2)
