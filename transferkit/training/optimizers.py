"""Gradient descent: parameter groups with their learning rates and weight decay, optimizers, and the schedule."""

import math
import numbers
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import nn

from transferkit.backbones import Backbone
from transferkit.errors import UserError

# Decayed are matrices that map features to features; not norms, biases, tokens, position tables and scales.
DECAYED = (nn.Linear, nn.modules.conv._ConvNd)
LR_HEAD = 3e-3
LR_ADAPTERS = 1e-3
LR_BATCHNORM, LR_OTHERS = 3e-4, 1e-4  # of a backbone; tests/bench/bench_transfer.py compares rates


def chosen_rates(
    lr_head: float | None,
    lr_backbone: float | Literal["auto"] | None,
    backbone: Backbone,
    regime: str = "full",
    fitted: bool = False,
) -> tuple[float, float]:
    """Return the learning rates of head and backbone, with defaults for None and for a rate yet to be chosen.

    The default of a backbone with BatchNorm is higher than that of a transformer. Adapters begin at zero and learn
    faster than weights. A head that is fitted already learns as fast as a backbone that learns: at the rate of a new
    head, Adam overwrites its small weights in a few steps.
    """
    batchnorm = any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in backbone.modules())
    default = LR_ADAPTERS if regime == "lora" else LR_BATCHNORM if batchnorm else LR_OTHERS
    rate = default if lr_backbone in (None, "auto") else float(lr_backbone)
    return (rate if fitted and regime != "frozen" else LR_HEAD) if lr_head is None else lr_head, rate


def parameter_groups(
    backbone: Backbone,
    head: nn.Module,
    lr_head: float,
    lr_backbone: float,
    layer_decay: float,
    weight_decay: float,
) -> list[dict[str, Any]]:
    """Return groups of the trainable parameters; each parameter is in exactly one.

    A backbone parameter of stage i of n has the learning rate ``lr_backbone * layer_decay ** (n - 1 - i)`` (Clark et
    al. 2020, arXiv:2003.10555; Bao et al. 2021, arXiv:2106.08254). Only weights of linear layers and convolutions
    are decayed.

    Returns:
        Dicts with ``name``, ``params``, ``lr`` and ``weight_decay``; ``head`` groups first.
    """
    groups: dict[tuple[str, float, float], list[nn.Parameter]] = {}
    last = len(backbone.stages) - 1
    names = backbone.stage_names
    decayed = decayed_parameters(head) | decayed_parameters(backbone.model)
    for prefix, module in (("head", head), ("backbone", backbone.model)):
        for name, parameter in module.named_parameters():
            if not parameter.requires_grad:
                continue
            decay = weight_decay if parameter in decayed else 0.0
            if prefix == "head":
                key = ("head", lr_head, decay)
            else:
                stage = backbone.stage_of(name)
                key = (f"backbone/{names[stage]}", lr_backbone * layer_decay ** (last - stage), decay)
            groups.setdefault(key, []).append(parameter)
    return [
        {"name": name + ("" if decay else "/no_decay"), "params": params, "lr": lr, "weight_decay": decay}
        for (name, lr, decay), params in groups.items()
    ]


def decayed_parameters(module: nn.Module) -> set[nn.Parameter]:
    """Return the weights of linear layers and convolutions, found by the type of their module: they are decayed."""
    found: set[nn.Parameter] = set()
    part: Any
    for part in module.modules():
        if isinstance(part, DECAYED) or type(part).__name__ == "Conv1D":  # transformers' linear layer
            found.add(part.weight)
        elif isinstance(part, nn.MultiheadAttention):  # three linear layers, in one tensor if their widths agree
            weights = (part.in_proj_weight, part.q_proj_weight, part.k_proj_weight, part.v_proj_weight)
            found.update(weight for weight in weights if weight is not None)
    return found


def make_optimizer(
    kind: Literal["adamw", "sgd"], groups: list[dict[str, Any]], momentum: float, fused: bool = True
) -> torch.optim.Optimizer:
    """Return AdamW (arXiv:1711.05101) or SGD with Nesterov momentum over parameter groups.

    Args:
        kind: which of the two.
        groups: as :func:`parameter_groups` returns them.
        momentum: of SGD.
        fused: let AdamW update all parameters in one kernel if the device supports it.
    """
    if kind == "sgd":
        return torch.optim.SGD(groups, lr=0.0, momentum=momentum, nesterov=momentum > 0)
    kinds = {parameter.device.type for group in groups for parameter in group["params"]}
    return torch.optim.AdamW(groups, lr=0.0, fused=fused and kinds <= {"cpu", "cuda"})


