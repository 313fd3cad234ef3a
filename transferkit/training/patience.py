"""The callback that ends a fit that no longer gets better."""

import logging
import math
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from transferkit.errors import UserError
from transferkit.training.fit_progress import epoch_number
from transferkit.training.run_record import TIE_BREAK, number_or
from transferkit.training.tasks import monitor_of

log = logging.getLogger(__name__)


class Patience(Callback):
    """End a fit after some epochs without a better validation, by the order that decides on ``best.ckpt``.

    Epochs before ``min_epochs`` of the Trainer do not end it. A resumed fit continues to count.

    Args:
        epochs: how many.

    Raises:
        UserError: fewer than 1.
    """

    def __init__(self, epochs: int) -> None:
        if epochs < 1:
            raise UserError(f"`patience` is {epochs}; give 1 or more epochs")
        self.epochs = epochs
        self.best = (-math.inf, -math.inf)  # the metric, and TIE_BREAK with its sign changed
        self.since, self.improved, self.measured = 0, False, False  # epochs since the best; within this epoch

    def state_dict(self) -> dict[str, Any]:
        """Return the best validation, and the number of epochs since."""
        return {"best": list(self.best), "since": self.since, "improved": self.improved, "measured": self.measured}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the count."""
        self.best, self.since = tuple(state_dict["best"]), state_dict["since"]
        self.improved, self.measured = state_dict["improved"], state_dict["measured"]

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare a validation of the fit with the best before."""
        values, monitor = trainer.callback_metrics, monitor_of(pl_module)
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking or monitor not in values:
            return
        score = (number_or(values[monitor], -math.inf), -float(values.get(TIE_BREAK, math.inf)))
        self.measured = True
        if score > self.best:
            self.best, self.improved = score, True

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count an epoch without a better validation, and end the fit after enough of them."""
        if self.improved:
            self.since = 0
        elif self.measured:
            self.since += 1
        self.improved = self.measured = False
        if self.since >= self.epochs and epoch_number(trainer) >= (trainer.min_epochs or 0):
            log.warning("the fit ends after epoch %d: %d without a better one", epoch_number(trainer), self.since)
            trainer.should_stop = True
