"""Training: the optimizer, the same steps as a CPU, and resuming on the other device."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from torch import Tensor

from tests.running import transferkit
from tests.tiny import RESNET, VIT, Cut, options
from transferkit.data.datamodule import ImageDataModule
from transferkit.extractor.cuda_graph import refusing_to_wait
from transferkit.training.module import TransferModule
from transferkit.training.trainer import make_trainer, seed_everything

pytestmark = pytest.mark.gpu

DIGITS: dict[str, Any] = {"classes": ["0", "1"], "n_per_class": 24, "batch_size": 12, "num_workers": 0}
PRECISIONS = ["32-true", "bf16-mixed", "16-mixed"]


@pytest.mark.parametrize("clip", [None, 0.5])
@pytest.mark.parametrize("precision", [*PRECISIONS, "bf16-true"])
def test_the_optimizer_is_fused_unless_gradients_are_clipped_in_mixed_precision(
    precision: Any, clip: float | None, tmp_path: Path, accelerator: str
) -> None:
    seed_everything(0)
    module = TransferModule(**RESNET, regime="full")
    trainer = quick(tmp_path, accelerator, precision=precision, gradient_clip_val=clip, max_epochs=1)
    trainer.fit(module, datamodule=ImageDataModule("digits", **DIGITS))
    fused = trainer.optimizers[0].param_groups[0]["fused"]
    assert bool(fused) == (clip is None or "mixed" not in precision)
    assert trainer.callback_metrics["train/loss"].isfinite()


def quick(run: Path, accelerator: str, **more: Any) -> Trainer:
    return make_trainer(run, **{"max_epochs": 2, "enable_progress_bar": False, "accelerator": accelerator, **more})


def trained(run: Path, accelerator: str, resume: Path | None = None, **more: Any) -> Tensor:
    """All weights after a fit of the whole network, on a device or continued there; it leaves run.cut.ckpt."""
    seed_everything(0)
    module = TransferModule(**VIT, regime="full", dropout=0.0)
    callbacks = [] if resume else [Cut(run.with_suffix(".cut.ckpt"))]
    trainer = quick(run, accelerator, callbacks=callbacks, **more)
    data = ImageDataModule("digits", **DIGITS, augmentation="light")
    trainer.fit(module, datamodule=data, ckpt_path=resume)
    return torch.cat([value.detach().cpu().double().flatten() for value in module.parameters()])


def apart(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / other.norm())


def test_the_same_steps_as_on_a_cpu(tmp_path: Path, accelerator: str) -> None:
    with_gpu, with_cpu = trained(tmp_path / "gpu", accelerator), trained(tmp_path / "cpu", "cpu")
    assert apart(with_gpu, with_cpu) <= 1e-3


@pytest.mark.parametrize("back", [False, True])
def test_a_fit_goes_on_where_there_is_another_device(back: bool, tmp_path: Path, accelerator: str) -> None:
    first, second = ("cpu", accelerator) if back else (accelerator, "cpu")
    whole = trained(tmp_path / "whole", first)
    resumed = trained(tmp_path / "resumed", second, tmp_path / "whole.cut.ckpt")
    assert apart(resumed, whole) <= 1e-3


def test_a_fit_goes_on_on_its_own_device_with_the_same_bits(tmp_path: Path, accelerator: str) -> None:
    whole = trained(tmp_path / "whole", accelerator, deterministic=True)
    resumed = trained(tmp_path / "resumed", accelerator, tmp_path / "whole.cut.ckpt", deterministic=True)
    again = trained(tmp_path / "again", accelerator, deterministic=True)
    assert torch.equal(whole, again), "the same seed, the same bits"
    assert torch.equal(whole, resumed)


def test_a_command_goes_on_on_the_other_device(tmp_path: Path, accelerator: str, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    data = ["digits", "--data.classes", '["0","1"]', "--data.n_per_class", "12", "--data.num_workers", "0"]
    command = ["fit", *data, *options("model", {**VIT, "regime": "full"}), "--name", "cut"]
    for epochs, where in (("1", accelerator), ("2", "cpu"), ("3", accelerator)):
        more = ["--ckpt_path", "last"] if epochs != "1" else []
        done = transferkit(
            *command, *more, "--trainer.max_epochs", epochs, "--trainer.accelerator", where, "--trainer.precision", "32"
        )
        assert done.status == 0, done.err
    assert "val/acc" in json.loads(Path("runs/cut/0/metrics.json").read_text())


@pytest.mark.parametrize("deterministic", [True, "warn"])
def test_layers_without_a_deterministic_kernel(deterministic: Any, tmp_path: Path, accelerator: str) -> None:
    """Either there is one, or the line names the remedy, which works."""
    command = ["fit", "digits", "--data.classes", '["0","1"]', "--data.n_per_class", "12", "--data.num_workers", "0"]
    command += [*options("model", {**RESNET, "regime": "full"}), "--trainer.default_root_dir", str(tmp_path)]
    command += ["--trainer.accelerator", accelerator, "--trainer.max_epochs", "1"]
    done = transferkit(*command, "--trainer.deterministic", str(deterministic).lower())
    assert "Traceback" not in done.err
    assert done.status == 0 or (deterministic is True and "--trainer.deterministic warn" in done.err), done.err


def test_a_training_step_never_makes_the_cpu_wait(cuda: torch.device) -> None:
    for network in (VIT, RESNET):
        module = TransferModule(**network, regime="full")
        module.set_classes(["a", "b"])
        module.to(cuda).train()
        optimizer = torch.optim.AdamW(module.parameters(), fused=True)
        side = 32
        batch = {
            "pixels": torch.randint(0, 256, (4, 3, side, side), dtype=torch.uint8, device=cuda),
            "target": torch.tensor([0, 1, 0, 1], device=cuda),
            "row": torch.arange(4, device=cuda),
        }

        def step(module: TransferModule = module, batch: Any = batch, optimizer: Any = optimizer) -> None:
            optimizer.zero_grad()
            with torch.autocast("cuda", torch.bfloat16):
                loss = module.training_step(batch, 0)
            loss.backward()
            optimizer.step()

        step()
        with refusing_to_wait():
            step()


def test_a_moving_average_and_mixing(tmp_path: Path, accelerator: str) -> None:
    seed_everything(0)
    module = TransferModule(**RESNET, regime="full", ema=0.9)
    trainer = quick(tmp_path, accelerator, precision="bf16-mixed" if accelerator == "gpu" else "32-true")
    trainer.fit(module, datamodule=ImageDataModule("digits", **DIGITS, mixup=0.4, cutmix=0.4, augmentation="strong"))
    assert trainer.callback_metrics["train/loss"].isfinite()
