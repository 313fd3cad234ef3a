"""Mixed batches: the values of targets and losses, and fits that resume with them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.tiny import RESNET, VIT, Cut
from transferkit.data.batches import Batch
from transferkit.data.datamodule import ImageDataModule
from transferkit.errors import UserError
from transferkit.training.mixing import mixed, weighted_losses
from transferkit.training.module import TransferModule
from transferkit.training.trainer import make_trainer, seed_everything

pytestmark = pytest.mark.usefixtures("own_cache")

DIGITS: dict[str, Any] = {"classes": ["0", "1", "2"], "n_per_class": 6, "batch_size": 6, "num_workers": 0}
CLASSES = 4


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_loss_is_linear_in_the_shares(smoothing: float, weighted: bool) -> None:
    """mixup's identity: the loss of a mixed target is the mean, by share, of the losses of the two targets."""
    torch.manual_seed(0)
    logits = torch.randn(16, CLASSES, dtype=torch.float64)
    one, other = torch.randint(CLASSES, (2, 16))
    share = torch.rand(16, dtype=torch.float64)
    weights = torch.rand(CLASSES, dtype=torch.float64) + 0.5 if weighted else None
    soft = share[:, None] * F.one_hot(one, CLASSES) + (1 - share)[:, None] * F.one_hot(other, CLASSES)
    losses, weight = weighted_losses(logits, {"target": one, "soft": soft}, weights, smoothing)
    expected = expected_weight = torch.zeros(16, dtype=torch.float64)
    for target, part in ((one, share), (other, 1 - share)):
        of_class = torch.ones(16, dtype=torch.float64) if weights is None else weights[target]
        entropy = F.cross_entropy(logits, target, label_smoothing=smoothing, reduction="none")
        expected, expected_weight = expected + part * of_class * entropy, expected_weight + part * of_class
    assert torch.allclose(losses, expected, atol=1e-9) and torch.allclose(weight, expected_weight, atol=1e-9)
    if not weighted:  # PyTorch's own, for probabilities as targets
        assert torch.allclose(losses, F.cross_entropy(logits, soft, label_smoothing=smoothing, reduction="none"))


def test_the_expected_loss_of_mixup() -> None:
    """Over the shares and both orders of a pair, a class counts as often as without mixing, for fixed logits."""
    torch.manual_seed(0)
    target = torch.randint(CLASSES, (4096,))
    batch: Batch = {"embedding": torch.randn(4096, 8), "target": target}
    logits = torch.randn(CLASSES).expand(4096, CLASSES)
    plain, _ = weighted_losses(logits, batch, None, 0.1)
    soft, _ = weighted_losses(logits, mixed(batch, 0.4, 0.0, CLASSES, torch.Tensor.float), None, 0.1)
    assert float(soft.double().mean()) == pytest.approx(float(plain.double().mean()), abs=1e-6)


def test_inputs_and_targets_are_mixed_alike() -> None:
    """With the classes in the inputs, what is mixed says by how much."""
    torch.manual_seed(0)
    target = torch.arange(8) % CLASSES
    batch: Batch = {"embedding": F.one_hot(target, CLASSES).float(), "target": target}
    found = mixed(batch, 1.0, 0.0, CLASSES, torch.Tensor.float)
    assert torch.allclose(found["embedding"], found["soft"]) and 0 < found["soft"].max() < 1
    pixels = F.one_hot(target, CLASSES).float()[:, :, None, None].expand(-1, -1, 16, 16)
    cut = mixed({"pixels": pixels, "target": target}, 0.0, 1.0, CLASSES, lambda value: value)
    assert torch.allclose(cut["input"].mean((2, 3)), cut["soft"], atol=1e-6)
    assert set(cut["input"].unique().tolist()) == {0.0, 1.0}  # pasted, not blended


def test_no_mixing_and_no_rows() -> None:
    batch: Batch = {"embedding": torch.randn(3, 2), "target": torch.tensor([0, 1, 1])}
    assert mixed(batch, 0.0, 0.0, 2, torch.Tensor.float) is batch
    empty: Batch = {"pixels": torch.empty(0, 3, 4, 4), "target": torch.empty(0, dtype=torch.long)}
    assert mixed(empty, 1.0, 1.0, 2, torch.Tensor.float) is empty


def fit(
    run: Path, model: dict[str, Any], data: dict[str, Any], resume: Path | None = None, precision: Any = "32-true"
) -> dict[str, Tensor]:
    seed_everything(0)
    module = TransferModule(**model)
    callbacks = [] if resume else [Cut(run.with_suffix(".cut.ckpt"))]
    options: dict[str, Any] = {"max_epochs": 2, "enable_progress_bar": False, "accelerator": "cpu"}
    trainer = make_trainer(run, callbacks=callbacks, precision=precision, **options)
    trainer.fit(module, datamodule=ImageDataModule("digits", **DIGITS, **data), ckpt_path=resume)
    return module.state_dict()


@pytest.mark.parametrize(
    ("model", "data", "precision"),
    [
        ({**VIT, "regime": "full"}, {"mixup": 0.3, "cutmix": 1.0, "class_weights": "balanced"}, "bf16-mixed"),
        pytest.param({**RESNET, "regime": "full"}, {"mixup": 0.3}, "32-true", marks=pytest.mark.slow),
        pytest.param({**VIT, "regime": "frozen"}, {"mixup": 0.3}, "32-true", marks=pytest.mark.slow),
        pytest.param({**VIT, "regime": "frozen"}, {"cutmix": 0.3}, "32-true", marks=pytest.mark.slow),
    ],
)
def test_resumed_from_the_middle_of_an_epoch(
    tmp_path: Path, model: dict[str, Any], data: dict[str, Any], precision: str
) -> None:
    whole = fit(tmp_path / "whole", model, data, precision=precision)
    again = fit(tmp_path / "again", model, data, tmp_path / "whole.cut.ckpt", precision)
    assert all(torch.equal(value, again[name]) for name, value in whole.items())


@pytest.mark.slow
@pytest.mark.parametrize("data", [{"mixup": 0.3}, {"cutmix": 1.0}])
@pytest.mark.parametrize("regime", ["frozen", "full"])
def test_mixing_has_an_effect(tmp_path: Path, regime: str, data: dict[str, Any]) -> None:
    model = {**VIT, "regime": regime, "optimizer": "adamw"}
    plain, whole = fit(tmp_path / "plain", model, {}), fit(tmp_path / "mixed", model, data)
    assert not torch.equal(plain["head.weight"], whole["head.weight"])


def test_bad_options(tmp_path: Path) -> None:
    for options in ({"mixup": -1.0}, {"cutmix": float("inf")}):
        with pytest.raises(UserError, match=r"`(mixup|cutmix)` is .*; give a number from 0 up"):
            ImageDataModule("digits", **options)
    with pytest.raises(UserError, match=r"lbfgs.*without augmentation, mixing, dropout and balance"):
        fit(tmp_path / "run", {**VIT, "optimizer": "lbfgs"}, {"mixup": 0.2})
