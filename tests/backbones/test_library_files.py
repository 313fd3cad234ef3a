"""Weights files that the libraries themselves write, with what they put beside the weights."""

import argparse
import logging
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pytest
import timm
import torch
from torch import nn
from torchvision import models

from transferkit import backbones
from transferkit.errors import UserError

CNN = "test_efficientnet"  # timm's own small model


@pytest.fixture(scope="module")
def plain() -> nn.Module:
    """timm's model with random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model: nn.Module = timm.create_model(CNN).eval()
    return model


def loads(file: Path, plain: nn.Module) -> bool:
    """Whether a file gives the weights of the plain model."""
    own, state = backbones.build(CNN, str(file)).model.state_dict(), plain.state_dict()
    return all(torch.equal(value, state[key]) for key, value in own.items())


def test_timms_training_script(plain: nn.Module, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from timm.utils import CheckpointSaver, ModelEmaV3

    ema = ModelEmaV3(plain)
    for tensor in ema.module.state_dict().values():
        tensor.add_(1)
    options = argparse.Namespace(model=CNN, lr=np.float64(0.1), output=tmp_path)
    optimizer = torch.optim.AdamW(plain.parameters())
    saver = CheckpointSaver(plain, optimizer, options, model_ema=ema, checkpoint_dir=tmp_path, recovery_dir=tmp_path)
    saver.save_checkpoint(0, metric=np.float32(0.5))
    with caplog.at_level(logging.WARNING):
        assert loads(next(tmp_path.glob("last.*")), plain)
    assert "took 'state_dict' of" in caplog.text and "also holds 'state_dict_ema'" in caplog.text
    assert "left out of" in caplog.text and "what is not a tensor: argparse.Namespace" in caplog.text


class Module(lightning.LightningModule):
    """Someone's module."""

    def __init__(self, model: nn.Module, **options: Any) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["model"])
        self.net = model


def test_lightnings_checkpoints(plain: nn.Module, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    module = Module(plain, folder=tmp_path, options=argparse.Namespace(lr=0.1), rate=np.float32(0.1))
    trainer = lightning.Trainer(
        logger=False,
        enable_checkpointing=False,
        accelerator="cpu",
        enable_progress_bar=False,
        default_root_dir=tmp_path,
    )
    trainer.strategy.connect(module)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    with caplog.at_level(logging.WARNING):
        assert loads(tmp_path / "last.ckpt", plain)
    assert "numpy.dtype, pathlib" in caplog.text and "removed net. from the names" in caplog.text


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile])
def test_what_torch_wraps_a_model_in(wrap: Any, plain: nn.Module, tmp_path: Path) -> None:
    torch.save(wrap(plain).state_dict(), tmp_path / "w.pt")
    assert loads(tmp_path / "w.pt", plain)


@pytest.mark.parametrize("suffix", [".bin", ".pt", ".pth", ".ckpt"])
def test_dino(suffix: str, plain: nn.Module, tmp_path: Path) -> None:
    """The published full checkpoints hold the script's options, and are in torch's older format, too."""
    state = {f"backbone.{key}": value for key, value in plain.state_dict().items()}
    student = {f"module.{key}": value + 1 for key, value in state.items()}
    content = {"teacher": state, "student": student, "epoch": 3, "args": argparse.Namespace(arch="vit_small")}
    torch.save(content, tmp_path / f"w{suffix}")
    assert loads(tmp_path / f"w{suffix}", plain)


def test_nothing_beside_the_weights_is_run(plain: nn.Module, tmp_path: Path, hostile: type[object]) -> None:
    mark = tmp_path / "mark"

    class Saves:
        def __reduce__(self) -> tuple[object, ...]:
            return np.save, (str(mark), 1)

    options = argparse.Namespace(lr=Saves())
    torch.save({"state_dict": plain.state_dict(), "args": options}, tmp_path / "w.pth")
    assert loads(tmp_path / "w.pth", plain)
    torch.save({"state_dict": plain.state_dict(), "args": argparse.Namespace(lr=hostile())}, tmp_path / "w.pth")
    with pytest.raises(UserError, match="is not a weights file"):
        backbones.build(CNN, str(tmp_path / "w.pth"))
    assert not list(tmp_path.glob("mark*"))


def test_options_in_the_place_of_weights(tmp_path: Path) -> None:
    torch.save({"args": argparse.Namespace(lr=0.1), "state_dict": argparse.Namespace()}, tmp_path / "w.pth")
    with pytest.raises(UserError, match="does not hold a state dict"):
        backbones.build("resnet18", str(tmp_path / "w.pth"))


def test_a_whole_module_is_refused(tmp_path: Path) -> None:
    torch.save(models.squeezenet1_1(), tmp_path / "w.pth")
    with pytest.raises(
        UserError, match=r"is not a weights file .*; give a \.safetensors file or a state dict"
    ) as caught:
        backbones.build("squeezenet1_1", str(tmp_path / "w.pth"))
    assert "\n" not in str(caught.value)
