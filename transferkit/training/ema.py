"""The exponential moving average of the weights during a fit, which is what is validated and kept."""

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor


class MovingAverage(WeightAveraging):
    """Average the parameters after each step; buffers, such as BatchNorm's statistics, are copied.

    The average moves by ``1 - decay`` of its distance from the weights. In the first steps it moves faster, by
    ``9 / (10 + n)`` after n steps, so that it soon forgets the first weights. Equal weights stay equal to the bit.
    Validations measure the average; a checkpoint has it as its weights, and the others to resume from.

    Args:
        decay: in [0, 1).
    """

    def __init__(self, decay: float) -> None:
        @torch.no_grad()
        def move(averages: list[Tensor], weights: list[Tensor], count: Tensor | int) -> None:
            share = 1 - min(decay, (1 + int(count)) / (10 + int(count)))
            for average, weight in zip(averages, weights, strict=True):
                average.lerp_(weight, share)

        super().__init__(use_buffers=False, multi_avg_fn=move)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Make room for the average of a fit; an evaluation has none, also after a fit that was interrupted."""
        self._average_model = None
        super().setup(trainer, pl_module, stage)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin a new average with the weights as they are now, on the device of the training."""
        assert self._average_model is not None
        self._average_model.to(pl_module.device)
        if not self._average_model.n_averaged:
            self._average_model.module.load_state_dict(pl_module.state_dict())
        # another callback may have written the checkpoint after the step, but before it was averaged
        self.on_train_batch_end(trainer, pl_module, None, None, 0)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the average as the module's weights; a later evaluation has no other."""
        super().on_train_end(trainer, pl_module)
        self._average_model = None

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validate the average; what a network computes from its weights in eval mode is computed again."""
        super().on_validation_epoch_start(trainer, pl_module)
        pl_module.eval()

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Put the average in the place of the weights, during a fit."""
        if self._average_model is not None:
            super().on_save_checkpoint(trainer, pl_module, checkpoint)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Restore the weights beside their average, for a fit that is resumed."""
        if self._average_model is not None:
            super().on_load_checkpoint(trainer, pl_module, checkpoint)
