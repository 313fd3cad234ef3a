"""What a run keeps of its training: ``metrics.csv``, ``best.ckpt`` and ``last.ckpt``."""

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
from transferkit.training.checkpoints import (
    AtomicCheckpointIO,
    batches_done,
    epoch_number,
    epochs_of,
    figures,
    link,
    snapshot,
)
from transferkit.training.metrics_table import MetricsTable
from transferkit.training.module import TransferModule

MONITOR, TIE_BREAK = "val/acc", "val/loss"


class Checkpoints(Checkpoint):
    """Rows of ``metrics.csv``; ``best.ckpt``, of the highest ``val/acc``; ``last.ckpt``, for resuming.

    One callback keeps all three, since the order matters: a resumed fit needs every row before its checkpoint, and
    ``best.ckpt`` before ``last.ckpt``, which says that it is there.

    ``best.ckpt`` holds the weights that were measured, also where the validation is within an epoch; of equal
    accuracies, which few images often give, those of the lowest ``val/loss``, then the first. ``last.ckpt`` is written
    after the first epoch and the last, and in between as often as it takes no more than a tenth of the time: where
    epochs are short it may be some epochs old. Until then the best weights wait in memory.

    Args:
        run: the run directory.
        checkpoints: whether to write ``best.ckpt`` and ``last.ckpt``.
    """

    def __init__(self, run: Path, checkpoints: bool = True) -> None:
        self.run, self.checkpoints = run, checkpoints
        self.best, self.last = run / "checkpoints" / "best.ckpt", run / "checkpoints" / "last.ckpt"
        self.table = MetricsTable(run / "metrics.csv")
        self.highest, self.lowest = -math.inf, math.inf  # of MONITOR, and the TIE_BREAK of that
        self.waiting: dict[str, Any] | None = None  # the best weights, not yet written
        self.resumable = False  # whether this fit has written last.ckpt
        self.written, self.cost = time.monotonic(), 0.0  # when a checkpoint was, and how long it took, in seconds

    @property
    def best_model_path(self) -> str:
        """What ``trainer.test(ckpt_path="best")`` opens; empty without one."""
        return str(self.best) if self.best.is_file() else ""

    def state_dict(self) -> dict[str, Any]:
        """The highest score and its loss, for a resumed fit."""
        return {"highest": self.highest, "lowest": self.lowest}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.highest = state_dict["highest"]
        self.lowest = state_dict.get("lowest", -math.inf)  # an earlier version took the first of equal ones

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remove what a killed fit left half-written; keep the rows of the epochs before a resumed one."""
        if trainer.is_global_zero:
            for folder in {path.parent for path in self.run.rglob(".*.tmp")}:
                sweep(folder)
            self.table.rewind(epochs_of(trainer).processed, trainer.global_step)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record a validation within an epoch or before the first, and keep the weights if they are the best."""
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking or batches_done(trainer):
            return  # the end of an epoch has more to tell than its validation
        epoch = epoch_number(trainer)
        self.add_row(trainer, pl_module, {"epoch": epoch} | ({"step": trainer.global_step} if epoch else {}))
        if self.is_best(trainer):
            if epoch and self.is_due(trainer):
                self.write(trainer, trainer._checkpoint_connector.dump_checkpoint(weights_only=False), self.best)
                self.waiting = None
            else:
                self.keep(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write what is due."""
        self.add_row(trainer, pl_module, {"epoch": epoch_number(trainer)})
        measured = getattr(pl_module, "validated_at", None) == trainer.global_step
        # the state of an epoch's end tells also its training loss: it takes the place of the same weights'
        best = measured and self.is_best(trainer)
        if not self.checkpoints:
            return
        if not (self.is_due(trainer) or is_last_epoch(trainer)) and self.resumable:
            if best:
                self.keep(trainer, pl_module)
            return
        start = time.monotonic()
        checkpoint = trainer._checkpoint_connector.dump_checkpoint(
            weights_only=False
        )  # save_checkpoint would make it anew for each file
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

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Write the best weights of a fit that is interrupted after its first epoch."""
        if self.waiting and self.resumable and trainer.is_global_zero:
            with suppress(UserError):  # a full disk has been told of
                self.write(trainer, self.waiting, self.best)

    def add_row(self, trainer: Trainer, pl_module: LightningModule, begin: dict[str, int]) -> None:
        """Write a row of ``metrics.csv``: what is true of the weights as they stand."""
        if trainer.is_global_zero:
            self.table.add({**begin, **figures(trainer, getattr(pl_module, "validated_at", None))})

    def is_best(self, trainer: Trainer) -> bool:
        """Whether the validation that has just ended has the highest score so far, the lowest loss of equal ones."""
        score = float(trainer.callback_metrics.get(MONITOR, -math.inf))
        loss = float(trainer.callback_metrics.get(TIE_BREAK, math.inf))
        improved = (score, -loss) > (self.highest, -self.lowest)
        if improved:
            self.highest, self.lowest = score, loss
        return improved and self.checkpoints

    def is_due(self, trainer: Trainer) -> bool:
        """Whether writing now takes no more than a tenth of the time; the same in every process."""
        return bool(trainer.strategy.broadcast(time.monotonic() - self.written > 10 * self.cost))

    def keep(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let the best weights wait in memory; those that do not learn are not copied."""
        checkpoint = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
        if trainer.is_global_zero:
            self.waiting = snapshot(checkpoint, frozen_addresses(pl_module))

    def write(self, trainer: Trainer, checkpoint: dict[str, Any], path: Path) -> None:
        """Write a checkpoint as ``trainer.save_checkpoint`` does."""
        trainer.strategy.save_checkpoint(checkpoint, path)


def frozen_addresses(module: LightningModule) -> set[int]:
    """Where the tensors that training does not change lie."""
    if not isinstance(module, TransferModule):
        return set()
    state = module.backbone.state_dict()
    return {state[key].data_ptr() for key in module.frozen_keys}


def shares_files(trainer: Trainer) -> bool:
    """Whether a checkpoint is one file, there as soon as it has been saved."""
    return isinstance(trainer.strategy.checkpoint_io, AtomicCheckpointIO) and trainer.is_global_zero


def is_last_epoch(trainer: Trainer) -> bool:
    """Whether the epoch that ends is the fit's last. (``trainer.fit_loop.done`` would change its state.)"""
    steps_done = trainer.max_steps != -1 and trainer.global_step >= trainer.max_steps
    return bool(trainer.should_stop or steps_done or epochs_of(trainer).processed == trainer.max_epochs)
