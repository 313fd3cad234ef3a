"""A Trainer with a run directory: the same one for the command line, the quickstart and Python."""

import csv
import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, RichProgressBar
from lightning.pytorch.loggers import Logger, TensorBoardLogger

from transferkit.checkpoints import AtomicCheckpointIO
from transferkit.files import atomic_path
from transferkit.results import Results

MONITOR = "val/acc"
TRAINER_DEFAULTS: Mapping[str, Any] = {
    "max_epochs": 20,
    "num_sanity_val_steps": 0,
    "log_every_n_steps": 1,
    "enable_model_summary": False,
    "default_root_dir": ".",
}


def run_parts(run: Path) -> tuple[list[Callback], list[Logger]]:
    """Callbacks and loggers that fill a run directory.

    ``checkpoints/best.ckpt`` is the epoch of the highest ``val/acc``, ``last.ckpt`` the latest.
    """
    common: dict[str, Any] = {
        "dirpath": run / "checkpoints",
        "save_on_train_epoch_end": True,
        "auto_insert_metric_name": False,
        "enable_version_counter": False,
    }
    callbacks: list[Callback] = [
        Results(run),
        MetricsTable(run / "metrics.csv"),
        ModelCheckpoint(filename="best", monitor=MONITOR, mode="max", **common),
        ModelCheckpoint(filename="last", **common),
    ]
    return callbacks, [Events(run, name="", version="")]


class Events(TensorBoardLogger):
    """TensorBoard events in the run directory itself."""

    def save(self) -> None:
        """Flush the events; Lightning would also write an ``hparams.yaml`` beside our ``config.yaml``."""
        self.experiment.flush()


class MetricsTable(Callback):
    """``metrics.csv``: a row an epoch, all logged names; a resumed fit goes on in it.

    Args:
        path: the file to write.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, float]] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the rows of the epochs before a resumed one."""
        if self.path.is_file():
            with self.path.open(newline="", encoding="utf-8") as file:
                known = [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)]
            self.rows = [row for row in known if row["epoch"] < trainer.current_epoch]

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add the epoch's row."""
        values = {name: float(value) for name, value in trainer.callback_metrics.items()}
        self.rows.append({"epoch": trainer.current_epoch, **values})
        if not trainer.is_global_zero:
            return
        names = dict.fromkeys(name for row in self.rows for name in row)
        with atomic_path(self.path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows(self.rows)


def make_trainer(run: Path, **options: Any) -> Trainer:
    """A Trainer that fills a run directory; options as of :class:`lightning.pytorch.Trainer`."""
    callbacks, loggers = run_parts(run)
    callbacks += options.pop("callbacks", [])
    plugins = [AtomicCheckpointIO(), *options.pop("plugins", [])]
    given = {**TRAINER_DEFAULTS, **options}
    given.setdefault("logger", loggers)
    return Trainer(callbacks=callbacks, plugins=plugins, **given)


def progress_callback() -> Callback:
    """Lightning's progress bar, on stderr."""
    return RichProgressBar(leave=False, console_kwargs={"stderr": True})


def best_metrics(trainer: Trainer) -> dict[str, float]:
    """The metrics logged at the epoch of the best checkpoint, as its record keeps them."""
    from transferkit.extractor.checkpoint import KEY, load

    callback = trainer.checkpoint_callback
    path = getattr(callback, "best_model_path", "")
    if path and Path(path).is_file():
        return dict(load(Path(path))[KEY]["metrics"])
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


def quiet_libraries() -> None:
    """Leave the talk to us: Lightning's hints at INFO level are dropped, its warnings are not.

    But for two that say what is meant to be: frozen stages are in eval mode by design, and Lightning 2.6
    itself calls a function that torch 2.14 deprecates.
    """
    warnings.filterwarnings("ignore", r"Found \d+ module\(s\) in eval mode at the start of training")
    warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated", FutureWarning)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch, and loading processes."""
    lightning.seed_everything(seed, workers=True, verbose=False)
