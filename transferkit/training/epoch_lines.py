"""How far a fit is: a line per epoch where stderr is no terminal, a progress bar where it is one."""

import sys
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar, RichProgressBar

from transferkit.training.checkpoints import epoch_number, epochs_of

SECONDS = 5.0  # between two lines


def progress_callbacks(wanted: bool | None, given: Sequence[Callback]) -> tuple[bool | None, list[Callback]]:
    """A bar on a terminal, lines elsewhere, unless the user has brought a bar or wants none.

    Args:
        wanted: the Trainer's ``enable_progress_bar``.
        given: the user's callbacks.

    Returns:
        What the Trainer is to be given in its place, and the callbacks to add.
    """
    if any(isinstance(callback, ProgressBar) for callback in given):
        return wanted, []
    if not sys.stderr.isatty():
        return False, [EpochLines()]
    return (False, []) if wanted is False else (True, [FitProgressBar()])


class EpochLines(Callback):
    """Print epoch, losses, accuracy and the time left, one line per epoch; of short epochs not every one."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.printed, self.told = 0.0, 0
        self.validated: int | None = None  # the epoch that was last measured

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self.clock.start(trainer)
        self.printed, self.told = time.monotonic(), epoch_number(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note which epoch has a new accuracy."""
        self.validated = epoch_number(trainer)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Tell of the epoch before, whose values are all logged by now."""
        if time.monotonic() - self.printed >= SECONDS:
            self.tell(trainer, epoch_number(trainer) - 1)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Tell of the last epoch."""
        self.tell(trainer, epoch_number(trainer))

    def tell(self, trainer: Trainer, epoch: int) -> None:
        """Print the line of an epoch, once."""
        if epoch <= self.told or not trainer.is_global_zero:
            return
        self.printed, self.told = time.monotonic(), epoch
        names = ["train/loss", *(["val/loss", "val/acc"] if self.validated == epoch else [])]
        values = [f"{name} {trainer.callback_metrics[name]:.4f}" for name in names if name in trainer.callback_metrics]
        left = self.clock.left(trainer)
        of = f"/{trainer.max_epochs}" if (trainer.max_epochs or -1) > 0 else ""
        rest = [f"{left} left"] if left and not trainer.should_stop else []
        print("  ".join([f"epoch {epoch}{of}", *values, *rest]), file=sys.stderr, flush=True)


class FitProgressBar(RichProgressBar):
    """Lightning's progress bar on stderr, with the accuracy and the time left of the whole fit."""

    def __init__(self) -> None:
        super().__init__(leave=False, console_kwargs={"stderr": True})
        self.clock = Clock()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self.clock.start(trainer)
        super().on_train_start(trainer, pl_module)

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """What stands beside the bar."""
        items: dict[str, Any] = dict(super().get_metrics(trainer, pl_module))
        if "val/acc" in trainer.callback_metrics:
            items["val/acc"] = float(trainer.callback_metrics["val/acc"])
        left = self.clock.left(trainer)
        return {**items, **({"fit ends in": left} if left else {})}

    def _get_train_description(self, current_epoch: int) -> str:
        of = f"/{self.trainer.max_epochs}" if (self.trainer.max_epochs or -1) > 0 else ""
        return f"Epoch {current_epoch + 1}{of} "


class Clock:
    """How long the rest of a fit takes, if it goes on as fast as until now."""

    def __init__(self) -> None:
        self.begun, self.share = time.monotonic(), 0.0

    def start(self, trainer: Trainer) -> None:
        """Begin, perhaps where a resumed fit was."""
        self.begun, self.share = time.monotonic(), share_done(trainer)

    def left(self, trainer: Trainer) -> str:
        """As ``1:23:45``; empty at the beginning, and where no end is known or it is reached."""
        done = share_done(trainer)
        if not self.share < done < 1:
            return ""
        seconds = (time.monotonic() - self.begun) * (1 - done) / (done - self.share)
        return str(timedelta(seconds=round(seconds)))


def share_done(trainer: Trainer) -> float:
    """How much of a fit is done, from 0 to 1, by epochs, batches and steps."""
    epochs, shares = trainer.max_epochs or -1, [0.0]
    if epochs > 0:
        begun, done = epochs_of(trainer).ready, epochs_of(trainer).processed
        batches = trainer.fit_loop.epoch_loop.batch_progress.current.ready
        part = batches / trainer.num_training_batches if begun > done and trainer.num_training_batches else 0.0
        shares.append((done + part % 1) / epochs)  # as an epoch begins, they are still those of the one before
    if trainer.max_steps > 0:
        shares.append(trainer.global_step / trainer.max_steps)
    return min(1.0, max(shares))
