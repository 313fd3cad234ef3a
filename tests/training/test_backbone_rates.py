"""The rate of a backbone, chosen on val by short fits: what they compute, and that the fit is that of the rate."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.tiny import RESNET, VIT, Cut
from transferkit.data.datamodule import ImageDataModule
from transferkit.data.loaders import LoaderDataModule
from transferkit.errors import UserError
from transferkit.training import backbone_rates
from transferkit.training.module import TransferModule
from transferkit.training.trainer import make_trainer, seed_everything

pytestmark = pytest.mark.usefixtures("own_cache")

DIGITS: dict[str, Any] = {"classes": ["0", "1", "2"], "n_per_class": 8, "batch_size": 8, "num_workers": 0}
BATCHES = 3  # per epoch
FULL: dict[str, Any] = {**VIT, "regime": "full", "lr_head": 1e-2}


def fit(
    run: Path, model: Mapping[str, Any], resume: Path | None = None, data: Mapping[str, Any] | None = None, **more: Any
) -> tuple[TransferModule, float]:
    """The module, and its last loss on val."""
    seed_everything(0)
    module = TransferModule(**model)
    options: dict[str, Any] = {"max_epochs": 2, "enable_progress_bar": False, "accelerator": "cpu", **more}
    trainer = make_trainer(run, **options)
    trainer.fit(module, datamodule=ImageDataModule("digits", **{**DIGITS, **(data or {})}), ckpt_path=resume)
    return module, float(trainer.callback_metrics["val/loss"])


def alike(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.fixture
def losses(monkeypatch: pytest.MonkeyPatch) -> dict[float, float]:
    """What the short fits measured, by rate; only two rates are tried, for twelve steps."""
    seen: dict[float, float] = {}
    original = backbone_rates.trial

    def trial(network: Any, data: Any, trainer: Any, rate: float, steps: int) -> float:
        seen[rate] = original(network, data, trainer, rate, steps)
        return seen[rate]

    monkeypatch.setattr(backbone_rates, "trial", trial)
    monkeypatch.setattr(backbone_rates, "FACTORS", (1.0, 3.0))
    monkeypatch.setattr(backbone_rates, "FEWEST", 12)
    return seen


CASES: list[tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = [
    ({"dropout": 0.2, "label_smoothing": 0.1}, {"augmentation": "light"}, {}),
    ({"regime": "partial", "optimizer": "sgd"}, {"class_weights": [1.0, 2.0, 3.0]}, {"gradient_clip_val": 0.1}),
    ({"regime": "lp-ft", "layer_decay": 0.7, "lr_head": None}, {}, {}),
    ({**RESNET, "regime": "full"}, {"mixup": 0.2}, {}),
    ({**RESNET, "regime": "full", "batchnorm": "eval"}, {}, {"precision": "bf16-mixed"}),
]


@pytest.mark.slow
@pytest.mark.parametrize(("model", "data", "trainer"), CASES)
def test_each_rate_is_tried_as_in_a_fit_of_so_many_steps(
    tmp_path: Path, losses: dict[float, float], model: dict[str, Any], data: dict[str, Any], trainer: dict[str, Any]
) -> None:
    """Compared with Lightning's fits of twelve steps; and the fit is that of the chosen rate, to the bit."""
    if "backbone" in model:
        losses.clear()
    model = {**FULL, **model} if "architecture" not in model and "preprocessing" not in model else {**model}
    chosen, _ = fit(tmp_path / "chosen", {**model, "lr_backbone": "auto"}, data=data, **trainer)
    assert len(losses) == 2
    best = min(losses, key=lambda rate: losses[rate])
    assert chosen.chosen == {"lr_backbone": best / 3}
    warmup = backbone_rates.WARMUP * 12 / BATCHES
    for rate, loss in losses.items():
        again = {**model, "lr_backbone": rate, "warmup_epochs": warmup}
        _, expected = fit(tmp_path / f"{rate}", again, data=data, **{**trainer, "max_epochs": 4})
        if not data.get("augmentation") and not model.get("dropout") and not data.get("mixup"):
            assert loss == pytest.approx(expected, rel=1e-4)
        else:  # drawn from other seeds
            assert loss == pytest.approx(expected, rel=0.3)
    given, _ = fit(tmp_path / "given", {**model, "lr_backbone": best / 3}, data=data, **trainer)
    assert alike(chosen.state_dict(), given.state_dict())


