"""The learning rate of a backbone, chosen on val by short fits from the same start."""

import copy
import logging
from collections.abc import Iterator
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import GradClipAlgorithmType
from torch import Tensor

from transferkit.data.batches import Batch, EpochBatchSampler, loader_of
from transferkit.data.datamodule import ImageDataModule
from transferkit.errors import UserError
from transferkit.extractor.core import head_logits
from transferkit.extractor.forward import training_input
from transferkit.images.augmentation import view_seed
from transferkit.runtime.ranks import joined
from transferkit.training.mixing import mixed, weigh_rows
from transferkit.training.network import TransferNetwork
from transferkit.training.optimizers import (
    CosineWithWarmup,
    chosen_rates,
    cosine_with_warmup,
    group_rates,
    make_optimizer,
)
from transferkit.training.regimes import set_mode

log = logging.getLogger(__name__)

FACTORS = (0.3, 1.0, 3.0, 10.0, 30.0)  # of the default rate
# A short fit prefers a higher rate than a long one: 40 steps end at 97.1 % with the best rate of 10 steps, with half of
# it at 97.7 %, with a third at 98.0 % (digits, ResNet18 of CIFAR-10, tests/bench/bench_transfer.py):
# the three draws that it was set on.
MARGIN = 1 / 3
SHARE, FEWEST, MOST = 0.05, 10, 200  # of the steps of the fit, for each rate
WARMUP = 0.2  # share of these steps
MOST_VAL = 2000  # images of val


class BackboneRateChoice(Callback):
    """Choose the rate before the first step of a new fit; a resumed one has it from its checkpoint."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Choose, and replace the rates of the schedule.

        Raises:
            UserError: the rates follow another schedule.
        """
        assert isinstance(pl_module, TransferNetwork) and pl_module.head is not None
        if pl_module.chosen or trainer.global_step:
            return
        schedule = trainer.lr_scheduler_configs[0].scheduler if trainer.lr_scheduler_configs else None
        if not isinstance(schedule, CosineWithWarmup):
            raise UserError('`lr_backbone="auto"` needs the schedule of a TransferModule; give a number')
        pl_module.chosen = choose_backbone_rate(pl_module, trainer.datamodule, trainer)  # type: ignore[attr-defined]
        options = {**pl_module.hparams, **pl_module.chosen}
        schedule.replace_rates(group_rates(pl_module.backbone, pl_module.head, options, pl_module.starts_trained))


def choose_backbone_rate(network: TransferNetwork, data: ImageDataModule, trainer: Trainer) -> dict[str, float]:
    """Return ``lr_backbone``: a third of the rate with the lowest loss on val after a short fit, in all processes.

    Each rate begins with the same weights, sees the same batches, and has the whole schedule in its steps. The first
    process does it alone, each global batch in as many parts as there are processes.

    Args:
        network: with the head that the fit starts from; it is not changed.
        data: of the fit.
        trainer: of the fit.

    Raises:
        UserError: the data has its own loaders, or no rate has a finite loss.
    """
    loader = data.train_dataloader()
    sampler = getattr(loader, "sampler", None)
    if not isinstance(sampler, EpochBatchSampler):
        raise UserError('`lr_backbone="auto"` needs the images of an ImageDataModule; give a number')
    options = network.hparams
    _, default = chosen_rates(options["lr_head"], None, network.backbone, options["regime"])
    steps = trial_length(trainer, len(sampler))

    def choose() -> dict[str, float]:
        losses = {factor * default: trial(network, data, trainer, factor * default, steps) for factor in FACTORS}
        best = min(losses, key=lambda rate: losses[rate])
        listing = ", ".join(f"{rate:.2g} {loss:.4f}" for rate, loss in losses.items())
        if losses[best] == torch.inf:
            raise UserError("no rate of the backbone has a finite loss; give `lr_backbone` and a lower `lr_head`")
        rate = best * MARGIN
        log.info("the backbone learns at %.2g, a third of the best; val/loss after %d steps: %s", rate, steps, listing)
        return {"lr_backbone": rate}

    with joined() as ranks:
        return ranks.from_first(choose)


def trial_length(trainer: Trainer, batches: int) -> int:
    """Return the number of steps per rate, of a fit with so many batches per epoch."""
    lengths = [(trainer.max_epochs or -1) * batches, trainer.max_steps]
    return min(max(round(SHARE * min(length for length in lengths if length > 0)), FEWEST), MOST)


