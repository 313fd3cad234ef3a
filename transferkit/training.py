"""A Trainer with a run directory: the same one for the command line, the quickstart and Python."""

import csv
import logging
import math
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, RichProgressBar
from lightning.pytorch.loggers import Logger, TensorBoardLogger

from transferkit.checkpoints import AtomicCheckpointIO, complete
from transferkit.embed.processes import check_devices
from transferkit.errors import UserError
from transferkit.extractor.checkpoint import KEY, epoch_of, load
from transferkit.files import atomic_path, sweep
from transferkit.module import TransferModule
from transferkit.results import Results

MONITOR = "val/acc"
SMALL_HEAD = 2**17  # weights: 170 classes of a ViT-B/16's 768 numbers
TRAINER_DEFAULTS: Mapping[str, Any] = {
    "max_epochs": 20,
    "num_sanity_val_steps": 0,
    "log_every_n_steps": 0,  # all is logged by the epoch
    "enable_model_summary": False,
    "default_root_dir": ".",
}


def run_parts(run: Path, checkpoints: bool = True) -> tuple[list[Callback], list[Logger]]:
    """Callbacks and loggers that fill a run directory."""
    callbacks: list[Callback] = [OneCore(), Results(run), MetricsTable(run / "metrics.csv")]
    if checkpoints:
        callbacks.append(Checkpoints(run / "checkpoints"))
    return callbacks, [Events(run, name="", version="")]


class Checkpoints(Checkpoint):
    """``best.ckpt``, the first epoch of the highest ``val/acc``, and ``last.ckpt``, for resuming.

    ``last.ckpt`` is written after the first epoch and the last, and in between as often as it takes no
    more than a tenth of the time: where epochs are short it may be some epochs old.

    Args:
        folder: where they are written.
    """

    def __init__(self, folder: Path) -> None:
        self.best, self.last = folder / "best.ckpt", folder / "last.ckpt"
        self.highest = -math.inf
        self.written, self.cost = -math.inf, 0.0  # when last.ckpt was, and how long it took, in seconds

    def state_dict(self) -> dict[str, Any]:
        """The highest score, for a resumed fit."""
        return {"highest": self.highest}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.highest = state_dict["highest"]

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remove what a killed fit left half-written."""
        left = self.last.parents[1].rglob(".*.tmp") if trainer.is_global_zero else ()
        for folder in {path.parent for path in left}:
            sweep(folder)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write what is due."""
        score = float(trainer.callback_metrics.get(MONITOR, -math.inf))
        improved = score > self.highest
        self.highest = max(score, self.highest)
        if improved:  # before last.ckpt, which says that it is there
            trainer.save_checkpoint(self.best)
        start = time.monotonic()
        due = start - self.written > 10 * self.cost or is_last_epoch(trainer)
        if trainer.strategy.broadcast(due):
            trainer.save_checkpoint(self.last)
            self.written = time.monotonic()
            self.cost = self.written - start

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Complete what the fit leaves: frozen weights were left out."""
        assert isinstance(pl_module, TransferModule)
        for path in (self.best, self.last) if trainer.is_global_zero else ():
            if path.is_file():
                complete(path, pl_module.backbone.state_dict(), pl_module.frozen_keys)


def is_last_epoch(trainer: Trainer) -> bool:
    """Whether the epoch that ends is the fit's last. (``trainer.fit_loop.done`` would change its state.)"""
    steps_done = trainer.max_steps != -1 and trainer.global_step >= trainer.max_steps
    return trainer.should_stop or steps_done or trainer.current_epoch + 1 == trainer.max_epochs


class OneCore(Callback):
    """Trains a small head on cached embeddings on one core: a step is so short that threads spend it waiting."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take one, where that is faster."""
        self.threads = torch.get_num_threads()
        assert isinstance(pl_module, TransferModule) and pl_module.head is not None
        if pl_module.data.features and pl_module.head.weight.numel() <= SMALL_HEAD:
            torch.set_num_threads(1)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the others back."""
        torch.set_num_threads(self.threads)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give them back here too."""
        torch.set_num_threads(getattr(self, "threads", torch.get_num_threads()))


class Events(TensorBoardLogger):
    """TensorBoard events in the run directory itself."""

    def save(self) -> None:
        """Flush the events; Lightning would also write an ``hparams.yaml`` beside our ``config.yaml``."""
        self.experiment.flush()


class MetricsTable(Checkpoint):
    """``metrics.csv``: a row an epoch, all logged names; a resumed fit goes on in it.

    (A Checkpoint by type, so that Lightning calls it when the module has logged its epoch; before the
    checkpoints themselves, so that a resumed fit finds every row it needs.)

    Args:
        path: the file to write.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, Any]] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the rows of the epochs before a resumed one."""
        if self.path.is_file():
            with self.path.open(newline="", encoding="utf-8") as file:
                known = list(csv.DictReader(file))
            self.rows = [row for row in known if int(row["epoch"]) < trainer.current_epoch]

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


def check_options(options: Mapping[str, Any]) -> None:
    """Refuse what Lightning's Trainer takes and then fails on.

    Raises:
        UserError: naming the option.
    """
    for name in ("check_val_every_n_epoch", "accumulate_grad_batches"):
        if options[name] is not None and options[name] < 1:
            raise UserError(f"--trainer.{name} is {options[name]}; give 1 or more")
    if str(options["devices"]).isdecimal():  # else a list of GPUs, or auto
        check_devices(int(options["devices"]))
    if options["overfit_batches"]:
        raise UserError("--trainer.overfit_batches shuffles otherwise than we do; give --data.n_per_class N instead")


def make_trainer(run: Path, checkpoints: bool = True, **options: Any) -> Trainer:
    """A Trainer that fills a run directory.

    Args:
        run: the run directory.
        checkpoints: whether to write ``best.ckpt`` and ``last.ckpt``.
        options: as of :class:`lightning.pytorch.Trainer`.
    """
    callbacks, loggers = run_parts(run, checkpoints)
    callbacks += options.pop("callbacks", [])
    plugins = [AtomicCheckpointIO(), *options.pop("plugins", [])]
    given = {**TRAINER_DEFAULTS, **options}
    given.setdefault("logger", loggers)
    return Trainer(callbacks=callbacks, plugins=plugins, **given)


def progress_callback() -> Callback:
    """Lightning's progress bar, on stderr."""
    return RichProgressBar(leave=False, console_kwargs={"stderr": True})


def best_metrics(run: Path) -> dict[str, float]:
    """The metrics logged at the epoch of a run's ``best.ckpt``, as its record keeps them, and that epoch as
    ``val/epoch``, from 1; none without one.
    """
    path = run / "checkpoints" / "best.ckpt"
    if not path.is_file():
        return {}
    content = load(path)
    return {**content[KEY]["metrics"], "val/epoch": epoch_of(content)}


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