def may_fuse(trainer: Trainer) -> bool:
    """Return whether the optimizer may be fused: not if gradients are clipped under mixed precision.

    A fused optimizer unscales them itself, after clipping. (Lightning raises, also for bf16, which has no scale.)
    """
    return not (trainer.gradient_clip_val and "mixed" in str(trainer.precision))


def cosine_with_warmup(progress: float, warmup: float) -> float:
    """Return the factor on the learning rates, in (0, 1].

    Args:
        progress: share of the training that is done, in (0, 1).
        warmup: share of the training that is warm-up, in [0, 1).
    """
    if progress < warmup:
        return progress / warmup
    return 0.5 * (1 + math.cos((progress - warmup) / (1 - warmup) * math.pi))


class CosineWithWarmup(torch.optim.lr_scheduler.LRScheduler):
    """Linear warm-up, then a cosine to zero (arXiv:1608.03983), by the share of the training that is done.

    It has no step count and no state: a fit that is resumed with another number of steps per epoch, or extended,
    continues at the rates of its new length.

    Attributes:
        factor: on the learning rate of every group, in (0, 1].
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.factor = 1.0
        super().__init__(optimizer)

    def follow(self, trainer: Trainer, batch: int, warmup_epochs: float) -> None:
        """Set the learning rates for a batch of the current epoch."""
        self.set_progress(
            progress_of(trainer, batch), warmup_share(trainer, trainer.num_training_batches, warmup_epochs)
        )

    def set_progress(self, progress: float, warmup: float) -> None:
        """Set the learning rates of the next step.

        Args:
            progress: share of the training that is done, in (0, 1).
            warmup: share of the training that is warm-up, in [0, 1).
        """
        self.factor = cosine_with_warmup(progress, warmup)
        for group, rate in zip(self.optimizer.param_groups, self.get_lr(), strict=True):
            group["lr"] = rate

    def get_lr(self) -> list[float]:  # type: ignore[override]
        """Return the learning rate of each group."""
        return [self.factor * float(rate) for rate in self.base_lrs]

    def replace_rates(self, groups: Sequence[Mapping[str, Any]]) -> None:
        """Use the learning rates of other groups of the same parameters."""
        self.base_lrs = [group["lr"] for group in groups]

    def state_dict(self) -> dict[str, Any]:
        """Return an empty dict: there is no state."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Do nothing: there is no state."""


def group_rates(backbone: Backbone, head: nn.Module, options: Mapping[str, Any], fitted: bool) -> list[dict[str, Any]]:
    """Return the parameter groups of a module with these options and a head that is fitted or new."""
    rates = chosen_rates(options["lr_head"], options["lr_backbone"], backbone, options["regime"], fitted)
    return parameter_groups(backbone, head, *rates, options["layer_decay"], options["weight_decay"])


def gradient_descent(
    backbone: Backbone, head: nn.Module, options: Mapping[str, Any], trainer: Trainer, fitted: bool
) -> OptimizerLRScheduler:
    """Return AdamW or SGD over the trainable parameters, and its schedule, as Lightning takes them.

    Args:
        backbone: the network, some of its stages frozen.
        head: the linear layer on its embeddings.
        options: arguments of a TransferModule.
        trainer: of the fit.
        fitted: whether the head is fitted already.
    """
    groups = group_rates(backbone, head, options, fitted)
    kind: Literal["adamw", "sgd"] = "sgd" if options["optimizer"] == "sgd" else "adamw"
    optimizer = make_optimizer(kind, groups, options["momentum"], fused=may_fuse(trainer))
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": CosineWithWarmup(optimizer), "interval": "step"}}


def progress_of(trainer: Trainer, batch: int) -> float:
    """Return the share of a fit that is done in the middle of a batch of the current epoch, in (0, 1)."""
    return share_at(trainer, trainer.current_epoch, batch, trainer.global_step, trainer.num_training_batches)


