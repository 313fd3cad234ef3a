"""The Trainer of a run: its callbacks, their order, and the threads that it computes with."""

import csv
from contextlib import nullcontext
from pathlib import Path
from typing import get_args

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.tiny import RESNET, VIT, fit
from transferkit.data.datamodule import ImageDataModule
from transferkit.training import trainer_options
from transferkit.training.module import TransferModule
from transferkit.training.regimes import Regime
from transferkit.training.run_record import Checkpoints
from transferkit.training.trainer import make_trainer, torch_threads
from transferkit.training.trainer_options import automatic_precision

pytestmark = pytest.mark.usefixtures("own_cache")


class Threads(Callback):
    """How many threads the steps of a fit compute with; ends it in the second epoch."""

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.seen = torch.get_num_threads()
        if trainer.current_epoch == 1:
            raise RuntimeError("enough")


@pytest.mark.parametrize(("regime", "epochs", "wanted"), [("frozen", 1, 1), ("frozen", 2, 1), ("full", 1, 3)])
def test_cached_embeddings_are_learnt_on_one_core(
    tmp_path: Path, photo_folder: Path, regime: str, epochs: int, wanted: int
) -> None:
    before, watch = torch.get_num_threads(), Threads()
    trainer = make_trainer(tmp_path, max_epochs=epochs, enable_progress_bar=False, callbacks=[watch])
    data = ImageDataModule(str(photo_folder), batch_size=4, num_workers=0)
    torch.set_num_threads(3)
    try:
        with pytest.raises(RuntimeError, match="enough") if epochs == 2 else nullcontext():
            trainer.fit(TransferModule(**RESNET, regime=regime), datamodule=data)
        assert (watch.seen, torch.get_num_threads()) == (wanted, 3)
    finally:
        torch.set_num_threads(before)


class Logs(Callback):
    """Log a value of its own at the end of each epoch, and change a weight."""

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, TransferModule) and pl_module.head is not None
        pl_module.head.bias.data.fill_(7.0)
        self.log("mine", 3.0)


def test_rows_and_checkpoints_hold_what_other_callbacks_do(tmp_path: Path, photo_folder: Path) -> None:
    """Lightning calls callbacks of the type Checkpoint last; rows and checkpoints rely on it."""
    given = [ModelCheckpoint(tmp_path / "theirs"), Logs()]
    trainer = make_trainer(tmp_path, max_epochs=1, enable_progress_bar=False, accelerator="cpu", callbacks=given)
    assert [type(callback) for callback in trainer.callbacks[-2:]] == [Checkpoints, ModelCheckpoint]
    assert trainer.callbacks.index(given[1]) < len(trainer.callbacks) - 2
    assert trainer.checkpoint_callback is trainer.callbacks[-2]  # trainer.test(ckpt_path="best") asks the first
    trainer.fit(TransferModule(**RESNET), datamodule=ImageDataModule(str(photo_folder), batch_size=4, num_workers=0))
    with (tmp_path / "metrics.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert float(row["mine"]) == 3
    last = torch.load(tmp_path / "checkpoints/last.ckpt", weights_only=True)
    assert last["state_dict"]["head.bias"].tolist() == [7, 7] and last["transferkit"]["metrics"]["mine"] == 3


def test_a_thread_count_is_restored() -> None:
    before = torch.get_num_threads()
    with torch_threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


def test_precision_auto(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert make_trainer(tmp_path, precision="auto", accelerator="cpu", logger=False).precision == "32-true"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for supported, expected in ((True, "bf16-mixed"), (False, "32-true")):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_, supported=supported, **__: supported)
        assert {automatic_precision(accelerator) for accelerator in (None, "auto", "gpu", "cuda")} == {expected}
        assert automatic_precision("cpu") == "32-true"


@pytest.mark.parametrize("regime", get_args(Regime))
@pytest.mark.parametrize("computes", [True, False])
def test_precision_auto_on_a_cpu(monkeypatch: pytest.MonkeyPatch, regime: str, computes: bool) -> None:
    monkeypatch.setattr(trainer_options, "computes_in_bf16", lambda: computes)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    half = computes and regime in ("full", "scratch", "lp-ft")  # of others, what frozen stages give is cached
    for accelerator in (None, "auto", "cpu"):
        assert automatic_precision(accelerator, regime) == ("bf16-mixed" if half else "32-true")
    assert automatic_precision("mps", regime) == "32-true"


def test_tensorboard_numbers_epochs_as_the_table(tmp_path: Path, photo_folder: Path) -> None:
    fit(tmp_path, photo_folder, {**VIT, "regime": "lp-ft"})
    with (tmp_path / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["0", "1", "2"]  # 0 is the start
    events = EventAccumulator(str(tmp_path)).Reload()
    epoch_of = {event.step: event.value for event in events.Scalars("epoch")}
    found = [(epoch_of[event.step], event.value) for event in events.Scalars("val/acc")]
    assert found == [(float(row["epoch"]), pytest.approx(float(row["val/acc"]))) for row in rows]


class Reads(Callback):
    """Read the events while the fit writes them."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self.seen: list[int] = []

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        events = EventAccumulator(str(self.run)).Reload()
        self.seen.append(len(events.Scalars("val/acc")) if "val/acc" in events.Tags()["scalars"] else 0)


def test_tensorboard_shows_the_curve_while_it_grows(tmp_path: Path, photo_folder: Path) -> None:
    reads = Reads(tmp_path)
    trainer = make_trainer(tmp_path, max_epochs=3, accelerator="cpu", enable_progress_bar=False, callbacks=[reads])
    trainer.fit(TransferModule(**VIT, regime="full"), ImageDataModule(str(photo_folder), batch_size=4, num_workers=0))
    assert reads.seen == [0, 1, 2]
