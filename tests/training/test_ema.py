"""The moving average of the weights: its values, what is validated and kept, and that it resumes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from tests.tiny import RESNET, VIT
from transferkit.data.datamodule import ImageDataModule
from transferkit.errors import UserError
from transferkit.extractor import Extractor
from transferkit.training.module import TransferModule
from transferkit.training.trainer import make_trainer, seed_everything

pytestmark = pytest.mark.usefixtures("own_cache")

DIGITS: dict[str, Any] = {"classes": ["0", "1", "2"], "n_per_class": 6, "batch_size": 6, "num_workers": 0}
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


class Steps(Callback):
    """The weights after each step, val/loss by step, and a checkpoint in the middle of the first epoch."""

    def __init__(self, cut: Path | None = None) -> None:
        self.cut, self.losses = cut, dict[int, float]()
        self.states: list[dict[str, Tensor]] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self.states.append({name: value.clone() for name, value in pl_module.state_dict().items()})
        if self.cut and trainer.global_step == 2:
            trainer.save_checkpoint(self.cut)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.losses[trainer.global_step] = float(trainer.callback_metrics["val/loss"])


def fit(
    run: Path, model: Mapping[str, Any], resume: Path | None = None, precision: Any = "32-true"
) -> tuple[TransferModule, Trainer, Steps]:
    seed_everything(0)
    steps = Steps(None if resume else run.with_suffix(".cut.ckpt"))
    module = TransferModule(**{"regime": "full", **model})
    options: dict[str, Any] = {"max_epochs": 2, "enable_progress_bar": False, "accelerator": "cpu"}
    trainer = make_trainer(run, callbacks=[steps], precision=precision, **options)
    trainer.fit(module, datamodule=ImageDataModule("digits", **DIGITS), ckpt_path=resume)
    return module, trainer, steps


def read(run: Path, name: str = "last.ckpt") -> dict[str, Any]:
    content: dict[str, Any] = torch.load(run / "checkpoints" / name, weights_only=True)
    return content


def alike(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize("model", [VIT, pytest.param(RESNET, marks=pytest.mark.slow)])
def test_parameters_are_averaged_and_statistics_copied(tmp_path: Path, model: dict[str, Any]) -> None:
    """The recurrence of an exponential moving average, in float64; its decay is (1 + n) / (10 + n) at first."""
    module, _, steps = fit(tmp_path / "run", {**model, "ema": 0.3})
    content = read(tmp_path / "run")
    assert alike(content["current_model_state"], steps.states[-1])
    assert alike(content["state_dict"], module.state_dict())  # a fit ends with the average
    for name, kept in content["state_dict"].items():
        values = [state[name].double() for state in steps.states]
        average = values[0]
        for count, value in enumerate(values[1:], 1):
            decay = min(0.3, (1 + count) / (10 + count))
            average = decay * average + (1 - decay) * value
        expected = values[-1] if name.endswith(STATISTICS) else average
        assert torch.allclose(kept.double(), expected, rtol=1e-5, atol=1e-6), name


@pytest.mark.parametrize("model", [VIT, pytest.param(RESNET, marks=pytest.mark.slow)])
def test_rates_of_zero_give_the_same_bits(tmp_path: Path, model: dict[str, Any]) -> None:
    still = {**model, "lr_head": 0.0, "lr_backbone": 0.0, "weight_decay": 0.0}
    plain, _, _ = fit(tmp_path / "plain", still)
    averaged, _, _ = fit(tmp_path / "averaged", {**still, "ema": 0.99})
    assert alike(plain.state_dict(), averaged.state_dict())
    content = read(tmp_path / "averaged")
    assert alike(content["state_dict"], content["current_model_state"])


@pytest.mark.parametrize("model", [VIT, pytest.param(RESNET, marks=pytest.mark.slow)])
def test_resumed_from_the_middle_of_an_epoch(tmp_path: Path, model: dict[str, Any]) -> None:
    fit(tmp_path / "whole", {**model, "ema": 0.5})
    fit(tmp_path / "again", {**model, "ema": 0.5}, tmp_path / "whole.cut.ckpt")
    whole, again = read(tmp_path / "whole"), read(tmp_path / "again")
    for part in ("state_dict", "current_model_state", "averaging_state"):
        assert alike(whole[part], again[part]), part


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_what_is_validated_tested_and_exported_is_the_average(tmp_path: Path, precision: str) -> None:
    module, trainer, steps = fit(tmp_path / "run", {**VIT, "ema": 0.5}, precision=precision)
    last = tmp_path / "run/checkpoints/last.ckpt"
    average = read(tmp_path / "run")["state_dict"]
    trainer.validate(module, datamodule=module.data, ckpt_path=last, verbose=False)
    assert float(trainer.callback_metrics["val/loss"]) == pytest.approx(steps.losses[max(steps.losses)], abs=1e-6)
    trainer.test(module, datamodule=module.data, ckpt_path=last, verbose=False)  # no callback swaps before a test
    assert alike(module.state_dict(), average)
    backbone = Extractor.from_pretrained(last).backbone.state_dict()
    assert all(torch.equal(value, average[f"backbone.{name}"]) for name, value in backbone.items())


@pytest.mark.slow
def test_with_the_head_of_a_probe(tmp_path: Path) -> None:
    _, _, plain = fit(tmp_path / "plain", {**VIT, "regime": "lp-ft"})
    _, _, averaged = fit(tmp_path / "averaged", {**VIT, "regime": "lp-ft", "ema": 0.5})
    assert (
        averaged.losses[0] == plain.losses[0] and averaged.losses[max(plain.losses)] != plain.losses[max(plain.losses)]
    )


@pytest.mark.slow
def test_with_adapters(tmp_path: Path) -> None:
    seed_everything(1)
    Extractor.from_pretrained(VIT["backbone"], "none", None, None, VIT["architecture"]).save_pretrained(
        tmp_path / "vit"
    )
    model = {"backbone": str(tmp_path / "vit"), "regime": "lora", "ema": 0.5}
    whole, _, _ = fit(tmp_path / "whole", model)
    again, _, _ = fit(tmp_path / "again", model, tmp_path / "whole.cut.ckpt")
    assert alike(whole.state_dict(), again.state_dict())
    content = read(tmp_path / "whole")
    for part in ("state_dict", "current_model_state"):
        assert all(".lora_" in name for name in content[part] if name.startswith("backbone.")), part


def test_a_decay_out_of_range() -> None:
    for decay in (1.0, -0.1, float("nan")):
        with pytest.raises(UserError, match=r"`ema` is .*; give a number in \[0, 1\)"):
            TransferModule(**VIT, ema=decay)
