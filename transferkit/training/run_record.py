"""The callback that writes ``metrics.csv``, ``best.ckpt`` and ``last.ckpt`` during a fit."""

import logging
import math
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.trainer.states import TrainerFn

from transferkit.errors import UserError
from transferkit.runtime.files import sweep
from transferkit.training.checkpoints import AtomicCheckpointIO, current_metrics, link, snapshot
from transferkit.training.fit_progress import batches_done, epoch_number, epochs_of, is_last_epoch
from transferkit.training.metrics_table import MetricsTable
from transferkit.training.module import TransferModule
from transferkit.training.tasks import monitor_of

log = logging.getLogger(__name__)

TIE_BREAK = "val/loss"


class Checkpoints(Checkpoint):
    """Write rows of ``metrics.csv``; ``best.ckpt``, of the highest ``val/acc`` (or ``val/map``, ``val/r2``);
    ``last.ckpt``, to resume.

    One callback writes all three, since their order matters: a resumed fit needs every row before its checkpoint, and
    ``best.ckpt`` before ``last.ckpt``, which records the highest score. It is a Lightning ``Checkpoint``, so
    ``trainer.test(ckpt_path="best")`` finds it, and Lightning calls it after all other callbacks: rows and checkpoints
    contain what these log and change.

    ``best.ckpt`` holds the weights that were measured, also for a validation within an epoch; of equal accuracies,
    which few images often give, those with the lowest ``val/loss``, then the first. ``last.ckpt`` is written after the
    first epoch and the last, and in between as often as writing takes at most a tenth of the time: with short epochs it
    may be a few epochs old. Until then the best weights wait in memory.

    Args:
        run: the run directory.
        checkpoints: whether to write ``best.ckpt`` and ``last.ckpt``.
    """

    def __init__(self, run: Path, checkpoints: bool = True) -> None:
        self.run, self.checkpoints = run, checkpoints
        self.best, self.last = run / "checkpoints" / "best.ckpt", run / "checkpoints" / "last.ckpt"
        self.table = MetricsTable(run / "metrics.csv")
        self.highest, self.lowest = -math.inf, math.inf  # of the metric, and the TIE_BREAK of that
        self.epoch: int | None = None  # of these; 0 is the start
        self.waiting: dict[str, Any] | None = None  # the best weights, not yet written
        self.resumable = False  # whether this fit has written last.ckpt
        self.written, self.cost = time.monotonic(), 0.0  # time of the last writing, and its duration, in s

    @property
    def best_model_path(self) -> str:
        """The file that ``trainer.test(ckpt_path="best")`` opens; empty if there is none."""
        return str(self.best) if self.best.is_file() else ""

    def state_dict(self) -> dict[str, Any]:
        """Return the highest score and its loss, for a resumed fit."""
        return {"highest": self.highest, "lowest": self.lowest, "epoch": self.epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the highest score."""
        self.highest = state_dict["highest"]
        self.epoch = state_dict.get("epoch")
        self.lowest = state_dict.get("lowest", -math.inf)  # an earlier version took the first of equal ones

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remove temporary files of a killed fit; keep the rows before the epoch that a fit resumes with."""
        if trainer.is_global_zero:
            for folder in {path.parent for path in self.run.rglob(".*.tmp")}:
                sweep(folder)
            self.table.rewind(epochs_of(trainer).processed, trainer.global_step)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record a validation within an epoch or before the first; keep the weights if they are the best."""
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking or batches_done(trainer):
            return  # on_train_epoch_end records it, with the training loss
        epoch = epoch_number(trainer)
        self.add_row(trainer, pl_module, {"epoch": epoch} | ({"step": trainer.global_step} if epoch else {}))
        if self.is_best(trainer):
            if epoch and self.is_due(trainer):
                self.write(trainer, dump(trainer), self.best)
                self.waiting = None
            else:
                self.keep(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the row of the epoch, and the checkpoints that are due."""
        self.add_row(trainer, pl_module, {"epoch": epoch_number(trainer)})
        measured = getattr(pl_module, "validated_at", None) == trainer.global_step
        # replaces a checkpoint of the same weights from on_validation_end: this one also has the training loss
        best = measured and self.is_best(trainer)
        if not self.checkpoints:
            return
        if not (self.is_due(trainer) or is_last_epoch(trainer)) and self.resumable:
            if best:
                self.keep(trainer, pl_module)
            return
        start = time.monotonic()
        checkpoint = dump(trainer)  # save_checkpoint would make it again for each file
        if best:
            self.waiting = None
            self.write(trainer, checkpoint, self.best)
        elif self.waiting:
            self.write(trainer, self.waiting, self.best)
            self.waiting = None
        if not (best and shares_files(trainer) and link(self.best, self.last)):
            self.write(trainer, checkpoint, self.last)
        trainer.strategy.barrier("Checkpoints")
        self.resumable = True
        self.written = time.monotonic()
        self.cost = self.written - start

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Warn if training has only made it worse."""
        if self.epoch == 0 and trainer.global_step and trainer.is_global_zero:
            log.warning(
                "no epoch is better on val than the start, so best.ckpt is the start (epoch 0); "
                "give lower rates: `lr_backbone`, `lr_head`"
            )

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Write the best weights if the fit is interrupted after its first epoch."""
        if self.waiting and self.resumable and trainer.is_global_zero:
            with suppress(UserError):  # a full disk, reported before
                self.write(trainer, self.waiting, self.best)

    def add_row(self, trainer: Trainer, pl_module: LightningModule, begin: dict[str, int]) -> None:
        """Write a row of ``metrics.csv`` with the metrics of the weights as they are now."""
        if trainer.is_global_zero:
            self.table.add({**begin, **current_metrics(trainer, getattr(pl_module, "validated_at", None))})

    def is_best(self, trainer: Trainer) -> bool:
        """Return whether the last validation has the highest score so far, or the lowest loss of equal ones."""
        monitor = monitor_of(trainer.lightning_module)
        score = number_or(trainer.callback_metrics.get(monitor), -math.inf)
        loss = float(trainer.callback_metrics.get(TIE_BREAK, math.inf))
        improved = (score, -loss) > (self.highest, -self.lowest)
        if improved:
            self.highest, self.lowest, self.epoch = score, loss, epoch_number(trainer)
        return improved and self.checkpoints

    def is_due(self, trainer: Trainer) -> bool:
        """Return whether writing now takes at most a tenth of the time; the same in every process."""
        return bool(trainer.strategy.broadcast(time.monotonic() - self.written > 10 * self.cost))

    def keep(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the best weights in memory; those that do not learn are not copied."""
        checkpoint = dump(trainer)
        if trainer.is_global_zero:
            self.waiting = snapshot(checkpoint, frozen_addresses(pl_module))

    def write(self, trainer: Trainer, checkpoint: dict[str, Any], path: Path) -> None:
        """Write a checkpoint to a file, as ``trainer.save_checkpoint`` does."""
        trainer.strategy.save_checkpoint(checkpoint, path)


def number_or(value: Any, other: float) -> float:
    """Return a metric as a float; another value where it is missing or undefined."""
    return other if value is None or math.isnan(float(value)) else float(value)


def dump(trainer: Trainer) -> dict[str, Any]:
    """Return the content of a checkpoint; it shares its tensors with the training."""
    return trainer._checkpoint_connector.dump_checkpoint(weights_only=False)


def frozen_addresses(module: LightningModule) -> set[int]:
    """Return the addresses of the tensors that training does not change."""
    if not isinstance(module, TransferModule):
        return set()
    state = module.backbone.state_dict()
    return {state[key].data_ptr() for key in module.frozen_keys}


def shares_files(trainer: Trainer) -> bool:
    """Return whether a checkpoint is one file that is complete as soon as it has been saved."""
    return isinstance(trainer.strategy.checkpoint_io, AtomicCheckpointIO) and trainer.is_global_zero
