"""Progress of the Trainer on stderr: a bar on a terminal, otherwise a line per epoch and now and then within it."""

import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar, RichProgressBar
from rich.progress import ProgressColumn, Task
from rich.text import Text
from torch import Tensor

from transferkit.runtime.progress import LineClock, minutes, rate_text
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
    """Print epoch, losses, accuracy and time left, one line per epoch; short epochs share a line.

    Long epochs, and tests and predictions that take long, get lines in between, see :class:`BatchLines`.
    """

    def __init__(self) -> None:
        self.clock = Clock()
        self.printed_at, self.printed_epoch = 0.0, 0  # of the last line
        self.validated: int | None = None  # epoch of the last validation
        self.training = self.evaluating = BatchLines("", math.inf)

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
        label = f"training epoch {epoch_number(trainer)}{number_of_epochs(trainer)}"
        self.training = BatchLines(label, trainer.num_training_batches)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the last epoch."""
        self.print_epoch(trainer, epoch_number(trainer))

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin the lines of a validation."""
        self.evaluating = BatchLines("validation", sum(trainer.num_val_batches))

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin the lines of a test."""
        self.evaluating = BatchLines("test", sum(trainer.num_test_batches))

    def on_predict_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin the lines of a prediction."""
        self.evaluating = BatchLines("prediction", sum(trainer.num_predict_batches))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count a batch of training, and print a line if one is due."""
        self.count(trainer, self.training, batch)

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        """Count a batch of a validation, a test or a prediction."""
        self.count(trainer, self.evaluating, batch)

    on_test_batch_end = on_predict_batch_end = on_validation_batch_end

    def count(self, trainer: Trainer, lines: "BatchLines", batch: Any) -> None:
        """Count a batch, and print a line if one is due."""
        line = lines.advance(images_in(batch) * trainer.world_size)
        if line and trainer.is_global_zero:
            print(line, file=sys.stderr, flush=True)

    def print_epoch(self, trainer: Trainer, epoch: int) -> None:
        """Print the line of an epoch, once."""
        if epoch <= self.printed_epoch or not trainer.is_global_zero:
            return
        self.printed_at, self.printed_epoch = time.monotonic(), epoch
        names = ["train/loss", *(["val/loss", monitor_of(trainer.lightning_module)] if self.validated == epoch else [])]
        values = [f"{name} {trainer.callback_metrics[name]:.4f}" for name in names if name in trainer.callback_metrics]
        left = self.clock.left(trainer)
        rest = [f"{left} left"] if left and not trainer.should_stop else []
        print("  ".join([f"epoch {epoch}{number_of_epochs(trainer)}", *values, *rest]), file=sys.stderr, flush=True)


def number_of_epochs(trainer: Trainer) -> str:
    """Return ``/10`` of a fit of 10 epochs; nothing if no number was given."""
    return f"/{trainer.max_epochs}" if (trainer.max_epochs or -1) > 0 else ""


def images_in(batch: Any) -> int:
    """Return the number of images in a batch; 0 if it has no tensor."""
    parts = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, list | tuple) else [batch]
    return next((len(part) for part in parts if isinstance(part, Tensor) and part.ndim), 0)


class BatchLines:
    """Lines in a log about a long pass over batches: the first after 10 s, then one every 30 s.

    Args:
        label: which pass.
        batches: its number of batches; infinite if it is not known.
        clock: seconds.
    """

    def __init__(self, label: str, batches: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.label, self.batches, self.clock = label, batches, LineClock(clock)
        self.done, self.images = 0, 0

    def advance(self, images: int) -> str | None:
        """Count a batch, and return a line if one is due.

        Args:
            images: in the batch, of all processes.
        """
        self.done, self.images = self.done + 1, self.images + images
        if self.done >= self.batches or (seconds := self.clock.seconds_if_due()) is None:
            return None
        known = math.isfinite(self.batches)
        of = f" of {self.batches:,.0f}" if known else ""
        left = f", about {minutes(seconds / self.done * (self.batches - self.done))} left" if known else ""
        return f"{self.label}: batch {self.done:,}{of}, {rate_text(self.images / seconds)} images/s{left}"


class ImageRate(ProgressColumn):
    """Images per second of a pass over batches."""

    def __init__(self) -> None:
        super().__init__()
        self.images = 0  # of a batch

    def render(self, task: Task) -> Text:
        """Return the rate of one task so far."""
        return Text(f"{task.speed * self.images:,.0f} images/s" if task.speed and self.images else "")


class FitProgressBar(RichProgressBar):
    """Lightning's progress bar on stderr, with images per second, the accuracy and the time until the fit ends."""

    def __init__(self) -> None:
        super().__init__(leave=False, console_kwargs={"stderr": True})
        self.clock, self.rate = Clock(), ImageRate()

    def configure_columns(self, trainer: Trainer) -> list[Any]:
        """Return Lightning's columns with images instead of batches per second."""
        return [*super().configure_columns(trainer)[:-1], self.rate]

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Note how many images a batch has."""
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        self.rate.images = images_in(batch) * trainer.world_size

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Note how many images a batch has."""
        super().on_validation_batch_start(trainer, pl_module, batch, batch_idx, dataloader_idx)
        self.rate.images = images_in(batch) * trainer.world_size

    def on_test_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Note how many images a batch has."""
        super().on_test_batch_start(trainer, pl_module, batch, batch_idx, dataloader_idx)
        self.rate.images = images_in(batch) * trainer.world_size

    def on_predict_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Note how many images a batch has."""
        super().on_predict_batch_start(trainer, pl_module, batch, batch_idx, dataloader_idx)
        self.rate.images = images_in(batch) * trainer.world_size

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
        return f"Epoch {current_epoch + 1}{number_of_epochs(self.trainer)} "


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