def share_at(trainer: Trainer, epoch: int, batch: int, step: int, batches: float) -> float:
    """Return the share of a fit that is done in the middle of a batch, in (0, 1).

    Args:
        trainer: of the fit.
        epoch: from 0.
        batch: within the epoch, from 0.
        step: of the optimizer, from 0.
        batches: number per epoch.
    """
    shares = []
    if trainer.max_epochs is not None and trainer.max_epochs > 0:
        shares.append((epoch + (batch + 0.5) / batches) / trainer.max_epochs)
    if trainer.max_steps > 0:
        shares.append((step + 0.5) / trainer.max_steps)
    return min(max(shares), 1.0)


def warmup_share(trainer: Trainer, batches: float, epochs: float) -> float:
    """Return the share of a fit that the given epochs of warm-up take, at most half; an epoch has ``batches``."""
    per_epoch = batches / trainer.accumulate_grad_batches
    length = [float(trainer.max_epochs)] if trainer.max_epochs is not None and trainer.max_epochs > 0 else []
    if trainer.max_steps > 0:
        length.append(trainer.max_steps / per_epoch)
    return min(epochs / min(length), 0.5)


def check_length(trainer: Trainer, batches: int) -> None:
    """Raise if a fit has a schedule without end, trains nothing, or would never be validated.

    Args:
        trainer: of the fit.
        batches: number per epoch, before ``limit_train_batches``.

    Raises:
        UserError: naming the argument.
    """
    limit = trainer.limit_train_batches
    lengths = {"max_epochs": trainer.max_epochs, "max_steps": trainer.max_steps, "limit_train_batches": limit}
    if nothing := next((name for name, length in lengths.items() if length == 0), None):
        raise UserError(f"`{nothing}` is 0, which trains nothing; give more")
    if getattr(trainer, "overfit_batches", 0):  # set in its constructor
        raise UserError("`overfit_batches` shuffles differently from transferkit; give `n_per_class` instead")
    batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
    every = getattr(trainer, "val_check_interval", None)  # which a Trainer lacks that validates by the clock
    if isinstance(every, int) and every > batches and trainer.check_val_every_n_epoch:
        raise UserError(f"`val_check_interval` is {every}, an epoch has {batches} batches; give no more")
    if trainer.max_epochs == trainer.max_steps == -1:
        raise UserError("the cosine schedule needs an end; give `max_epochs` or `max_steps`")


def learning_rates(optimizer: Any) -> dict[str, float]:
    """Return ``lr/head`` and ``lr/backbone``, the highest of its stages, by the names of the parameter groups."""
    rates: dict[str, float] = {}
    for group in optimizer.param_groups:
        name = f"lr/{group['name'].split('/')[0]}"
        rates[name] = max(rates.get(name, 0.0), group["lr"])
    return rates


def check_ranges(**options: Any) -> None:
    """Raise if a number cannot be used for training.

    Args:
        options: the arguments of a TransferModule that have a range, and its regime.

    Raises:
        UserError: naming the argument and its range.
    """
    for name in ("lr_head", "lr_backbone", "weight_decay", "warmup_epochs"):
        if options[name] is None or (name in ("lr_head", "lr_backbone") and options[name] == "auto"):
            continue
        several = options[name] if isinstance(options[name], list) else [options[name]]
        if any(isinstance(value, bool) or not isinstance(value, numbers.Real) for value in several):
            raise UserError(f"`{name}` is {options[name]!r}; give a number")
        if not several or not all(0 <= value < math.inf for value in several):
            raise UserError(f"`{name}` is {options[name]}; give a number from 0 up")
    if options["lr_backbone"] == "auto" and options["regime"] == "frozen":
        raise UserError('`lr_backbone="auto"` is for a backbone that learns; leave it out, or give another `regime`')
    for name in ("momentum", "label_smoothing", "dropout", "ema"):
        if options[name] is not None and not 0 <= options[name] < 1:
            raise UserError(f"`{name}` is {options[name]}; give a number in [0, 1)")
    if not 0 < options["layer_decay"] <= 1:
        raise UserError(f"`layer_decay` is {options['layer_decay']}; give a number in (0, 1], 1 for none")