def test_the_short_fits_have_the_weights_of_the_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients are linear in the weights: with SGD, images of twice the weight are as twice the rates."""
    images = [np.full((8, 8, 3), 30 * row, np.uint8) for row in range(8)]

    def measured(weight: float, rate: float) -> float:
        seed_everything(0)
        model = {**VIT, "regime": "full", "optimizer": "sgd", "weight_decay": 0.0, "lr_backbone": rate, "lr_head": rate}
        module = TransferModule(**model)
        data = ImageDataModule.from_images(images, labels=[*"abababab"], batch_size=4, num_workers=0)
        batches = backbone_rates.training_batches

        def weighted(*arguments: Any) -> Any:
            for parts in batches(*arguments):
                yield [{**part, "weight": torch.full((len(part["target"]),), weight)} for part in parts]

        with monkeypatch.context() as patch:
            patch.setattr(backbone_rates, "training_batches", weighted)
            trainer = make_trainer(tmp_path, max_epochs=1, accelerator="cpu", logger=False)
            trainer.datamodule = data  # type: ignore[attr-defined]
            module.connect(data, "fit")
            return backbone_rates.trial(module, data, trainer, rate, 4)

    assert measured(2.0, 0.01) == pytest.approx(measured(1.0, 0.02), rel=1e-5)
    assert measured(2.0, 0.01) != pytest.approx(measured(1.0, 0.01), rel=1e-5)


def test_resumed_with_the_same_rate_and_no_other_choice(
    tmp_path: Path, losses: dict[float, float], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "transferkit")
    whole, _ = fit(tmp_path / "whole", {**FULL, "lr_backbone": "auto"}, callbacks=[Cut(tmp_path / "cut.ckpt")])
    (line,) = [record.message for record in caplog.records if record.name.endswith("backbone_rates")]
    assert (
        line.startswith("the backbone learns at ") and "a third of the best; val/loss after 12 steps: 0.0001 " in line
    )
    monkeypatch.setattr(backbone_rates, "trial", lambda *_: pytest.fail("a resumed fit tried again"))
    again, _ = fit(tmp_path / "again", {**FULL, "lr_backbone": "auto"}, tmp_path / "cut.ckpt")
    assert again.chosen == whole.chosen and alike(whole.state_dict(), again.state_dict())


@pytest.mark.parametrize(("epochs", "batches", "steps"), [(5, 8, 10), (100, 50, 200), (20, 50, 50), (1, 300, 15)])
def test_a_small_share_of_the_steps(epochs: int, batches: int, steps: int, tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, max_epochs=epochs, accelerator="cpu", logger=False)
    assert backbone_rates.trial_length(trainer, batches) == steps


def test_where_there_is_nothing_to_choose(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is for a backbone that learns"):
        fit(tmp_path / "frozen", {**VIT, "lr_backbone": "auto", "lr_head": 0.1})
    with pytest.raises(UserError, match="is for a backbone that learns"):
        fit(tmp_path / "solved", {**VIT, "lr_backbone": "auto"})
    assert not (tmp_path / "frozen").exists() and not (tmp_path / "solved").exists()
    batches = [(torch.rand(4, 3, 32, 32), torch.tensor([0, 1, 0, 1]))]
    module = TransferModule(**FULL, lr_backbone="auto")
    trainer = make_trainer(tmp_path / "own", max_epochs=1, enable_progress_bar=False, accelerator="cpu")
    with pytest.raises(UserError, match="needs the images of an ImageDataModule; give a number"):
        trainer.fit(module, datamodule=LoaderDataModule(batches, batches, ["a", "b"]))


@pytest.mark.parametrize("rate", [0.0, pytest.param(0.3, marks=pytest.mark.slow)])
def test_a_fit_that_only_made_it_worse_says_so_and_keeps_the_start(
    tmp_path: Path, rate: float, caplog: pytest.LogCaptureFixture
) -> None:
    """At a rate of 0 no epoch is better either."""
    model = {**VIT, "regime": "lp-ft", "lr_backbone": rate, "weight_decay": 0.0}
    fit(tmp_path / "run", model, max_epochs=1, gradient_clip_val=1.0)
    says = "no epoch is better on val than the start, so best.ckpt is the start (epoch 0); give lower rates"
    assert any(line.startswith(says) for line in caplog.messages)
    content = torch.load(tmp_path / "run/checkpoints/best.ckpt", weights_only=True)
    assert content["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"] == 0
