"""Parameter groups: which learning rate and weight decay each trainable parameter gets."""

import math
from typing import Any, Literal

import torch
from lightning.pytorch import Trainer
from torch import nn

from transferkit.backbones import Backbone
from transferkit.errors import UserError

NO_DECAY = ("cls_token", "distillation_token", "register_tokens", "position_embeddings", "pos_embedding", "mask_token")


def parameter_groups(
    backbone: Backbone,
    head: nn.Module,
    lr_head: float,
    lr_backbone: float,
    layer_decay: float,
    weight_decay: float,
) -> list[dict[str, Any]]:
    """Groups of the trainable parameters, each parameter in exactly one.

    A backbone parameter of stage i of n learns at ``lr_backbone * layer_decay ** (n - 1 - i)`` (Clark et al.
    2020, arXiv:2003.10555; Bao et al. 2021, arXiv:2106.08254). Norms, biases, class tokens and position
    embeddings are not decayed.

    Returns:
        Dicts with ``name``, ``params``, ``lr`` and ``weight_decay``; ``head`` groups first.
    """
    groups: dict[tuple[str, float, float], list[nn.Parameter]] = {}
    last = len(backbone.stages) - 1
    names = backbone.stage_names
    for prefix, module in (("head", head), ("backbone", backbone.model)):
        for name, parameter in module.named_parameters():
            if not parameter.requires_grad:
                continue
            decay = 0.0 if parameter.ndim <= 1 or name.endswith(NO_DECAY) else weight_decay
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


def make_optimizer(
    kind: Literal["adamw", "sgd"], groups: list[dict[str, Any]], momentum: float, fused: bool = True
) -> torch.optim.Optimizer:
    """AdamW (arXiv:1711.05101) or SGD with Nesterov momentum over the groups.

    Args:
        kind: which of the two.
        groups: of :func:`parameter_groups`.
        momentum: of SGD.
        fused: let AdamW update all parameters at once where the device can.
    """
    if kind == "sgd":
        return torch.optim.SGD(groups, lr=0.0, momentum=momentum, nesterov=momentum > 0)
    kinds = {parameter.device.type for group in groups for parameter in group["params"]}
    return torch.optim.AdamW(groups, lr=0.0, fused=fused and kinds <= {"cpu", "cuda"})


def may_fuse(trainer: Trainer) -> bool:
    """Whether an optimizer may be fused: under mixed precision that would also unscale the gradients, too late to clip.

    (Lightning then raises, for bf16 as well, which has no scale.)
    """
    return not (trainer.gradient_clip_val and "mixed" in str(trainer.precision))


def cosine_with_warmup(optimizer: torch.optim.Optimizer, steps: int, warmup: int) -> torch.optim.lr_scheduler.LambdaLR:
    """Linear warm-up over ``warmup`` steps, then a cosine to zero at ``steps`` (arXiv:1608.03983)."""

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        progress = (step - warmup) / max(1, steps - warmup)
        return 0.5 * (1 + math.cos(min(1.0, progress) * math.pi))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def optimizer_steps(trainer: Trainer, batches: int) -> int:
    """Steps of a whole fit with so many batches an epoch.

    (``trainer.estimated_stepping_batches`` would start the loader, before a resumed fit knows its epoch.)

    Raises:
        UserError: a fit without an end, or one that would never be validated.
    """
    limit = trainer.limit_train_batches
    batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
    every = trainer.val_check_interval
    if isinstance(every, int) and every > batches and trainer.check_val_every_n_epoch:
        raise UserError(f"--trainer.val_check_interval is {every}, an epoch has {batches} batches; give no more")
    limits = [-(-batches // trainer.accumulate_grad_batches) * (trainer.max_epochs or 0), trainer.max_steps]
    limits = [steps for steps, most in zip(limits, (trainer.max_epochs, trainer.max_steps), strict=True) if most != -1]
    if not limits:
        raise UserError("the cosine schedule needs an end; give --trainer.max_epochs or --trainer.max_steps")
    return max(1, min(limits))


def learning_rates(optimizer: Any) -> dict[str, float]:
    """``lr/head`` and ``lr/backbone``, the highest of its stages, from the names of the parameter groups."""
    rates: dict[str, float] = {}
    for group in optimizer.param_groups:
        name = f"lr/{group['name'].split('/')[0]}"
        rates[name] = max(rates.get(name, 0.0), group["lr"])
    return rates
