"""The average of the weights of several fits, chosen greedily on val (Wortsman et al. 2022, arXiv:2203.05482)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn

from transferkit.data.datamodule import ImageDataModule
from transferkit.errors import UserError
from transferkit.extractor.checkpoint_reader import KEY, load
from transferkit.training.checkpoints import EPOCH
from transferkit.training.lora import leave_out_base
from transferkit.training.module import TransferModule
from transferkit.training.run_record import TIE_BREAK, number_or

State = Mapping[str, Tensor]
OF_A_FIT = {  # what a checkpoint has to resume
    "optimizer_states", "lr_schedulers", "callbacks", "current_model_state", "averaging_state", EPOCH,
}  # fmt: skip


@dataclass
class Average:
    """The mean of states, summed in float64, so that equal tensors stay equal to the bit.

    Attributes:
        first: the state whose other tensors, such as counts, are kept.
        sums: of the floating-point tensors.
        count: number of states.
    """

    first: State
    sums: dict[str, Tensor] = field(default_factory=dict)
    count: int = 0

    def with_state(self, state: State) -> "Average":
        """Return the average of one more state."""
        parts = {name: value.double() for name, value in state.items() if value.is_floating_point()}
        sums = {name: self.sums[name] + part if self.count else part for name, part in parts.items()}
        return Average(self.first, sums, self.count + 1)

    def state(self) -> dict[str, Tensor]:
        """Return the mean, each tensor in its own type."""
        means = {name: (total / self.count).to(self.first[name].dtype) for name, total in self.sums.items()}
        return {name: means.get(name, value) for name, value in self.first.items()}


@dataclass
class Ingredient:
    """One of the fits.

    Attributes:
        number: of the fit.
        score: on val, of it alone.
        loss: on val.
        tried: score of the average with it; of the best one its own, measured again.
        kept: whether it is in the soup.
    """

    number: int
    score: float
    loss: float
    tried: float = 0.0
    kept: bool = False


def greedy_average(
    files: Sequence[Path], monitor: str, measure: Callable[[dict[str, Any], bool], dict[str, Any]]
) -> tuple[dict[str, Any], list[Ingredient]]:
    """Average checkpoints, the best on val first; each one joins if the average is not worse on val with it.

    So the result is never worse on val than the best of them, which is what is left if none joins.

    Args:
        files: the best checkpoint of each fit.
        monitor: name of the metric.
        measure: measures a checkpoint, which may be an average, on val; returns it with its metrics.

    Returns:
        The checkpoint, and the ingredients in the order in which they were tried.

    Raises:
        UserError: an ingredient was not measured on val.
    """
    ingredients = []
    for number, file in enumerate(files):
        metrics = load(file)[KEY]["metrics"]
        if monitor not in metrics:
            raise UserError(f"{file} was not measured on val, so there is nothing to choose by; leave out `soup`")
        ingredients.append(Ingredient(number, number_or(metrics[monitor], -torch.inf), metrics[TIE_BREAK]))
    ingredients.sort(key=lambda one: (-one.score, one.loss, one.number))
    first = load(files[ingredients[0].number])
    content, average = first, Average(first["state_dict"])
    for position, one in enumerate(ingredients):
        with_it = average.with_state(load(files[one.number])["state_dict"])
        candidate = measure({**first, "state_dict": with_it.state()}, position > 0)
        one.tried = number_or(candidate[KEY]["metrics"].get(monitor), -torch.inf)
        one.kept = not position or one.tried >= number_or(content[KEY]["metrics"].get(monitor), -torch.inf)
        if one.kept:
            content, average = candidate, with_it
    kept = [one.number for one in ingredients if one.kept]
    soup = {"fits": len(files), "kept": kept}
    content = {key: value for key, value in content.items() if key not in OF_A_FIT}
    return {**content, KEY: {**content[KEY], "soup": soup}}, ingredients


def measure_on_val(
    content: dict[str, Any], averaged: bool, *, module: TransferModule, data: ImageDataModule, trainer: Trainer
) -> dict[str, Any]:
    """Return a checkpoint with its metrics on val; an average has BatchNorm's statistics computed anew.

    Args:
        content: the checkpoint.
        averaged: whether its weights are an average.
        module: of the same options, connected with the data; it takes over the weights.
        data: of the fits.
        trainer: measures.
    """
    content = {**content, "state_dict": dict(content["state_dict"]), KEY: dict(content[KEY])}
    module.on_load_checkpoint(content)
    module.load_state_dict(content["state_dict"])
    if averaged:
        refresh_statistics(module, data, trainer)
    trainer.validate(module, datamodule=data, verbose=False)
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    state = {name: value.detach().cpu().clone() for name, value in module.state_dict().items()}
    record = {**content[KEY], **module.task.describe(module.class_names), "metrics": metrics}
    measured = {**content, "state_dict": state, KEY: record}
    if module.adapters:
        leave_out_base(measured, module.adapters)
    return measured


@torch.no_grad()
def refresh_statistics(module: TransferModule, data: ImageDataModule, trainer: Trainer) -> None:
    """Compute the statistics of BatchNorm layers that learn by one pass over the training images.

    They are mean and variance of what enters a layer. What enters it with averaged weights is not the average of what
    entered it with the weights of each: its variance is lower, since the fits' differences cancel (Jordan et al. 2022,
    arXiv:2211.08403). Averaged statistics are therefore those of no network.

    Args:
        module: with averaged weights.
        data: of the fits.
        trainer: whose device and precision are used.
    """
    module.train()
    kind = nn.modules.batchnorm._BatchNorm
    norms = [part for part in module.backbone.modules() if isinstance(part, kind) and part.training]
    norms = [norm for norm in norms if norm.track_running_stats]
    module.eval()
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    for norm in norms:  # all else stays in eval mode, as where the statistics are used
        norm.train()
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all batches
    device = trainer.strategy.root_device
    module.to(device)
    with trainer.precision_plugin.forward_context():
        for batch in data.train_dataloader():
            module.embed({name: value.to(device) for name, value in batch.items()})
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    module.eval().cpu()
