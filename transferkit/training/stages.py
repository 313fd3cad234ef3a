"""Regime ``stages``: gradual unfreezing (Howard and Ruder 2018, arXiv:1801.06146) within one fit."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

from transferkit.backbones import Backbone
from transferkit.training.network import TransferNetwork
from transferkit.training.optimizers import progress_of


def first_in_phase(progress: float, count: int) -> int:
    """Return the first stage that learns: the head alone learns first, then one more stage from the top per phase.

    Args:
        progress: share of the training that is done, in [0, 1].
        count: number of stages; there is one phase more, and all are equally long.

    >>> [first_in_phase(step / 6, 2) for step in range(6)]
    [2, 2, 1, 1, 0, 0]
    """
    return count - min(int(progress * (count + 1)), count)


class GradualUnfreezing(Callback):
    """Let the stages learn one after the other, by the share of the fit that is done.

    A stage that does not learn yet is in eval mode, and its parameters have no gradient when the optimizer steps, which
    then passes over them: neither weight decay nor momentum moves them. A stage that has begun to learn goes on, also
    if a fit is resumed with more epochs.

    Args:
        network: whose parameters may all learn, but for those that no gradient reaches.
    """

    def __init__(self, network: TransferNetwork) -> None:
        self.parameters = learning_parameters(network.backbone)
        self.count = len(network.backbone.stages)
        self.first = self.count

    def state_dict(self) -> dict[str, Any]:
        """Return the first stage that learns."""
        return {"first": self.first}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore it."""
        self.first = state_dict["first"]

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Let the stages of this phase learn.

        Of the others no gradient is computed. DistributedDataParallel waits for those of all parameters that were to
        learn when it was made, so there they are computed, and dropped.
        """
        assert isinstance(pl_module, TransferNetwork)
        self.first = min(self.first, first_in_phase(progress_of(trainer, batch_idx), self.count))
        if pl_module.learns_from != self.first:
            pl_module.learns_from = self.first
            for parameter, stage in self.parameters:
                parameter.requires_grad_(stage >= self.first or trainer.world_size > 1)
            pl_module.train()

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Drop the gradients of the stages that do not learn yet."""
        for parameter, stage in self.parameters:
            if stage < self.first:
                parameter.grad = None

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log how many stages learn."""
        pl_module.log("stages", float(self.count - self.first), sync_dist=True)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the module as it was, for another fit."""
        assert isinstance(pl_module, TransferNetwork)
        pl_module.learns_from = pl_module.first_trainable
        for parameter, _ in self.parameters:
            parameter.requires_grad_(True)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the module as it was, for another fit."""
        self.on_train_end(trainer, pl_module)


def learning_parameters(backbone: Backbone) -> list[tuple[nn.Parameter, int]]:
    """Return the parameters of a backbone that may learn, each with the index of its stage."""
    named = backbone.model.named_parameters()
    return [(parameter, backbone.stage_of(name)) for name, parameter in named if parameter.requires_grad]
