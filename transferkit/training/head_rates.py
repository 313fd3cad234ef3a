"""The learning rate and the weight decay of a head on cached embeddings, chosen on val among heads trained at once."""

import itertools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn
from torch.nn import functional as F

from transferkit.data.datamodule import ImageDataModule
from transferkit.data.targets import require_class
from transferkit.errors import UserError
from transferkit.runtime.ranks import joined
from transferkit.training.mixing import weighted_losses
from transferkit.training.optimizers import LR_HEAD, cosine_with_warmup, share_at, warmup_share

log = logging.getLogger(__name__)

AUTO = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)  # of AdamW; SGD with momentum takes ten times as much
BETAS, EPS = (0.9, 0.999), 1e-8  # torch's AdamW
MOST_ROWS = 2**16  # rows of val per product


class Measured(NamedTuple):
    """The best epoch of a head on val.

    Attributes:
        accuracy: on val.
        loss: on val.
        epoch: from 1.
    """

    accuracy: float
    loss: float
    epoch: int


@dataclass
class Heads:
    """R linear heads, trained at once on the same batches by AdamW or SGD, each with a rate and a decay of its own.

    Args:
        weight: (R, K, D + 1) of all heads; the last column is the bias, on which there is no decay.
        lr: (R,) learning rates.
        decay: (R,) weight decays.
        momentum: of SGD; None for AdamW.
        class_weights: (K,) or None.
        smoothing: of the labels, in [0, 1).
    """

    weight: Tensor
    lr: Tensor
    decay: Tensor
    momentum: float | None
    class_weights: Tensor | None
    smoothing: float

    def __post_init__(self) -> None:
        self.step_count = 0
        self.first, self.second = (
            torch.zeros_like(self.weight),
            torch.zeros_like(self.weight),
        )  # moments of the gradient
        self.matrix = self.weight[:, :, :-1]  # without the bias

    def logits(self, rows: Tensor) -> Tensor:
        """Return the class scores of all heads: (B, D + 1) -> (B, R, K)."""
        heads, classes, width = self.weight.shape
        return (rows @ self.weight.view(heads * classes, width).T).view(-1, heads, classes)

    def gradient(self, rows: Tensor, target: Tensor) -> Tensor:
        """Return the gradients of the mean weighted cross-entropy of each head: (R, K, D + 1)."""
        logits = self.logits(rows)  # (B, R, K)
        slope = logits.softmax(2)
        classes = slope.shape[2]
        wanted = F.one_hot(target, classes).to(slope.dtype) * (1 - self.smoothing) + self.smoothing / classes
        slope.sub_(wanted[:, None])
        if self.class_weights is not None:
            slope.mul_(self.class_weights[target][:, None, None])
        return (slope.view(len(rows), -1).T @ rows).view_as(self.weight).div_(len(rows))

    def step(self, rows: Tensor, target: Tensor, factor: float) -> None:
        """Take one step, as torch.optim's AdamW or SGD with Nesterov momentum would with each head.

        Args:
            rows: (B, D + 1), the last column ones.
            target: (B,) class numbers.
            factor: of the schedule, on all rates.
        """
        gradient = self.gradient(rows, target)
        lr = (self.lr * factor)[:, None, None]
        self.step_count += 1
        if self.momentum is not None:
            gradient[:, :, :-1].add_(self.decay[:, None, None] * self.matrix)
            self.first.mul_(self.momentum).add_(gradient)  # the buffer is the first gradient at first
            self.weight.sub_(lr * (gradient.add_(self.first, alpha=self.momentum) if self.momentum else gradient))
            return
        one, two = BETAS
        self.matrix.mul_(1 - lr * self.decay[:, None, None])
        self.first.lerp_(gradient, 1 - one)
        self.second.mul_(two).addcmul_(gradient, gradient, value=1 - two)
        size = self.second.sqrt().div_((1 - two**self.step_count) ** 0.5).add_(EPS)
        self.weight.sub_(torch.div(self.first, size, out=size).mul_(lr / (1 - one**self.step_count)))

    def measure(self, rows: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return accuracy and weighted mean loss of each head: (R,) and (R,)."""
        right, loss, weight = torch.zeros_like(self.lr), torch.zeros_like(self.lr), torch.zeros_like(self.lr)
        for part, wanted in zip(torch.split(rows, MOST_ROWS), torch.split(target, MOST_ROWS), strict=True):
            for number, logits in enumerate(self.logits(part).unbind(1)):
                losses, weights = weighted_losses(logits, {"target": wanted}, self.class_weights, 0.0)
                right[number] += (logits.argmax(1) == wanted).sum()
                loss[number] += losses.sum()
                weight[number] += weights.sum()
        return right / len(target), loss / weight


def train_heads(
    heads: Heads,
    views: Sequence[Tensor],
    target: Tensor,
    val: Tensor,
    val_target: Tensor,
    epochs: Sequence[Sequence[tuple[Tensor, float]]],
) -> list[Measured]:
    """Train heads at once, and return the best epoch of each on val; of equal ones the first.

    Args:
        heads: changed in place.
        views: embeddings (N, D) of each view; an epoch has one of them.
        target: (N,) class numbers.
        val: embeddings (M, D).
        val_target: (M,) class numbers.
        epochs: row numbers of each batch, and the factor of the schedule, by epoch.
    """
    sides = [F.pad(view, (0, 1), value=1.0) for view in views]
    held = F.pad(val, (0, 1), value=1.0)
    best: list[Measured] = []
    for epoch, batches in enumerate(epochs):
        side = sides[epoch % len(sides)]
        for rows, factor in batches:
            heads.step(side[rows], target[rows], factor)
        accuracy, loss = heads.measure(held, val_target)
        pairs = zip(accuracy.tolist(), loss.nan_to_num(torch.inf).tolist(), strict=True)
        found = [Measured(*pair, epoch + 1) for pair in pairs]
        best = [max(pair, key=order) for pair in zip(best, found, strict=True)] if best else found
    return best


def order(head: Measured) -> tuple[float, float]:
    """Return what ``best.ckpt`` is chosen by: the accuracy, then the loss."""
    return head.accuracy, -head.loss


def candidates(options: Mapping[str, Any]) -> list[tuple[float | None, float]]:
    """Return the learning rates and weight decays of the head to choose from, in every combination; often only one.

    Raises:
        UserError: there are several, and the backbone learns, or the head is solved for.
    """
    rates, decays = options["lr_head"], options["weight_decay"]
    if rates == "auto":
        rates = [rate * (10 if options["optimizer"] == "sgd" else 1) for rate in AUTO]
    if isinstance(decays, list) and rates is None:
        rates = LR_HEAD
    several = [name for name, value in (("lr_head", rates), ("weight_decay", decays)) if isinstance(value, list)]
    if several and options["regime"] != "frozen":
        raise UserError(
            f'`{several[0]}={options[several[0]]}` is for `regime="frozen"`, whose heads learn at once on cached '
            f"embeddings; with {options['regime']} give one number"
        )
    if several and options["optimizer"] == "lbfgs":
        raise UserError(f'`{several[0]}` is for gradient steps, not `optimizer="lbfgs"`; leave one of the two out')
    return list(itertools.product(*(value if isinstance(value, list) else [value] for value in (rates, decays))))


def check_choice(options: Mapping[str, Any], data: ImageDataModule, trainer: Trainer) -> None:
    """Raise if a fit differs from what :func:`train_heads` does.

    Raises:
        UserError: naming the options.
    """
    require_class(data.kind, "a choice of `lr_head` or `weight_decay`")
    others = {
        "`dropout`": bool(options["dropout"]),
        "`ema`": options["ema"] is not None,
        "`mixup`": bool(data.mixup),
        "`sample_weights`": data.sample_weights is not None,
        "`accumulate_grad_batches`": trainer.accumulate_grad_batches != 1,
        "`gradient_clip_val`": bool(trainer.gradient_clip_val),
        "`limit_train_batches`": trainer.limit_train_batches != 1.0,
        "`cache=off` and augmentation": "train" not in data.features or "val" not in data.features,
    }
    if given := [name for name, is_given in others.items() if is_given]:
        raise UserError(
            f"a choice of `lr_head` or `weight_decay` needs cached embeddings and plain steps, without {given[0]}; "
            "leave that out, or give one number each"
        )


def choose_rates(
    head: nn.Linear,
    options: Mapping[str, Any],
    data: ImageDataModule,
    trainer: Trainer,
    class_weights: Tensor | None,
    l2_normalize: bool,
) -> dict[str, float]:
    """Return ``lr_head`` and ``weight_decay`` of the head that is best on val; the same in all processes.

    Args:
        head: that the fit starts from.
        options: arguments of the module.
        data: with cached embeddings.
        trainer: of the fit.
        class_weights: (K,) or None.
        l2_normalize: whether the head reads L2-normalized embeddings.

    Raises:
        UserError: an option of the fit does not go with it, or all heads diverge.
    """
    check_choice(options, data, trainer)
    tried = candidates(options)
    several_decays = isinstance(options["weight_decay"], list)

    @torch.no_grad()
    def choose() -> dict[str, float]:
        device = head.weight.device
        read = {
            name: [embeddings(view, l2_normalize, device) for view in views] for name, views in data.features.items()
        }
        targets = {name: data.targets(name).to(device) for name in ("train", "val")}
        start = torch.cat([head.weight, head.bias[:, None]], 1).float()
        lr, decay = (torch.tensor(values, device=device) for values in zip(*tried, strict=True))
        weights = None if class_weights is None else class_weights.to(device)
        momentum = options["momentum"] if options["optimizer"] == "sgd" else None
        heads = Heads(start.repeat(len(tried), 1, 1), lr, decay, momentum, weights, options["label_smoothing"])
        epochs = batches_of(data, trainer, options["warmup_epochs"], device)
        found = train_heads(heads, read["train"], targets["train"], read["val"][0], targets["val"], epochs)
        best = max(range(len(found)), key=lambda number: order(found[number]))
        names = [f"{rate:g} with decay {of:g}" if several_decays else f"{rate:g}" for rate, of in tried]
        listing = ", ".join(f"{name} {row.accuracy:.4f}" for name, row in zip(names, found, strict=True))
        log.info("the head learns at %s; val/acc by rate: %s", names[best], listing)
        chosen, weight_decay = tried[best]
        assert chosen is not None  # several decays alone are tried at the default rate
        return {"lr_head": chosen, "weight_decay": weight_decay}

    with joined() as ranks:
        return ranks.from_first(choose)


def embeddings(rows: Tensor, l2_normalize: bool, device: torch.device) -> Tensor:
    """Return what a head reads of cached embeddings (N, D)."""
    rows = rows.to(device).float()
    return F.normalize(rows) if l2_normalize else rows


def batches_of(
    data: ImageDataModule, trainer: Trainer, warmup_epochs: float, device: torch.device
) -> list[list[tuple[Tensor, float]]]:
    """Return rows and factor of the schedule of each global batch of a fit, by epoch."""
    sampler: Any = data.train_dataloader().sampler
    count, steps, epochs = len(sampler), trainer.max_steps, trainer.max_epochs
    warmup, found = warmup_share(trainer, count, warmup_epochs), []
    total = min(number for number in (steps, (epochs or -1) * count) if number > 0)
    for epoch in range(-(-total // count)):
        sampler.set_epoch(epoch)
        rows = [torch.tensor(whole, device=device) for whole in sampler.wholes()][: total - epoch * count]
        shares = [share_at(trainer, epoch, number, epoch * count + number, count) for number in range(len(rows))]
        found.append([(whole, cosine_with_warmup(share, warmup)) for whole, share in zip(rows, shares, strict=True)])
    return found