def trial(network: TransferNetwork, data: ImageDataModule, trainer: Trainer, rate: float, steps: int) -> float:
    """Return the loss on val after a short fit of a copy of the network; infinity if it is not finite."""
    options: Any = {**network.hparams, "lr_backbone": rate}
    backbone, head = copy.deepcopy((network.backbone, network.head))
    assert head is not None
    groups = group_rates(backbone, head, options, network.starts_trained)
    optimizer = make_optimizer("sgd" if options["optimizer"] == "sgd" else "adamw", groups, options["momentum"])
    rates = [group["lr"] for group in optimizer.param_groups]
    weights = network.class_weights

    def logits(batch: Batch, dropout: float) -> Tensor:
        if "embedding" in batch:
            embedding = network.from_cut(backbone, batch["embedding"])
        else:
            embedding = backbone(batch["input"] if "input" in batch else normalized(batch["pixels"]))
        return head_logits(head, embedding, network.l2_normalize, dropout)

    def normalized(pixels: Tensor) -> Tensor:
        return training_input(backbone, network.preprocessing, pixels)

    set_mode(backbone, network.first_trainable, True, network.batchnorm_moves)
    with torch.random.fork_rng(), torch.enable_grad(), trainer.precision_plugin.forward_context():
        for step, parts in enumerate(training_batches(data, trainer, steps)):
            factor = cosine_with_warmup((step + 0.5) / steps, WARMUP)
            for group, highest in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = factor * highest
            optimizer.zero_grad()
            torch.manual_seed(view_seed(network.order_seed, 0, step))
            for part in parts:
                part = {name: value.to(network.device) for name, value in part.items()}
                batch = mixed(part, data.mixup, data.cutmix, len(network.class_names), normalized)
                found = network.task.losses(logits(batch, network.dropout), batch, weights, options["label_smoothing"])
                losses, _ = weigh_rows(batch, *found)
                torch.autograd.backward(losses.mean() * part.get("scale", 1.0) / len(parts))
            if trainer.gradient_clip_val:
                algorithm = GradClipAlgorithmType(trainer.gradient_clip_algorithm or "norm")
                trainer.precision_plugin.clip_gradients(optimizer, trainer.gradient_clip_val, algorithm)
            optimizer.step()
    set_mode(backbone, network.first_trainable, False)
    sums = [0.0, 0.0]
    with torch.no_grad(), trainer.precision_plugin.forward_context():
        for part in val_batches(data):
            batch = {name: value.to(network.device) for name, value in part.items()}
            losses, weight = network.task.losses(logits(batch, 0.0).float(), batch, weights, 0.0)
            sums = [sums[0] + float(losses.sum()), sums[1] + float(weight.sum())]
    loss = sums[0] / sums[1] if sums[1] else torch.inf
    return loss if loss < torch.inf else torch.inf


def training_batches(data: ImageDataModule, trainer: Trainer, steps: int) -> Iterator[list[Batch]]:
    """Yield the first global batches of a fit, each as the parts of its processes."""
    loader = data.train_dataloader()
    sampler: Any = loader.sampler
    count, items = sampler.num_replicas, []
    for step in range(steps * trainer.accumulate_grad_batches):
        epoch, number = divmod(step, len(sampler))
        if not number:
            sampler.set_epoch(epoch)
            wholes = sampler.wholes()
        parts = [wholes[number][rank::count] for rank in range(count)]
        items += [(epoch, part, len(part) * count / len(wholes[number])) for part in parts]
    batches = iter(loader_of(loader.dataset, items, data.workers()))
    for _ in range(steps):
        yield [next(batches) for _ in range(count * trainer.accumulate_grad_batches)]


def val_batches(data: ImageDataModule) -> Iterator[Batch]:
    """Yield batches of val, of at most :data:`MOST_VAL` images, evenly spaced."""
    dataset = data.val_dataloader().dataset
    rows = list(range(len(data.targets("val"))))[:: -(-len(data.targets("val")) // MOST_VAL)]
    items = [(0, rows[start : start + data.batch_size], 1.0) for start in range(0, len(rows), data.batch_size)]
    yield from loader_of(dataset, items, data.workers())
