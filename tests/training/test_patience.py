"""A fit that ends after some epochs without a better one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.running import refused, transferkit
from tests.tiny import VIT, options
from transferkit.data.datamodule import ImageDataModule
from transferkit.errors import UserError
from transferkit.training.module import TransferModule
from transferkit.training.patience import Patience
from transferkit.training.trainer import make_trainer, seed_everything

pytestmark = pytest.mark.usefixtures("own_cache")

Script = Callable[[list[float], list[float]], None]
DIGITS: dict[str, Any] = {"classes": ["0", "1"], "n_per_class": 4, "batch_size": 8, "num_workers": 0}
STILL: dict[str, Any] = {**VIT, "lr_head": 0.0}


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Script:
    """Sets what the validations measure, by epoch."""

    def measure(accuracies: list[float], losses: list[float]) -> None:
        def end(self: TransferModule) -> None:
            for name, values in (("val/acc", accuracies), ("val/loss", losses)):
                self.log(name, torch.tensor(values[self.current_epoch]))
            self.validated_at = self.trainer.global_step

        monkeypatch.setattr(TransferModule, "on_validation_epoch_end", end)

    return measure


def epochs_of(run: Path, patience: int, resume: Path | None = None, **more: Any) -> int:
    seed_everything(0)
    trainer = make_trainer(run, enable_progress_bar=False, accelerator="cpu", callbacks=[Patience(patience)], **more)
    trainer.fit(TransferModule(**STILL), datamodule=ImageDataModule("digits", **DIGITS), ckpt_path=resume)
    return int(trainer.current_epoch)


@pytest.mark.parametrize(
    ("accuracies", "losses", "patience", "ended"),
    [
        pytest.param([0.5, 0.6, 0.6, 0.6, 0.9, 0.9], [1, 1, 1, 1, 1, 1], 2, 4, marks=pytest.mark.slow),
        ([0.5, 0.6, 0.6, 0.5, 0.9, 0.8], [1, 1, 0.9, 1, 1, 1], 2, 6),  # of equal accuracies, a lower loss is better
        pytest.param([0.5, 0.4, 0.9, 0.9, 0.9, 0.9], [1, 1, 1, 1, 1, 1], 1, 2, marks=pytest.mark.slow),
    ],
)
def test_the_epochs_without_a_better_one(
    tmp_path: Path, script: Script, accuracies: list[float], losses: list[float], patience: int, ended: int
) -> None:
    script(accuracies, losses)
    assert epochs_of(tmp_path, patience, max_epochs=6) == ended
    assert (tmp_path / "checkpoints/last.ckpt").is_file()


def test_min_epochs_and_a_resumed_fit(tmp_path: Path, script: Script) -> None:
    script([0.5] * 8, [1.0] * 8)
    assert epochs_of(tmp_path / "least", 1, max_epochs=8, min_epochs=5) == 5
    assert epochs_of(tmp_path / "cut", 4, max_epochs=3) == 3
    last = tmp_path / "cut/checkpoints/last.ckpt"
    assert epochs_of(tmp_path / "again", 4, last, max_epochs=8) == 5


@pytest.mark.slow
def test_from_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    data = [*options("data", {**DIGITS, "root": "digits"}), "--trainer.accelerator", "cpu", "--trainer.max_epochs", "6"]
    done = transferkit("fit", *options("model", STILL), *data, "--patience", "2")
    assert done.status == 0, done.err
    assert "the fit ends after epoch 3: 2 without a better one" in caplog.messages
    assert transferkit("test", "--ckpt_path", "best").status == 0  # reads the run's config
    least = transferkit("fit", *options("model", STILL), *data, "--patience", "2", "--trainer.min_epochs", "5")
    assert least.status == 0, least.err
    assert "the fit ends after epoch 5: 4 without a better one" in caplog.messages
    assert refused(
        transferkit("fit", *options("model", STILL), *data, "--patience", "0"), "--patience is 0; give 1 or more"
    )


def test_too_few() -> None:
    with pytest.raises(UserError, match=r"`patience` is 0; give 1 or more epochs"):
        Patience(0)
