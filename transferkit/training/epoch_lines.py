"""Progress of a fit on stderr: a progress bar on a terminal, otherwise a line per epoch."""

import sys
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar, RichProgressBar

from transferkit.training.fit_progress import epoch_number, share_done
from transferkit.training.tasks import monitor_of

SECONDS = 5.0  # between two lines, at least


def progress_callbacks(wanted: bool | None, given: Sequence[Callback]) -> tuple[bool | None, list[Callback]]:
    """Choose a progress bar on a terminal and lines elsewhere, unless the user gives a bar or turns it off.

    Args:
        wanted: ``enable_progress_bar`` as the user gave it.
        given: the user's callbacks.

    Returns:
        ``enable_progress_bar`` for the Trainer, and the callbacks to add.
    """
    if any(isinstance(callback, ProgressBar) for callback in given):
        return wanted, []
    if not sys.stderr.isatty():
        return False, [EpochLines()]
    return (False, []) if wanted is False else (True, [FitProgressBar()])


class EpochLines(Callback):
    """Print epoch, losses, accuracy and time left, one line per epoch; short epochs share a line."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.printed_at, self.printed_epoch = 0.0, 0  # of the last line
        self.validated: int | None = None  # epoch of the last validation

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self.clock.start(trainer)
        self.printed_at, self.printed_epoch = time.monotonic(), epoch_number(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the epoch that was validated."""
        self.validated = epoch_number(trainer)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the previous epoch: all of its values are logged by now."""
        if time.monotonic() - self.printed_at >= SECONDS:
            self.print_epoch(trainer, epoch_number(trainer) - 1)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the last epoch."""
        self.print_epoch(trainer, epoch_number(trainer))

    def print_epoch(self, trainer: Trainer, epoch: int) -> None:
        """Print the line of an epoch, once."""
        if epoch <= self.printed_epoch or not trainer.is_global_zero:
            return
        self.printed_at, self.printed_epoch = time.monotonic(), epoch
        names = ["train/loss", *(["val/loss", monitor_of(trainer.lightning_module)] if self.validated == epoch else [])]
        values = [f"{name} {trainer.callback_metrics[name]:.4f}" for name in names if name in trainer.callback_metrics]
        left = self.clock.left(trainer)
        of = f"/{trainer.max_epochs}" if (trainer.max_epochs or -1) > 0 else ""
        rest = [f"{left} left"] if left and not trainer.should_stop else []
        print("  ".join([f"epoch {epoch}{of}", *values, *rest]), file=sys.stderr, flush=True)


class FitProgressBar(RichProgressBar):
    """Lightning's progress bar on stderr, with the accuracy and the time until the fit ends."""

    def __init__(self) -> None:
        super().__init__(leave=False, console_kwargs={"stderr": True})
        self.clock = Clock()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self.clock.start(trainer)
        super().on_train_start(trainer, pl_module)

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """Return the values to show beside the bar."""
        items: dict[str, Any] = dict(super().get_metrics(trainer, pl_module))
        monitor = monitor_of(pl_module)
        if monitor in trainer.callback_metrics:
            items[monitor] = float(trainer.callback_metrics[monitor])
        left = self.clock.left(trainer)
        return {**items, **({"fit ends in": left} if left else {})}

    def _get_train_description(self, current_epoch: int) -> str:
        of = f"/{self.trainer.max_epochs}" if (self.trainer.max_epochs or -1) > 0 else ""
        return f"Epoch {current_epoch + 1}{of} "


class Clock:
    """Estimate of the time that a fit still takes, at its speed so far."""

    def __init__(self) -> None:
        self.begun, self.share = time.monotonic(), 0.0

    def start(self, trainer: Trainer) -> None:
        """Start the clock, at the share that a resumed fit has done."""
        self.begun, self.share = time.monotonic(), share_done(trainer)

    def left(self, trainer: Trainer) -> str:
        """Return the time left as ``1:23:45``; empty at the beginning, at the end, and if no end is known."""
        done = share_done(trainer)
        if not self.share < done < 1:
            return ""
        seconds = (time.monotonic() - self.begun) * (1 - done) / (done - self.share)
        return str(timedelta(seconds=round(seconds)))
